"""Housekeeping gives room back, takes nothing that is needed, and can be undone."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
import racing
import rows
from patience import PATIENCE

from qsplit.errors import NotFound, QsplitError, UsageError
from qsplit.features.features import Encoder
from qsplit.maintenance import garbage
from qsplit.store import compaction
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.records import ComparedRow, DecisionRow, FileRow, LandmarkRow, PairRow

WIDE = rows.encoder(width=512)
GRID = (1, 40, 40)  # 400 tokens of 512 bfloat16: 410 kB a row
PAYLOAD = 400 * 512 * 2


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "album.qsplit", create=True)


def put(store: FeatureStore, seeds: Iterable[int], made_by: Encoder = WIDE) -> None:
    """Whole pictures, in the order in which an index writes them."""
    seeds = list(seeds)
    store.put_features([rows.feature_row(seed, made_by, grid=GRID) for seed in seeds])
    store.put_images([rows.picture(seed) for seed in seeds])
    store.put_vectors(made_by, [rows.vector_row(seed, made_by.width) for seed in seeds])
    store.put_files([FileRow(f"/{seed}.jpg", ids([seed])[0], seed, 1, "ok") for seed in seeds])


def ids(seeds: Iterable[int]) -> list[str]:
    return [rows.digest(f"image {seed}") for seed in seeds]


def keys(seeds: Iterable[int], made_by: Encoder = WIDE) -> list[str]:
    return [rows.feature_row(seed, made_by).key for seed in seeds]


def assert_holds(store: FeatureStore, seeds: Iterable[int], made_by: Encoder = WIDE) -> None:
    """Exactly these pictures, whole, with the bits that were put."""
    seeds = list(seeds)
    assert sorted(store.files()) == sorted(f"/{seed}.jpg" for seed in seeds)
    assert sorted(store.images()) == sorted(ids(seeds))
    assert store.vector_ids(made_by.id) == set(ids(seeds))
    found = store.get_features(keys(seeds, made_by))
    assert store.count("features") == len(found) == len(seeds)
    assert all(
        rows.same_bits(found[key], rows.features(seed, made_by, GRID))
        for seed, key in zip(seeds, keys(seeds, made_by), strict=True)
    )


# Forget


def test_forgetting_gives_the_room_back(store: FeatureStore) -> None:
    for start in (0, 4, 8):
        put(store, range(start, start + 4))
    before = store.bytes()["total"]
    gone = garbage.forget(store, ids([1, 2, 9]))
    assert (gone.images, gone.files, gone.features) == (3, 3, 3)
    assert gone.after == store.bytes()["total"] <= before - 3 * PAYLOAD
    assert_holds(store, [0, 3, 4, 5, 6, 7, 8, 10, 11])


def test_a_dry_run_tells_the_room_and_changes_nothing(store: FeatureStore) -> None:
    put(store, range(4))
    before = store.bytes()
    told = garbage.forget(store, ids([1, 2]), dry_run=True)
    assert (told.images, told.files, told.features) == (2, 2, 2)
    assert told.before - told.after == 2 * PAYLOAD
    assert store.bytes() == before
    done = garbage.forget(store, ids([1, 2]))
    assert done.before - done.after >= told.before - told.after


def test_features_stay_while_another_file_shows_the_same_picture(store: FeatureStore) -> None:
    put(store, [1])
    twin = rows.picture(1, image_id=rows.digest("twin"))
    store.put_images([twin])
    store.put_files([FileRow("/twin.jpg", twin.image_id, 1, 1, "ok")])
    assert garbage.forget(store, ids([1])).features == 0
    assert store.count("features") == 1
    assert garbage.forget(store, [twin.image_id]).features == 1
    assert store.count("features") == store.count("images") == store.count("files") == 0


def test_forgetting_takes_every_encoders_features(store: FeatureStore) -> None:
    other = rows.encoder(weights="other", width=512)
    put(store, [1, 2])
    put(store, [1, 2], other)
    assert garbage.forget(store, ids([1])).features == 2
    left = store.get_features(keys([2]) + keys([2], other))
    assert len(left) == 2
    assert store.vector_ids(other.id) == set(ids([2]))


def test_forgetting_what_is_not_there_is_nothing(store: FeatureStore) -> None:
    put(store, [1])
    assert garbage.forget(store, ["f" * 64]).images == 0
    assert_holds(store, [1])


def test_what_was_forgotten_can_be_put_again(store: FeatureStore) -> None:
    put(store, [1, 2])
    garbage.forget(store, ids([1]))
    put(store, [1])
    assert_holds(store, [1, 2])


def test_a_forgetting_cut_off_leaves_orphans_that_compact_removes(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, [1, 2])
    remove = FeatureStore.remove

    def cut_off(self: FeatureStore, table: str, column: str, values: Iterable[str]) -> int:
        if table == "features":
            raise OSError("pulled the plug")
        return remove(self, table, column, values)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "remove", cut_off)
        with pytest.raises(OSError, match="plug"):
            garbage.forget(store, ids([1]))
    assert garbage.find_orphans(store, grace=timedelta(0)).features == keys([1])
    assert garbage.compact(store, alone=True).orphans.features == keys([1])
    assert_holds(store, [2])


# Orphans


def test_what_nothing_refers_to_is_found_and_removed(store: FeatureStore) -> None:
    put(store, [1])
    store.put_features([rows.feature_row(2, WIDE, grid=GRID)])
    store.put_images([rows.picture(3)])
    store.put_vectors(WIDE, [rows.vector_row(4, 512)])
    orphans = garbage.find_orphans(store, grace=timedelta(0))
    assert (orphans.features, orphans.images, orphans.vectors) == (keys([2]), ids([3]), ids([4]))
    assert len(orphans) == 3
    told = garbage.compact(store, alone=True, dry_run=True)
    assert told.orphans == orphans
    assert store.count("features") == 2
    done = garbage.compact(store, alone=True)
    assert done.orphans == orphans
    assert done.after <= done.before - PAYLOAD
    assert told.after <= done.before - PAYLOAD
    assert_holds(store, [1])


def test_a_batch_that_is_being_written_is_no_orphan(store: FeatureStore) -> None:
    store.put_features([rows.feature_row(2, WIDE, grid=GRID)])
    store.put_images([rows.picture(2)])
    done = garbage.compact(store)
    assert len(done.orphans) == 0
    store.put_vectors(WIDE, [rows.vector_row(2, 512)])
    store.put_files([FileRow("/2.jpg", ids([2])[0], 2, 1, "ok")])
    assert_holds(store, [2])


@pytest.mark.parametrize("state", ["missing", "unreadable"])
def test_what_is_not_to_be_read_on_disk_still_owns_its_features(
    store: FeatureStore, state: Literal["missing", "unreadable"]
) -> None:
    put(store, [1])
    store.put_files([FileRow("/1.jpg", ids([1])[0], 1, 1, state)])
    assert len(garbage.compact(store, alone=True).orphans) == 0
    assert_holds(store, [1])


def said(store: FeatureStore, one: str, other: str) -> tuple[str, str]:
    """A pair that a person said is none."""
    store.put_decisions([DecisionRow(one, other)])
    return one, other


def found(store: FeatureStore, seed: int) -> None:
    """What checks and a look for duplicates leave of a picture."""
    digest = rows.digest(f"pixels {seed}")
    store.put_checks([rows.check_row(seed)])
    store.put_landmarks([LandmarkRow(digest, 1, 8, 8, b"")])
    store.put_pairs([PairRow(digest, digest, "way", "copy", 1.0, "{}")], [ComparedRow(digest, "way")])


def test_what_a_person_said_is_kept_though_the_pictures_are_gone(store: FeatureStore) -> None:
    put(store, [1, 2])
    by_pixels = said(store, rows.digest("pixels 1"), rows.digest("pixels 2"))
    by_content = said(store, *ids([1, 2]))
    found(store, 1)
    store.remove("files", "path", ["/1.jpg", "/2.jpg"])
    orphans = garbage.compact(store, alone=True).orphans
    assert (len(orphans.images), len(orphans.checks), len(orphans.comparisons)) == (2, 1, 3)
    assert store.count("images") == 0
    assert store.decisions() == {by_pixels, by_content}


def test_forgetting_a_picture_forgets_what_a_person_said_of_it(store: FeatureStore) -> None:
    put(store, [1, 2, 3])
    said(store, rows.digest("pixels 1"), rows.digest("pixels 2"))
    said(store, *ids([1, 2]))
    kept = said(store, *ids([2, 3]))
    garbage.forget(store, ids([1]))
    assert store.decisions() == {kept}


@pytest.mark.parametrize("table", ["features", "images", "checks", "landmarks", "pairs", "compared"])
def test_a_picture_that_comes_while_orphans_are_looked_for_is_none(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """Whichever table was just read, and though what is younger is not left out."""
    put(store, [1])
    found(store, 1)
    column = FeatureStore.column

    def meanwhile(self: FeatureStore, name: str, *columns: str) -> list[tuple[Any, ...]]:
        read = column(self, name, *columns)
        if name == table:
            put(store, [2])
            found(store, 2)
        return read

    monkeypatch.setattr(FeatureStore, "column", meanwhile)
    orphans = garbage.find_orphans(store, grace=timedelta(0))
    assert len(orphans) == 0
    assert store.count("images") == 2


# Compact


def test_nothing_is_rewritten_for_nothing(store: FeatureStore) -> None:
    for start in range(0, 12, 2):
        put(store, range(start, start + 2))
    payloads = {path: path.stat().st_mtime_ns for path in Path(store.uri).rglob("*.blob")}
    assert garbage.compact(store).fragments == 0
    again = garbage.compact(store)
    assert again.written == 0
    assert {path: path.stat().st_mtime_ns for path in Path(store.uri).rglob("*.blob")} == payloads
    assert_holds(store, range(12))


def test_many_small_pieces_are_joined(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_MANY", 5)
    for seed in range(8):
        put(store, [seed])
    assert len(store.lance("features").get_fragments()) == 8
    done = garbage.compact(store)
    assert done.fragments >= 8
    assert len(store.lance("features").get_fragments()) == 1
    assert_holds(store, range(8))


def test_old_versions_go(store: FeatureStore) -> None:
    for seed in range(5):
        put(store, [seed])
    told = garbage.compact(store, dry_run=True)
    done = garbage.compact(store)
    assert told.after < told.before
    assert abs(done.after - told.after) < 20_000
    assert all(len(store.lance(table).versions()) == 1 for table in store.tables())
    assert_holds(store, range(5))


# Snapshots


def test_a_snapshot_is_read_while_the_store_goes_on(store: FeatureStore) -> None:
    put(store, range(3))
    garbage.snapshot(store, "monday")
    put(store, [3])
    garbage.forget(store, ids([0]))
    garbage.compact(store, alone=True)
    monday = FeatureStore(store.uri, snapshot="monday")
    assert_holds(monday, range(3))
    assert_holds(store, [1, 2, 3])
    assert list(garbage.snapshots(store)) == ["monday"]


def assert_whole(store: FeatureStore) -> None:
    """What a file refers to is there, and what that refers to."""
    images, known = store.images(), store.vector_ids(WIDE.id)
    wanted = {str(row.image_id) for row in store.files().values()}
    assert wanted <= images.keys()
    assert wanted <= known
    heads = store.heads(images[one].pixels_digest for one in known)
    assert {head.pixels_digest for head in heads} == {images[one].pixels_digest for one in known}


def test_a_snapshot_that_is_made_while_pictures_come_is_whole(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever table has been looked at when a picture comes: what a file in the snapshot refers to is in it, too."""
    put(store, [0])
    look, other = FeatureStore.lance, FeatureStore(store.uri)
    held = set()
    for after in range(1, 2 + len(store.tables())):
        calls = count(1)

        def look_and_put(one: FeatureStore, table: str, calls: Iterator[int] = calls, after: int = after) -> Any:
            found = look(one, table)
            if one is store and next(calls) == after:
                put(other, [after])
            return found

        with monkeypatch.context() as patch:
            patch.setattr(FeatureStore, "lance", look_and_put)
            garbage.snapshot(store, f"after-{after}")
        snapshot = FeatureStore(store.uri, snapshot=f"after-{after}")
        assert_whole(snapshot)
        held.add(f"/{after}.jpg" in snapshot.files())
    assert False in held, "no picture came while the snapshot was made"


