"""Maps between pictures: fitted though most pairs are wrong, and inverted, composed and read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.duplicates.matching.transforms import (
    applied,
    composed,
    fit_oriented,
    fit_places,
    inverse,
    scale_of,
    turn_of,
    whole,
)

MAPS = st.tuples(st.floats(0.3, 3), st.floats(-179, 179), st.floats(-50, 50), st.floats(-50, 50))


def similarity(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    turn = math.radians(degrees)
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    return np.array([[cosine, -sine, x], [sine, cosine, y]])


def landmarks(found: np.ndarray, right: int, wrong: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many landmarks with their partners under a map, and so many with strangers."""
    rng = np.random.default_rng(seed)
    n = right + wrong
    one = np.column_stack([rng.uniform(0, 256, (n, 2)), rng.uniform(1, 8, n), rng.uniform(-3, 3, n)])
    turned = np.radians(turn_of(found))
    other = np.column_stack([applied(found, one[:, :2]), one[:, 2] * scale_of(found), one[:, 3] + turned])
    other[right:] = np.column_stack(
        [rng.uniform(0, 256, (wrong, 2)), rng.uniform(1, 8, wrong), rng.uniform(-3, 3, wrong)]
    )
    return one, other


@given(MAPS, st.integers(6, 20), st.integers(0, 40), st.integers(0, 99))
def test_landmarks_fix_a_map_though_most_pairs_are_wrong(
    wanted: tuple[float, float, float, float], right: int, wrong: int, seed: int
) -> None:
    found = similarity(*wanted)
    one, other = landmarks(found, right, wrong, seed)
    fit = fit_oriented(one, other, 4.0)
    assert fit is not None
    assert fit.agree[:right].sum() >= right - 1
    assert np.abs(applied(fit.map, one[:right, :2]) - other[:right, :2]).max() < 10 * max(1, wanted[0])
    if wrong == 0:
        assert np.allclose(fit.map, found, atol=1e-6)


@given(MAPS, st.integers(8, 20), st.integers(0, 8), st.integers(0, 99))
def test_plain_places_fix_a_map(wanted: tuple[float, float, float, float], right: int, wrong: int, seed: int) -> None:
    one, other = landmarks(similarity(*wanted), right, wrong, seed)
    fit = fit_places(one[:, :2], other[:, :2], 4.0, least=20.0)
    assert fit is not None
    assert fit.agree[:right].sum() >= right - 1


def test_a_stretch_is_found() -> None:
    rng = np.random.default_rng(0)
    one = rng.uniform(0, 256, (30, 2))
    stretched = np.array([[1.1, 0, 3], [0, 0.95, -5]])
    fit = fit_places(one, applied(stretched, one), 8.0, least=20.0)
    assert fit is not None
    assert fit.n == 30
    assert np.allclose(fit.map, stretched, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_pairs_are_too_few(n: int) -> None:
    one, other = landmarks(similarity(1, 0, 0, 0), n, 0, 0)
    assert fit_oriented(one, other, 4.0) is None
    assert fit_places(one[:, :2], other[:, :2], 4.0, least=1.0) is None


def test_strangers_agree_on_nothing() -> None:
    most = 0
    for seed in range(20):
        one, other = landmarks(similarity(1, 0, 0, 0), 0, 40, seed)
        fit = fit_oriented(one, other, 4.0)
        most = max(most, fit.n if fit else 0)
    assert most <= 4


@given(MAPS, MAPS)
def test_maps_are_composed_and_inverted(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> None:
    a, b = similarity(*one), similarity(*other)
    places = np.array([[0.0, 0], [100, 50], [7, 200]])
    assert np.allclose(applied(composed(a, b), places), applied(a, applied(b, places)))
    assert np.allclose(applied(inverse(a), applied(a, places)), places, atol=1e-6)
    assert scale_of(a) == pytest.approx(one[0])
    assert turn_of(a) == pytest.approx(one[1], abs=1e-6)


def test_frames_are_laid_over_each_other() -> None:
    corners = np.array([[-0.5, -0.5], [99.5, 49.5]])  # of pixels, whose centres are whole numbers
    assert np.allclose(applied(whole((100, 50), (30, 80)), corners), [[-0.5, -0.5], [29.5, 79.5]])
