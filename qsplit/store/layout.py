"""Names of files below a store that housekeeping may remove: those that qsplit and Lance write, and nothing by a link.

Lance removes whatever is named like a file of its own, and in `_indices` whatever there is. On a local disk it follows
links, and so do listings by obstore: a link to a folder of documents would have them removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from qsplit.errors import StoreError
from qsplit.store.object_storage import is_remote, sizes

__all__ = ["SHARDS", "check_removable", "files_below", "is_note"]

SHARDS = "_shards"
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DATA = rf"([01]{{24}}[0-9a-f]{{26}}|{_UUID})"
# Files that Lance takes for its own, and those among them that it writes; paths below a table's folder.
_TAKEN = re.compile(r"data/.*\.(lance|blob)|_indices/.*|_transactions/.*\.txn|_deletions/.*\.(arrow|bin)", re.DOTALL)
_WRITTEN = re.compile(
    rf"data/{_DATA}(\.lance|/[01]{{32}}\.blob)|_indices/{_UUID}/.*|_transactions/\d+-{_UUID}\.txn"
    r"|_deletions/\d+-\d+-\d+\.(arrow|bin)",
    re.DOTALL,
)
_NOTE = re.compile(rf"{SHARDS}/[0-9a-f]+(\.done|\.trial|/\d{{9}}\.piece)")


def check_removable(uri: str) -> None:
    """Raise `StoreError` where housekeeping of the store would remove what is not the store's own.

    That is behind a link anywhere below its tables and notes, or a file in a table's folder that Lance has not written
    and would take for its own. The folder of the store may be a link itself.
    """
    path = uri.removeprefix("file://")
    paths = sizes(uri) if is_remote(uri) else [] if "://" in path else _of_store(Path(path))
    for one in paths:
        _, found, rest = one.partition(".lance/")
        if found and _TAKEN.fullmatch(rest) and not _WRITTEN.fullmatch(rest):
            raise StoreError(
                f"{one!r} in the store {uri} was written neither by qsplit nor by Lance; housekeeping would remove it.",
                fix="Move it out of the store, then run the command again.",
            )


def is_note(path: str) -> bool:
    """Whether a path below a store is one that a note of a shard can have."""
    return _NOTE.fullmatch(path) is not None


def files_below(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    """Every file below ``folder / name``, none if there is no such folder.

    Raises `StoreError` for a link on the way, be it to a file or a folder.
    """
    start = folder / name
    if start.is_symlink():
        raise _linked(start)
    waiting = [str(start)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):  # others may be tidying up as well
            continue
        for entry in found:
            if entry.is_symlink():
                raise _linked(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry


def _of_store(folder: Path) -> Iterator[str]:
    names = (path.name for path in folder.iterdir() if path.suffix == ".lance" or path.name == SHARDS)
    start = len(os.path.join(folder, ""))  # noqa: PTH118  # of many files, each a path is made of: as text
    return (entry.path[start:].replace(os.sep, "/") for name in names for entry in files_below(folder, name))


def _linked(link: Path) -> StoreError:
    return StoreError(
        f"{link} is a link; housekeeping removes files, and none behind a link.",
        fix="Put what it leads to in its place, or move the whole store and link the folder of the store alone.",
    )
