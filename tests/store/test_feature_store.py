"""The store: what is put is what is got, whoever else writes, and what is damaged is never taken for sound."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import queue
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
import racing
import rows
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from qsplit.errors import (
    CorruptStore,
    InvalidFeatures,
    NotFound,
    QsplitError,
    StoreError,
    StoreVersionError,
    UsageError,
)
from qsplit.features.codecs import DTYPES
from qsplit.features.features import Encoder, Features, Payload, Provenance
from qsplit.maintenance import garbage
from qsplit.store import durability, schema
from qsplit.store import feature_store as store_module
from qsplit.store.feature_store import FeatureStore, _batch, _same
from qsplit.store.payload_reader import Blobs
from qsplit.store.records import FeatureRow, FileRow, StoreSettings, feature_record

INJECTION = "' OR 1=1 --"
TABLES: tuple[Literal["files", "images", "features"], ...] = ("files", "images", "features")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """One store for all examples of a property, each with keys of its own."""
    return FeatureStore(tmp_path_factory.mktemp("shared") / "album.qsplit", create=True)


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def fill(store: FeatureStore, count: int, made_by: Encoder | None = None, **options: Any) -> list[FeatureRow]:
    added = [rows.feature_row(seed, made_by, **options) for seed in range(count)]
    store.put_features(added)
    store.put_images([rows.picture(seed) for seed in range(count)])
    store.put_vectors(made_by or rows.encoder(), [rows.vector_row(seed) for seed in range(count)])
    store.put_files([FileRow(f"/{seed}.jpg", rows.digest(f"image {seed}"), seed, 1, "ok") for seed in range(count)])
    return added


@pytest.fixture
def reads_by_query(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", request.param)


def by_query_and_by_place(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test as rows are read at first, and as they are read once it is known where they lie."""
    both = pytest.mark.parametrize("reads_by_query", [3, 0], indirect=True, ids=["query", "place"])
    marked: Callable[..., None] = pytest.mark.usefixtures("reads_by_query")(both(test))
    return marked


def lance_path(store: FeatureStore, table: str) -> str:
    return f"{store.uri}/{table}.lance"


# Round trips

grids = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)).map(lambda g: (g[0], 2 * g[1], 2 * g[2]))


@given(st.integers(0, 2**32), grids, st.sampled_from(sorted(DTYPES)), st.integers(1, 40), st.integers(0, 3))
def test_what_is_put_is_got_bit_for_bit(
    shared: FeatureStore, seed: int, grid: tuple[int, int, int], dtype: str, width: int, levels: int
) -> None:
    made_by = rows.encoder(dtype=dtype, width=width, levels=levels)
    row = FeatureRow(rows.digest((seed, grid)), rows.features(seed, made_by, grid), Provenance("m", "r", device="cpu"))
    shared.put_features([row])
    reopened = FeatureStore(shared.uri)
    assert rows.same_bits(reopened.get_features([row.key])[row.key], row.features)
    (head,) = (head for head in reopened.heads([row.pixels_digest]) if head.key == row.key)
    assert (head.encoder, head.provenance, head.grid_thw) == (made_by, row.provenance, grid)
    assert (head.n_tokens, head.sha256) == (len(row.features), row.features.to_payload().sha256)


@pytest.mark.parametrize("side", [4, 60, 400], ids=["inline", "packed", "alone"])
def test_every_way_that_lance_lays_a_blob_out(store: FeatureStore, side: int) -> None:
    made_by = rows.encoder(width=64, levels=1)
    added = [rows.feature_row(seed, made_by, grid=(1, side, side)) for seed in range(2)]
    assert store.put_features(added) == 2
    found = FeatureStore(store.uri).get_features([row.key for row in added])
    assert all(rows.same_bits(found[row.key], row.features) for row in added)


@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=5), max_size=5))
@settings(max_examples=settings().max_examples // 2)
def test_a_store_is_a_dict(tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]) -> None:
    """Of features the first to be put stays, of files the last."""
    store = FeatureStore(tmp_path_factory.mktemp("dict") / "album.qsplit", create=True)
    features: dict[str, Features] = {}
    files: dict[str, FileRow] = {}
    for batch in batches:
        put = [replace(rows.feature_row(value), pixels_digest=rows.digest(key)) for key, value in batch]
        fresh = {row.key: row.features for row in put if row.key not in features}
        assert store.put_features(put) == len(fresh)
        features |= fresh
        looked_at = [FileRow(f"/{key}", None, value, value, "ok") for key, value in batch]
        store.put_files(looked_at)
        files |= {row.path: row for row in looked_at}
    found = store.get_features(features)
    assert found.keys() == features.keys()
    assert all(rows.same_bits(found[key], features[key]) for key in features)
    assert store.files() == files
    assert (store.count("features"), store.count("files")) == (len(features), len(files))


def test_images_and_vectors_come_back(store: FeatureStore) -> None:
    taken = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    facts = {"taken_at": taken, "camera": "Söny 'α'", "latitude": -12.5, "longitude": 100.25, "phash": 2**64 - 1}
    assert store.put_images([rows.picture(1, **facts), rows.picture(2)]) == 2
    assert store.images() == {row.image_id: row for row in (rows.image_row(1, **facts), rows.image_row(2))}
    assert store.images([rows.digest("image 2")]).keys() == {rows.digest("image 2")}
    assert store.thumbnail(rows.digest("image 2")) == rows.thumbnail(2)
    with pytest.raises(NotFound, match="has no image"):
        store.thumbnail("0" * 64)
    assert store.put_vectors(rows.encoder(), [rows.vector_row(1)]) == 1
    found = store.vectors(rows.encoder().id).get("pooled", [rows.digest("image 1"), "0" * 64])
    assert found.keys() == {rows.digest("image 1")}
    assert np.array_equal(found[rows.digest("image 1")], rows.unit(1))


# Places


