"""Thirty photographs in the public domain or under CC0, for examples and tests; ``CREDITS.md`` names each author."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["paths"]


def paths() -> list[Path]:
    """Return the sorted paths of the photographs, all JPEG.

    >>> len(paths()) >= 24
    True
    """
    # wheels are installed unpacked, so the package's resources are plain files
    return sorted(Path(str(files(__package__))).glob("*.jpg"))
