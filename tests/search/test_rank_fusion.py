"""Fused rankings, and cursors: a page ends where the next one begins, whatever was added in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import digest

from qsplit.errors import UsageError
from qsplit.search.pagination import Cursor, digest_of
from qsplit.search.rank_fusion import fused

IDS = st.integers(0, 40).map(digest)


@given(st.lists(st.lists(IDS, unique=True), min_size=1, max_size=4))
def test_fused_scores_are_reciprocal_ranks(rankings: list[list[str]]) -> None:
    found = dict(fused(rankings))
    assert found.keys() == {one for ranking in rankings for one in ranking}
    for one, score in found.items():
        ranks = [ranking.index(one) + 1 for ranking in rankings if one in ranking]
        assert score == pytest.approx(sum(61 / (60 + rank) for rank in ranks) / len(rankings))
        assert 0 < score <= 1
    assert list(found.values()) == sorted(found.values(), reverse=True)


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
