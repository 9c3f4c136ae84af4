"""Files into the system's trash and back, by a journal that a crash leaves readable.

Nothing is deleted and nothing overwritten. Before a file moves, its own bytes and those of the file that is kept are
hashed again, and the journal says on disk what is about to happen; a run that was cut off is read from the journal and
from what lies where. On Linux and the like the trash is that of the FreeDesktop specification, so that file managers
show it and restore from it; on macOS it is ``~/.Trash``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from qsplit.errors import UsageError
from qsplit.user_data import data_home, open_own

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Moved", "Wanted", "adopt", "move", "take_over", "undo"]

_Step = Literal["moving", "moved", "restoring", "restored", "given up"]
_UNDER_WAY = ("moving", "moved", "restoring")  # steps of a file that is, or may be, in the trash
_NOTE = ".trashinfo"
_LONGEST_NAME = 255  # bytes, where the file system does not say
_LARGEST_JOURNAL = 64 * 1024**2  # bytes of one that lies in a store
_LARGEST_NOTE = 64 * 1024  # bytes
_GONE = "It is no longer in the trash."
_TAKEN = "Another file is at its place."


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to move, and the one that is kept instead, each with the sha256 of the bytes that it must have."""

    path: str
    image_id: str
    kind: str
    keep: str
    keep_id: str


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a file: ``state`` is ``moved``, ``restored``, or ``left`` for the ``reason`` given."""

    path: str
    state: Literal["moved", "restored", "left"]
    trashed: str | None
    kind: str
    keep: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the journal: ``step`` of one file of one run. ``info`` is the trash's own note, if it has any."""

    run: str
    step: _Step
    path: str
    image_id: str
    kind: str
    keep: str
    trashed: str
    info: str


def move(
    journal: Path, wanted: Iterable[Wanted], rule: Callable[[Wanted], str | None] = lambda _: None
) -> Iterator[Moved]:
    """Move files to the trash, one by one; one that is not what it was is left where it is, with the reason.

    ``rule`` is asked right before each file is moved, and returns why it must stay, or None.

    Raises `UsageError` if the journal cannot be written or read, or another process is using it.
    """
    with _Journal(journal) as written:
        yield from _move_all(written, wanted, rule)


def _move_all(written: _Journal, wanted: Iterable[Wanted], rule: Callable[[Wanted], str | None]) -> Iterator[Moved]:
    written.recover()
    run = written.next_run()
    for one in wanted:
        reason = _refused(one) or rule(one)
        if reason is None:
            try:
                yield _move(written, run, one)
                continue
            except OSError as error:
                reason = f"It cannot be moved: {error.strerror or error}."
        yield Moved(one.path, "left", None, one.kind, one.keep, reason)


def undo(journal: Path) -> list[Moved]:
    """Bring back what the last run moved and is still in the trash; nothing that has come to its place is overwritten.

    Each file is on its own: one that cannot be brought back is left in the trash, with the reason. Of a run that left
    nothing in the trash each file is told, and the run before it is undone.

    Raises `UsageError` if the journal cannot be written or read, or another process is using it.
    """
    if not os.path.lexists(journal):
        return []
    out: list[Moved] = []
    with _Journal(journal) as written:
        written.recover()
        for run in written.runs():
            restored = [_restore(written, entry) for entry in run]
            out += restored
            if any(one.reason != _GONE for one in restored):
                break
    return out


# One file


def _refused(one: Wanted) -> str | None:
    """Why a file must stay, or None. Links are refused: what they show may be the file that is kept."""
    for path, image_id, name in ((one.keep, one.keep_id, "The file to keep"), (one.path, one.image_id, "It")):
        try:
            if _sha256(path) != image_id:
                return f"{name} ({path}) is not what was indexed; index it again."
        except OSError as error:
            return f"{name} ({path}) cannot be read: {error.strerror}."
    if os.path.islink(one.path):  # noqa: PTH114
        return "It is a link."
    if Path(one.path).samefile(one.keep):
        return f"It is the same file as {one.keep}, under another name."
    return None


