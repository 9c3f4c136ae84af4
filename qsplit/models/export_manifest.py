"""What an exported half says of the checkpoint it was cut from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from qsplit.errors import CheckpointError

__all__ = ["MANIFEST", "Manifest"]

MANIFEST = "qsplit.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The fingerprints of both halves (``qsplit.json``).

    ``prefix`` is what the names of the folder's tensors have lost: plain transformers classes know them without it.
    """

    vision_weights: str
    language_weights: str
    prefix: str = ""
    version: int = 1

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder, or None; raises `CheckpointError` if it is there and makes no sense."""
        path = folder / MANIFEST
        if not path.exists():
            return None
        try:
            manifest = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is no qsplit manifest: {error}.") from error
        if manifest.version != 1:
            raise CheckpointError(f"{path} has version {manifest.version}; this qsplit reads version 1.")
        return manifest
