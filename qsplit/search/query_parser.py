"""What a user types -> terms: texts and pictures to look for, each with a weight, and some to be taken away.

    2:red boat + ./pool.jpg - "black + white"

A ``+`` or ``-`` counts between spaces only, so ``black-and-white`` and ``T-shirt`` are words like any others. What
stands in double quotes is text, whatever it looks like. A number and a colon before a term are its weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from qsplit.errors import UsageError
from qsplit.media.images import SUFFIXES

__all__ = ["Term", "parse", "texts"]

# A quote opens where a word may begin: the inches of a 12" record open none.
_QUOTED = r'"(?:\\.|[^"\\])*"'
_PARTS = re.compile(rf'(?<![^\s:])(?:{_QUOTED}|(?P<open>"))|(?<!\S)(?P<sign>[+-])(?!\S)')
_WHOLLY_QUOTED = re.compile(_QUOTED)
_WEIGHTED = re.compile(r"(\d+(?:\.\d+)?|\.\d+):(?!\d)\s*")  # 10:30 is a time
_ID = re.compile(r"id:([0-9a-f]{6,64})|([0-9a-f]{12,64})")  # facade and decade are hexadecimal, too
_PLACES = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Term:
    """A text, or the name of a picture; taken away where the weight is below 0. ``position`` counts letters from 1."""

    kind: Literal["text", "picture"]
    value: str
    weight: float = 1.0
    position: int = 1


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query, in the order given; none of one that is blank.

    A term is a picture if it begins like a path, ends like a picture's file, or is an id: 12 digits or more, or ``id:``
    and 6 or more. Raises `UsageError`, which names the position, for an operator or a weight with nothing behind it, a
    quote that does not end, a weight of 0, and a query that only takes away.

    >>> [(term.kind, term.value, term.weight) for term in parse("2:red boat + ./pool.jpg - people")]
    [('text', 'red boat', 2.0), ('picture', './pool.jpg', 1.0), ('text', 'people', -1.0)]
    >>> [term.value for term in parse('a T-shirt, "1 + 1" on it')]
    ['a T-shirt, "1 + 1" on it']
    """
    if not query.strip():
        return ()
    terms = tuple(_term(query, *part) for part in _split(query))
    if all(term.weight < 0 for term in terms):
        raise UsageError(
            f"The query {query!r} only takes away.", fix="Say what to look for: `TEXT - what it should not be`."
        )
    return terms


def texts(terms: Sequence[Term]) -> list[str]:
    """The texts that are looked for."""
    return [term.value for term in terms if term.kind == "text" and term.weight > 0]


def _split(query: str) -> Iterator[tuple[int, int, int]]:
    """Each term's sign (1 or -1), and where it begins and ends."""
    sign, start = 1, 0
    for part in _PARTS.finditer(query):
        if part["open"]:
            raise _wrong("A quote is opened", part.start(), "and never closed", query)
        if not part["sign"]:
            continue
        if start or query[: part.start()].strip():  # the first term needs no sign, and may have one
            yield sign, start, part.start()
        sign, start = (1 if part["sign"] == "+" else -1), part.end()
    yield sign, start, len(query)


def _term(query: str, sign: int, start: int, end: int) -> Term:
    start += len(query[start:end]) - len(query[start:end].lstrip())
    text = query[start:end].strip()
    if not text:
        raise _wrong("A text or a picture is wanted", min(start, len(query)), "and there is none", query)
    weight, value = 1.0, text
    if given := _WEIGHTED.match(text):
        weight, value = float(given[1]), text[given.end() :]
        if not 0 < weight < math.inf:
            raise _wrong(f"The weight {given[1]}", start, "must be above 0 and finite", query)
        if not value:
            raise _wrong(f"The weight {given[1]}", start, "has nothing behind it", query)
    if _WHOLLY_QUOTED.fullmatch(value):
        inside = re.sub(r"\\(.)", r"\1", value[1:-1])
        if not inside.strip():
            raise _wrong("The quotes", start, "hold nothing", query)
        return Term("text", inside, sign * weight, start + 1)
    if found := _ID.fullmatch(value):
        return Term("picture", found[1] or found[2], sign * weight, start + 1)
    is_picture = value.startswith(_PLACES) or PurePath(value).suffix.lower() in SUFFIXES
    return Term("picture" if is_picture else "text", value, sign * weight, start + 1)


def _wrong(what: str, place: int, why: str, query: str) -> UsageError:
    return UsageError(
        f"{what} at position {place + 1} {why}: {query!r}.",
        fix="Terms are parted by + or - between spaces; text that holds those stands in double quotes.",
    )
