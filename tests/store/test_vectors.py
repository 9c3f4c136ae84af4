"""What a search reads of a store: exact cosines with an index and without, words in two ways of writing, and semantic
vectors of one identity at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rows
from lancedb.expr import col, lit

from qsplit.errors import UsageError
from qsplit.maintenance import garbage
from qsplit.store import vector_index
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import VectorRow
from qsplit.store.tables import vectors
from qsplit.store.tables.vectors import Vector, Vectors

WIDTH = 32
ENCODER = rows.encoder(width=WIDTH)
CAPTIONS = {
    0: "A red boat on a lake.\n湖上有一只红色的小船。",
    1: "Two hundred people at a wedding.\n婚礼上的两百个人。",
    2: "A cat, asleep.\n一只睡着的猫。",
    3: "Boats in a harbour at night.\n夜里港口的船。",
    4: "",
}


def image_id(number: int) -> str:
    return rows.digest(f"image {number}")


def put(store: FeatureStore, numbers: range, **facts: object) -> Vector:
    """Images by number, in groups that lie near each other as those of real albums do; returns all vectors so far."""
    held = np.stack([vector(number) for number in range(numbers.stop)])
    made = [VectorRow(rows.image_row(number, **facts), held[number]) for number in numbers]
    store.put_vectors(ENCODER, made)
    return held


def vector(number: int) -> Vector:
    mixed = rows.unit(10_000 + number % 20, WIDTH) + 0.7 * rows.unit(number, WIDTH)
    return np.asarray(mixed / np.linalg.norm(mixed), np.float32)


def best(held: Vector, query: Vector, limit: int) -> list[str]:
    order = np.argsort(-(held @ query), kind="stable")[:limit]
    return [image_id(int(i)) for i in order]


def ids(found: list[tuple[str, float]]) -> list[str]:
    return [one for one, _ in found]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of hundreds of rows are large."""
    monkeypatch.setattr(vector_index, "INDEXED_FROM", 400)
    monkeypatch.setattr(vector_index, "_PARTITION", 50)
    monkeypatch.setattr(vectors, "_EXACTLY", 60)


def read_by_index(held: Vectors, query: Vector, limit: int) -> bool:
    """Whether a search would have looked at a part only, before what is wanted is compared exactly."""
    table = held._place.table()
    assert table is not None
    plan = table.search(query, vector_column_name="pooled").limit(limit).explain_plan()
    return "ANN" in plan


def test_there_is_no_index_while_reading_everything_is_quick(store: FeatureStore) -> None:
    put(store, range(500))
    held = store.vectors(ENCODER.id)
    held.tend()
    assert not read_by_index(held, vector(3), 5)


@pytest.mark.usefixtures("small")
def test_an_index_finds_what_reading_everything_finds(store: FeatureStore) -> None:
    all_of_them = put(store, range(600))
    held = store.vectors(ENCODER.id)
    held.tend()
    assert read_by_index(held, vector(3), 5)
    queries = [vector(700 + i) for i in range(20)]
    hits = [set(best(all_of_them, query, 10)) & set(ids(held.nearest("pooled", query, 10))) for query in queries]
    assert sum(map(len, hits)) >= 0.99 * 10 * len(queries)
    found = held.nearest("pooled", queries[0], 10)
    cosines = {image_id(i): float(all_of_them[i] @ queries[0]) for i in range(600)}
    assert [score for _, score in found] == pytest.approx([cosines[one] for one in ids(found)], abs=1e-5)


@pytest.mark.usefixtures("small")
def test_a_fresh_row_is_found_at_once_and_a_removed_one_no_more(store: FeatureStore) -> None:
    put(store, range(600))
    held = store.vectors(ENCODER.id)
    held.tend()
    put(store, range(600, 601))
    assert held.nearest("pooled", vector(600), 1)[0][0] == image_id(600)
    store.remove(vectors_table(), "image_id", [image_id(600)])
    assert held.nearest("pooled", vector(600), 1)[0][0] != image_id(600)
    held.put_captions("asked", {image_id(5): "moved to another fragment"})
    assert held.nearest("pooled", vector(5), 1)[0][0] == image_id(5)


@pytest.mark.usefixtures("small")
def test_an_index_that_is_behind_is_brought_up_to_date(store: FeatureStore) -> None:
    put(store, range(600))
    held = store.vectors(ENCODER.id)
    held.tend()
    put(store, range(600, 900))
    table = held._place.table()
    assert table is not None
    assert table.index_stats("pooled_idx").num_unindexed_rows == 300
    held.tend()
    assert table.index_stats("pooled_idx").num_unindexed_rows == 0
    assert held.nearest("pooled", vector(777), 1)[0][0] == image_id(777)


