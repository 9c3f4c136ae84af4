"""Files that belong to this user: below the user's own data folder, never in a store, which others may write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qsplit.errors import UsageError

__all__ = ["data_home", "make_store_folder", "open_own", "store_folder"]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO would block; regular files ignore it


def data_home() -> Path:
    """Return the folder in which programs of this user keep their data."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def store_folder(store_id: str) -> Path:
    """Return the folder for what this user keeps about a store, found by the store's id; it may not exist yet."""
    return data_home() / "qsplit" / store_id


def make_store_folder(store_id: str) -> Path:
    """Create the folder of a store, readable by this user alone.

    Raises:
        UsageError: It cannot be created.
    """
    folder = store_folder(store_id)
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for one in (folder.parent, folder):
            one.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be written: {error.strerror}.", fix="Set XDG_DATA_HOME."
        ) from error
    return folder


def open_own(path: Path, flags: int) -> int:
    """Open a regular file, never through a link at its name; one that is created is readable by this user alone.

    Returns:
        The file descriptor.

    Raises:
        OSError: The path cannot be opened, or is not a regular file.
    """
    handle = os.open(path, flags | _NO_LINK | getattr(os, "O_CLOEXEC", 0), 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "not a regular file")
    return handle
