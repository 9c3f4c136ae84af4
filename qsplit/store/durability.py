"""What a commit leaves on a local disk: whole files that a power cut spares, or nothing.

Lance waits for no disk, and takes a file for written whose last write failed: a full disk leaves a version whose files
end too early. So the writers of one machine take turns, and each looks at the files of its version, flushes them, and
otherwise takes the version back. What a crash left between a commit and that look is taken back by the next writer.
Object storage needs none of this: there an upload is whole or fails, and a `Disk` of one does nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: its writers race for commits instead, as those of several machines do
    fcntl = None  # type: ignore[assignment]

from qsplit.errors import StoreError
from qsplit.store.payload_reader import FRAGMENT, OUTSIDE, folder_of

__all__ = ["Disk"]

LOCK = "writers.lock"
TABLES = (
    "files.lance", "images.lance", "features.lance", "vectors-*.lance", "checks.lance", "landmarks.lance",
    "pairs.lance", "compared.lance", "decisions.lance", "semantics.lance",
)  # fmt: skip
MAGIC = b"LANC"  # the last bytes of a manifest
_BLOB = "lance.blob.v2"
_WHOLE = "[!.]*"  # a file that another writer has not finished has a name with a dot, and soon another one
_MANIFEST = re.compile(r"\d{20}\.manifest")
_NEWEST = 2**64 - 1  # manifests are named by what is left to it, so that the newest is listed first
_HELD = threading.local()  # .locks: device and inode of each file that this thread has locked, or cannot -> whether


class Disk:
    """The files of the tables of the store at ``uri``; ``dataset`` below is a table's newest version in pylance."""

    def __init__(self, uri: str) -> None:
        path = uri.removeprefix("file://")
        self.folder = None if "://" in path else Path(path)
        self._whole: dict[str, int] = {}  # table -> its highest fragment that was looked at
        self._flushed: dict[str, set[Path]] = {}  # table -> files that tell which rows are deleted, and indexes
        self.alone = False  # whether this is a turn in which no other writer commits

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the other writers of this machine, and the other threads of this process, from committing meanwhile.

        A turn within a turn of the same thread is part of it, also if another `Disk` of the same store began that.
        """
        if self.folder is None or fcntl is None:
            yield
            return
        with _locked(self.folder / LOCK) as alone:
            before, self.alone = self.alone, alone
            try:
                yield
            finally:
                self.alone = before

    def drop_torn(self) -> None:
        """Remove the newest manifests of each table as far as a power cut has left them in pieces."""
        tables = [path for pattern in TABLES for path in self.folder.glob(pattern)] if self.folder else []
        if any(map(_torn, tables)):
            with self.turn():
                for manifest in (manifest for table in tables for manifest in _torn(table)):
                    manifest.unlink()

    def mend(self, table: str, dataset: Any) -> None:
        """Take back what a writer that crashed has left too short; older damage is for others to find and to tell."""
        if self.folder is None:
            return
        if short := _short(_root(dataset), self._unseen(table, dataset)):
            dataset = _take_back(dataset, short)
        self._whole[table] = _highest(dataset)

    def settle(self, table: str, dataset: Any, *, rewritten: bool = False) -> None:
        """Flush what a commit wrote; ``rewritten`` says that fragments of before got new files.

        Raises `StoreError` if files are too short; the commit has been taken back then.
        """
        if self.folder is None:
            return
        root = _root(dataset)
        fragments = dataset.get_fragments() if rewritten else self._unseen(table, dataset)
        if short := _short(root, fragments) or _short_blobs(dataset, fragments):
            _take_back(dataset, short)
            raise StoreError(
                f"{', '.join(sorted(short))} ended too early; nothing of it was kept. The disk is full or failing.",
                fix="Make room or look at the disk, then run the command again.",
            )
        beside = {*(root / "_deletions").glob(_WHOLE), *(root / "_indices").glob(f"*/{_WHOLE}")}
        fresh = [root / "data" / name for name in _names(fragments)]
        folders = [root / "_versions", root] if os.name == "posix" else []  # elsewhere a folder is no file
        told = beside - self._flushed.get(table, set())
        _flush([*fresh, *_beside(fresh), *told, *_manifests(root)[:1], *folders])
        self._flushed[table] = beside
        self._whole[table] = _highest(dataset)

    def _unseen(self, table: str, dataset: Any) -> list[Any]:
        return [one for one in dataset.get_fragments() if one.fragment_id > self._whole.get(table, -1)]


def _opened(path: str, flags: int) -> int:
    """Open the lock, which is a file of this folder: a link would make a file elsewhere, and a pipe be waited for."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a pipe, a folder
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    raise StoreError(f"{path} is not a regular file; writers take turns by it.", fix="Remove it; it is made anew.")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether a file is locked for this thread, as soon as it is; no on a file system that has no locks.

    By another handle the thread would wait for itself, so what it has locked already it enters again.
    """
    held: dict[tuple[int, int], bool] = vars(_HELD).setdefault("locks", {})
    with open(path, "ab", opener=_opened) as lock:  # Path.open takes no opener
        found = os.fstat(lock.fileno())
        file = found.st_dev, found.st_ino
        if file in held:
            yield held[file]
            return
        held[file] = _lock(lock)
        try:
            yield held[file]
        finally:
            del held[file]


def _lock(file: BinaryIO) -> bool:
    """Wait for a lock; without them writers of one machine race, as those of several machines do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _root(dataset: Any) -> Path:
    return Path(dataset.uri.removeprefix("file://"))


