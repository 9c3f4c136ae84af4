"""An index run that many share: shards of files, what each worker leaves of its shard, and who puts it together.

A worker reads and encodes a shard by the stages of `qsplit.indexing.pipeline`, writes the rows beside the tables, where
nobody sees them, and last of all a note of them, in one put. One `Joiner` makes what notes tell of seen, many shards a
commit, and then drops the notes. So whatever dies, nothing is lost but shards without a note, and nothing is put twice:
rows are joined by key, and a note that is there when a run begins is joined before the run looks for what is missing.

A picture that kills whoever reads it would do so for ever. So a worker says which files it is at. Where the one before
it died over some, they come in smaller pieces, in the end one by one, and a file over which alone two workers died is
skipped and reported. What is done of a shard is kept piece by piece, so that workers who do not live long end it, too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import count, groupby
from typing import Any, TypeVar

from qsplit.concurrency import ahead
from qsplit.errors import UnreadableImage
from qsplit.features.features import Encoder
from qsplit.indexing import pipeline, sources
from qsplit.indexing.sources import Content, Entry
from qsplit.media.images import FileContent, Limits
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.shard_log import Done, Notes

__all__ = ["QUARANTINED", "Joiner", "Shard", "cut", "encode_shard"]

T = TypeVar("T")

QUARANTINED = "Quarantined:"  # what the reason of a file begins with that workers died over

_FILES = 64  # of a shard
_BYTES = 128 * 1024**2  # of files that are in memory at once
_SECONDS = 300.0  # that a shard waits for it, at most
_PIECES = (_FILES, 8, 1)  # files at a time, by how often a worker died over them
_DEATHS = 2  # over one file that is alone
_TRIALS = 10  # of one shard, without a piece of it being done
_READERS = 8  # objects of a shard, or notes, that are asked for at once


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
    while others are read and written, and only that one says which files it is at.
    """
    notes = Notes(store.uri)
    known = notes.get(shard.id)
    if known is not None:
        return known
    attempt = _Try(notes, shard)
    for contents in _one_ahead(_read(attempt.left(), limits, suffixes)):
        for piece in attempt.pieces(contents):
            with turn:
                attempt.begin(piece)
                batch, report = pipeline.encode(store, piece, encoder, vision, limits=limits, codec=codec)
                attempt.survive()
            parts = store.write_apart(encoder, batch)
            attempt.add(Done(shard.id, parts, batch.files, report.encoded, report.reused))
    return attempt.end()


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
    """One worker's try of a shard, told to those who may have to try it again, who go on where it ended.

    The files that a worker died over come in smaller pieces next time, and each piece is told before it is begun.
    """

    def __init__(self, notes: Notes, shard: Shard) -> None:
        self._notes, self._shard, self._trial = notes, shard, notes.trial(shard.id)
        self._done = Done(shard.id)
        self._known: set[str] = set()  # the paths in it
        self._n_pieces = 0
        self._take_up()
        self._is_open = len(shard) == 1 and sources.is_archive(shard.entries[0].path)  # what is in it is not known yet
        self._at([] if self._is_open or self._trial.deaths else [entry.path for entry in shard.entries])

    def _take_up(self) -> None:
        """Learn what earlier tries did, and what they died over."""
        trial = self._trial
        if trial.begun:
            for piece in self._notes.pieces(self._shard.id):
                self._keep(piece)
                self._n_pieces += 1
        for path in trial.at:
            trial.deaths[path] = trial.deaths.get(path, 0) + 1
        trial.begun += 1

    def left(self) -> Shard:
        """The files of which nothing is known yet."""
        return Shard(tuple(entry for entry in self._shard.entries if entry.path not in self._known))

    def pieces(self, contents: Mapping[str, Content]) -> Iterator[dict[str, Content]]:
        """The contents that are left, each piece of files that may be looked at together."""
        left = [path for path in contents if path not in self._known]
        for size, paths in groupby(left, self._size):
            alike = list(paths)
            for start in range(0, len(alike), size):
                yield {path: self._judged(path, contents[path]) for path in alike[start : start + size]}

    def begin(self, piece: Mapping[str, Content]) -> None:
        """Tell which files the worker is at."""
        if self._trial.at != list(piece):
            self._at(list(piece))

    def survive(self) -> None:
        """Tell that it is at none, where a worker died over them before: what follows may kill it, too."""
        if any(path in self._trial.deaths for path in self._trial.at):
            self._at([])

    def add(self, piece: Done) -> None:
        """Tell that a piece is done, but of the last: that the shard is done is told with it."""
        self._keep(piece)
        self._trial.begun = 1
        if self._is_open or len(self._done.files) < len(self._shard):
            self._notes.put_piece(self._n_pieces, piece)
            self._n_pieces += 1

    def end(self) -> Done:
        """Tell that the shard is done."""
        self._notes.put(self._done)
        if self._n_pieces:
            self._notes.drop_pieces(self._shard.id)
        return self._done

    def _keep(self, piece: Done) -> None:
        self._done.add(piece)
        self._known.update(row.path for row in piece.files)

    def _at(self, paths: list[str]) -> None:
        self._trial.at = paths
        self._notes.put_trial(self._shard.id, self._trial)

    def _size(self, path: str) -> int:
        """Of the piece that a file may be in."""
        return _PIECES[min(self._trial.deaths.get(path, 0), len(_PIECES) - 1)]

    def _judged(self, path: str, content: Content) -> Content:
        alone = self._trial.deaths.get(path, 0) - len(_PIECES) + 1
        if alone < _DEATHS and self._trial.begun <= _TRIALS:
            return content
        what = f"{alone} workers died over {path}" if alone >= _DEATHS else f"{_TRIALS} workers died beside {path}"
        return UnreadableImage(f"{QUARANTINED} {what}.", fix="Index it without --ray to see what happens.")


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

    def join_all_known(self) -> None:
        """Join what an earlier run left, of whatever it is."""
        for _ in self.join_known():
            pass

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
        self._notes.forget()
