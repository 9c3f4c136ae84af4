"""Which files there are: paths, folders and globs -> the files below them, and whether a known one is gone."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qsplit.errors import NotFound
from qsplit.media.images import SUFFIXES
from qsplit.store.lookup import absolute
from qsplit.store.object_storage import is_remote

__all__ = ["check_paths", "find_files", "is_gone", "is_wanted"]


def check_paths(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise `NotFound` for a path that is no file, no folder and no glob that matches; walks nothing."""
    for path in map(absolute, paths):
        if not os.path.lexists(path) and not (glob.has_magic(path) and any(glob.iglob(path, recursive=True))):  # noqa: PTH207  # absolute patterns
            raise NotFound(f"There is no file or folder {path}.", fix="Check the path.")


def find_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    suffixes: frozenset[str] = SUFFIXES,
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """Absolute paths: files as named, folders by suffix and without what is hidden, globs expanded; each once, in
    order.

    ``on_error`` is told of each folder that cannot be looked through. Raises `NotFound` for a name that is nothing of
    these.
    """
    paths = list(paths)
    check_paths(paths)
    seen: set[str] = set()
    for name in paths:
        for path in _expand(absolute(name), suffixes, on_error):
            if path not in seen:
                seen.add(path)
                yield path


def is_wanted(path: str, suffixes: frozenset[str]) -> bool:
    """What was not named itself is taken by its suffix, unless it is hidden or part of a store."""
    parts = Path(path).parts
    return (
        Path(path).suffix.lower() in suffixes
        and not parts[-1].startswith(".")
        and not any(part.endswith(".qsplit") for part in parts[:-1])
    )


def is_gone(path: str) -> bool:
    """Whether there is surely no file; a drive that fails or a folder that may not be read proves nothing.

    Nor does the disk tell of what lies on object storage, or in an archive: `qsplit.indexing.sources` names both.
    """
    archive, inside, _ = path.rpartition("#")
    if is_remote(path) or (inside and not is_gone(archive)):
        return False
    try:
        Path(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _expand(path: str, suffixes: frozenset[str], on_error: Callable[[OSError], None] | None) -> Iterator[str]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _walk(path, suffixes, on_error)
    elif os.path.lexists(path):
        yield path
    else:
        for match in sorted(glob.iglob(path, recursive=True)):  # noqa: PTH207  # absolute patterns
            if os.path.isdir(match):  # noqa: PTH112
                yield from _walk(match, suffixes, on_error)
            elif is_wanted(match, suffixes):
                yield match


def _walk(folder: str, suffixes: frozenset[str], on_error: Callable[[OSError], None] | None) -> Iterator[str]:
    for root, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".qsplit"))
        for name in sorted(names):
            if is_wanted(name, suffixes):
                yield os.path.join(root, name)  # noqa: PTH118
