"""Rules on which file of a duplicate group may go to the trash in favour of the one that is kept.

A rule reads the files as they are now. It never allows what the kind of the group does not, it only withholds:

- copies are moved only if the caller named the kind ``copy``, and not if both files say when they were taken and
  differ: two shots are no copies, by whatever time they are apart;
- files of the same pixels must agree in all that `qsplit.duplicates.content` reads beside the pixels;
- a RAW, the still or film of a Live Photo, and whatever lies in or is kept in a folder that another program empties or
  fills by itself are never moved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Literal

from qsplit.config import Settings
from qsplit.duplicates.content import differences, fraction_of, read_content
from qsplit.errors import ImageError
from qsplit.media.images import Limits
from qsplit.media.raw import is_raw

__all__ = ["MOVED_KINDS", "is_managed", "reason_to_stay"]

MOVED_KINDS: tuple[Literal["exact", "pixels"], ...] = ("exact", "pixels")  # moved unless other kinds are named

# Folders of thumbnails and recycle bins, by the programs that make them; in lower case, as patterns.
_MANAGED = (
    "@eadir", "#recycle", "$recycle.bin", "recycler", ".trash*",
    "@recycle", ".@__thumb", ".thumbnails", ".stversions", ".dtrash",
)  # fmt: skip
_STILLS = (".heic", ".heif", ".hif", ".jpg", ".jpeg")
_FILMS = (".mov",)
_SETTLED = 2_000_000_000  # nanoseconds: the coarsest times of file systems


def reason_to_stay(
    kind: str,
    path: str,
    keep: str,
    *,
    taken_at: tuple[datetime | None, datetime | None] = (None, None),
    kinds: Collection[str] = MOVED_KINDS,
) -> str | None:
    """Return why a file must not go to the trash in favour of another, or None if it may.

    Args:
        kind: how the two were found to be duplicates: exact, pixels, copy or similar.
        path: the file to move.
        keep: the file to keep.
        taken_at: when each was taken, as far as the store knows.
        kinds: the kinds of which files are to be moved.
    """
    if kind not in kinds or kind == "similar":
        return _NOT_ASKED_FOR.get(kind, f"Files of the kind {kind} are not to be moved.")
    try:
        return next((reason for rule in _RULES if (reason := rule(kind, path, keep, taken_at))), None)
    except ImageError as error:
        return f"It cannot be compared with the file to keep: {error}"
    except OSError as error:
        return f"It cannot be compared with the file to keep: {error.strerror or error}."


_NOT_ASKED_FOR = {
    "copy": "Copies are moved only if the kind copy is chosen (--kind copy).",
    "similar": "It is another shot, not a copy.",
}

_Times = tuple[datetime | None, datetime | None]


def _in_managed_folder(_kind: str, path: str, keep: str, _taken_at: _Times) -> str | None:
    for name, called in ((keep, "The file to keep"), (path, "It")):
        if folder := is_managed(name) or is_managed(os.path.realpath(name)):  # a link may lead there
            return f"{called} lies in {folder}, which another program empties or fills."
    return None


def _raw(_kind: str, path: str, _keep: str, _taken_at: _Times) -> str | None:
    return "It is a RAW file." if is_raw(path) else None


def _live_photo(_kind: str, path: str, _keep: str, _taken_at: _Times) -> str | None:
    partner = next(_partners(Path(path)), None)
    return f"It belongs to a Live Photo: {partner.name} lies beside it." if partner else None


def _other_instants(kind: str, path: str, keep: str, taken_at: _Times) -> str | None:
    if kind != "copy" or None in taken_at:
        return None
    differ = taken_at[0] != taken_at[1]
    if not differ:
        fractions = {fraction_of(path), fraction_of(keep)} - {""}
        differ = len(fractions) > 1
    return "Both files say when they were taken, and the times differ." if differ else None


def _other_content(kind: str, path: str, keep: str, _taken_at: _Times) -> str | None:
    if kind != "pixels":
        return None
    limits = Limits.from_settings(Settings.from_env())
    found = differences(read_content(path, limits), read_content(keep, limits))
    return f"It differs from the file to keep: {', '.join(found)}." if found else None


_Rule = Callable[[str, str, str, _Times], str | None]
_RULES: tuple[_Rule, ...] = (_in_managed_folder, _raw, _live_photo, _other_instants, _other_content)


def is_managed(path: str) -> str:
    """Return the part of a path that names a folder or file which another program empties or fills; else empty.

    >>> is_managed("/photos/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"), is_managed("/photos/eaDir/a.jpg")
    ('@eaDir', '')
    """
    parts = Path(path).parts
    return next((part for part in parts if any(fnmatch(part.lower(), pattern) for pattern in _MANAGED)), "")


def _partners(path: Path) -> Iterator[Path]:
    """The film of a Live Photo's still, or the still of its film: of the same stem, as phones and exports name them."""
    suffix, stem = path.suffix.lower(), path.stem.casefold()
    wanted = _FILMS if suffix in _STILLS else _STILLS[:3] if suffix in _FILMS else ()
    stems = (stem, f"{stem}_hevc") if suffix in _STILLS else (stem, stem.removesuffix("_hevc"))
    names = {f"{one}{ending}" for one in stems for ending in wanted}
    if names:
        yield from (path.with_name(name) for name in _names_in(path.parent) if name.casefold() in names)


def _names_in(folder: Path) -> tuple[str, ...]:
    """The names in a folder; listed again only when it has changed, as many files of it are asked about in turn."""
    changed = folder.stat().st_mtime_ns
    if time.time_ns() - changed < _SETTLED:  # what comes next may get the same time
        return _listed.__wrapped__(folder, changed)
    return _listed(folder, changed)


@lru_cache(maxsize=64)
def _listed(folder: Path, _changed: int) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))