@pytest.mark.usefixtures("small")
def test_a_filter_that_leaves_little_loses_nothing(store: FeatureStore) -> None:
    put(store, range(600), camera="common")
    all_of_them = put(store, range(600, 620), camera="rare")
    held = store.vectors(ENCODER.id)
    held.tend()
    query = vector(3)
    found = held.nearest("pooled", query, 30, col("camera") == lit("rare"))
    assert ids(found) == [one for one in best(all_of_them, query, 620) if one in {image_id(i) for i in range(600, 620)}]


@pytest.mark.usefixtures("small")
def test_a_filter_that_leaves_much_is_asked_of_the_index(store: FeatureStore) -> None:
    put(store, range(300), camera="half")
    all_of_them = put(store, range(300, 600), camera="other half")
    held = store.vectors(ENCODER.id)
    held.tend()
    hits = 0
    for query in (vector(700 + i) for i in range(20)):
        found = held.nearest("pooled", query, 10, col("camera") == lit("half"))
        hits += len(set(best(all_of_them[:300], query, 10)) & set(ids(found)))
    assert hits >= 0.99 * 10 * 20


@pytest.mark.usefixtures("small")
def test_housekeeping_keeps_the_index_right(store: FeatureStore) -> None:
    put(store, range(600))
    held = store.vectors(ENCODER.id)
    held.put_captions("asked", {image_id(i): f"number {i} of the boats" for i in range(600)})
    held.tend()
    store.remove(vectors_table(), "image_id", [image_id(i) for i in range(300)])
    garbage.compact(store, alone=True)  # also everything else, which no image owns
    assert store.vector_ids(ENCODER.id) == set()
    put(store, range(600, 640))
    held.put_captions("asked", {image_id(610): "a boat"})
    assert ids(held.nearest("pooled", vector(610), 1)) == ids(held.matching("boats", 9)) == [image_id(610)]


def vectors_table() -> str:
    return f"vectors-{ENCODER.id[:12]}"


def test_vectors_of_another_identity_are_as_good_as_none(store: FeatureStore) -> None:
    put(store, range(40))
    old, new = store.vectors(ENCODER.id, "old"), store.vectors(ENCODER.id, "new")
    assert old.nearest("semantic", vector(1), 5) == []
    old.put_semantic([image_id(i) for i in range(30)], np.stack([vector(100 + i) for i in range(30)]))
    assert (old.count("semantic"), new.count("semantic")) == (30, 0)
    assert new.nearest("semantic", vector(101), 50) == []
    assert len(new.scores("semantic", vector(101))) == 0
    new.put_semantic([image_id(i) for i in range(10)], np.stack([vector(200 + i) for i in range(10)]))
    assert set(ids(new.nearest("semantic", vector(101), 50))) == {image_id(i) for i in range(10)}
    assert set(ids(old.nearest("semantic", vector(101), 50))) == {image_id(i) for i in range(10, 30)}
    assert old.get("semantic", [image_id(3), image_id(13)]).keys() == {image_id(13)}
    assert np.array_equal(new.get("semantic", [image_id(3)])[image_id(3)], vector(203))
    assert len(old.lacking("semantic", "old")) == 20
    assert [one.image_id for one in new.lacking("semantic", "new")] != []
    assert store.vectors(ENCODER.id).nearest("semantic", vector(1), 5) == []


def test_what_was_forgotten_meanwhile_does_not_come_back(store: FeatureStore) -> None:
    put(store, range(3))
    held = store.vectors(ENCODER.id, "way")
    store.remove(vectors_table(), "image_id", [image_id(1)])
    held.put_semantic([image_id(1), image_id(2)], np.stack([vector(1), vector(2)]))
    held.put_captions("asked", {image_id(1): "gone", image_id(0): "here"})
    assert store.vector_ids(ENCODER.id) == {image_id(0), image_id(2)}
    assert ids(held.nearest("semantic", vector(1), 9)) == [image_id(2)]


@pytest.mark.parametrize("tended", [True, False])
def test_captions_are_found_by_their_words(store: FeatureStore, tended: bool) -> None:
    put(store, range(6))
    held = store.vectors(ENCODER.id)
    assert held.matching("boat", 5) == []
    held.put_captions("asked", {image_id(number): text for number, text in CAPTIONS.items()})
    if tended:
        held.tend()
    assert held.count("caption") == 5

    def found(words: str) -> list[int]:
        return [number for one in ids(held.matching(words, 9)) for number in CAPTIONS if one == image_id(number)]

    assert found("red boat")[0] == 0
    assert found("RED") == [0]  # and not hundred
    assert found("小船") == [0, 3]  # the whole word first
    assert found("猫") == [2]
    assert found("红色的船")[0] == 0
    assert set(found("boat")) == {0, 3}
    for words, wanted in (
        ("boats on the lake", [0]),
        ("red cat", []),
        ("睡着的猫", [2]),
        ("夜里的船", [3]),
        ("红猫", []),
    ):
        assert ids(held.matching(words, 9, every=True)) == [image_id(number) for number in wanted], words
    assert found("zebra 斑马 的 !") == []
    assert found("") == found("' OR 1=1 --") == []