def test_a_snapshot_is_read_only(store: FeatureStore) -> None:
    put(store, [1])
    garbage.snapshot(store, "monday")
    monday = FeatureStore(store.uri, snapshot="monday")
    for write in (
        lambda: put(monday, [2]),
        lambda: monday.remove("files", "path", ["/1.jpg"]),
        lambda: garbage.compact(monday),
        lambda: garbage.snapshot(monday, "tuesday"),
    ):
        with pytest.raises(UsageError, match="read-only"):
            write()
    assert_holds(store, [1])


def test_restoring_brings_back_what_was(store: FeatureStore) -> None:
    other = rows.encoder(weights="other", width=512)
    put(store, range(3))
    garbage.snapshot(store, "monday")
    garbage.forget(store, ids([0, 1]))
    put(store, [7])
    put(store, [2], other)  # a table that is younger than the snapshot
    garbage.restore(store, "monday")
    assert_holds(store, range(3))
    assert store.vector_ids(other.id) == set()
    garbage.restore(store, "monday")
    assert_holds(store, range(3))


def test_a_snapshot_that_is_let_go_gives_its_room_back(store: FeatureStore) -> None:
    put(store, range(4))
    garbage.snapshot(store, "monday")
    kept = garbage.forget(store, ids([0, 1]))
    assert kept.after >= kept.before - PAYLOAD  # the snapshot still holds them
    garbage.drop_snapshot(store, "monday")
    assert garbage.compact(store).after <= kept.before - PAYLOAD
    assert_holds(store, [2, 3])
    with pytest.raises(NotFound, match="no snapshot 'monday'"):
        FeatureStore(store.uri, snapshot="monday")


