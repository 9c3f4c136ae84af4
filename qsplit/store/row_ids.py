"""Ids of rows: sha256 digests as 64 hex digits, checked wherever rows are read.

A store can be shared, and its ids name files, tables, ETags and elements of pages. So a row whose id is anything else
is refused before it becomes a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from qsplit.errors import CorruptStore

__all__ = ["COLUMNS", "RESTORE", "check_id", "check_ids", "wrong_ids", "wrong_rows"]

COLUMNS = ("image_id", "pixels_digest", "encoder_id", "shown", "one", "other")
RESTORE = "Run `qsplit verify` to list what is damaged, then restore the store from a copy, or index into a new one."
_HEX = "0123456789abcdef"
_LENGTH = 64  # hex digits of a sha256
_SHOWN = 70  # characters of a wrong value in a message
_ID = re.compile(f"[{_HEX}]{{{_LENGTH}}}")


def check_id(value: str, what: str) -> str:
    """Return the value if it is 64 hex digits.

    Raises `CorruptStore` otherwise.

    >>> check_id("0a" * 32, "An image id") == "0a" * 32
    True
    >>> check_id("../up", "An image id")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    qsplit.errors.CorruptStore: An image id is '../up', not 64 hex digits. Run `qsplit verify` ...
    """
    if not _ID.fullmatch(value):
        raise CorruptStore(f"{what} is {_short(value)}, not {_LENGTH} hex digits.", fix=RESTORE)
    return value


def check_ids(rows: pa.Table, table: str) -> pa.Table:
    """Return the rows if every id in them is 64 hex digits or null.

    Raises `CorruptStore` otherwise, naming the table, the column and the value.
    """
    for column in _columns(rows):
        invalid = _invalid(rows[column])
        if pc.any(invalid).as_py():
            value = rows[column].filter(invalid)[0].as_py()
            check_id(value, f"{column} of a row of {table}")
    return rows


def wrong_rows(rows: pa.Table) -> pa.ChunkedArray:
    """Mask ``(n,)`` of the rows that `check_ids` refuses."""
    wrong = pa.chunked_array([pa.repeat(False, len(rows))])
    for column in _columns(rows):
        wrong = pc.or_(wrong, pc.fill_null(_invalid(rows[column]), fill_value=False))
    return wrong


def wrong_ids(rows: pa.Table) -> Iterator[tuple[int, str]]:
    """Yield the offset of each row that `check_ids` refuses, and the reason, one for each column."""
    for column in _columns(rows):
        invalid = pc.fill_null(_invalid(rows[column]), fill_value=False)
        for offset in pc.indices_nonzero(invalid).to_pylist():
            yield offset, f"Its {column} is {_short(rows[column][offset].as_py())}, not {_LENGTH} hex digits."


def _columns(rows: pa.Table) -> list[str]:
    return [name for name in COLUMNS if name in rows.column_names]


def _invalid(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # Four times as fast as a regular expression: what is left of a value when hex digits are trimmed from both ends.
    other = pc.not_equal(pc.binary_length(pc.ascii_trim(column, _HEX)), 0)
    return pc.or_(pc.not_equal(pc.binary_length(column), _LENGTH), other)


def _short(value: str) -> str:
    return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}…"
