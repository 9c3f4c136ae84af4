"""A store of an older layout opens, is brought up to date step by step, and survives being cut off at any of them."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import layouts
import pytest
import racing
import rows
from lancedb.table import LanceTable
from patience import PATIENCE

from qsplit.errors import StoreError, StoreVersionError
from qsplit.maintenance import garbage
from qsplit.maintenance.verify import verify
from qsplit.store import migrations, schema
from qsplit.store.feature_store import FeatureStore
from qsplit.store.migrations import STEPS, Step, history
from qsplit.store.records import FileRow

ENCODER = rows.encoder(width=64)
SEEDS = range(5)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return layouts.make_v0(tmp_path / "old.qsplit", SEEDS, ENCODER)


def tables(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.lance"))


def metadata(folder: Path, table: str) -> dict[bytes, bytes]:
    return dict(lance.dataset(str(folder / f"{table}.lance")).schema.metadata or {})


def assert_up_to_date(folder: Path) -> None:
    """All that was there is there, is as if it had been written today, and can be added to."""
    store = FeatureStore(folder)
    keys = [rows.feature_row(seed, ENCODER).key for seed in SEEDS]
    found = store.get_features(keys)
    assert all(rows.same_bits(found[key], rows.features(seed, ENCODER)) for seed, key in zip(SEEDS, keys, strict=True))
    assert all(one.exact for one in found.values())
    assert sorted(store.images()) == sorted(rows.digest(f"image {seed}") for seed in SEEDS)
    assert store.thumbnail(rows.digest("image 3")) == rows.thumbnail(3)
    assert store.files()["/2.jpg"] == FileRow("/2.jpg", rows.digest("image 2"), 2, 1, "ok")
    assert store.vectors(ENCODER.id).nearest("pooled", rows.unit(1, 64), 1)[0][0] == rows.digest("image 1")
    made = {"features": schema.features_schema(), "images": schema.images_schema(), "files": schema.files_schema()}
    made[f"vectors-{ENCODER.id[:12]}"] = schema.vectors_schema(64)
    for table, wanted in made.items():
        held = store._tables[table].schema
        assert {(f.name, f.nullable) for f in held} == {(f.name, f.nullable) for f in wanted}
        assert metadata(folder, table)[schema.VERSION_KEY] == str(schema.VERSION).encode()
    assert garbage.find_orphans(store, grace=timedelta(0)) == garbage.Orphans()
    store.put_features([rows.feature_row(77, ENCODER)])
    store.put_images([rows.picture(77)])
    store.put_vectors(ENCODER, [rows.vector_row(77, 64)])
    store.put_files([FileRow("/77.jpg", rows.digest("image 77"), 77, 1, "ok")])
    assert verify(store).missing == []


def test_there_is_a_way_from_every_version_to_todays() -> None:
    assert sorted(STEPS) == list(range(schema.VERSION))


def test_an_old_store_opens_and_is_as_if_written_today(old: Path) -> None:
    assert metadata(old, "features")[schema.VERSION_KEY] == b"0"
    assert_up_to_date(old)


def test_what_was_done_is_recorded(old: Path) -> None:
    store = FeatureStore(old)
    store.vector_ids(ENCODER.id)
    for table in tables(old):
        assert [step["to"] for step in history(metadata(old, table))] == list(range(1, schema.VERSION + 1))
    FeatureStore(old)
    assert len(history(metadata(old, "features"))) == schema.VERSION


def test_no_payload_is_rewritten(tmp_path: Path) -> None:
    wide = rows.encoder(width=4096)
    old = layouts.make_v0(tmp_path / "old.qsplit", range(20), wide)
    before = {path: path.stat().st_size for path in (old / "features.lance/data").rglob("*") if path.is_file()}
    store = FeatureStore(old)
    after = {path: path.stat().st_size for path in (old / "features.lance/data").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert sum(after.values()) - sum(before.values()) < 0.02 * sum(before.values())
    assert store.count("features") == 20


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_migration_cut_off_anywhere_goes_on(old: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """The plug is pulled after the N-th change of a table, and then N-th more of the rest, until all is done."""

    class Pulled(BaseException):
        pass

    changes = 0

    def counted(change: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            result = change(*args, **kwargs)
            changes += 1
            if changes == cut:
                raise Pulled
            return result

        return run

    with monkeypatch.context() as patch:
        patch.setattr(LanceTable, "add_columns", counted(LanceTable.add_columns))
        patch.setattr(lance.LanceDataset, "update_schema_metadata", counted(lance.LanceDataset.update_schema_metadata))
        try:
            FeatureStore(old).vector_ids(ENCODER.id)
        except Pulled:
            assert changes == cut
        else:
            assert changes < cut
    assert_up_to_date(old)


def test_a_step_that_fails_is_an_error_and_can_be_tried_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", {**STEPS, 0: (Step("images", "created_at", "no_such_function(1)"),)})
        with pytest.raises(StoreError, match="Migrating images"):
            FeatureStore(old)
    assert_up_to_date(old)


def test_processes_that_open_an_old_store_at_once_all_can(old: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    others = [
        context.Process(target=racing.open_together, args=(str(old), ENCODER.id, barrier, results)) for _ in "abc"
    ]
    for other in others:
        other.start()
    assert [results.get(timeout=PATIENCE) for _ in others] == [len(SEEDS)] * 3
    for other in others:
        other.join()
    assert len(history(metadata(old, "features"))) == schema.VERSION
    assert_up_to_date(old)


def test_a_snapshot_of_the_old_layout_is_refused_until_it_is_restored(old: Path) -> None:
    for table in tables(old):
        dataset = lance.dataset(str(old / f"{table}.lance"))
        dataset.tags.create("before", dataset.version)
    store = FeatureStore(old)
    store.put_files([FileRow("/new.jpg", None, 1, 1, "unreadable", "no picture")])
    with pytest.raises(StoreVersionError, match="--restore"):
        FeatureStore(old, snapshot="before")
    garbage.restore(store, "before")
    assert "/new.jpg" not in store.files()
    assert_up_to_date(old)
