"""Where rows lie in one version of a table, so that a row that is read often needs no query.

A query takes milliseconds, whatever it finds; a row whose place is known is read in one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Places"]

_DIGITS = 16  # of a key's digest: more than tell any two pictures of an album apart


class Places:
    """The offsets of a table's rows by the beginning of their keys, 24 bytes a row.

    ``keys`` are those of the table's rows in order, hex digits first. Other rows may share a beginning, as those of one
    picture do: who looks up compares whole keys.

    >>> places = Places(pa.chunked_array([["b" * 64 + ":1", "a" * 64 + ":1", "b" * 64 + ":2"]]))
    >>> places.find(["b" * 64 + ":2", "c" * 64 + ":1"])
    [0, 2]
    """

    def __init__(self, keys: pa.ChunkedArray) -> None:
        beginnings = pc.utf8_slice_codeunits(keys.cast(pa.string()), 0, _DIGITS)
        held = np.array(beginnings.to_pylist(), dtype=f"S{_DIGITS}")
        self._order = np.argsort(held, kind="stable")
        self._held = held[self._order]

    def find(self, keys: Iterable[str]) -> list[int]:
        """The offsets, ascending, of all rows whose keys begin as one of these does."""
        wanted = np.array(sorted({key[:_DIGITS] for key in keys}), dtype=f"S{_DIGITS}")
        first, last = (np.searchsorted(self._held, wanted, side=side) for side in ("left", "right"))
        found = [self._order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return sorted(int(i) for some in found for i in some)
