"""Stores that earlier code wrote, opened for writing by today's: brought up to date, whole, and as good as new.

What hangs is ended: each of them is opened in processes with a time limit.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import queue
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held
import lance
import pyarrow as pa
import pytest
import upgrading
from PIL import Image

from qsplit.features.features import Features
from qsplit.maintenance import garbage
from qsplit.maintenance.verify import verify
from qsplit.store import schema
from qsplit.store.feature_store import FeatureStore
from qsplit.store.migrations import history

STORES = Path(__file__).parents[1] / "data" / "stores"
NAMES = ["v0", "v1-early", "v1", "v2", "v3", "v4", "v5"]
WITH_SNAPSHOT, WITH_PAIRS, WITH_CAPTIONS = NAMES[2:], NAMES[4:], NAMES[5:]
LIMIT = 300  # seconds, for what takes some ten
NOW = str(schema.VERSION).encode()
Rows = dict[str, list[dict[str, Any]]]
# What the rows of before hold in the columns that came later.
ADDED: dict[str, dict[str, Any]] = {
    "features": {"codec": "raw", "timestamps": None, "sample_fps": None, "compute": "plain", "shown": None},
    "vectors": dict.fromkeys(("semantic_id", "caption_id", "terms")),
}


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(STORES / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / name


def tables(store: Path) -> dict[str, Any]:
    return {path.stem: lance.dataset(str(path)) for path in sorted(store.glob("*.lance"))}


def read(store: Path) -> Rows:
    """All that is in a store, read past qsplit, so that nothing is brought up to date."""
    return {name: held.rows_of(table) for name, table in tables(store).items()}


def versions(store: Path) -> dict[str, bytes]:
    return {name: table.schema.metadata[schema.VERSION_KEY] for name, table in tables(store).items()}


def columns(of: pa.Schema) -> dict[str, tuple[str, bool]]:
    """Names, types and nullability; how a blob is laid out is Lance's affair."""
    blobs = {one.name for one in of if pa.types.is_large_binary(one.type) or pa.types.is_struct(one.type)}
    blobs |= {one.name for one in of if getattr(one.type, "extension_name", "") == "lance.blob.v2"}
    return {one.name: ("blob" if one.name in blobs else str(one.type), one.nullable) for one in of}


def todays(name: str, table: Any) -> pa.Schema:
    if name.startswith("vectors-"):
        return schema.vectors_schema(table.schema.field("pooled").type.list_size)
    made: pa.Schema = getattr(schema, f"{name}_schema")()
    return made


def assert_up_to_date(store: Path) -> None:
    """Each table is of today's layout, and tells of each step once."""
    for name, table in tables(store).items():
        assert table.schema.metadata[schema.VERSION_KEY] == NOW, name
        assert columns(table.schema) == columns(todays(name, table)), name
        steps = [step["to"] for step in history(table.schema.metadata)]
        assert steps == list(range(schema.VERSION - len(steps) + 1, schema.VERSION + 1)), name


def assert_kept(store: Path, before: Rows) -> None:
    """Each row that there was is there once, as it was, with what was true of it in the columns that came later."""
    after = read(store)
    for name, some in before.items():
        key = todays(name, tables(store)[name]).names[0]
        known = {row[key] for row in some}
        wanted = [ADDED.get(name.partition("-")[0], {}) | row for row in some]
        assert [row for row in after[name] if row[key] in known] == wanted, name


