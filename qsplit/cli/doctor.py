"""What is installed and reachable, and what would fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import torch

from qsplit.album import Album
from qsplit.errors import NotFound, QsplitError
from qsplit.media.pillow_backend import formats
from qsplit.models.checkpoint import has_bfloat16
from qsplit.models.families import Half

__all__ = ["Check", "diagnose"]

_PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "lancedb", "pylance", "pyarrow", "pillow")
_OF_THE_SERVICE = ("fastapi", "jinja2", "prometheus_client", "python_multipart", "uvicorn")
_SECURE_PILLOW = 12  # earlier ones have known holes in their decoders


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` is the next step where it is not ``ok``."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def diagnose(album: Album) -> list[Check]:
    """Look at packages, devices, image formats, both halves of the album's checkpoint, and its store; nothing is
    loaded.
    """
    return [*_packages(), *_devices(), _formats(), _service(), *_halves(album), _store(album)]


def _packages() -> Iterator[Check]:
    yield Check(
        "python", sys.version_info >= (3, 11), sys.version.split()[0], "" if sys.version_info >= (3, 11) else "3.11"
    )
    for name in _PACKAGES:
        version = metadata.version(name)
        old = name == "pillow" and int(version.split(".")[0]) < _SECURE_PILLOW
        yield Check(name, not old, version, "Run `pip install --upgrade pillow`." if old else "")


def _devices() -> Iterator[Check]:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    yield Check("devices", True, ", ".join([*names, f"cpu ({torch.get_num_threads()} threads)"]))


def _formats() -> Check:
    found = [*formats(), *(["videos"] if find_spec("av") else [])]
    lacks = []
    if "HEIF" not in found:
        lacks.append("HEIC pictures need `pip install 'qsplit[heif]'`.")
    if "videos" not in found:
        lacks.append("Videos need `pip install 'qsplit[video]'`.")
    return Check("image formats", True, ", ".join(found), " ".join(lacks))


def _service() -> Check:
    lacks = [name for name in _OF_THE_SERVICE if find_spec(name) is None]
    fix = "`qsplit serve` needs `pip install 'qsplit[serve]'`." if lacks else ""
    return Check("service", True, f"lacks {', '.join(lacks)}" if lacks else "can be started", fix)


def _halves(album: Album) -> Iterator[Check]:
    halves: tuple[Half, ...] = ("vision", "language")
    for half in halves:
        try:
            checkpoint = album.checkpoint(half)
            present = checkpoint.has(half)
            slow = _slow(album) if present and half == "vision" else ""
            found = (
                f"{checkpoint.name}, {checkpoint.dtype}, {checkpoint.count(half):,} parameters" if present else "absent"
            )
            yield Check(
                f"{half} half", present, found, slow if present else f"{checkpoint.folder} has only the other half."
            )
        except QsplitError as error:
            yield Check(f"{half} half", False, error.message, error.fix)


def _slow(album: Album) -> str:
    """What makes encoding fast on a CPU that does not compute in the model's own dtype."""
    if album.device != "cpu" or album.wanted.dtype != "bfloat16" or has_bfloat16():
        return ""
    return "This CPU has no bfloat16: a store made with `--dtype float32` is filled several times as fast."


def _store(album: Album) -> Check:
    try:
        found = album.status()
    except NotFound as error:
        return Check("store", True, f"none yet at {album.uri}", error.fix)
    except QsplitError as error:
        return Check("store", False, error.message, error.fix)
    return Check("store", True, f"{album.uri}: {found.images} images, {found.features} features, {found.stale} stale")
