"""An index run that many share: shards of files, what each worker leaves of its shard, and who puts it together.

A worker reads and encodes a shard by the stages of `qsplit.indexing`, writes the rows beside the tables, where nobody
sees them, and last of all a note of them, in one put. One `Joiner` makes what notes tell of seen, many shards a commit,
and then drops the notes. So whatever dies, nothing is lost but shards without a note, and nothing is put twice: rows
are joined by key, and a note that is there when a run begins is joined before the run looks for what is missing.

A picture that kills whoever reads it would do so for ever. So a worker says which shard it tries; where the one before
it died, the files are tried one by one, each named before it is touched, and a file that two workers died over is
skipped and reported.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.store import from_url

from qsplit import indexing, sources
from qsplit.ahead import ahead
from qsplit.errors import FeaturesError, ImageError, UnreadableImage
from qsplit.features import Encoder
from qsplit.images import FileContent, Limits, decode
from qsplit.objects import is_remote
from qsplit.rows import Apart, FileRow
from qsplit.sources import Content, Entry
from qsplit.store import FeatureStore
from qsplit.vision import VisionEncoder

__all__ = ["QUARANTINED", "Done", "Joiner", "Notes", "Shard", "cut", "encode_shard"]

T = TypeVar("T")

QUARANTINED = "Quarantined:"  # what the reason of a file begins with that workers died over

_FILES = 64  # of a shard
_BYTES = 128 * 1024**2  # of files that are in memory at once
_SECONDS = 300.0  # that a shard waits for it, at most
_DEATHS = 2  # over one file
_TRIALS = 10  # of one shard
_READERS = 8  # objects of a shard, or notes, that are asked for at once
_FORGOTTEN = timedelta(days=7)  # after which a try is of files that were cut otherwise since
_FOLDER = "_shards"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one worker does at a time: some files, or one archive."""

    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """A digest of where its files lie, how large they are and when they were changed."""
        told = json.dumps([asdict(entry) for entry in self.entries], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(slots=True)
class Done:
    """What a worker leaves of a shard: the rows that it wrote apart, and what it found of each file."""

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


@dataclass(slots=True)
class _Trial:
    """That a worker tries a shard: how many did, the file it is at, and how many died over which."""

    begun: int = 0
    at: str = ""
    deaths: dict[str, int] = field(default_factory=dict)


class Notes:
    """The notes of a store's workers: small JSON objects in a folder of the store, on disk or on object storage."""

    def __init__(self, uri: str) -> None:
        if is_remote(uri):
            self._place = from_url(f"{uri.rstrip('/')}/{_FOLDER}")
        else:
            folder = Path(uri.removeprefix("file://")).absolute() / _FOLDER
            self._place = from_url(folder.as_uri(), mkdir=True)

    def done(self) -> list[str]:
        """The shards of which there is a note."""
        names = [meta["path"] for page in obstore.list(self._place) for meta in page]
        return sorted(name.removesuffix(".done") for name in names if name.endswith(".done"))

    def put(self, done: Done) -> None:
        """Tell that a shard is done: what stands in the note is seen whole or not at all."""
        obstore.put(self._place, f"{done.shard}.done", done.to_json().encode())
        self._drop(f"{done.shard}.trial")

    def get(self, shard: str) -> Done | None:
        """The note of a shard; None where there is none, or one that a power cut has left in pieces."""
        return self._get(f"{shard}.done", Done.from_json)

    def drop(self, shards: Iterable[str]) -> None:
        """Forget shards that were joined."""
        self._drop(*(f"{shard}.done" for shard in shards))

    def trial(self, shard: str) -> _Trial:
        """What is known of earlier tries of a shard."""
        return self._get(f"{shard}.trial", lambda text: _Trial(**json.loads(text))) or _Trial()

    def put_trial(self, shard: str, trial: _Trial) -> None:
        """Tell how far a try is."""
        obstore.put(self._place, f"{shard}.trial", json.dumps(asdict(trial)).encode())

    def drop_forgotten_trials(self, *, now: datetime | None = None) -> None:
        """Forget tries of shards that nobody has come back to."""
        before = (now or datetime.now(UTC)) - _FORGOTTEN
        listed = [meta for page in obstore.list(self._place) for meta in page]
        self._drop(*(m["path"] for m in listed if m["path"].endswith(".trial") and m["last_modified"] < before))

    def _get(self, name: str, read: Callable[[bytes], T]) -> T | None:
        try:
            return read(bytes(obstore.get(self._place, name).bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def _drop(self, *names: str) -> None:
        try:
            obstore.delete(self._place, list(names))
        except FileNotFoundError:  # on disk, one that is not there keeps those after it from being deleted
            for name in names:
                with suppress(FileNotFoundError):
                    obstore.delete(self._place, name)


def cut(entries: Iterable[Entry], *, at_most: int = _FILES) -> Iterator[Shard]:
    """Shards of so many files, fewer where they are large; an archive is one by itself."""
    some: list[Entry] = []
    for entry in entries:
        if sources.is_archive(entry.path):
            yield Shard((entry,))
            continue
        if some and (len(some) >= at_most or sum(one.size for one in some) + entry.size > _BYTES):
            yield Shard(tuple(some))
            some = []
        some.append(entry)
    if some:
        yield Shard(tuple(some))


def encode_shard(
    store: FeatureStore,
    shard: Shard,
    encoder: Encoder,
    vision: Callable[[], VisionEncoder],
    *,
    limits: Limits,
    codec: str,
    suffixes: frozenset[str],
    turn: AbstractContextManager[Any] = nullcontext(),  # noqa: B008  # it holds nothing
) -> Done:
    """Read and encode a shard, write its rows apart, and leave a note; what was done before is not done again.

    ``turn`` is held while pictures are looked at, which may kill the process: of shards on several threads one is,
    while others are read and written, and only that one says which file it is at.
    """
    notes = Notes(store.uri)
    known = notes.get(shard.id)
    if known is not None:
        return known

    def look(path: str, content: FileContent) -> None:
        with suppress(ImageError, FeaturesError):  # whatever else is wrong with it is told when it is encoded
            vision().encode([decode(content.data, name=path, limits=limits)])

    attempt, done = _Try(notes, shard.id), Done(shard.id)
    for contents in _one_ahead(_read(shard, limits, suffixes)):
        with turn:
            survivors = attempt.survivors(contents, look)
            batch, report = indexing.encode(store, survivors, encoder, vision, limits=limits, codec=codec)
        done.parts += store.write_apart(encoder, batch)
        done.files += batch.files
        done.encoded += report.encoded
        done.reused += report.reused
    notes.put(done)
    return done


def _read(shard: Shard, limits: Limits, suffixes: frozenset[str]) -> Iterator[dict[str, Content]]:
    """The contents of a shard, as much of it as may be in memory at once."""
    some: dict[str, Content] = {}
    size = 0
    for path, content in _each(shard, limits, suffixes):
        some[path] = content
        size += content.size if isinstance(content, FileContent) else 0
        if len(some) >= _FILES or size >= _BYTES:
            yield some
            some, size = {}, 0
    if some:
        yield some


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made while the one before is looked at."""
    for _, future in ahead(lambda _: next(items, None), count(), threads=1):
        item = future.result()
        if item is None:
            return
        yield item


def _each(shard: Shard, limits: Limits, suffixes: frozenset[str]) -> Iterator[tuple[str, Content]]:
    """The pictures of a shard: files a few at once, an archive, which may not fit memory, as it comes."""
    if len(shard) == 1:
        yield from sources.read(shard.entries[0], limits, suffixes)
        return
    read = ahead(lambda entry: list(sources.read(entry, limits, suffixes)), shard.entries, threads=_READERS)
    for _, future in read:
        yield from future.result()


class _Try:
    """One worker's try of a shard, told to those who may have to try it again."""

    def __init__(self, notes: Notes, shard: str) -> None:
        self._notes, self._shard = notes, shard
        self._trial = trial = notes.trial(shard)
        if trial.at:
            trial.deaths[trial.at] = trial.deaths.get(trial.at, 0) + 1
        self._is_careful = trial.begun > 0
        trial.begun, trial.at = trial.begun + 1, ""
        notes.put_trial(shard, trial)

    def survivors(self, contents: dict[str, Content], look: Callable[[str, FileContent], None]) -> dict[str, Content]:
        """The contents, with an error for each that workers died over; after a death each is looked at alone first."""
        if not self._is_careful:
            return contents
        kept = {path: self._judged(path, content) for path, content in contents.items()}
        for path, content in kept.items():
            if isinstance(content, FileContent):
                self._tell(path)
                look(path, content)
        self._tell("")
        return kept

    def _judged(self, path: str, content: Content) -> Content:
        deaths = self._trial.deaths.get(path, 0)
        if deaths < _DEATHS and self._trial.begun <= _TRIALS:
            return content
        what = f"{deaths} workers died over {path}" if deaths else f"{_TRIALS} workers died over files beside {path}"
        return UnreadableImage(f"{QUARANTINED} {what}.", fix="Index it without --ray to see what happens.")

    def _tell(self, path: str) -> None:
        self._trial.at = path
        self._notes.put_trial(self._shard, self._trial)


class Joiner:
    """Who makes seen what workers wrote apart: alone for a store, in commits of ``at_once`` shards or fewer."""

    def __init__(self, store: FeatureStore, job: str, *, at_once: int = 1000) -> None:
        self._store, self._job, self._notes, self._at_once = store, job, Notes(store.uri), at_once
        self._waiting: list[Done] = []
        self._since = time.monotonic()

    def join_known(self) -> Iterator[Done]:
        """Join what an earlier run left, and give it out: it is all joined when the last has been taken."""
        for shard, future in ahead(self._notes.get, self._notes.done(), threads=_READERS):
            done = future.result()
            if done is None:  # in pieces: what it told of is encoded again
                self._notes.drop([shard])
                continue
            self.add(done)
            yield done
        self.flush()

    def add(self, done: Done) -> None:
        """Take a shard that is done; many are joined together."""
        self._waiting.append(done)
        if len(self._waiting) >= self._at_once or time.monotonic() - self._since >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Join what waits, in the order in which rows refer to each other, and drop its notes."""
        waiting, self._waiting, self._since = self._waiting, [], time.monotonic()
        parts = [part for done in waiting for part in done.parts]
        for table in sorted({part.table for part in parts}):  # features, images, vectors: as it happens, by name
            self._store.join([part for part in parts if part.table == table], self._job)
        self._store.put_files([row for done in waiting for row in done.files])
        self._notes.drop(done.shard for done in waiting)

    def close(self) -> None:
        """Join what waits at the end of a run, and forget tries that nobody came back to."""
        self.flush()
        self._notes.drop_forgotten_trials()