def assert_readable(store: Path, before: Rows) -> None:
    """What was there is understood, not only kept."""
    opened = FeatureStore(store)
    found = opened.get_features([row["key"] for row in before["features"]])
    assert len(found) == len(before["features"]) > 0
    for row in before["features"]:
        assert_same_bits(found[row["key"]], row)
    thumbnails = dict(opened.thumbnails(row["image_id"] for row in before["images"]))
    assert thumbnails == {row["image_id"]: row["thumbnail"] for row in before["images"]}
    files = opened.files(row["path"] for row in before["files"])
    assert {path: row.image_id for path, row in files.items()} == {
        row["path"]: row["image_id"] for row in before["files"]
    }
    checks = opened.checks(row["key"] for row in before.get("checks", []))
    assert {key: list(row.probabilities) for key, row in checks.items()} == {
        row["key"]: row["probabilities"] for row in before.get("checks", [])
    }
    assert opened.decisions() >= {(row["one"], row["other"]) for row in before.get("decisions", [])}
    for made in {row["made"] for row in before.get("pairs", [])}:
        assert len(opened.pairs(made)) >= len(before["pairs"])
        assert opened.compared(made) >= {row["pixels_digest"] for row in before["compared"]}


def assert_same_bits(found: Features, row: dict[str, Any]) -> None:
    """What is read are the bytes that lie there, and those are the ones that were written."""
    assert row.get("codec", "raw") == "raw"
    assert hashlib.sha256(row["payload"]).hexdigest() == row["sha256"]
    arrays = list(found.arrays.values())
    assert b"".join(one.tobytes() for one in arrays) == row["payload"]
    assert [one.shape for one in arrays] == [(row["n_tokens"], row["width"])] * (1 + row["levels"])
    assert found.encoder.dtype == row["dtype"]
    assert list(found.grid_thw) == row["grid_thw"]
    assert found.encoder.id == row["encoder_id"]