def test_what_is_read_often_is_read_without_a_query(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [rows.encoder(), rows.encoder(weights="other")]
    added = [rows.feature_row(seed, made_by) for seed in range(9) for made_by in two]
    for some in (added[:4], added[4:]):
        store.put_features(some)
    expected = {row.key: row.features for row in added}
    asked = [[*expected], [row.key for row in added[::-3]], [added[5].key, "0" * 64 + ":none"], [], ["nonsense"]]
    for _ in range(store_module._READS_BY_QUERY):
        store.get_features([])
    monkeypatch.setattr(FeatureStore, "_query_blobs", lambda *_: pytest.fail("queried"))
    for keys in asked:
        found = store.get_features(keys)
        assert found.keys() == expected.keys() & set(keys)
        assert all(rows.same_bits(found[key], expected[key]) for key in found)


def test_places_are_those_of_the_newest_version(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 0)
    other = FeatureStore(store.uri)
    added = fill(store, 3)
    keys = [row.key for row in added]
    assert other.get_features(keys).keys() == set(keys)
    garbage.forget(store, [rows.digest("image 0")])
    garbage.compact(store, alone=True)
    assert other.get_features(keys).keys() == set(keys[1:])
    more = rows.feature_row(7)
    store.put_features([more])
    assert other.get_features([more.key, *keys]).keys() == {more.key, *keys[1:]}


def test_places_whose_files_are_gone_are_forgotten(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping may remove a version between the look at its number and the look at its rows."""
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 0)
    (row,) = fill(store, 1)
    store.get_features([row.key])
    assert store._known_version is not None

    def gone(*_: Any) -> None:
        raise OSError("Not found: a data file")

    monkeypatch.setattr(store._known_version, "find", gone)
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 99)
    assert rows.same_bits(store.get_features([row.key])[row.key], row.features)
    assert store._known_version is None


# Blobs of their own


def fill_large(store: FeatureStore) -> list[FeatureRow]:
    """Rows of a commit whose payloads share a file, and of one whose payloads have a file each."""
    encoders = [rows.encoder(width=width) for width in (2048, 34_000)]
    added = [[rows.feature_row(seed, made_by, grid=(1, 16, 16)) for seed in range(3)] for made_by in encoders]
    for some in added:
        store.put_features(some)
    return [row for some in added for row in some]


def blob_files(store: FeatureStore) -> list[Path]:
    return sorted(Path(store.uri).glob("features.lance/data/*/*.blob"))


def test_large_payloads_are_read_without_lance(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 0)
    added = fill_large(store)
    assert len(blob_files(store)) == 1 + 3
    store.get_features([])
    monkeypatch.setattr(lance.LanceDataset, "read_blobs", lambda *_, **__: pytest.fail("Lance was asked"))
    found = store.get_features([row.key for row in added])
    assert all(rows.same_bits(found[row.key], row.features) for row in added)


def test_lance_is_asked_where_its_files_are_named_otherwise(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 0)
    added = fill_large(store)
    near = Blobs._near
    for other in (lambda *_: None, lambda *given: pa.py_buffer(near(*given)).slice(1)):
        monkeypatch.setattr(Blobs, "_near", other)
        found = FeatureStore(store.uri).get_features([row.key for row in added])
        assert all(rows.same_bits(found[row.key], row.features) for row in added)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(lambda blob: blob[:-1], 4), (lambda blob: bytes([blob[0] ^ 1]) + blob[1:], 4), (None, 6)],
    ids=["cut", "flipped", "gone"],
)
def test_damage_to_a_blob_file_is_told(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes] | None, told: int
) -> None:
    """Of three payloads that share a file, a cut or a flip hits one; of those that have a file each it hits all."""
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", 0)
    added = fill_large(store)
    store.get_features([])  # so that places are known before it happens
    for file in blob_files(store):
        file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    wrong = 0
    for row in added:
        try:
            assert rows.same_bits(store.get_features([row.key])[row.key], row.features)
        except CorruptStore:
            wrong += 1
    assert wrong == told


# No copy


@by_query_and_by_place
def test_features_lie_in_the_memory_that_was_fetched(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = rows.encoder(width=64, levels=2)
    added = fill_wide(store, made_by)
    fetched: list[pa.Buffer] = []
    original = FeatureStore._payloads

    def spied(store: FeatureStore, keys: set[str]) -> list[Any]:
        read = [(row, encoder, pa.py_buffer(source())) for row, encoder, source in original(store, keys)]
        fetched.extend(blob for _, _, blob in read)
        return [(row, encoder, partial(_same, blob)) for row, encoder, blob in read]

    monkeypatch.setattr(FeatureStore, "_payloads", spied)
    found = store.get_features([row.key for row in added])
    assert len(fetched) == len(found) == 3
    for features, blob in zip(found.values(), fetched, strict=True):
        for array in features.arrays.values():
            assert blob.address <= array.ctypes.data < blob.address + blob.size
    fetched.clear()
    gc.collect()
    assert all(rows.same_bits(found[row.key], row.features) for row in added)  # the tensors keep the memory alive


def fill_wide(store: FeatureStore, made_by: Encoder) -> list[FeatureRow]:
    added = [rows.feature_row(seed, made_by, grid=(1, 20, 20)) for seed in range(3)]
    store.put_features(added)
    return added


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_payload_shares_the_memory(dtype: str) -> None:
    made = rows.features(1, rows.encoder(dtype=dtype, levels=1))
    payload = made.to_payload()
    buffer = pa.py_buffer(payload.data)
    again = Features.from_payload(replace(payload, data=buffer), made.grid_thw, made.encoder)
    assert again.tokens.ctypes.data == buffer.address
    assert again.levels[0].ctypes.data == buffer.address + made.tokens.nbytes
    assert rows.same_bits(again, made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unaligned_payload_is_right_all_the_same(dtype: str) -> None:
    made = rows.features(1, rows.encoder(dtype=dtype, levels=1))
    payload = made.to_payload()
    shifted = pa.py_buffer(b"\0" + bytes(payload.data)).slice(1)
    assert rows.same_bits(Features.from_payload(replace(payload, data=shifted), made.grid_thw, made.encoder), made)


# Once only


def test_who_commits_between_in_spite_of_the_lock_doubles_nothing(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another machine may, on a disk that it shares without its locks."""
    fill(store, 3)
    theirs = _batch(schema.features_schema(), [feature_record(rows.feature_row(seed)) for seed in (4, 5)])
    table = type(store._tables["features"])
    add = table.add
    between = iter([lambda: add(lancedb.connect(store.uri).open_table("features"), theirs)])

    def raced_add(self: Any, batch: pa.Table) -> Any:
        next(between, lambda: None)()
        return add(self, batch)

    monkeypatch.setattr(table, "add", raced_add)
    assert store.put_features([rows.feature_row(seed) for seed in (4, 5, 6)]) == 1
    keys = [key for (key,) in store.column("features", "key")]
    assert sorted(keys) == sorted(rows.feature_row(seed).key for seed in (0, 1, 2, 4, 5, 6))
    assert FeatureStore(store.uri).get_features(keys).keys() == set(keys)


def test_put_twice_inserts_once(store: FeatureStore) -> None:
    row, picture, vector = rows.feature_row(1), rows.picture(1), rows.vector_row(1)
    for inserted in (1, 0, 0):
        assert store.put_features([row]) == inserted
        assert store.put_images([picture]) == inserted
        assert store.put_vectors(rows.encoder(), [vector]) == inserted
        store.put_files([FileRow("/a", None, 1, 1, "unreadable", "why")])
    assert [store.count(table) for table in TABLES] == [1, 1, 1]
    assert store.vector_ids(rows.encoder().id) == {picture.image_id}


def test_equal_keys_in_one_batch_insert_once(store: FeatureStore) -> None:
    assert store.put_features([rows.feature_row(1), rows.feature_row(2), rows.feature_row(1)]) == 2
    assert store.put_images([rows.picture(1)] * 3) == 1
    assert store.put_vectors(rows.encoder(), [rows.vector_row(1)] * 2) == 1
    store.put_files([FileRow("/a", None, size, 1, "ok") for size in (1, 2)])
    assert [store.count(table) for table in TABLES] == [1, 1, 2]
    assert store.files()["/a"].size == 2


@pytest.mark.parametrize("locks", [True, False], ids=["by turns", "without locks"])
def test_two_stores_that_both_look_before_either_writes(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """The commit itself has to tell; row 1 is put by the other store while this one makes records of 1 and 2."""
    if not locks:
        monkeypatch.setattr(durability, "fcntl", None)
    other = FeatureStore(store.uri)
    puts: dict[str, Callable[[FeatureStore, Sequence[int]], int]] = {
        "feature_record": lambda one, seeds: one.put_features([rows.feature_row(seed) for seed in seeds]),
        "image_record": lambda one, seeds: one.put_images([rows.picture(seed) for seed in seeds]),
        "vector_record": lambda one, seeds: one.put_vectors(rows.encoder(), [rows.vector_row(s) for s in seeds]),
    }
    for name, put in puts.items():
        record, theirs = getattr(store_module, name), iter([[1]])

        def meanwhile(row: Any, put: Any = put, record: Any = record, theirs: Iterator[list[int]] = theirs) -> Any:
            for seeds in theirs:
                assert put(other, seeds) == 1
            return record(row)

        monkeypatch.setattr(store_module, name, meanwhile)
        assert put(store, [1, 2]) == 1
        assert put(other, [2, 1]) == 0
    assert [other.count(table) for table in TABLES] == [0, 2, 2]
    assert other.vector_ids(rows.encoder().id) == {rows.digest(f"image {seed}") for seed in (1, 2)}


def test_an_open_store_sees_what_others_write(store: FeatureStore) -> None:
    other = FeatureStore(store.uri)
    (row,) = fill(store, 1)
    assert rows.same_bits(other.get_features([row.key])[row.key], row.features)
    assert other.vector_ids(rows.encoder().id) == {rows.digest("image 0")}


@dataclass
class Raced:
    store: FeatureStore
    inserted: list[int]
    failures: list[str]
    read: list[int] = field(default_factory=list)  # rows that a reader saw, reading all along


@pytest.fixture(
    scope="module",
    params=[pytest.param(True, id="by turns"), pytest.param(False, id="without locks", marks=pytest.mark.thorough)],
)
def raced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Raced:
    """Four processes, twenty rounds, each round begun by all at once, with a reader beside them."""
    uri = str(tmp_path_factory.mktemp("race") / "album.qsplit")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=racing.race, args=(uri, i, barrier, results, request.param)) for i in range(4)]
    for process in processes:
        process.start()
    said: list[Any] = []
    read: list[int] = []
    reader: FeatureStore | None = None
    while any(process.is_alive() for process in processes):
        reader = reader or opened(uri)
        read.append(count_whole_rows(reader) if reader else 0)
        time.sleep(0.5)
    while True:
        try:
            said.append(results.get(timeout=0.5))
        except queue.Empty:
            break
    failures = [one for one in said if isinstance(one, str)]
    failures += [f"exit code {process.exitcode}" for process in processes if process.exitcode]
    return Raced(FeatureStore(uri), [one for one in said if isinstance(one, int)], failures, read)


def opened(uri: str) -> FeatureStore | None:
    try:
        return FeatureStore(uri)
    except NotFound:  # none has made it yet
        return None


def count_whole_rows(store: FeatureStore) -> int:
    """Follow every file to its picture, features and vector, as a reader does; what is listed must be there whole."""
    files = store.files().values()
    images = store.images(str(row.image_id) for row in files)
    seeds = {rows.digest(f"pixels {row.size}"): row.size for row in files}
    heads = store.heads(image.pixels_digest for image in images.values())
    found = store.get_features(head.key for head in heads)
    assert len(images) == len(heads) == len(found) == len(files)
    assert images.keys() <= store.vector_ids(rows.encoder().id)
    for head in heads:
        assert rows.same_bits(found[head.key], rows.features(seeds[head.pixels_digest]))
    return len(files)


def test_racing_processes_raise_nothing(raced: Raced) -> None:
    assert raced.failures == []
    assert len(raced.inserted) == 4 * racing.ROUNDS


def test_racing_processes_lose_and_repeat_nothing(raced: Raced) -> None:
    wanted = {seed for worker in range(4) for i in range(racing.ROUNDS) for seed in racing.numbers(worker, i)}
    store = raced.store
    for name, key in (("features", "key"), ("images", "image_id"), ("files", "path"), (vectors_table(), "image_id")):
        store._table(name)
        keys = [row[key] for row in store._scan(name, [key])]
        assert len(keys) == len(set(keys)) == len(wanted)
    assert sum(raced.inserted) == len(wanted)  # each row was inserted by exactly one of them
    assert count_whole_rows(store) == len(wanted)
    assert store.settings().model in {f"model {i}" for i in range(4)}  # recorded by another process


def test_a_reader_beside_them_sees_whole_rows(raced: Raced) -> None:
    assert raced.read == sorted(raced.read)
    assert len(set(raced.read)) > 2, "the reader saw nothing of the race"


def vectors_table() -> str:
    return f"vectors-{rows.encoder().id[:12]}"


# What the tables declare


def test_a_fork_is_refused_and_may_open_its_own(store: FeatureStore) -> None:
    (row,) = fill(store, 1)
    script = (
        "import os, sys, warnings; warnings.simplefilter('ignore')\n"
        "from qsplit.store.feature_store import FeatureStore; from qsplit.errors import StoreError\n"
        f"store = FeatureStore({store.uri!r}); store.count('features'); sys.stdout.flush()\n"
        "if os.fork() == 0:\n"
        "    for act in (store.settings, store.files, lambda: store.remove('files', 'path', ['/a'])):\n"
        "        try: act(); print('not refused', flush=True)\n"
        "        except StoreError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait(); print(store.count('features'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE)
    *refused, count = done.stdout.splitlines()
    assert len(refused) == 3
    assert all("of which this one is a fork. Open the store in each process" in line for line in refused)
    assert count == "1"
    assert store.get_features([row.key])


def test_a_store_may_be_sent_to_another_process(store: FeatureStore) -> None:
    fill(store, 2)
    garbage.snapshot(store, "monday")
    fill(store, 3)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        sent = [store, FeatureStore(store.uri, snapshot="monday")]
        assert pool.map(racing.count_features, sent) == [3, 2]


def test_the_primary_keys_are_declared_in_the_tables(store: FeatureStore) -> None:
    fill(store, 1)
    keys = {"features": "key", "images": "image_id", "files": "path", vectors_table(): "image_id"}
    for table, key in keys.items():
        found = lance.dataset(lance_path(store, table)).schema
        declared = [f.name for f in found if b"lance-schema:unenforced-primary-key" in (f.metadata or {})]
        assert declared == [key]
        assert found.metadata[schema.VERSION_KEY] == str(schema.VERSION).encode()


def test_payloads_are_blobs_beside_the_rows(store: FeatureStore) -> None:
    (row,) = fill_wide(store, rows.encoder(width=512))[:1]
    payload = bytes(row.features.to_payload().data)
    for table, column in (("features", "payload"), ("images", "thumbnail")):
        assert "lance.blob.v2" in str(lance.dataset(lance_path(store, table)).schema.field(column).type)
    data = Path(store.uri, "features.lance", "data")
    held = {path.suffix for path in data.rglob("*") if path.is_file() and payload[:1000] in path.read_bytes()}
    assert held == {".blob"}


def test_the_bytes_of_a_row_are_a_contract(store: FeatureStore) -> None:
    made_by = Encoder("a" * 64, "b" * 64, "bfloat16", width=2, levels=1, merge_size=2)
    tokens = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.bfloat16)
    level = torch.tensor([[-0.0, 0.15625], [256.0, -1.0]], dtype=torch.bfloat16)
    row = FeatureRow("c" * 64, Features.from_torch([tokens, level], (1, 2, 4), made_by), Provenance("m", "r"))
    store.put_features([row])
    dataset = lance.dataset(lance_path(store, "features"))
    (held,) = dataset.to_table([c for c in dataset.schema.names if c != "payload"]).to_pylist()
    (payload,) = dataset.take_blobs("payload", indices=[0])
    assert payload is not None
    with payload:
        assert payload.read().hex() == "803f00c0003f40400080203e804380bf"
    assert held["sha256"] == "c1f1295c0d2031e2d1904b2f8753083a4bdb2d6e62fa5244f08548fade723b39"
    assert held["encoder_id"] == "1a299f3efc0bc59fd772736b3d56033cb94c30fd6f55dffc4e51f29ff3fb193c"
    assert held["key"] == f"{'c' * 64}:{held['encoder_id']}"
    assert held["codec"] == "raw"
    assert held["grid_thw"] == [1, 2, 4]
    assert [held[name] for name in ("n_tokens", "width", "levels", "merge_size", "layout")] == [2, 2, 1, 2, 1]


def test_rows_are_never_updated(store: FeatureStore) -> None:
    """To update a row would write its payload again; what is put again adds no version and no byte."""
    added = fill(store, 3)
    before, size = {name: table.version for name, table in store._tables.items()}, store.bytes()
    store.put_features(added)
    store.put_images([rows.picture(seed) for seed in range(3)])
    store.put_vectors(rows.encoder(), [rows.vector_row(seed) for seed in range(3)])
    assert {name: table.version for name, table in store._tables.items()} == before
    assert store.bytes() == size


# Damage


@by_query_and_by_place
@pytest.mark.parametrize("where", [0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("bits", [0xFF, 0x01])
def test_a_flipped_payload_is_corrupt(store: FeatureStore, where: float, bits: int) -> None:
    row, *_ = fill_wide(store, rows.encoder(width=512))
    (blob, *_) = sorted(Path(store.uri, "features.lance", "data").rglob("*.blob"))
    payload = bytes(row.features.to_payload().data)
    start = blob.read_bytes().index(payload)
    rows.flipped(blob, start + int(where * len(payload)), bits)
    with pytest.raises(CorruptStore, match=r"sha256 .* but .* was written"):
        FeatureStore(store.uri).get_features([row.key])


def test_a_lost_payload_file_is_corrupt(store: FeatureStore) -> None:
    row, *_ = fill_wide(store, rows.encoder(width=512))
    for blob in Path(store.uri, "features.lance", "data").rglob("*.blob"):
        blob.unlink()
    with pytest.raises(CorruptStore):
        FeatureStore(store.uri).get_features([row.key])
    assert len(FeatureStore(store.uri).heads([row.pixels_digest])) == 1


@by_query_and_by_place
@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
def test_a_flipped_byte_is_an_error_or_changes_nothing(store: FeatureStore, part: str) -> None:
    added = fill(store, 3)
    path = min(Path(store.uri, "features.lance").glob(part))  # of manifests, the newest has the smallest number
    sound, expected, failed = path.read_bytes(), read_features(store.uri, added), 0
    for offset in range(0, len(sound), 1 + len(sound) // 80):
        rows.flipped(path, offset)
        try:
            assert read_features(store.uri, added) == expected, f"byte {offset} of {len(sound)}"
        except QsplitError:
            failed += 1
        path.write_bytes(sound)
    assert failed or part != "data/*.lance"


@pytest.mark.parametrize("field", ["position", "size"])
def test_a_blob_said_to_lie_beyond_any_file_is_corrupt(store: FeatureStore, field: str) -> None:
    """Lance would wait for its bytes for ever; so the reader is a process of its own, which is given a minute."""
    added = fill(store, 3)
    (path,) = Path(store.uri, "features.lance", "data").glob("*.lance")
    nbytes = added[0].features.nbytes
    rows_at = [path.read_bytes().index(struct.pack("<QQ", position, nbytes)) for position in (nbytes, 2 * nbytes)]
    highest_byte = 7 if field == "position" else 15
    for start in rows_at:
        rows.flipped(path, start + highest_byte)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    reader = spawn.Process(target=racing.read, args=(store.uri, [row.key for row in added], answers), daemon=True)
    reader.start()
    answer = answers.get(timeout=PATIENCE)
    reader.join()
    assert answer.startswith(f"CorruptStore: A blob's {field} is said to be ")


def read_features(uri: str, added: list[FeatureRow]) -> dict[str, tuple[Any, ...]]:
    store = FeatureStore(uri)
    heads = {head.key: head for head in store.heads(row.pixels_digest for row in added)}
    facts = {key: (head.pixels_digest, head.encoder, head.grid_thw, head.n_tokens) for key, head in heads.items()}
    found = store.get_features(heads)
    return {key: (*facts[key], one.encoder, one.grid_thw, one.to_payload()) for key, one in found.items()}


@pytest.mark.parametrize("table", ["files", "images", "vectors"])
def test_damage_raises_no_foreign_error(store: FeatureStore, table: str) -> None:
    fill(store, 3)
    name = vectors_table() if table == "vectors" else table
    (path,) = Path(store.uri, f"{name}.lance", "data").glob("*.lance")
    sound, failed, offsets = path.read_bytes(), 0, 0
    for offset in range(len(sound) // 3, len(sound), 1 + len(sound) // 40):
        offsets += 1
        rows.flipped(path, offset)
        try:
            reader = FeatureStore(store.uri)
            reader.files()
            reader.images()
            reader.vectors(rows.encoder().id).nearest("pooled", rows.unit(1), 5)
        except QsplitError:
            failed += 1
        path.write_bytes(sound)
    assert failed, f"none of {offsets} damages was noticed"


def test_a_head_whose_count_is_not_its_grids_is_corrupt(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = fill(store, 1)
    scan = FeatureStore._scan
    monkeypatch.setattr(
        FeatureStore, "_scan", lambda *args: [held | {"n_tokens": held["n_tokens"] + 1} for held in scan(*args)]
    )
    with pytest.raises(CorruptStore, match="than it holds"):
        store.heads([row.pixels_digest])


FOREIGN = [RuntimeError, ValueError, OSError, KeyError, TypeError, OverflowError, pa.ArrowInvalid, Exception]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_every_foreign_error_is_translated(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, foreign: type[Exception]
) -> None:
    """Lance's panics derive from Exception alone."""
    fill(store, 1)

    def broken(*_: object, **__: object) -> None:
        raise foreign("what Lance said")

    for way in ("add", "merge_insert"):  # by turns, and where others may commit meanwhile
        with monkeypatch.context() as patch:
            patch.setattr(lancedb.table.LanceTable, way, broken)
            if way == "merge_insert":
                patch.setattr(durability, "fcntl", None)
            with pytest.raises(StoreError, match=r"Writing 1 rows to features of .*what Lance said") as caught:
                store.put_features([rows.feature_row(9)])
            assert isinstance(caught.value.__cause__, foreign)
    monkeypatch.setattr(lancedb.table.LanceTable, "search", broken)
    reads = (store.files, lambda: store.heads(["a"]), lambda: store.get_features(["a"]), lambda: store.thumbnail("a"))
    for read in (*reads, lambda: store.vectors(rows.encoder().id).nearest("pooled", rows.unit(1), 1)):
        with pytest.raises(CorruptStore, match=r"album\.qsplit cannot be read: .*what Lance said"):
            read()


@by_query_and_by_place
@pytest.mark.parametrize("column", ["vision_weights", "processor", "pixels_digest", "key", "encoder_id"])
def test_a_row_that_is_not_its_keys_is_corrupt(store: FeatureStore, column: str) -> None:
    """The payload's own sha256 says nothing of the row that it hangs on."""
    (row,) = fill(store, 1)
    value = {"key": row.key, "pixels_digest": row.pixels_digest, "encoder_id": row.features.encoder.id}.get(
        column, rows.digest({"vision_weights": "weights", "processor": "processor"}.get(column))
    )
    (path,) = Path(store.uri, "features.lance", "data").glob("*.lance")
    sound = path.read_bytes()
    hits = [at for at in range(len(sound)) if sound.startswith(value.encode(), at)]
    other = value[:-1] + ("0" if value[-1] != "0" else "1")
    read, listed = set(), set()
    for at in hits:
        path.write_bytes(sound[:at] + other.encode() + sound[at + len(other) :])
        read.add(outcome(store.uri, row, lambda reopened: reopened.get_features([row.key])))
        listed.add(outcome(store.uri, row, lambda reopened: {h.key: h for h in reopened.heads([row.pixels_digest])}))
    names_the_encoder = column in ("vision_weights", "processor")
    assert CorruptStore in (read if names_the_encoder else read | listed)
    # The key is made of the picture's digest and the encoder's id: where those are spoilt in it, it is another one.
    assert read <= {CorruptStore, "as it was"} | (set() if names_the_encoder else {"gone"})
    assert listed <= {CorruptStore, "as it was", "gone"}


def outcome(uri: str, row: FeatureRow, read: Callable[[FeatureStore], Mapping[str, Any]]) -> object:
    """What comes of reading a row that was spoilt; anything but what was put fails."""
    try:
        found = read(FeatureStore(uri))
    except CorruptStore:
        return CorruptStore
    assert found.keys() <= {row.key}
    for one in found.values():
        assert one.encoder == row.features.encoder
        assert not isinstance(one, Features) or rows.same_bits(one, row.features)
    return "as it was" if found else "gone"


@pytest.mark.parametrize("held", [b"not JSON", b'{"colour": "red"}', b"[1]"])
def test_settings_that_make_no_sense_are_corrupt(store: FeatureStore, held: bytes) -> None:
    lance.dataset(lance_path(store, "files")).update_schema_metadata({"qsplit.settings": held.decode()})
    with pytest.raises(CorruptStore, match="settings recorded in"):
        FeatureStore(store.uri).settings()


# What is no store of ours


@pytest.mark.parametrize("table", [*TABLES, "vectors"])
def test_a_newer_store_is_refused(store: FeatureStore, table: str) -> None:
    fill(store, 1)
    name = vectors_table() if table == "vectors" else table
    lance.dataset(lance_path(store, name)).update_schema_metadata({schema.VERSION_KEY.decode(): "7"})
    told = rf"schema version 7; this qsplit reads up to {schema.VERSION}\. Upgrade with"
    with pytest.raises(StoreVersionError, match=told):
        FeatureStore(store.uri).vector_ids(rows.encoder().id)


@pytest.mark.parametrize("create", [True, False])
def test_a_foreign_table_is_refused(tmp_path: Path, create: bool) -> None:
    foreign = lancedb.connect(tmp_path / "theirs")
    foreign.create_table("files", pa.table({"name": ["a"]}))
    before = everything(tmp_path)
    with pytest.raises(StoreError, match="is a Lance table, but not of a qsplit store"):
        FeatureStore(tmp_path / "theirs", create=create)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_no_store(tmp_path: Path, create: bool, scheme: str) -> None:
    (tmp_path / "album.qsplit").write_text("words")
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        FeatureStore(f"{scheme}{tmp_path}/album.qsplit", create=create)
    assert (tmp_path / "album.qsplit").read_text() == "words"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_missing_store_is_not_made_by_looking(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(NotFound, match=r"There is no store at .*album\.qsplit.*qsplit index"):
        FeatureStore(f"{scheme}{tmp_path}/inner/album.qsplit")
    assert everything(tmp_path) == {}


def test_an_empty_folder_is_no_store_and_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no store"):
        FeatureStore(tmp_path)
    assert everything(tmp_path) == {}


def test_a_name_too_long_for_a_file_is_not_found() -> None:
    with pytest.raises(NotFound, match="There is no store"):
        FeatureStore("x" * 300)
    with pytest.raises(StoreError):
        FeatureStore("x" * 300, create=True)


def test_a_store_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    FeatureStore("~/album.qsplit", create=True).put_files([FileRow("/a", None, 1, 1, "ok")])
    assert FeatureStore("~/album.qsplit").bytes()["total"] > 0
    assert FeatureStore(tmp_path / "album.qsplit").count("files") == 1


def test_reading_creates_nothing(store: FeatureStore) -> None:
    (row,) = fill(store, 1)
    before = everything(Path(store.uri))
    reader = FeatureStore(store.uri)
    other = rows.encoder(weights="other")
    assert reader.get_features([row.key])
    assert reader.vectors(rows.encoder().id).nearest("pooled", rows.unit(1), 5)
    assert reader.vectors(other.id).nearest("pooled", rows.unit(1), 5) == []
    assert reader.vector_ids(other.id) == reader.encoded_pixels(other.id) == set()
    assert reader.vectors(other.id).get("pooled", [rows.digest("image 0")]) == {}
    for read in (reader.files, reader.images, reader.encoders, reader.bytes, reader.settings):
        assert read()
    assert reader.heads([row.pixels_digest])
    assert reader.paths_of([rows.digest("image 0")])
    assert reader.thumbnail(rows.digest("image 0"))
    assert everything(Path(store.uri)) == before


# Settings


def test_settings_are_recorded(store: FeatureStore) -> None:
    assert store.settings() == StoreSettings()
    recorded = StoreSettings("some/model", "abc", "float16", min_pixels=3136, resized_height=56, encoder="e" * 64)
    store.record(recorded)
    fill(store, 2)
    assert store.settings() == FeatureStore(store.uri).settings() == recorded


def test_equal_settings_are_not_written_again(store: FeatureStore) -> None:
    store.record(StoreSettings(model="m"))
    version = store._tables["files"].version
    store.record(StoreSettings(model="m"))
    assert store._tables["files"].version == version
    store.record(StoreSettings(model="n"))
    assert FeatureStore(store.uri).settings().model == "n"
    metadata = lance.dataset(lance_path(store, "files")).schema.metadata
    assert metadata[schema.VERSION_KEY] == str(schema.VERSION).encode()  # stays beside them


# Identity


def without_id(store: FeatureStore) -> None:
    """Make a store as it was before stores had ids."""
    files = lance.dataset(lance_path(store, "files"))
    held = {key.decode(): value.decode() for key, value in files.schema.metadata.items() if key != b"qsplit.id"}
    files.update_schema_metadata(held, replace=True)


def test_a_store_has_an_id_from_the_beginning_for_good(store: FeatureStore) -> None:
    made = store.id
    assert re.fullmatch("[0-9a-f]{32}", made)
    store.record(StoreSettings(model="m"))
    fill(store, 2)
    garbage.snapshot(store, "monday")
    fill(store, 5)
    garbage.compact(store, alone=True)
    assert FeatureStore(store.uri, create=True).id == made
    assert FeatureStore(store.uri, snapshot="monday").id == made
    garbage.restore(store, "monday")
    assert store.identify() == FeatureStore(store.uri).id == made
    assert FeatureStore(store.uri).settings().model == "m"


def test_stores_have_ids_of_their_own(tmp_path: Path) -> None:
    assert len({FeatureStore(tmp_path / name, create=True).id for name in ("one", "other")}) == 2


def test_a_store_of_before_gets_an_id_when_one_is_needed(store: FeatureStore) -> None:
    fill(store, 1)
    without_id(store)
    others = [FeatureStore(store.uri, create=True) for _ in range(2)]
    assert [one.id for one in others] == ["", ""]
    made = others[0].identify()
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert others[1].identify() == store.identify() == made


def test_processes_that_assign_an_id_at_the_same_moment_agree(store: FeatureStore) -> None:
    without_id(store)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    started = [context.Process(target=racing.identify, args=(store.uri, barrier, results, n == 0)) for n in range(2)]
    for process in started:
        process.start()
    found = {results.get(timeout=PATIENCE) for _ in started}
    for process in started:
        process.join(PATIENCE)
    assert found == {FeatureStore(store.uri).id}


def test_a_snapshot_of_before_there_were_ids_is_restored_with_the_stores_id(store: FeatureStore) -> None:
    fill(store, 2)
    without_id(store)
    garbage.snapshot(store, "monday")
    assert FeatureStore(store.uri, snapshot="monday").id == ""
    with pytest.raises(UsageError, match="read-only"):
        FeatureStore(store.uri, snapshot="monday").identify()
    made = store.identify()
    fill(store, 4)
    garbage.restore(store, "monday")
    assert store.count("files") == 2
    assert store.id == FeatureStore(store.uri).id == made


@pytest.mark.parametrize("held", ["../../.ssh", "a" * 31, "A" * 32, "a" * 32 + "\n", "/etc", "é" * 32])
def test_an_id_that_is_none_is_corrupt(store: FeatureStore, held: str) -> None:
    """It names a folder of the user."""
    garbage.snapshot(store, "monday")
    made = store.id
    lance.dataset(lance_path(store, "files")).update_schema_metadata({"qsplit.id": held})
    told = r"Invalid identifier recorded in .* Restore a snapshot"
    with pytest.raises(CorruptStore, match=told):
        _ = store.id
    with pytest.raises(CorruptStore, match=told):
        store.identify()
    garbage.restore(store, "monday")
    assert store.id == made


# Filters


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4, unique=True))
def test_any_text_is_a_path_and_only_itself(shared: FeatureStore, names: list[str]) -> None:
    added = {name: FileRow(name, rows.digest(name), len(name), 1, "ok") for name in names}
    shared.put_files(list(added.values()))
    for name, row in added.items():
        assert shared.file(name) == row
        assert shared.file(f"{name}{INJECTION}") is None or f"{name}{INJECTION}" in added
        assert name in shared.paths_of([rows.digest(name)])[rows.digest(name)]


@pytest.mark.parametrize("text", [INJECTION, f"/0.jpg{INJECTION}", "a' OR 'a'='a", 'a" OR ""="', "%", "_", "\\", "'"])
def test_filters_cannot_be_injected(store: FeatureStore, text: str) -> None:
    fill(store, 3)
    assert store.file(text) is None
    assert not store.images([text])
    assert not store.get_features([text])
    assert not store.paths_of([text])
    assert not store.heads([text])
    assert not store.image_ids_with_prefix(text)
    assert store.encoded_pixels(text) == set()
    assert store.vectors(rows.encoder().id).get("pooled", [text]) == {}
    with pytest.raises(NotFound):
        store.thumbnail(text)
    image_id = rows.digest(text)
    store.put_files([FileRow(text, image_id, 1, 1, "ok")])
    assert store.file(text) == FileRow(text, image_id, 1, 1, "ok")
    assert store.paths_of([image_id]) == {image_id: [text]}
    assert store.count("files") == 4


def test_prefixes_of_ids(store: FeatureStore) -> None:
    ids = ["abcdef" + "0" * 58, "abcdef" + "f" * 58, "abcdf0" + "0" * 58, "abcdee" + "f" * 58]
    store.put_images([rows.picture(i, image_id=image_id) for i, image_id in enumerate(ids)])
    assert store.image_ids_with_prefix("abcdef") == ids[:2]
    assert store.image_ids_with_prefix("abcd") == sorted(ids)
    assert store.image_ids_with_prefix(ids[1]) == [ids[1]]
    assert store.image_ids_with_prefix("abcdef1") == []


def test_a_file_that_is_gone_is_no_path_of_a_picture(store: FeatureStore) -> None:
    one, two = rows.digest(1), rows.digest(2)
    store.put_files(
        [FileRow("/b", one, 1, 1, "ok"), FileRow("/a", one, 1, 1, "ok"), FileRow("/c", one, 1, 1, "missing")]
    )
    store.put_files([FileRow("/d", two, 1, 1, "missing")])
    assert store.paths_of([one, two]) == {one: ["/a", "/b"]}


@pytest.mark.parametrize("count", [11, 1_500])
def test_every_row_is_scanned(store: FeatureStore, count: int) -> None:
    """A vector search of LanceDB ends after ten rows unless it is told otherwise."""
    added = fill(store, count)
    ids = {rows.digest(f"image {seed}") for seed in range(count)}
    assert len(store.files()) == len(store.paths_of(ids)) == count
    assert store.images().keys() == store.images(ids).keys() == store.vector_ids(rows.encoder().id) == ids
    assert len(store.encoded_pixels(rows.encoder().id)) == len(store.heads(r.pixels_digest for r in added)) == count
    assert store.get_features(r.key for r in added).keys() == {r.key for r in added}
    assert len(store.vectors(rows.encoder().id).nearest("pooled", rows.unit(1), count)) == count
    assert sum(store.encoders()[rows.encoder().id].values()) == count
    assert store.put_features(added) == 0


# Vectors


def test_nearest_is_exact(store: FeatureStore) -> None:
    fill(store, 40)
    query = rows.unit(99) * 7  # the length of a query says nothing
    cosines = {rows.digest(f"image {seed}"): float(rows.unit(seed) @ rows.unit(99)) for seed in range(40)}
    best = sorted(cosines, key=lambda image_id: -cosines[image_id])
    found = store.vectors(rows.encoder().id).nearest("pooled", query, 12)
    assert [image_id for image_id, _ in found] == best[:12]
    assert [score for _, score in found] == pytest.approx([cosines[image_id] for image_id in best[:12]], abs=1e-5)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_a_query_without_direction_is_refused(store: FeatureStore, value: float) -> None:
    fill(store, 2)
    query = np.zeros(8, np.float32)
    query[3] = value
    with pytest.raises(UsageError, match="zero, NaN or infinite"):
        store.vectors(rows.encoder().id).nearest("pooled", query, 5)


def test_vectors_of_two_encoders_never_mix(store: FeatureStore) -> None:
    old, new, wide = rows.encoder(), rows.encoder(weights="new"), rows.encoder(weights="wide", width=16)
    for made_by, seeds in ((old, (0, 1)), (new, (1, 2)), (wide, (3,))):
        store.put_features([rows.feature_row(seed, made_by) for seed in seeds])
        store.put_vectors(made_by, [rows.vector_row(seed, made_by.width) for seed in seeds])
    for made_by, seeds in ((old, (0, 1)), (new, (1, 2)), (wide, (3,))):
        ids = {rows.digest(f"image {seed}") for seed in seeds}
        assert store.vector_ids(made_by.id) == ids
        assert {
            image_id for image_id, _ in store.vectors(made_by.id).nearest("pooled", rows.unit(1, made_by.width), 50)
        } == ids
        assert store.encoded_pixels(made_by.id) == {rows.digest(f"pixels {seed}") for seed in seeds}
    assert store.count("features") == 5
    assert [head.encoder.id for head in store.heads([rows.digest("pixels 0")])] == [old.id]
    assert {head.encoder.id for head in store.heads([rows.digest("pixels 1")])} == {old.id, new.id}
    used = [(use.encoder.id, n) for uses in store.encoders().values() for use, n in uses.items()]
    assert dict(used) == {old.id: 2, new.id: 2, wide.id: 1}


# What no model can have made never gets as far as a store

TOKENS = np.full((4, 8), 0x3F80, "<u2")  # ones in bfloat16
NAN, INFINITY = np.full_like(TOKENS, 0x7FC0), np.full_like(TOKENS, 0x7F80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": NAN}, "tokens holds NaN or infinity"),
        ({"tokens": INFINITY}, "tokens holds NaN or infinity"),
        ({"levels": (NAN,)}, "level 0 holds NaN or infinity"),
        ({"tokens": TOKENS[:3]}, r"gives 4 tokens, but the tokens have shape \(3, 8\)"),
        ({"tokens": TOKENS.flatten()}, r"shape \(32,\)"),
        ({"tokens": TOKENS[:, :7]}, r"shape \(4, 7\), but \(4, 8\) is wanted"),
        ({"tokens": TOKENS.astype(np.float32)}, "dtype float32, but the encoder's dtype is bfloat16"),
        ({"tokens": TOKENS.astype(np.float16)}, "dtype float16"),
        ({"grid_thw": (1, 4, 6)}, "gives 6 tokens"),
        ({"grid_thw": (1, 4, 3)}, "multiples of 2"),
        ({"grid_thw": (0, 4, 4)}, "three positive numbers"),
        ({"grid_thw": (4, 4)}, "three positive numbers"),
        ({"levels": ()}, "0 DeepStack levels were given, but the encoder makes 1"),
        ({"levels": (TOKENS, TOKENS)}, "2 DeepStack levels were given"),
        ({"levels": (TOKENS[:2],)}, r"level 0 has shape \(2, 8\)"),
        ({"levels": (TOKENS.astype(np.float32),)}, "level 0 has dtype float32"),
    ],
)
def test_unsound_features_are_refused(changes: dict[str, Any], message: str) -> None:
    sound: dict[str, Any] = {"tokens": TOKENS, "grid_thw": (1, 4, 4), "encoder": rows.encoder(levels=1)}
    sound["levels"] = (TOKENS,)
    assert len(Features(**sound)) == 4
    with pytest.raises(InvalidFeatures, match=message):
        Features(**(sound | changes))


def test_a_payload_that_fits_its_hash_but_not_its_row() -> None:
    made = rows.features(1, rows.encoder(levels=1))
    payload = made.to_payload()
    with pytest.raises(InvalidFeatures, match="take 256"):
        Features.from_payload(payload, (1, 8, 4), made.encoder)
    with pytest.raises(InvalidFeatures, match="codec is 'zip'"):
        Features.from_payload(replace(payload, codec="zip"), made.grid_thw, made.encoder)
    short = bytes(payload.data)[:-1]
    with pytest.raises(CorruptStore):
        Features.from_payload(replace(payload, data=short), made.grid_thw, made.encoder)
    with pytest.raises(InvalidFeatures, match="127 bytes"):
        Features.from_payload(Payload(short, hashlib.sha256(short).hexdigest()), made.grid_thw, made.encoder)


# Foreign errors


def test_a_store_that_cannot_be_written_says_so(store: FeatureStore) -> None:
    """Lance's own errors become ours; here the folder of the table is gone."""
    shutil.rmtree(Path(store.uri, "features.lance"))
    with pytest.raises(StoreError, match=r"album\.qsplit"):
        store.put_features([rows.feature_row(1)])
    with pytest.raises(StoreError):
        store.count("features")


def test_bytes_on_disk(store: FeatureStore) -> None:
    fill_wide(store, rows.encoder(width=512))
    held = store.bytes()
    on_disk = {path: path.stat().st_size for path in Path(store.uri).rglob("*") if path.is_file()}
    assert held["total"] == sum(on_disk.values())
    assert held["features"] == sum(
        size for path, size in on_disk.items() if f"{os.sep}features.lance{os.sep}" in str(path)
    )
