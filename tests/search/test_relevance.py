"""Where good matches end: what stands out of an album's cosines, and what the asked pictures add."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.errors import CheckpointError
from qsplit.search.relevance import Cut, Spread, agreement


def scores(seed: int, number: int = 1000, *matches: float) -> np.ndarray:
    """Cosines of pictures that a text does not mean, and of some that it does."""
    others = np.random.default_rng(seed).normal(0.1, 0.1, number)
    return np.concatenate([others, matches]).astype(np.float32)


@given(st.integers(0, 1000), st.floats(0.01, 0.9), st.floats(-0.5, 0.5))
def test_it_is_the_same_whatever_the_model_calls_near(seed: int, scale: float, shift: float) -> None:
    """A model whose cosines are larger or further apart is cut at the same picture."""
    one = scores(seed)
    other = (one * np.float32(scale) + np.float32(shift)).astype(np.float32)
    for cosine in (0.2, 0.5, 0.9):
        standing = Spread.of(one).standing(cosine)
        assert Spread.of(other).standing(cosine * scale + shift) == pytest.approx(standing, rel=1e-3, abs=1e-3)


def test_a_match_stands_out_and_the_best_of_many_others_does_not() -> None:
    for number in (100, 1000, 4000):
        best = [float(scores(seed, number).max()) for seed in range(20)]
        standing = [Spread.of(scores(seed, number)).standing(best[seed]) for seed in range(20)]
        assert 0.8 < float(np.median(standing)) < 1.15
        assert Spread.of(scores(0, number, 0.9)).standing(0.9) > 1.8


def test_matches_do_not_hide_each_other() -> None:
    """Forty that fit stand out of a thousand as far as one does, because they are not in the lower part."""
    spread = Spread.of(scores(1, 960, *[0.8] * 40))
    assert spread.standing(0.8) == pytest.approx(Spread.of(scores(1, 999, 0.8)).standing(0.8), rel=0.1)


def test_the_tail_is_left_out() -> None:
    found = scores(2, 1000, 0.8, 0.75)
    floor = Cut(tail=1.3).floor(Spread.of(found))
    assert (found >= floor).sum() == 2
    assert Cut(tail=0.7).floor(Spread.of(found)) < floor


@pytest.mark.parametrize("album", [scores(0, 0), scores(0, 3)])
def test_an_album_that_is_too_small_to_say_keeps_all(album: np.ndarray) -> None:
    spread = Spread.of(album)
    assert Cut().floor(spread) == -math.inf
    assert Cut().has_good(spread, [0.0])


def test_equal_cosines_stand_out_of_nothing() -> None:
    spread = Spread.of(np.full(50, 0.5, np.float32))
    assert spread.standing(0.5) == math.inf
    assert math.isfinite(agreement(0.5, spread.standing(0.5), 1.0, 0.0))


def test_one_picture_must_both_lie_near_and_answer_well() -> None:
    spread, cut = Spread.of(scores(3)), Cut(standing=1.2, asks=2, weight=2.0, agreement=3.0)
    assert not cut.has_good(spread, [0.4, 0.3], [0.01, 0.2])
    assert cut.has_good(spread, [0.4, 0.3], [0.01, 0.9])
    assert cut.has_good(spread, [0.9, 0.3], [0.5, 0.01])
    assert not cut.has_good(spread, [0.9, 0.1], [0.01, 0.5])
    assert not cut.has_good(spread, [0.3])
    assert cut.has_good(spread, [0.9])


def test_a_cut_is_read_as_it_was_written() -> None:
    cut = Cut(standing=0.9, asks=8, weight=2.5, agreement=-1.25, probable=0.3)
    assert Cut.read(cut.written()) == cut
    assert Cut.read(None) == Cut()
    for wrong in ({"nothing": 1}, {"asks": "many"}):
        with pytest.raises(CheckpointError, match="is none"):
            Cut.read(wrong)
