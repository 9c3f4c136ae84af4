"""The same indexing on many machines: Ray hands out shards to encoders, and this process joins what they leave.

Every worker opens the store by itself and reads pictures by their own paths, so both must be reachable from every node
under one name: object storage, or a disk that all share. See `qsplit.indexing.shards` for what makes a run survive the
death of any of its processes, this one included: whoever runs it again goes on where it ended.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

# Of Ray's own processes: that an actor may not come back if this process ends is no news. Nobody is told of the use.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data

from qsplit.cluster.context import EncodeContext
from qsplit.errors import QsplitError, StoreError, UsageError
from qsplit.indexing.discovery import is_gone
from qsplit.indexing.pipeline import IndexReport
from qsplit.indexing.shards import QUARANTINED, Joiner, Shard, cut, encode_shard
from qsplit.indexing.sources import Entry, find, is_archive
from qsplit.media.images import SUFFIXES
from qsplit.media.videos import CLIP_SUFFIXES
from qsplit.progress import Progress
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.lookup import absolute
from qsplit.store.object_storage import hidden, is_remote
from qsplit.store.records import FileRow, Skipped
from qsplit.store.shard_log import Done
from qsplit.store.vector_index import Plan, make_part

if TYPE_CHECKING:
    import numpy as np

__all__ = ["HERE", "index"]

_PATIENCE = 10.0  # seconds until an address is one that nothing listens at
_SHARDS = 2  # that a worker has at once: one goes through its model while the other is read or written
HERE = "local"  # the address of a cluster that is made for one run, of this machine alone

Blocks = Mapping[str, "np.ndarray[Any, Any]"]


def index(
    paths: Sequence[str | os.PathLike[str]],
    begin: Callable[[], EncodeContext],
    *,
    address: str = HERE,
    workers: int = 0,
    videos: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Bring a store up to date with files, folders, globs, addresses on object storage, and archives.

    ``begin`` makes the store and says how to encode into it, once the paths are found and Ray is reached: raises
    `NotFound` and `UsageError` before anything is written. ``address`` is Ray's (``auto`` finds the cluster that this
    node belongs to); ``workers`` how many encode at once: one for each GPU of the cluster, or where there is none, for
    each core. Rows are the same as those of `qsplit.indexing.pipeline.index`.
    """
    began, skipped = time.monotonic(), list[Skipped]()
    names = [str(path) if is_remote(str(path)) else absolute(path) for path in paths]
    suffixes = SUFFIXES | CLIP_SUFFIXES if videos else SUFFIXES

    def skip(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"It cannot be looked at: {error.strerror}."))

    entries = list(find(names, suffixes=suffixes, on_error=skip))
    with _connected(address):
        context = begin()
        store = FeatureStore(context.uri)
        store.prepare(context.encoder)
        joiner, totals = Joiner(store, uuid4().hex), _Totals()
        for done in joiner.join_known():  # first: what an earlier run left is no longer missing
            totals.add(done)
        known = store.files()
        changed = _changed(entries, known.values())
        try:
            for done in _encoded(context, list(cut(changed)), suffixes, workers, _told(on_progress, len(changed))):
                totals.add(done)
                joiner.add(done)
        finally:
            joiner.close()  # whoever stops a run keeps what was encoded
        missing = _missing(names, entries, known.values())
        store.put_files(missing)
        table = vectors_table(context.encoder.id)
        store.vectors(context.encoder.id).tend(partial(_indexed, context.uri, table), _cores())
    return IndexReport(
        found=len(entries) + len(skipped),
        encoded=totals.encoded,
        reused=totals.reused,
        unchanged=len(entries) - len(changed),
        missing=len(missing),
        unreadable=sorted([*skipped, *totals.skipped], key=lambda one: one.path),
        seconds=time.monotonic() - began,
    )


class _Totals:
    """What the shards of a run come to."""

    def __init__(self) -> None:
        self.encoded = self.reused = 0
        self.skipped: list[Skipped] = []

    def add(self, done: Done) -> None:
        self.encoded += done.encoded
        self.reused += done.reused
        self.skipped += [Skipped(row.path, row.reason or "") for row in done.files if row.state == "unreadable"]


