"""Where a page of matches ended, as a word that the next search is told; nothing of it is kept in between.

Most rankings give a picture the same place whatever else there is: by its score, or its date, and its id. The next page
is then all behind the last match, so nothing comes twice, whatever was added meanwhile. Where words rank, or ranks are
fused, a new picture moves others: there the cursor names all that was shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from qsplit.errors import UsageError

__all__ = ["Cursor", "digest_of"]

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
