"""The settings of one run, and the only place that reads ``QSPLIT_*`` from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from qsplit.errors import UsageError

__all__ = ["Settings", "folder_or_id"]

PREFIX = "QSPLIT_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside; each field is also ``QSPLIT_<FIELD>`` in the environment.

    ``model``, ``dtype`` and ``device`` empty mean: what the store records, then the bundled checkpoint, the
    checkpoint's own dtype, and the best device present.

    >>> Settings.from_env({"QSPLIT_STORE": "trip.qsplit"}).store
    'trip.qsplit'
    """

    store: str = "album.qsplit"
    model: str = ""
    device: str = ""
    dtype: str = ""
    language: str = ""
    cache: str = str(Path.home() / ".cache" / "qsplit")
    max_image_bytes: int = 512 * 1024**2
    max_image_pixels: int = 200_000_000
    max_video_frames: int = 64
    language_key: str = field(default="", repr=False)  # of the server that `language` is the address of
    keys: str = field(default="", repr=False)  # of a service, with commas between them
    read_only_keys: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``QSPLIT_*``; raises `UsageError` for a name or a number that means nothing."""
        environ = os.environ if environ is None else environ
        known = {PREFIX + one.name.upper(): one.name for one in fields(cls)}
        found = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
        for name in found:
            if name not in known:
                raise UsageError(f"{name} is set, but qsplit has no such setting.", fix=f"Use {', '.join(known)}.")
        return cls().with_options(**{known[name]: value for name, value in found.items()})

    def with_options(self, **options: str | int | None) -> Settings:
        """A copy with the options that are not None; raises `UsageError` for a number that is none."""
        changed = {}
        for name, value in options.items():
            if value is None:
                continue
            changed[name] = _positive(name, value) if name.startswith("max_") else str(value)
        return replace(self, **changed)  # type: ignore[arg-type]  # each value was converted by its field's name


def _positive(name: str, value: str | int) -> int:
    try:
        number = int(value)
    except ValueError as error:
        raise UsageError(f"{PREFIX}{name.upper()} is {value!r}, not a whole number.") from error
    if number < 1:
        raise UsageError(f"{PREFIX}{name.upper()} is {number}, but must be at least 1.")
    return number


def folder_or_id(model: str) -> str:
    """Return what a checkpoint is called everywhere: the absolute path of a folder that is there, else its name."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