def _move(journal: _Journal, run: str, one: Wanted) -> Moved:
    entry = _reserved(journal, _trash_of(one.path), run, one)
    try:
        os.rename(one.path, entry.trashed)  # noqa: PTH104  # one file system: whole or not at all
    except OSError:
        _drop(entry)
        journal.append(_at(entry, "given up"))
        raise
    _flush(Path(entry.trashed).parent, Path(one.path).parent)
    journal.append(_at(entry, "moved"))
    return Moved(one.path, "moved", entry.trashed, one.kind, one.keep)


def _restore(journal: _Journal, entry: _Entry) -> Moved:
    def left(reason: str) -> Moved:
        return Moved(entry.path, "left", entry.trashed, entry.kind, entry.keep, reason)

    try:
        if not _is_in_trash(entry):
            return left(_GONE)
        if _is_there(entry.path):
            return left(_TAKEN)
    except OSError as error:
        return left(_why_left(entry, error))
    journal.append(_at(entry, "restoring"))
    try:
        _bring_back(entry)
    except OSError as error:
        journal.append(_at(entry, "moved"))
        return left(_why_left(entry, error))
    _drop(entry)
    _flush(Path(entry.path).parent, Path(entry.trashed).parent)
    journal.append(_at(entry, "restored"))
    return Moved(entry.path, "restored", None, entry.kind, entry.keep)


