"""Fused rankings, and cursors: a page ends where the next one begins, whatever was added in between."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import digest

from qsplit.errors import UsageError
from qsplit.search.pagination import Cursor, digest_of
from qsplit.search.rank_fusion import fused

IDS = st.integers(0, 40).map(digest)


def test_fused_scores_are_reciprocal_ranks() -> None:
    """Of the paper's sums 1/61 + 1/62, 1/61 + 1/63, 1/62 and 1/63, each by the largest that two rankings may give."""
    found = fused([["a", "b", "c", "d"], ["c", "a"]])
    assert [one for one, _ in found] == ["a", "c", "b", "d"]
    assert [score for _, score in found] == pytest.approx([0.991935, 0.984127, 0.491935, 0.476563], abs=1e-6)


@given(st.lists(st.lists(IDS, unique=True), min_size=1, max_size=4), st.randoms())
def test_the_order_of_rankings_does_not_matter(rankings: list[list[str]], chance: Random) -> None:
    found = fused(rankings)
    assert {one for one, _ in found} == {one for ranking in rankings for one in ranking}
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    shuffled = chance.sample(rankings, len(rankings))
    assert dict(fused(shuffled)) == pytest.approx(dict(found))


@given(st.lists(IDS, unique=True, max_size=20), st.integers(1, 4))
def test_rankings_that_agree_are_their_ranking(ranking: list[str], number: int) -> None:
    assert [one for one, _ in fused([ranking] * number)] == ranking


def test_what_both_know_comes_first() -> None:
    assert [one for one, _ in fused([["a", "b", "c"], ["d", "c"]])] == ["c", "a", "d", "b"]
    assert fused([[], []]) == []


@given(st.floats(allow_nan=False), IDS, st.sets(IDS))
def test_a_cursor_is_read_as_it_was_written(place: float, last: str, shown: set[str]) -> None:
    search = digest_of("red boat", 20)
    cursor = Cursor(search, place, last).and_shown(shown)
    assert Cursor.read(cursor.text, search) == cursor
    assert all(cursor.has_shown(one) for one in shown)
    assert not cursor.has_shown(digest("another"))
    assert Cursor(search, place, last).is_behind(place, last) is False
    assert Cursor(search, place, digest(1)).is_behind(place, digest(2)) == (digest(2) > digest(1))


@pytest.mark.parametrize("text", ["x", "", "not a cursor", "ÄÖ", "AAAA", "A" * 200 + "!"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no cursor"):
        Cursor.read(text, digest_of(1))


def test_a_cursor_of_another_search_is_refused() -> None:
    with pytest.raises(UsageError, match="another search"):
        Cursor.read(Cursor(digest_of("red")).text, digest_of("blue"))
