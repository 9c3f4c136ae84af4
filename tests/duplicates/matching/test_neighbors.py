"""What is near is found, in buckets as by comparing all with all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.duplicates.matching import neighbors
from qsplit.duplicates.matching.neighbors import Marks, near_hashes, near_vectors, nearest_few, shared_landmarks


def units(seed: int, n: int, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


# Hashes


def hamming(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def reference(hashes: list[int], distance: int) -> dict[int, list[tuple[int, int]]]:
    pairs: dict[int, list[tuple[int, int]]] = {}
    for i, j in itertools.combinations(range(len(hashes)), 2):
        if (bits := hamming(hashes[i], hashes[j])) <= distance:
            pairs.setdefault(i, []).append((j, bits))
    return pairs


@st.composite
def planted(draw: st.DrawFn) -> list[int]:
    """Random hashes, and near ones of some of them, anywhere."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), max_size=20))
    for _ in range(draw(st.integers(0, 15)) if hashes else 0):
        near = draw(st.sampled_from(hashes))
        for bit in draw(st.sets(st.integers(0, 63), max_size=9)):
            near ^= 1 << bit
        hashes.insert(draw(st.integers(0, len(hashes))), near)
    return hashes


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@given(planted(), st.integers(0, 12))
def test_blocks_find_every_pair_of_hashes(block: int, hashes: list[int], distance: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_HASHES", block)
        found = list(near_hashes(np.array(hashes, dtype=np.uint64), distance))
    assert [i for i, _, _ in found] == sorted({i for i, _, _ in found})
    as_dict = {i: list(zip(near.tolist(), bits.tolist(), strict=True)) for i, near, bits in found}
    assert as_dict == reference(hashes, distance)


# Vectors


def pairs_of(vectors: np.ndarray, least: float) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for i, j, cosine in near_vectors(vectors, least):
        for a, b, value in zip(i.tolist(), j.tolist(), cosine.tolist(), strict=True):
            assert (a, b) not in found, "found twice"
            found[a, b] = value
    return found


@given(st.integers(0, 99), st.integers(0, 40), st.floats(-1, 1), st.sampled_from([1, 3, 1024]))
def test_few_vectors_are_compared_all_with_all(seed: int, n: int, least: float, rows: int) -> None:
    vectors = units(seed, n, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_ROWS", rows)
        found = pairs_of(vectors, least)
    cosines = vectors @ vectors.T
    clear = np.abs(cosines - least) > 1e-6
    for i, j in itertools.combinations(range(n), 2):
        assert not clear[i, j] or ((i, j) in found) == (cosines[i, j] >= least)


def test_planted_pairs_are_found_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of many vectors, here few for the test's sake, lose none of a thousand that are nearly the same."""
    monkeypatch.setattr(neighbors, "_BUCKETED", 100)
    vectors = units(0, 3000, 64)
    near = vectors[:1000] + 0.3 * units(1, 1000, 64)
    both = np.concatenate([vectors, near / np.linalg.norm(near, axis=1, keepdims=True)]).astype(np.float32)
    found = pairs_of(both, 0.9)
    assert sum((i, 3000 + i) in found for i in range(1000)) >= 990
    cosines = both @ both.T
    assert all(cosines[i, j] >= 0.9 - 1e-6 for i, j in found)


@given(st.integers(0, 99), st.integers(2, 30), st.integers(1, 5))
def test_the_nearest_few(seed: int, n: int, few: int) -> None:
    vectors = units(seed, n, 8)
    fresh = np.random.default_rng(seed).permutation(n)[: n // 2 + 1]
    index, cosine = nearest_few(vectors, fresh, few)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for row, i in enumerate(fresh):
        wanted = np.sort(cosines[i])[::-1][: min(few, n - 1)]
        assert np.allclose(cosine[row][: len(wanted)], wanted, atol=1e-6)
        assert np.allclose(cosines[i][index[row][: len(wanted)]], wanted, atol=1e-6)
        assert (index[row][len(wanted) :] == -1).all()


def test_the_nearest_few_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = units(0, 2000, 32)
    near = vectors[:500] + 0.2 * units(1, 500, 32)
    both = np.concatenate([vectors, near / np.linalg.norm(near, axis=1, keepdims=True)]).astype(np.float32)
    monkeypatch.setattr(neighbors, "_BUCKETED", 100)
    index, cosine = nearest_few(both, np.arange(2500), 3)
    assert (index[:500, 0] == 2000 + np.arange(500)).mean() >= 0.99
    assert all(len(set(row)) == 3 for row in index.tolist())
    assert (np.diff(cosine, axis=1) <= 0).all()


# Landmarks


def marks(bits: np.ndarray, owners: np.ndarray) -> Marks:
    """All in one place, one size and one direction, so that pairs agree about how pictures lie over each other."""
    points = np.tile(np.array([[100, 80, 2, 1]], np.float32), (len(bits), 1))
    return Marks(bits, points, owners)


def test_shared_landmarks_are_counted() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (300, 16), dtype=np.uint8)
    owners = np.repeat(np.arange(6), 50)
    bits[50:90] = bits[:40]  # forty of the first are also of the second,
    bits[50:90, 3] ^= 5  # with two bits changed,
    bits[200:204] = bits[10]  # and one of the first is four times in the fifth
    found = shared_landmarks(marks(bits, owners), marks(bits, owners))
    assert found.keys() == {(0, 1), (1, 0)}
    assert found[0, 1] == found[1, 0] >= 30


def test_landmarks_that_do_not_agree_about_the_map_are_not_shared() -> None:
    rng = np.random.default_rng(0)
    bits, owners = rng.integers(0, 256, (80, 16), dtype=np.uint8), np.repeat([0, 1], 40)
    bits[40:] = bits[:40]
    points = np.column_stack([rng.uniform(0, 256, (80, 2)), rng.uniform(1, 9, 80), rng.uniform(-3, 3, 80)])
    scattered = Marks(bits, points.astype(np.float32), owners)
    assert max(shared_landmarks(scattered, scattered).values(), default=0) <= 4
    assert shared_landmarks(marks(bits, owners), marks(bits, owners))[0, 1] == 40


def test_landmarks_of_a_new_picture_are_found_as_those_of_all() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 256, (200, 16), dtype=np.uint8)
    owners = np.repeat(np.arange(4), 50)
    bits[150:] = bits[:50]
    everything = shared_landmarks(marks(bits, owners), marks(bits, owners))
    only = shared_landmarks(marks(bits, owners), marks(bits[150:], owners[150:]))
    assert only == {pair: n for pair, n in everything.items() if pair[1] == 3} != {}


def test_a_landmark_that_is_everywhere_tells_nothing() -> None:
    same = marks(np.full((4000, 16), 7, np.uint8), np.arange(4000))
    assert shared_landmarks(same, same) == {}


def test_no_landmarks() -> None:
    none = marks(np.empty((0, 16), np.uint8), np.empty(0, np.intp))
    assert shared_landmarks(none, none) == {}