def _bring_back(entry: _Entry) -> None:
    path = Path(entry.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("xb").close()  # the name is ours now, or was somebody's before
    try:
        os.rename(entry.trashed, entry.path)  # noqa: PTH104
    except OSError:
        _unreserve(path)
        raise


def _unreserve(path: Path) -> None:
    """Remove the empty file that kept a name; one with content is somebody's."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            path.unlink()


def _why_left(entry: _Entry, error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return _TAKEN
    if error.errno == errno.EXDEV:
        return (
            "It cannot be brought back: its folder and the trash are on different disks now. "
            f"Move {entry.trashed} to {entry.path} by hand."
        )
    return f"It cannot be brought back: {error.strerror or error}."


def _is_there(path: str) -> bool:
    """Whether there is anything at a path. Raises `OSError` where that cannot be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_in_trash(entry: _Entry) -> bool:
    """Whether the file is in the trash, and not another one that went there later under the same name."""
    try:
        found = os.lstat(entry.trashed)
    except (FileNotFoundError, NotADirectoryError):
        return False
    note = _read_note(entry)
    return stat.S_ISREG(found.st_mode) and (not note or _is_of(note, entry))


def _at(entry: _Entry, step: _Step) -> _Entry:
    return replace(entry, step=step)


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The journal


class _Journal:
    """The steps of all runs, a JSON object a line, each on disk before what it announces is done.

    It is one user's own, and one process's at a time. ``taken`` names the journals of before that were taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken: set[str] = set()
        self._entries: list[_Entry] = []
        self._torn = b""
        self._handle = -1
        self._is_ours = False

    def __enter__(self) -> Self:
        try:
            self._handle = open_own(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise UsageError(f"The journal {self.path} cannot be written: {error.strerror}.") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self._is_ours and not os.fstat(self._handle).st_size:  # nothing was to be told
                os.unlink(self.path)  # noqa: PTH108
        os.close(self._handle)

    def _lock(self) -> None:
        """Keep other processes from taking a step that is under way for one that a crash cut off."""
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_ours = os.fstat(self._handle).st_nlink > 0
        except BlockingIOError:
            self._is_ours = False
        except OSError:  # a file system without locks
            self._is_ours = True
        if not self._is_ours:
            raise UsageError(
                "The trash journal is in use by another process.", fix="Wait until it has ended, and try again."
            )

    def _read(self) -> None:
        try:
            with os.fdopen(os.dup(self._handle), "rb") as file:
                file.seek(0)
                lines = file.read().split(b"\n")
        except OSError as error:
            raise UsageError(f"The journal {self.path} cannot be read: {error.strerror}.") from error
        whole, self._torn = lines[:-1], lines[-1]  # a line without its end was being written when the power went
        try:
            for told in (json.loads(line) for line in whole if line):
                if "taken_over" in told:
                    self.taken.add(told["taken_over"])
                    self._entries += [_Entry(**one) for one in told["entries"]]
                else:
                    self._entries.append(_Entry(**told))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"The journal {self.path} cannot be understood: {error}.", fix="Move it away.") from error

    def append(self, entry: _Entry) -> None:
        self._write(asdict(entry))
        self._entries.append(entry)

    def take(self, source: str, entries: Sequence[_Entry]) -> None:
        """Take over entries of another journal, as runs of their own, in one line: all of them or none."""
        last = self._last_run()
        taken = [replace(entry, run=str(last + int(entry.run))) for entry in entries]
        self._write({"taken_over": source, "entries": [asdict(entry) for entry in taken]})
        self.taken.add(source)
        self._entries += taken

    def _write(self, told: Mapping[str, Any]) -> None:
        left = json.dumps(told).encode() + b"\n"  # ASCII, so that a name of any bytes can be told
        try:
            end = os.fstat(self._handle).st_size - len(self._torn)
            os.ftruncate(self._handle, end)
            self._torn = b""
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError as error:
            raise UsageError(f"The journal {self.path} cannot be written: {error.strerror}.") from error
        if not end:
            _flush(self.path.parent)

    def _last_run(self) -> int:
        return max((int(entry.run) for entry in self._entries), default=0)

    def next_run(self) -> str:
        return str(1 + self._last_run())

    def runs(self) -> list[list[_Entry]]:
        """The files of each run that were moved and not brought back: the latest run and the last moved file first."""
        found: dict[int, list[_Entry]] = {}
        for entry in reversed(self.latest()):
            if entry.step == "moved":
                found.setdefault(int(entry.run), []).append(entry)
        return [found[run] for run in sorted(found, reverse=True)]

    def recover(self) -> None:
        """Finish or give up what a crash interrupted, by what lies where."""
        for entry in self.latest():
            if entry.step in ("moving", "restoring"):
                with suppress(OSError):  # what cannot be looked at now is decided another time
                    step = _found(entry)
                    if step:
                        self.append(_at(entry, step))

    def latest(self) -> list[_Entry]:
        """The last step of each file of each run."""
        return _latest(self._entries)


def _latest(entries: Iterable[_Entry]) -> list[_Entry]:
    return list({(entry.run, entry.trashed): entry for entry in entries}.values())


def _found(entry: _Entry) -> Literal["moved", "restored", "given up"] | None:
    """What a step that was cut off has come to, or None as long as its trash is not there to be looked at.

    A name that was only reserved is given back.
    """
    if _is_in_trash(entry):
        if entry.step == "restoring":
            _unreserve(Path(entry.path))
        return "moved"
    if not Path(entry.trashed).parent.is_dir():  # on a disk that is not mounted, perhaps
        return None
    _drop(entry)
    return "restored" if entry.step == "restoring" else "given up"


# Journals of before


def take_over(journal: Path, old: Path, source: str) -> None:
    """Take over a journal that this user wrote to another place, once; ``source`` is its name in the new one.

    Raises `UsageError` if either cannot be read.
    """
    if not os.path.lexists(old):
        return
    with _Journal(journal) as written:
        if source not in written.taken:
            with _Journal(old) as held:
                written.take(source, [entry for entry in held.latest() if entry.step in _UNDER_WAY])


def adopt(journal: Path, old: Path, source: str, known: Callable[[Collection[str]], Collection[str]]) -> int:
    """Take over those entries of a journal that anybody may have written which this user's own trash confirms, once.

    Nothing is moved or deleted on the word of such a journal. An entry counts if its path is ``known``, its file lies
    in this user's trash for that path, the trash's note there names the path, and the file is the one that was indexed.

    Args:
        journal: Of this user.
        old: Of a store.
        source: The name of ``old`` in ``journal``.
        known: Paths -> those of them that the store has.

    Returns:
        How many entries of files that may be in a trash were refused.

    Raises:
        UsageError: ``journal`` cannot be written or read.
        OSError: ``old`` cannot be read, or is too large.
    """
    if not os.path.lexists(old):
        return 0
    with _Journal(journal) as written:
        if source in written.taken:
            return 0
        entries = [entry for entry in _latest(_told(old)) if entry.step in _UNDER_WAY]
        confirmed = [found for entry in entries if (found := _confirmed(entry))]
        paths = known({entry.path for entry in confirmed})
        taken = [entry for entry in confirmed if entry.path in paths]
        written.take(source, taken)
    return len(entries) - len(taken)


def _told(journal: Path) -> Iterator[_Entry]:
    """The entries of a journal that anybody may have written; lines that are not entries are left out."""
    with os.fdopen(open_own(journal, os.O_RDONLY), "rb") as file:
        held = file.read(_LARGEST_JOURNAL + 1)
    if len(held) > _LARGEST_JOURNAL:
        raise OSError(0, f"it is larger than {_LARGEST_JOURNAL} bytes")
    for line in held.split(b"\n"):
        if not line.startswith(b'{"run"'):
            continue
        try:
            entry = _Entry(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        texts = all(isinstance(text, str) for text in asdict(entry).values())
        if texts and entry.run.isascii() and entry.run.isdigit() and len(entry.run) < 10:
            yield entry


def _confirmed(entry: _Entry) -> _Entry | None:
    """An entry as the user's own trash confirms it, with the paths as they are written there; else None."""
    if any(not Path(path).is_absolute() or os.path.normpath(path) != path for path in (entry.path, entry.trashed)):
        return None
    with suppress(OSError, ValueError):
        trash, name = _trash_for(entry.path), Path(entry.trashed).name
        is_plain = sys.platform == "darwin"
        folder = trash if is_plain else trash / "files"
        info = "" if is_plain else str(trash / "info" / f"{name}{_NOTE}")
        found = replace(entry, step="moved", trashed=str(folder / name), info=info)
        if (
            os.path.realpath(Path(entry.trashed).parent) == os.path.realpath(folder)
            and entry.info in ("", info)
            and (is_plain or (_is_kept_private(trash) and (note := _read_note(found)) and _is_of(note, found)))
            and stat.S_ISREG(os.lstat(found.trashed).st_mode)
            and _sha256(found.trashed) == found.image_id
        ):
            return found
    return None


# The trash


def _trash_of(path: str) -> Path:
    """The trash on the file's own disk, made if need be."""
    trash = _trash_for(path)
    if sys.platform == "darwin":
        if _device(Path(path).parent) != _device(Path.home()):
            raise OSError(0, "on macOS, only files on the disk of the home folder are moved")
        trash.mkdir(mode=0o700, exist_ok=True)
        return trash
    if trash == data_home() / "Trash":
        for folder in (trash / "files", trash / "info"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:  # where others may write, too
        for folder in (trash, trash / "files", trash / "info"):
            _make_own(folder)
    return trash


def _trash_for(path: str) -> Path:
    """Where the trash on the file's own disk is, or would be made."""
    if sys.platform == "darwin":
        return Path.home() / ".Trash"
    home = data_home()
    if _device(_existing(Path(path).parent)) == _device(_existing(home)):
        return home / "Trash"
    return _topdir_trash(Path(path))


def _make_own(folder: Path) -> None:
    """Make a folder, or see that the one that is there is this user's own."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_own(folder):
        raise OSError(0, "the trash at the top of its disk is a link, or belongs to another user")


def _is_own(folder: Path) -> bool:
    """Whether a folder is one, not a link to one, and belongs to this user."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _is_kept_private(trash: Path) -> bool:
    """Whether a trash is the home's, or nobody but this user can have written to it."""
    folders = (trash, trash / "files", trash / "info")
    return trash == data_home() / "Trash" or all(
        _is_own(one) and not one.lstat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) for one in folders
    )


def _topdir_trash(path: Path) -> Path:
    """``.Trash/UID`` at the top of the disk if an administrator made ``.Trash`` as the specification wants it, or
    ``.Trash-UID``.
    """
    top = path.parent.resolve()
    while not top.is_mount():
        top = top.parent
    shared = top / ".Trash"
    if shared.is_dir() and not shared.is_symlink() and shared.stat().st_mode & 0o1000:
        return shared / str(os.getuid())
    return top / f".Trash-{os.getuid()}"


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _device(folder: Path) -> int:
    return folder.stat().st_dev


def _reserved(journal: _Journal, trash: Path, run: str, one: Wanted) -> _Entry:
    """A name that is free in the trash, in the journal, and made ours by the trash's note; macOS has no notes."""
    plain = sys.platform == "darwin"
    folder = trash if plain else trash / "files"
    most = _longest_name(folder) - (0 if plain else len(_NOTE))
    for number in range(1, 1 << 20):
        name = _name_in_trash(Path(one.path), number, most)
        trashed, info = folder / name, trash / "info" / f"{name}{_NOTE}"
        if os.path.lexists(trashed) or os.path.lexists(info):
            continue
        note = "" if plain else str(info)
        entry = _Entry(run, "moving", one.path, one.image_id, one.kind, one.keep, str(trashed), note)
        journal.append(entry)  # first, so that a note that was made is known after a crash
        if plain:
            return entry
        try:
            _write_note(info, _note(trash, one.path))
        except FileExistsError:  # another program was faster
            journal.append(_at(entry, "given up"))
            continue
        except OSError:
            _drop(entry)
            journal.append(_at(entry, "given up"))
            raise
        return entry
    raise OSError(0, "every name is taken in the trash")


def _longest_name(folder: Path) -> int:
    """The bytes that a name may have in a folder."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return _LONGEST_NAME


def _name_in_trash(path: Path, number: int, most: int) -> str:
    """The file's own name, with a number if it is not the first, and shortened before its suffix if it is too long.

    >>> [_name_in_trash(Path(name), number, 9) for name, number in (("a.jpg", 1), ("a.jpg", 2), ("äöü.jpg", 1))]
    ['a.jpg', 'a 2.jpg', 'äö.jpg']
    """
    counted = f" {number}" if number > 1 else ""
    stem, suffix = path.stem, path.suffix
    if len(os.fsencode(counted + suffix)) >= most:
        stem, suffix = path.name, ""
    while stem and len(os.fsencode(stem + counted + suffix)) > most:
        stem = stem[:-1]
    return f"{stem}{counted}{suffix}"


def _write_note(info: Path, note: str) -> None:
    with info.open("x", encoding="utf-8") as file:
        file.write(note)
        file.flush()
        os.fsync(file.fileno())


def _note(trash: Path, path: str) -> str:
    now = datetime.now().astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    return f"[Trash Info]\n{_path_line(trash, path)}\nDeletionDate={now}\n"


def _path_line(trash: Path, path: str) -> str:
    """Absolute in the home's trash, relative to the top of the disk in the others."""
    top = trash.parent.parent if trash.parent.name == ".Trash" else trash.parent
    outside = trash.name == "Trash"
    return _told_path(path if outside else os.path.relpath(os.path.realpath(path), top))


def _told_path(path: str) -> str:
    return f"Path={quote(os.fsencode(path))}"


def _read_note(entry: _Entry) -> bytes | None:
    """The trash's note beside a file in the trash, if there is one. Raises `OSError` where that cannot be known."""
    if not entry.info:
        return None
    info, trashed = Path(entry.info), Path(entry.trashed)
    if info.name != f"{trashed.name}{_NOTE}" or info.parent != trashed.parent.parent / "info":
        return None
    try:
        if not stat.S_ISREG(info.lstat().st_mode):
            return None
        with os.fdopen(open_own(info, os.O_RDONLY), "rb") as file:
            return file.read(_LARGEST_NOTE)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_of(note: bytes, entry: _Entry) -> bool:
    """Whether a note of the trash names the path of a file."""
    trash = Path(entry.info).parent.parent
    lines = [_path_line(trash, entry.path)]
    if trash.name != "Trash":  # a folder of the path may have become a link since
        lines.append(_told_path(os.path.relpath(entry.path, trash.parent)))
    return note.partition(b"\n")[2].partition(b"\n")[0].decode(errors="replace") in lines


def _drop(entry: _Entry) -> None:
    """Remove the trash's note, if it is of this file or was cut off before a word; one that stays harms nobody."""
    with suppress(OSError):
        note = _read_note(entry)
        if note is not None and (not note or _is_of(note, entry)):
            Path(entry.info).unlink()


def _flush(*folders: Path) -> None:
    """Have the disk keep the names in some folders, where that can be asked for: what was renamed stays renamed."""
    for folder in folders:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