def test_a_snapshot_cut_off_is_none_and_can_be_made(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, [1])
    tag = garbage._tag

    def cut_off(store: FeatureStore, of: str, name: str, version: int) -> None:
        if of == "files":
            raise OSError("pulled the plug")
        tag(store, of, name, version)

    with monkeypatch.context() as patch:
        patch.setattr(garbage, "_tag", cut_off)
        with pytest.raises(Exception, match="plug"):
            garbage.snapshot(store, "monday")
    assert garbage.snapshots(store) == {}
    with pytest.raises(NotFound):
        FeatureStore(store.uri, snapshot="monday")
    put(store, [2])
    garbage.snapshot(store, "monday")
    assert_holds(FeatureStore(store.uri, snapshot="monday"), [1, 2])


@pytest.mark.parametrize("name", ["", "-x", "../x", "a b", "a/b", "é\n"])
def test_a_name_that_no_tag_can_have_is_refused(store: FeatureStore, name: str) -> None:
    put(store, [1])
    with pytest.raises(UsageError, match="no name"):
        garbage.snapshot(store, name)


def test_a_name_that_is_taken_or_unknown_is_refused(store: FeatureStore) -> None:
    put(store, [1])
    garbage.snapshot(store, "monday")
    with pytest.raises(UsageError, match="already"):
        garbage.snapshot(store, "monday")
    for act in (garbage.restore, garbage.drop_snapshot):
        with pytest.raises(NotFound, match="tuesday"):
            act(store, "tuesday")


