"""A ranking -> pages of matches that do not repeat, each of an image of which a file is left.

Where a page ended is a word that the next search is told; nothing of it is kept in between. Most rankings give a
picture the same place whatever else there is: by its score, or its date, and its id. The next page is then all behind
the last match, so nothing comes twice, whatever was added meanwhile. Where words rank, or ranks are fused, a new
picture moves others: there the cursor names all that was shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from qsplit.errors import UsageError
from qsplit.search.filters import Hit, Scope
from qsplit.store.feature_store import FeatureStore

__all__ = ["Cursor", "Found", "Kind", "Match", "Pages", "Ranked", "digest_of"]

_LAYOUT = struct.Struct(">8sd32s")  # the search's digest, a place, an id; what was shown stands behind
_SHOWN_BYTES = 6  # of an id, to know it again among those of an album


@dataclass(frozen=True, slots=True)
class Cursor:
    """Of which search (its digest), the last match's place in the order and its id, or the ids of all that was shown.

    >>> one = Cursor("0123456789abcdef", -0.25, "ab" * 32)
    >>> Cursor.read(one.text, "0123456789abcdef") == one
    True
    """

    search: str
    place: float = 0.0
    id: str = "0" * 64
    shown: frozenset[str] = frozenset()  # the first digits of ids

    @classmethod
    def read(cls, text: str, search: str) -> Cursor:
        """Raises `UsageError` for a text that is no cursor, or one of another search."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            of, place, last = _LAYOUT.unpack_from(raw)
        except (ValueError, struct.error) as error:
            raise UsageError(
                f"{text!r} is no cursor.", fix="Give the one that ended the page before, or none for the first page."
            ) from error
        if of.hex() != search:
            raise UsageError(
                "The cursor is of another search.", fix="Repeat the text, the filters and the order of the first page."
            )
        rest = raw[_LAYOUT.size :]
        shown = (rest[i : i + _SHOWN_BYTES].hex() for i in range(0, len(rest), _SHOWN_BYTES))
        return cls(search, place, last.hex(), frozenset(shown))

    @property
    def text(self) -> str:
        raw = _LAYOUT.pack(bytes.fromhex(self.search), self.place, bytes.fromhex(self.id))
        raw += bytes.fromhex("".join(sorted(self.shown)))
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def is_behind(self, place: float, image_id: str) -> bool:
        """Whether a match comes after the last one, smaller places first."""
        return (place, image_id) > (self.place, self.id)

    def has_shown(self, image_id: str) -> bool:
        return image_id[: 2 * _SHOWN_BYTES] in self.shown

    def and_shown(self, image_ids: Iterable[str]) -> Cursor:
        """With more that was shown."""
        return replace(self, shown=self.shown | {one[: 2 * _SHOWN_BYTES] for one in image_ids})


def digest_of(*asked: Any) -> str:
    """What tells a search from others: the same for the same values."""
    text = json.dumps(asked, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Kind = Literal["cosine", "semantic", "words", "hybrid", "probability", "date"]
Ranked = Callable[[int], list[Hit]]  # so many of the best


@dataclass(frozen=True, slots=True)
class Match:
    """One image found: ``score`` is 1 at best, and ``kind`` says what it measures.

    ``after`` is the cursor of the next page, in the last match of a page that has a next one.
    """

    id: str
    path: str | None
    score: float
    kind: Kind = "cosine"
    after: str = field(default="", compare=False)


class Found(list[Match]):
    """A page of matches, best first.

    ``after`` is the cursor of the next page, empty if there is none. ``is_cut`` says of an empty one that something
    was compared, and that none of it is a good match.
    """

    def __init__(self, matches: Iterable[Match] = (), *, is_cut: bool = False) -> None:
        super().__init__(matches)
        self.is_cut = is_cut

    @property
    def after(self) -> str:
        return self[-1].after if self else ""


@dataclass(frozen=True)
class Pages:
    """The page of one search behind a cursor, or its first; ``search`` is the digest that its cursors carry."""

    store: FeatureStore
    scope: Scope
    limit: int
    search: str = "0" * 16
    cursor: Cursor | None = None

    def read(self, ranked: Ranked, kind: Kind, floor: float = -math.inf) -> Found:
        """Of a ranking by a score of six digits, down to a floor, read as deep as it takes; equal scores by id."""
        wanted = 2 * self.limit + len(self.scope.without) + 1
        while True:
            found = ranked(wanted)
            hits = self.there(hit for hit in found if hit[1] >= floor)
            left = self._behind(sorted(hits, key=lambda hit: (-hit[1], hit[0])))
            is_whole = len(found) < wanted or found[-1][1] < floor
            if is_whole or (len(left) > self.limit and left[self.limit][1] < left[self.limit - 1][1]):
                return self._told(left, kind)
            wanted *= 2  # some of the best had no file left, or more of them score the same as the last

    def ranked(self, hits: Sequence[Hit], kind: Kind) -> Found:
        """Of a ranking that is there as a whole, and in which an image has its place by its score."""
        there = self.there(hits)
        found = self._told(self._behind(sorted(there, key=lambda hit: (-hit[1], hit[0]))), kind)
        return Found(found, is_cut=not there)

    def relative(self, hits: Sequence[Hit], kind: Kind) -> Found:
        """Of a ranking as it is, in which an image that is new changes the scores of others."""
        there = self.there(hits)
        left = [hit for hit in there if self.cursor is None or not self.cursor.has_shown(hit[0])]
        before = self.cursor or Cursor(self.search)
        shown = [image_id for image_id, _ in left[: self.limit]]
        found = self._told(left, kind, cursor=before.and_shown(shown))
        return Found(found, is_cut=not there)

    def dated(self, hits: Sequence[Hit], kind: Kind, taken: Mapping[str, datetime | None]) -> Found:
        """The newest first; what has no date comes last."""
        there = self.there(hits)
        places = {image_id: _place(taken.get(image_id)) for image_id, _ in there}
        order = sorted(there, key=lambda hit: (places[hit[0]], hit[0]))
        left = [hit for hit in order if self.cursor is None or self.cursor.is_behind(places[hit[0]], hit[0])]
        cursor = None
        if len(left) > self.limit:
            last, _ = left[self.limit - 1]
            cursor = Cursor(self.search, places[last], last)
        return Found(self._told(left, kind, cursor=cursor), is_cut=not there)

    def there(self, hits: Iterable[Hit]) -> list[Hit]:
        """Those that may match and of which a file is left."""
        held = self.scope.of(hits)
        paths = self.scope.paths(self.store, [image_id for image_id, _ in held])
        return [hit for hit in held if hit[0] in paths]

    def _behind(self, hits: Sequence[Hit]) -> list[Hit]:
        return [hit for hit in hits if self.cursor is None or self.cursor.is_behind(-hit[1], hit[0])]

    def _told(self, left: Sequence[Hit], kind: Kind, *, cursor: Cursor | None = None) -> Found:
        """The first of what is left, and where they end if more follow: at the last one's score, or as told."""
        shown = left[: self.limit]
        paths = self.scope.paths(self.store, [image_id for image_id, _ in shown])
        matches = [Match(image_id, paths.get(image_id), score, kind) for image_id, score in shown]
        if len(left) > len(shown):
            last, score = shown[-1]
            matches[-1] = replace(matches[-1], after=(cursor or Cursor(self.search, -score, last)).text)
        return Found(matches)


def _place(taken_at: datetime | None) -> float:
    """Where a picture stands among those sorted by date, smaller first."""
    return math.inf if taken_at is None else -taken_at.timestamp()