def test_captions_that_score_the_same_come_in_the_order_of_their_ids(store: FeatureStore) -> None:
    put(store, range(50))
    held = store.vectors(ENCODER.id)
    held.put_captions("asked", {image_id(i): "a red boat" for i in range(50)})
    held.tend()
    everything = ids(held.matching("boat", 50))
    assert everything == sorted(image_id(i) for i in range(50))
    assert ids(held.matching("boat", 7)) == everything[:7]


def test_copies_come_in_the_order_of_their_ids(store: FeatureStore) -> None:
    same = [VectorRow(rows.image_row(i), vector(1)) for i in range(30)]
    store.put_vectors(ENCODER, same)
    found = ids(store.vectors(ENCODER.id).nearest("pooled", vector(2), 8))
    assert found == sorted(image_id(i) for i in range(30))[:8]


def test_words_obey_the_filter_of_a_search(store: FeatureStore) -> None:
    put(store, range(10), camera="Leica 'M' OR 1=1 --")
    put(store, range(10, 20), camera="other", taken_at=datetime(2024, 5, 6, tzinfo=UTC))
    held = store.vectors(ENCODER.id)
    held.put_captions("asked", {image_id(i): "a red boat" for i in range(20)})
    held.tend()
    assert len(held.matching("boat", 30, col("camera") == lit("Leica 'M' OR 1=1 --"))) == 10
    assert held.matching("boat", 30, col("camera") == lit("x' OR 1=1 --")) == []
    assert len(held.matching("boat", 30, col("taken_at") >= lit(datetime(2024, 5, 6, tzinfo=UTC)))) == 10
    assert held.count("caption", col("camera") == lit("other")) == 10


def test_columns_of_rows_are_read_by_id_or_by_filter(store: FeatureStore) -> None:
    put(store, range(3), camera="one")
    put(store, range(3, 5), camera="two")
    held = store.vectors(ENCODER.id)
    assert held.rows([image_id(4), "unknown"], ["camera"]) == {image_id(4): {"image_id": image_id(4), "camera": "two"}}
    assert held.rows(None, [], col("camera") == lit("two")).keys() == {image_id(3), image_id(4)}
    assert held.rows([], ["camera"]) == {}
    assert store.vectors("f" * 64).rows(None, ["camera"]) == {}


def test_scores_are_all_cosines_or_a_sample_of_them(store: FeatureStore) -> None:
    all_of_them = put(store, range(200))
    held = store.vectors(ENCODER.id)
    query = vector(999) * 3
    expected = np.sort(all_of_them @ vector(999))
    assert np.sort(held.scores("pooled", query)) == pytest.approx(expected, abs=1e-5)
    for _ in range(2):  # the second time from what is kept
        some = held.scores("pooled", query, sample=50)
        assert 40 <= len(some) <= 50
        assert np.abs(expected[:, None] - some).min(0).max() < 1e-5
    put(store, range(200, 400))
    assert len(held.scores("pooled", query, sample=1000)) == 400
    rare = held.scores("pooled", query, col("camera") == lit("rare"), sample=50)
    assert len(rare) == len(held.scores("semantic", query, sample=50)) == 0
    assert len(store.vectors("f" * 64).scores("pooled", query)) == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_query_without_direction_is_refused(store: FeatureStore, value: float) -> None:
    put(store, range(2))
    with pytest.raises(UsageError, match="zero, NaN or infinite"):
        store.vectors(ENCODER.id).nearest("semantic", np.full(WIDTH, value, np.float32), 5)


def test_what_is_written_by_one_is_read_by_another_and_a_snapshot_stays(store: FeatureStore, tmp_path: Path) -> None:
    put(store, range(5))
    held = store.vectors(ENCODER.id, "way")
    held.put_semantic([image_id(1)], vector(1)[None])
    reader = FeatureStore(store.uri)
    assert reader.vectors(ENCODER.id, "way").count("semantic") == 1
    garbage.snapshot(store, "before")
    held.put_semantic([image_id(2)], vector(2)[None])
    assert reader.vectors(ENCODER.id, "way").count("semantic") == 2
    then = FeatureStore(store.uri, snapshot="before").vectors(ENCODER.id, "way")
    assert then.count("semantic") == 1
    with pytest.raises(UsageError, match="read-only"):
        then.put_semantic([image_id(3)], vector(3)[None])
