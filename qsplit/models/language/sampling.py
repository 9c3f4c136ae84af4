"""Strings that an answer ends before."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_place", "may_begin"]


def first_place(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of some strings begins in a text.

    >>> first_place("one, two", [" two", ","])
    3
    """
    return min((place for place in (text.find(one) for one in stop) if place >= 0), default=None)


def may_begin(text: str, stop: Sequence[str]) -> int:
    """How many letters at a text's end some string of these begins with.

    >>> may_begin("done. #", [" ###"])
    2
    """
    sizes = (n for one in stop for n in range(1, min(len(one), len(text) + 1)) if text.endswith(one[:n]))
    return max(sizes, default=0)