def _highest(dataset: Any) -> int:
    return max((one.fragment_id for one in dataset.get_fragments()), default=-1)


def _names(fragments: Iterable[Any]) -> set[str]:
    return {file.path for fragment in fragments for file in fragment.metadata.files}


def _short(root: Path, fragments: Iterable[Any]) -> set[str]:
    """The names of the data files that are gone or end before their end."""
    files = [file for fragment in fragments for file in fragment.metadata.files]
    return {file.path for file in files if _size(root / "data" / file.path) < (file.file_size_bytes or 0)}


def _short_blobs(dataset: Any, fragments: Sequence[Any]) -> set[str]:
    """The names of the data files beside which there are fewer bytes of blobs than they tell of."""
    columns = [field.name for field in dataset.schema if getattr(field.type, "extension_name", "") == _BLOB]
    if not columns or not fragments:
        return set()
    told: Counter[int] = Counter()  # bytes, by fragment
    rows = dataset.scanner(columns=columns, fragments=fragments, with_row_address=True).to_table()
    for column in columns:
        for address, blob in zip(rows["_rowaddr"].to_pylist(), rows[column].to_pylist(), strict=True):
            if blob["kind"] in OUTSIDE:
                told[address >> FRAGMENT] += blob["size"]
    root, found = _root(dataset), set[str]()
    for fragment in (one for one in fragments if told[one.fragment_id]):
        names = _names([fragment])
        if told[fragment.fragment_id] > sum(map(_size, _beside(root / "data" / name for name in names))):
            found |= names
    return found


def _beside(files: Iterable[Path]) -> list[Path]:
    """The files of blobs that belong to data files."""
    return [blob for file in files for blob in folder_of(file).glob("*")]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _torn(root: Path) -> list[Path]:
    """The newest manifests, as far as they are in pieces; none where a link leads elsewhere, to files of others."""
    if root.is_symlink() or (root / "_versions").is_symlink():
        return []
    return list(takewhile(lambda manifest: manifest.read_bytes()[-len(MAGIC) :] != MAGIC, _manifests(root)))


def _manifests(root: Path) -> list[Path]:
    """The newest first."""
    found = (root / "_versions").glob("*.manifest")
    return sorted(path for path in found if _MANIFEST.fullmatch(path.name) and not path.is_symlink())


def _take_back(dataset: Any, short: set[str]) -> Any:
    """Go back by one version, if that has none of the files that are too short; returns what is newest then."""
    if dataset.version == 1:
        return dataset
    before = dataset.checkout_version(dataset.version - 1)
    if short & _names(before.get_fragments()):
        return dataset
    try:
        before.restore()
    except (OSError, RuntimeError, ValueError):  # there is no room for that either: nothing is written by unlinking
        _manifest(dataset).unlink()
    return before


def _manifest(dataset: Any) -> Path:
    return _root(dataset) / "_versions" / f"{_NEWEST - dataset.version:020}.manifest"


def _flush(files: Iterable[Path]) -> None:
    """Have the disk keep these files and their names."""
    files = list(files)
    folders = {file.parent for file in files} if os.name == "posix" else ()
    for path in (*files, *folders):
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
