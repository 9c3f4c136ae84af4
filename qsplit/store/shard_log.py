"""The notes of a store's workers: small JSON objects in a folder of the store, on disk or on object storage.

Of a shard there may be a note that it is done, and before that, one that it is tried and others of its pieces that are
done. What a note tells of was written beside the tables, where housekeeping removes it when it is a week old; so
whoever tidies up lets go of old notes first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.store import from_url

from qsplit.store.layout import SHARDS, files_below, is_note
from qsplit.store.object_storage import is_remote
from qsplit.store.records import Apart, FileRow

__all__ = ["Done", "Notes", "Trial"]

T = TypeVar("T")

_FOLDER = SHARDS
# Pieces of a shard may be as old as this when the rest of it is done, and that note again when its rows are joined.
# With a day for a run, it is less than the week after which files that nothing refers to are removed.
_KEPT = timedelta(days=3)


@dataclass(slots=True)
class Done:
    """What a worker leaves of a shard, or of a piece: the rows that it wrote apart, and what it found of each file."""

    shard: str
    parts: list[Apart] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Done:
        """Raises `ValueError` for what is no note."""
        told = json.loads(text)
        parts, files = [Apart(**part) for part in told.pop("parts")], [FileRow(**row) for row in told.pop("files")]
        return cls(parts=parts, files=files, **told)

    def add(self, other: Done) -> None:
        """Take what another leaves of the same shard."""
        self.parts += other.parts
        self.files += other.files
        self.encoded += other.encoded
        self.reused += other.reused


@dataclass(slots=True)
class Trial:
    """That a worker tries a shard: how many began since a piece was done, the files that the last is at, and how often
    a worker died while it was at a file.
    """

    begun: int = 0
    at: list[str] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)


class Notes:
    """The notes of the store at ``uri``."""

    def __init__(self, uri: str) -> None:
        self._local = None if is_remote(uri) else Path(uri.removeprefix("file://")).absolute()
        self._place = from_url(self._local.as_uri() if self._local else uri.rstrip("/"))

    def done(self) -> list[str]:
        """The shards of which there is a note that they are done."""
        return [_shard(path) for path, _ in self._listed() if path.endswith(".done")]

    def put(self, done: Done) -> None:
        """Tell that a shard is done: what stands in the note is seen whole or not at all."""
        obstore.put(self._place, f"{_FOLDER}/{done.shard}.done", done.to_json().encode())
        self._drop([f"{_FOLDER}/{done.shard}.trial"])

    def get(self, shard: str) -> Done | None:
        """The note of a shard; None where there is none, or one that a power cut has left in pieces."""
        return self._get(f"{_FOLDER}/{shard}.done", Done.from_json)

    def drop(self, shards: Iterable[str]) -> None:
        """Forget shards that were joined, with whatever a worker that died in between left of their tries."""
        gone = set(shards)
        if gone:
            self._drop([path for path, _ in self._listed() if _shard(path) in gone])

    def trial(self, shard: str) -> Trial:
        """What is known of earlier tries of a shard."""
        return self._get(f"{_FOLDER}/{shard}.trial", lambda text: Trial(**json.loads(text))) or Trial()

    def put_trial(self, shard: str, trial: Trial) -> None:
        """Tell how far a try is."""
        obstore.put(self._place, f"{_FOLDER}/{shard}.trial", json.dumps(asdict(trial)).encode())

    def put_piece(self, number: int, done: Done) -> None:
        """Tell that a piece of a shard is done."""
        obstore.put(self._place, f"{_FOLDER}/{done.shard}/{number:09}.piece", done.to_json().encode())

    def pieces(self, shard: str) -> list[Done]:
        """What was done of a shard, piece by piece."""
        found = (self._get(path, Done.from_json) for path, _ in self._listed(f"{_FOLDER}/{shard}"))
        return [done for done in found if done is not None]

    def drop_pieces(self, shard: str) -> None:
        """Forget the pieces of a shard that is done."""
        self._drop([path for path, _ in self._listed(f"{_FOLDER}/{shard}")])

    def forget(self, *, now: datetime | None = None, all_of_them: bool = False) -> None:
        """Let go of notes that nobody came back to: what they tell of is encoded again, should it be wanted."""
        before = (now or datetime.now(UTC)) - _KEPT
        self._drop([path for path, changed in self._listed() if all_of_them or changed < before])

    def _listed(self, folder: str = _FOLDER) -> list[tuple[str, datetime]]:
        """The paths of notes, in order, and when each was written; whatever else is there is left out.

        Raises `StoreError` for a link among them: what it leads to are nobody's notes.
        """
        return sorted(one for one in self._found(folder) if is_note(one[0]))

    def _found(self, folder: str) -> Iterator[tuple[str, datetime]]:
        if self._local is None:
            yield from (
                (one["path"], one["last_modified"]) for page in obstore.list(self._place, folder) for one in page
            )
            return
        for entry in files_below(self._local, folder):
            with suppress(FileNotFoundError):
                changed = datetime.fromtimestamp(entry.stat(follow_symlinks=False).st_mtime, UTC)
                yield Path(entry.path).relative_to(self._local).as_posix(), changed

    def _get(self, path: str, read: Callable[[bytes], T]) -> T | None:
        try:
            return read(bytes(obstore.get(self._place, path).bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _drop(self, paths: list[str]) -> None:
        try:
            obstore.delete(self._place, paths)
        except FileNotFoundError:  # on disk, one that is not there keeps those after it from being deleted
            for path in paths:
                with suppress(FileNotFoundError):
                    obstore.delete(self._place, path)


def _shard(path: str) -> str:
    """The shard that a note is of."""
    return path.removeprefix(f"{_FOLDER}/").partition("/")[0].partition(".")[0]
