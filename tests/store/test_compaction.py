"""Tables are brought into fewer pieces without a row being lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import rows

from qsplit.store import compaction
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Five pictures, each put by itself."""
    store = FeatureStore(tmp_path / "album.qsplit", create=True)
    for seed in range(5):
        store.put_features([rows.feature_row(seed)])
        store.put_images([rows.picture(seed)])
        store.put_files([FileRow(f"/{seed}.jpg", rows.digest(f"image {seed}"), seed, 1, "ok")])
    return store


def fragments(store: FeatureStore) -> list[int]:
    return [len(store.lance(name).get_fragments()) for name in ("features", "images", "files")]


def assert_holds(store: FeatureStore, seeds: list[int]) -> None:
    wanted = {rows.feature_row(seed).key: rows.features(seed) for seed in seeds}
    found = store.get_features(wanted)
    assert store.count("features") == len(seeds)
    assert all(rows.same_bits(found[key], features) for key, features in wanted.items())


def test_what_was_put_one_by_one_is_joined_when_it_is_more_than_asked(store: FeatureStore) -> None:
    compaction.tend(store, many=5)
    assert fragments(store) == [5, 5, 5]
    compaction.tend(store, many=4)
    assert fragments(store) == [1, 1, 1]
    assert len(store.lance("features").versions()) == 1
    assert_holds(store, list(range(5)))


def test_what_is_foreseen_is_what_is_done(store: FeatureStore) -> None:
    compaction.tend(store, many=4)
    store.remove("features", "key", [rows.feature_row(seed).key for seed in (1, 3)])
    before = store.bytes()["total"]
    pieces, freed = compaction.foreseen(store)
    assert pieces == 1  # the one of features, of which two rows in five are gone
    assert store.bytes()["total"] == before  # nothing was done yet
    done, written = compaction.give_back(store)
    assert done == pieces
    assert abs(before + written - store.bytes()["total"] - freed) < 20_000  # transactions and manifests come and go
    assert all(len(store.lance(name).versions()) == 1 for name in store.tables())
    assert_holds(store, [0, 2, 4])
