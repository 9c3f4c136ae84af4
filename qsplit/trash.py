"""Files into the system's trash and back, by a journal that a crash leaves readable.

Nothing is deleted and nothing overwritten. Before a file moves, its own bytes and those of the file that is kept are
hashed again, and the journal says on disk what is about to happen; a run that was cut off is read from the journal and
from what lies where. On Linux and the like the trash is that of the FreeDesktop specification, so that file managers
show it and restore from it; on macOS it is ``~/.Trash``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from qsplit.errors import UsageError

__all__ = ["Moved", "Wanted", "data_home", "move", "undo"]


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
    step: Literal["moving", "moved", "restoring", "restored", "given up"]
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

    Raises `UsageError` if the journal cannot be written or read.
    """
    written = _Journal(journal)
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

    Raises `UsageError` if the journal cannot be written or read.
    """
    written = _Journal(journal)
    written.recover()
    return [_restore(written, entry) for entry in written.last_run()]


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

    if not os.path.lexists(entry.trashed):
        return left("It is no longer in the trash.")
    journal.append(_at(entry, "restoring"))
    try:
        Path(entry.path).parent.mkdir(parents=True, exist_ok=True)
        Path(entry.path).open("xb").close()  # the name is ours now, or was somebody's before
    except FileExistsError:
        journal.append(_at(entry, "moved"))
        return left("Another file is at its place.")
    except OSError as error:
        journal.append(_at(entry, "moved"))
        return left(f"It cannot be brought back: {error.strerror}.")
    os.rename(entry.trashed, entry.path)  # noqa: PTH104
    _drop(entry)
    _flush(Path(entry.path).parent, Path(entry.trashed).parent)
    journal.append(_at(entry, "restored"))
    return Moved(entry.path, "restored", None, entry.kind, entry.keep)


def _at(entry: _Entry, step: Literal["moving", "moved", "restoring", "restored", "given up"]) -> _Entry:
    return _Entry(**{**asdict(entry), "step": step})


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The journal


class _Journal:
    """The steps of all runs, a JSON object a line, each on disk before what it announces is done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        except OSError as error:
            raise UsageError(f"The journal {path} cannot be read: {error.strerror}.") from error
        whole, self._torn = lines[:-1], lines[-1]  # a line without its end was being written when the power went
        try:
            self._entries = [_Entry(**json.loads(line)) for line in whole if line]
        except (ValueError, TypeError) as error:
            raise UsageError(f"The journal {path} cannot be understood: {error}.", fix="Move it away.") from error

    def append(self, entry: _Entry) -> None:
        line = json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.truncate(file.tell() - len(self._torn))
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f"The journal {self.path} cannot be written: {error.strerror}.") from error
        self._torn = b""
        if not self._entries:
            _flush(self.path.parent)
        self._entries.append(entry)

    def next_run(self) -> str:
        return str(1 + max((int(entry.run) for entry in self._entries), default=0))

    def last_run(self) -> list[_Entry]:
        """The files of the latest run of which any are still in the trash, the last that was moved first."""
        out = [entry for entry in self._latest().values() if entry.step == "moved"]
        last = max((int(entry.run) for entry in out), default=0)
        return [entry for entry in reversed(out) if int(entry.run) == last]

    def recover(self) -> None:
        """Finish or give up what a crash interrupted, by what lies where."""
        for entry in self._latest().values():
            if entry.step in ("moving", "restoring"):
                self.append(_at(entry, _found(entry)))

    def _latest(self) -> dict[tuple[str, str], _Entry]:
        latest: dict[tuple[str, str], _Entry] = {}
        for entry in self._entries:
            latest[entry.run, entry.trashed] = entry
        return latest


def _found(entry: _Entry) -> Literal["moved", "restored", "given up"]:
    """What a step that was cut off has come to; a name that was only reserved is given back."""
    in_trash = os.path.lexists(entry.trashed)
    if entry.step == "restoring" and in_trash:
        path = Path(entry.path)
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
        return "moved"
    if in_trash:
        return "moved"
    _drop(entry)
    return "restored" if entry.step == "restoring" else "given up"


# The trash


def _trash_of(path: str) -> Path:
    """The trash on the file's own disk, made if need be."""
    if sys.platform == "darwin":
        trash = Path.home() / ".Trash"
        if _device(Path(path).parent) != _device(Path.home()):
            raise OSError(0, "on macOS, only files on the disk of the home folder are moved")
        trash.mkdir(mode=0o700, exist_ok=True)
        return trash
    home = data_home()
    trash = home / "Trash" if _device(Path(path).parent) == _device(_existing(home)) else _topdir_trash(Path(path))
    for folder in (trash / "files", trash / "info"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return trash


def data_home() -> Path:
    """Where this user's programs keep what they made."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


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
    stem, suffix = Path(one.path).stem, Path(one.path).suffix
    for number in range(1, 1 << 20):
        name = f"{stem}{f' {number}' if number > 1 else ''}{suffix}"
        plain = sys.platform == "darwin"
        trashed, info = trash / name if plain else trash / "files" / name, trash / "info" / f"{name}.trashinfo"
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
        return entry
    raise OSError(0, "every name is taken in the trash")


def _write_note(info: Path, note: str) -> None:
    with info.open("x", encoding="utf-8") as file:
        file.write(note)
        file.flush()
        os.fsync(file.fileno())


def _note(trash: Path, path: str) -> str:
    """Absolute in the home's trash, relative to the top of the disk in the others."""
    top = trash.parent.parent if trash.parent.name == ".Trash" else trash.parent
    outside = trash.name == "Trash"
    told = path if outside else os.path.relpath(os.path.realpath(path), top)
    now = datetime.now().astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    return f"[Trash Info]\nPath={quote(told)}\nDeletionDate={now}\n"


def _drop(entry: _Entry) -> None:
    """Remove the trash's note, if it is of this file: it may have been cut off, and have been made by another."""
    info = Path(entry.info)
    if not entry.info or not info.is_file():
        return
    note = info.read_text(encoding="utf-8", errors="replace")
    ours = _note(info.parent.parent, entry.path).splitlines()[1]
    if not note or ours.startswith(note.partition("\n")[2].partition("\n")[0]):
        info.unlink()


def _flush(*folders: Path) -> None:
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