def run(*commands: Sequence[object]) -> list[dict[str, Any]]:
    """What came of commands that one process ran one after another, within the time limit."""
    given = json.dumps([[str(word) for word in one] for one in commands])
    done = subprocess.run(
        [sys.executable, upgrading.__file__, given], check=True, capture_output=True, text=True, timeout=LIMIT
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """A picture that none of the stores has."""
    path = tmp_path / "late.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """Each store after two processes opened it for writing at the same moment, and what they say of it."""
    folder = tmp_path_factory.mktemp("together")
    stores = [unpacked(name, folder) for name in NAMES]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=upgrading.open_and_put, args=([str(one) for one in stores], worker, barrier, results))
        for worker in range(2)
    ]
    for process in both:
        process.start()
    said: dict[str, list[str]] = {str(store): [] for store in stores}
    try:
        for _ in range(2 * len(stores)):
            store, what = results.get(timeout=LIMIT)
            said[store].append(what)
            if what != "done":
                break
    except queue.Empty:
        pass
    finally:
        for process in both:
            process.kill()
            process.join()
    return {store.name: (store, said[str(store)]) for store in stores}


def test_there_is_a_store_of_every_version(tmp_path: Path) -> None:
    found = [set(versions(unpacked(name, tmp_path)).values()) for name in NAMES]
    assert found == [{b"0"}, {b"1"}, {b"1"}, {b"2"}, {b"3"}, {b"4"}, {b"5"}]
    assert found[-1] == {NOW}, "the code of the last version has a store to leave: see data/stores/make.py"
    assert all({"landmarks", "pairs", "compared", "decisions"} <= versions(tmp_path / one).keys() for one in WITH_PAIRS)
    captioned = [rows for one in WITH_CAPTIONS for name, rows in read(tmp_path / one).items() if "vectors-" in name]
    assert [[bool(row["caption"]) for row in rows] for rows in captioned] == [[True] * 3] * len(WITH_CAPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_of_an_older_layout_is_indexed_into(name: str, tmp_path: Path, late: Path) -> None:
    store = unpacked(name, tmp_path)
    before = read(store)
    commands: list[list[object]] = [
        ["index", late],
        ["duplicates"],
        ["status"],
        ["snapshot", "after"],
        ["compact"],
        ["verify"],
    ]
    done = run(*[[*one, "--store", store] for one in commands])
    assert [one["code"] for one in done] == [0] * len(commands)
    indexed, groups, status = done[0]["lines"][0], done[1]["lines"], done[2]["lines"][0]
    assert (indexed["encoded"], indexed["unreadable"]) == (1, [])
    assert ("exact", 2) in [(one["kind"], len(one["members"])) for one in groups]
    assert (status["schema"], status["images"], status["files"]) == (schema.VERSION, 4, 5)
    assert_up_to_date(store)
    assert_kept(store, before)
    assert_readable(store, before)
    assert FeatureStore(store).snapshots().keys() == {"after"} | ({"before"} if name in WITH_SNAPSHOT else set())


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_bring_a_store_up_to_date_at_once(
    name: str, together: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    store, said = together[name]
    assert said == ["done", "done"]
    before = read(unpacked(name, tmp_path))
    assert_up_to_date(store)
    assert_kept(store, before)
    assert_readable(store, before)
    late = {seed for worker in range(2) for seed in upgrading.seeds_of(worker)}
    assert {upgrading.path_of(seed) for seed in late} <= FeatureStore(store).files().keys()
    for table, rows in read(store).items():
        grows = table in ("features", "images", "checks", "decisions", "files") or table.startswith("vectors-")
        assert len(rows) == len(before.get(table, [])) + (len(late) if grows else 0), table


@pytest.mark.parametrize("name", NAMES)
def test_features_of_an_older_layout_are_read_bit_by_bit(name: str, tmp_path: Path) -> None:
    """Where nothing is written to the store, and nothing of it computed again."""
    store = unpacked(name, tmp_path)
    before = read(store)
    assert_readable(store, before)
    assert [row["payload"] for row in read(store)["features"]] == [row["payload"] for row in before["features"]]


def test_a_store_that_is_brought_up_to_date_in_part_is_indexed_into(tmp_path: Path, late: Path) -> None:
    """What only reads opens the tables that it needs, and the others stay as they were."""
    store = unpacked("v4", tmp_path)
    before = read(store)
    FeatureStore(store)
    assert {name for name, version in versions(store).items() if version == b"4"} >= {"landmarks", "checks"}
    (done,) = run(["index", late, "--store", store])
    assert done["lines"][0]["encoded"] == 1
    assert_up_to_date(store)
    assert_kept(store, before)


@pytest.mark.parametrize("name", ["v1", "v4"])
def test_an_older_snapshot_is_restored_and_indexed_into(name: str, tmp_path: Path, late: Path) -> None:
    store = unpacked(name, tmp_path)
    done = run(
        ["index", late, "--store", store],
        ["snapshot", "before", "--restore", "--store", store],
        ["index", late, "--store", store],
    )
    assert [one["code"] for one in done] == [0, 0, 0]
    assert [done[i]["lines"][0]["encoded"] for i in (0, 2)] == [1, 1]
    assert_up_to_date(store)
    assert len(FeatureStore(store).files()) == 5


def test_a_store_that_is_restored_to_an_older_layout_is_written_to_by_those_who_have_it_open(tmp_path: Path) -> None:
    store = unpacked("v4", tmp_path)
    opened, other = FeatureStore(store), FeatureStore(store)
    assert len(opened.vector_ids(upgrading.encoder_of(opened).id)) == 3
    garbage.restore(other, "before")
    assert_up_to_date(store)
    upgrading.put(opened, [1])
    assert opened.count("images") == 4


def test_a_column_that_a_table_of_todays_version_lacks_is_added(tmp_path: Path) -> None:
    """The first stores of version 1 had no time of an image, and were marked as up to date without one."""
    store = unpacked("v1-early", tmp_path)
    for table in tables(store).values():
        table.update_schema_metadata({schema.VERSION_KEY.decode(): NOW.decode()})
    before = read(store)
    verified = verify(FeatureStore(store))
    assert (verified.checked, verified.missing) == (3, [])
    assert FeatureStore(store).column("images", "created_at")
    assert_kept(store, before)
