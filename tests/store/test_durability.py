"""What lies on the disk after a commit: everything, flushed, or the version before."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import rows
from patience import PATIENCE

from qsplit.errors import CorruptStore, StoreError
from qsplit.store.durability import Disk
from qsplit.store.feature_store import FeatureStore

LARGE = (1, 128, 256)  # a grid whose features are more than Lance keeps among the other columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two commits of features."""
    store = FeatureStore(tmp_path / "album.qsplit", create=True)
    store.put_features([rows.feature_row(1)])
    store.put_features([rows.feature_row(2)])
    return tmp_path / "album.qsplit"


def newest(folder: Path, pattern: str) -> Path:
    return max((folder / "features.lance").glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def keys(store: FeatureStore) -> set[str]:
    return {key for (key,) in store.column("features", "key")}


def key(seed: int) -> str:
    return rows.feature_row(seed).key


def test_what_a_crash_left_too_short_is_taken_back_by_the_next_writer(folder: Path) -> None:
    cut_short(newest(folder, "data/*.lance"))
    with pytest.raises(CorruptStore, match="qsplit index"):
        FeatureStore(folder).get_features([key(2)])
    store = FeatureStore(folder, create=True)
    assert keys(store) == {key(1)}
    assert store.get_features([key(1)])[key(1)].digest() == rows.features(1).digest()
    assert store.put_features([rows.feature_row(2), rows.feature_row(3)]) == 2
    assert keys(FeatureStore(folder)) == {key(1), key(2), key(3)}


def test_a_writer_that_was_open_takes_back_what_another_one_left(folder: Path) -> None:
    store = FeatureStore(folder)
    assert len(keys(store)) == 2
    FeatureStore(folder).put_features([rows.feature_row(3)])
    cut_short(newest(folder, "data/*.lance"))
    store.remove("features", "key", [key(1)])
    assert keys(store) == {key(2)}


def test_the_newest_manifest_in_pieces_is_taken_back(folder: Path) -> None:
    cut_short(min((folder / "features.lance" / "_versions").glob("*.manifest")))
    with pytest.raises(CorruptStore, match="qsplit index"):
        FeatureStore(folder)
    assert keys(FeatureStore(folder, create=True)) == {key(1)}


@pytest.mark.parametrize("size", [0, 10])
def test_a_first_manifest_in_pieces_is_no_table(tmp_path: Path, size: int) -> None:
    FeatureStore(tmp_path, create=True)
    (manifest,) = (tmp_path / "images.lance" / "_versions").glob("*.manifest")
    os.truncate(manifest, size)
    FeatureStore(tmp_path, create=True).put_images([rows.picture(1)])
    assert FeatureStore(tmp_path).count("images") == 1


def test_old_damage_takes_nothing_back_that_came_later(folder: Path) -> None:
    cut_short(min((folder / "features.lance").glob("data/*.lance"), key=lambda path: path.stat().st_mtime_ns))
    store = FeatureStore(folder, create=True)
    assert store.count("features") == 2
    store.put_images([rows.picture(1)])
    with pytest.raises(CorruptStore, match="qsplit verify"):
        store.get_features([key(2)])
    with pytest.raises(StoreError):
        store.put_features([rows.feature_row(3)])
    assert store.count("features") == 2


@pytest.mark.parametrize("grid", [(1, 4, 4), LARGE])
def test_a_commit_is_flushed_before_it_is_acknowledged(
    folder: Path, grid: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    store = FeatureStore(folder)
    table = folder / "features.lance"
    before = {path for path in table.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
        store.put_features([rows.feature_row(3, grid=grid)])
        store.remove("features", "key", [key(1)])
    fresh = {path for path in table.rglob("*") if path.is_file()} - before
    read = {path for path in fresh if path.parent.name not in ("_transactions", "_indices") and path.suffix != ".json"}
    assert {path.suffix for path in read} == {".lance", ".manifest", *([".blob"] if grid == LARGE else [])}
    assert {path.stat().st_ino for path in read} <= flushed
    assert {path.parent.stat().st_ino for path in read} <= flushed


def test_what_is_flushed_does_not_grow_with_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything opened that others are just renaming."""
    store = FeatureStore(tmp_path, create=True)
    counts: list[int] = []
    for seed in range(6):
        flushed: set[int] = set()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle, flushed=flushed: flushed.add(os.fstat(handle).st_ino))
            store.put_features([rows.feature_row(seed)])
        counts.append(len(flushed))
    assert len(set(counts)) == 1


def test_deletions_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, create=True)
    store.put_features([rows.feature_row(1), rows.feature_row(2)])
    flushed: set[int] = set()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
        store.remove("features", "key", [key(1)])
    (deletions,) = (tmp_path / "features.lance" / "_deletions").iterdir()
    assert {deletions.stat().st_ino, deletions.parent.stat().st_ino} <= flushed


def test_blobs_too_short_are_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(folder)
    settle = Disk.settle

    def cut_and_settle(disk: Disk, table: str, dataset: Any, **options: Any) -> None:
        cut_short(newest(folder, "data/*/*.blob"))
        settle(disk, table, dataset, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "settle", cut_and_settle)
        with pytest.raises(StoreError, match="ended too early"):
            store.put_features([rows.feature_row(3, grid=LARGE)])
    assert keys(store) == {key(1), key(2)}
    assert store.put_features([rows.feature_row(3, grid=LARGE)]) == 1


def test_writers_of_one_machine_take_turns(folder: Path) -> None:
    store = FeatureStore(folder)
    writer = threading.Thread(target=store.put_features, args=([rows.feature_row(3)],))
    with Disk(str(folder)).turn():
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert len(keys(store)) == 2
    writer.join()
    assert len(keys(store)) == 3


def test_a_turn_within_a_turn_is_part_of_it(folder: Path) -> None:
    """Also that of another store at the same place; the others wait until the outer one is over."""
    store, other = FeatureStore(folder), FeatureStore(folder)
    disk = store._disk
    alone: list[bool] = []
    begun, end = threading.Event(), threading.Event()

    def nest() -> None:
        with disk.turn():
            with disk.turn():
                alone.append(disk.alone)
            with Disk(f"file://{folder}").turn():
                other.put_features([rows.feature_row(3)])
            store.commit("features", lambda: store.put_features([rows.feature_row(4)]), "Two commits in one")
            alone.append(disk.alone)
            begun.set()
            end.wait()

    nested = threading.Thread(target=nest, daemon=True)
    writers = [threading.Thread(target=one.put_features, args=([rows.feature_row(5)],)) for one in (store, other)]
    nested.start()
    assert begun.wait(PATIENCE), "a thread waits for its own turn"
    for writer in writers:
        writer.start()
    writers[0].join(0.5)
    assert all(writer.is_alive() for writer in writers)
    end.set()
    for thread in (nested, *writers):
        thread.join()
    assert (alone, disk.alone) == ([True, True], False)
    assert sorted(key for (key,) in store.column("features", "key")) == sorted(map(key, range(1, 6)))


def test_a_turn_that_fails_is_over(folder: Path) -> None:
    disk = Disk(str(folder))
    with pytest.raises(ZeroDivisionError), disk.turn(), disk.turn():
        raise ZeroDivisionError
    assert not disk.alone
    assert FeatureStore(folder).put_features([rows.feature_row(3)]) == 1


def test_object_storage_has_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disk = Disk("s3://bucket/album.qsplit")
    disk.drop_torn()
    with disk.turn():
        disk.mend("features", None)
        disk.settle("features", None)
        assert not disk.alone, "nobody is kept from committing there"
    assert disk.folder is None
    assert list(tmp_path.iterdir()) == []
