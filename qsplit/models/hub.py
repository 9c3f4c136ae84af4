"""Download from a model hub no more than one half of a checkpoint needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from qsplit.errors import CheckpointError
from qsplit.models.families import Half, family_of, files_of_half

__all__ = ["INDEX", "PROCESSOR", "SINGLE", "SMALL_FILES", "download", "read_json"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PROCESSOR = "processor_config.json"
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]


def download(repo: str, revision: str, half: Half) -> Path:
    """The folder of a snapshot that holds the small files and the shards of one half, and no others.

    Raises `CheckpointError` if the hub cannot be reached or has no such checkpoint.
    """

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))

    try:
        folder = fetch(SMALL_FILES)
        files = [SINGLE]
        if (folder / INDEX).exists():
            family = family_of(read_json(folder / "config.json"), folder)
            files = files_of_half(family, read_json(folder / INDEX)["weight_map"], half)
        return fetch([*SMALL_FILES, *files])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repo!r} is no folder here and cannot be downloaded: {error}",
            fix="Check the name and the connection, or give the path of a downloaded checkpoint.",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file; raises `CheckpointError` if there is none."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return content