class _Worker:
    """An encoder on its device, as Ray Data calls it: shards in, their ids out."""

    def __init__(self, context: EncodeContext, suffixes: frozenset[str]) -> None:
        self._context, self._suffixes, self._turn = context, suffixes, Lock()
        self._store, self._vision = FeatureStore(context.uri), context.vision()
        found, wanted = self._vision.encoder.id, context.encoder.id
        if found != wanted:
            raise UsageError(
                f"A worker's checkpoint makes features of the encoder {found[:12]}, not {wanted[:12]}.",
                fix="Install the same qsplit and the same checkpoint on every node.",
            )

    def __call__(self, batch: Blocks) -> dict[str, list[str]]:
        return {"done": [self._encode(Shard(tuple(Entry(**e) for e in json.loads(told)))) for told in batch["shard"]]}

    def _encode(self, shard: Shard) -> str:
        """The note of a shard, as JSON."""
        context = self._context
        done = encode_shard(
            self._store,
            shard,
            context.encoder,
            lambda: self._vision,
            limits=context.limits,
            codec=context.codec,
            suffixes=self._suffixes,
            turn=self._turn,
        )
        return done.to_json()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connected to Ray; what was not connected before is let go of."""
    ours = not ray.is_initialized()
    if ours:
        _check_reachable(address)
        where: dict[str, Any] = {"address": address}
        if address == HERE:
            where["include_dashboard"] = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork")  # Ray's processes are programs of their own
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(f"There is no Ray at {address}: {error}.", fix="Start it with `ray start`.") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `UsageError` where nothing listens: Ray itself would try for minutes."""
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if found and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _PATIENCE).close()
        except OSError as error:
            text = f"There is no Ray at {address}: {error.strerror or error}."
            raise UsageError(text, fix="Start it with `ray start --head`.") from error


def _encoded(
    context: EncodeContext,
    shards: Sequence[Shard],
    suffixes: frozenset[str],
    workers: int,
    tell: Callable[[int], None],
) -> Iterator[Done]:
    """Shards as they are done, in whatever order."""
    if not shards:
        return
    gpus = _resource("GPU")
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=min(workers or gpus or _cores(), len(shards)),
        max_concurrent_calls_per_actor=_SHARDS,
        enable_true_multi_threading=True,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"shard": json.dumps([asdict(entry) for entry in shard.entries])} for shard in shards]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(context, suffixes),
        batch_size=1,
        compute=pool,
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    try:
        for row in done.iter_rows():
            shard = Done.from_json(row["done"])
            tell(len(shard.files))
            yield shard
    except ray.exceptions.RayError as error:
        raise _translated(error) from error


def _indexed(uri: str, table: str, plan: Plan) -> list[Any]:
    """The parts of an index, each made by one process of the cluster."""
    make = ray.remote(num_cpus=1)(_index_part)
    try:
        return list(ray.get([make.remote(uri, table, plan, fragments) for fragments in plan.parts]))
    except ray.exceptions.RayError as error:
        raise _translated(error) from error


def _index_part(uri: str, table: str, plan: Plan, fragments: tuple[int, ...]) -> Any:
    return make_part(FeatureStore(uri).lance(table), plan, fragments)


def _cores() -> int:
    return max(1, _resource("CPU"))


def _resource(name: str) -> int:
    return int(ray.cluster_resources().get(name, 0))


def _translated(error: Exception) -> QsplitError:
    """A worker's own error, or what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, QsplitError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return StoreError(
        f"Ray gave up: {hidden(str(error).strip().splitlines()[-1])}.", fix="Run the command again: it goes on."
    )


def _told(on_progress: Callable[[Progress], None] | None, total: int) -> Callable[[int], None]:
    """What tells of files that are done; what an archive holds is known when it was read."""
    began, done = time.monotonic(), 0

    def tell(files: int) -> None:
        nonlocal done
        done += files
        if on_progress is not None:
            on_progress(Progress(done, max(total, done), time.monotonic() - began))

    return tell


def _changed(entries: Iterable[Entry], known: Iterable[FileRow]) -> list[Entry]:
    """The entries of which the store does not know all that there is to know."""
    files: dict[str, list[FileRow]] = {}
    for row in known:
        archive, inside, _ = row.path.rpartition("#")
        files.setdefault(archive if inside and is_archive(archive) else row.path, []).append(row)

    def is_known(entry: Entry) -> bool:
        rows = files.get(entry.path, [])
        held = is_archive(entry.path)  # what it holds has sizes of its own
        return bool(rows) and all(
            (row.state == "ok" or (row.reason or "").startswith(QUARANTINED))
            and row.has(row.size if held else entry.size, entry.mtime_ns)
            for row in rows
        )

    return [entry for entry in entries if not is_known(entry)]


def _missing(names: Sequence[str], entries: Sequence[Entry], known: Iterable[FileRow]) -> list[FileRow]:
    """Known files below a folder that was looked through, and surely no longer there."""
    roots = tuple(f"{name.rstrip('/')}/" for name in names if is_remote(name) or Path(name).is_dir())
    here = {entry.path for entry in entries}
    return [
        replace(row, state="missing", reason=None)
        for row in known
        if row.state != "missing"
        and row.path.startswith(roots)
        and row.path not in here
        and row.path.rpartition("#")[0] not in here
        and (is_remote(row.path) or is_gone(row.path))
    ]