# Old encoders


def test_what_other_encoders_made_goes_only_where_this_one_has_seen(store: FeatureStore) -> None:
    new = rows.encoder(weights="new", width=512)
    put(store, range(4))
    put(store, [0, 1, 2], new)
    gone = garbage.drop_old(store, new.id)
    assert gone.features == 3
    assert gone.after <= gone.before - 3 * PAYLOAD
    assert set(store.get_features(keys(range(4)))) == set(keys([3]))
    assert len(store.get_features(keys([0, 1, 2], new))) == 3
    assert store.vector_ids(WIDE.id) == set(ids([3]))
    assert store.vector_ids(new.id) == set(ids([0, 1, 2]))


# Others at work


def test_housekeeping_beside_writers_and_readers_loses_nothing(store: FeatureStore) -> None:
    """Two processes write and this one reads, while another thread compacts without a pause."""
    context = multiprocessing.get_context("spawn")
    stop = threading.Event()
    failures: list[str] = []
    rounds = 0

    def keep_house() -> None:
        nonlocal rounds
        own = FeatureStore(store.uri)
        while not stop.is_set():
            try:
                garbage.compact(own)
                rounds += 1
            except QsplitError as error:
                failures.append(repr(error))
                return

    put(store, range(100, 104))
    results = context.Queue()
    writers = [context.Process(target=racing.write_pictures, args=(store.uri, i, 8, results)) for i in range(2)]
    for writer in writers:
        writer.start()
    house = threading.Thread(target=keep_house)
    house.start()
    while any(writer.is_alive() for writer in writers):
        assert len(store.get_features(keys(range(100, 104)))) == 4
        for path, row in store.files().items():
            assert row.image_id in store.images([str(row.image_id)]), path
    stop.set()
    house.join()
    for writer in writers:
        writer.join()
    assert [results.get(timeout=PATIENCE) for _ in writers] == ["done", "done"]
    assert failures == []
    assert rounds > 1
    assert_holds(store, [*range(100, 104), *racing.pictures_of(0, 8), *racing.pictures_of(1, 8)])


def test_vectors_tables_are_named_by_their_encoder(store: FeatureStore) -> None:
    put(store, [1])
    assert store.tables() == ["features", "images", vectors_table(WIDE.id), "files"]
