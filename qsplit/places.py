"""Where rows lie in one version of a table, and what a reader of their blobs needs of them.

A query takes milliseconds, whatever it finds; the blob of a row whose place is known is read in less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qsplit.blobs import Blobs, Source

__all__ = ["KnownVersion", "Places"]

_DIGITS = 16  # of a key's digest: more than tell any two pictures of an album apart


class Places:
    """The rows of a table, found by the beginning of their ``key``: 24 bytes a row beside the rows themselves.

    The rows are in the table's order, and their keys begin with hex digits. Other rows may share a beginning, as those
    of one picture do.

    >>> places = Places(pa.table({"key": ["b" * 64 + ":1", "a" * 64 + ":1", "b" * 64 + ":2"], "n": [5, 6, 7]}))
    >>> [(offset, row["n"]) for offset, row in places.find({"b" * 64 + ":2", "c" * 64 + ":1"}).items()]
    [(2, 7)]
    """

    def __init__(self, rows: pa.Table) -> None:
        self._columns = {name: rows[name].combine_chunks() for name in rows.column_names}
        beginnings = pc.utf8_slice_codeunits(rows["key"].cast(pa.string()), 0, _DIGITS)
        held = np.array(beginnings.to_pylist(), dtype=f"S{_DIGITS}")
        self._order = np.argsort(held, kind="stable")
        self._held = held[self._order]

    def find(self, keys: AbstractSet[str]) -> dict[int, dict[str, Any]]:
        """Offset in the table -> row, in the table's order, of all rows that have one of these keys."""
        wanted = np.array(sorted({key[:_DIGITS] for key in keys}), dtype=f"S{_DIGITS}")
        first, last = (np.searchsorted(self._held, wanted, side=side) for side in ("left", "right"))
        found = [self._order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        offsets = sorted(int(i) for some in found for i in some)
        return {i: self._row(i) for i in offsets if self._columns["key"][i].as_py() in keys}

    def _row(self, offset: int) -> dict[str, Any]:
        # Value by value: a kernel of Arrow's takes as long to be called as this whole way.
        return {name: column[offset].as_py() for name, column in self._columns.items()}


class KnownVersion:
    """One version of a table, in which rows are found and their blobs read without a query."""

    def __init__(self, dataset: Any, columns: Sequence[str], blob: str) -> None:
        rows = dataset.to_table(columns=[*columns, blob], with_row_address=True)
        self.dataset = dataset
        self._places = Places(rows)
        self._blobs = Blobs(dataset, blob, rows)

    @property
    def is_newest(self) -> bool:
        return bool(self.dataset.latest_version == self.dataset.version)

    def find(self, keys: AbstractSet[str]) -> list[tuple[int, dict[str, Any], Source]]:
        """Offset, columns and blob of the rows that have one of these keys, in the table's order."""
        rows = self._places.find(keys)
        blobs = self._blobs.find(rows)
        return [(i, row, blobs[i]) for i, row in rows.items()]
