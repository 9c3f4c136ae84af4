"""Which index a table of vectors gets, by what it holds: none as long as reading everything is quick.

Rows that are in no index yet are read beside it, so an index that is behind costs time and never a match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lancedb.index import FTS, IvfRq

__all__ = ["INDEXED_FROM", "PROBES", "REFINE", "index_of", "make", "tending"]

INDEXED_FROM = 50_000  # vectors: below that, reading them all is as quick and finds all
REFINE = 5  # times as many as wanted are compared exactly
PROBES = 96  # partitions that are looked into: at 100,000 vectors half of them, which finds .99 of the ten nearest
_PARTITION = 500  # vectors
_BEHIND = 0.1  # of the rows: what may be in no index
_WORDS_BEHIND = 5_000
_FTS = FTS(base_tokenizer="whitespace", ascii_folding=True)


def index_of(table: Any, column: str) -> str | None:
    """The name of the index of a column, if it has one."""
    return next((one.name for one in table.list_indices() if list(one.columns) == [column]), None)


def tending(table: Any, counts: dict[str, int]) -> Iterator[Callable[[], None]]:
    """The commits, to be made one by one, that give a table the indexes it should have and bring them up to date.

    ``counts`` says of the columns ``pooled``, ``semantic`` and ``terms`` in how many rows there is one.
    """
    for column, count in counts.items():
        name = index_of(table, column)
        if name is None and count >= (1 if column == "terms" else INDEXED_FROM):
            yield partial(make, table, column, count)
        elif name is not None and _is_behind(table, name, column):
            yield partial(_bring_up_to_date, table, name)


def make(table: Any, column: str, count: int) -> None:
    """Index a column that holds so many values, whatever index it has."""
    table.checkout_latest()
    made = _FTS if column == "terms" else IvfRq(distance_type="cosine", num_partitions=max(1, count // _PARTITION))
    table.create_index(column, config=made, replace=True)


def _is_behind(table: Any, name: str, column: str) -> bool:
    stats = table.index_stats(name)
    left = int(stats.num_unindexed_rows)
    return left > (_WORDS_BEHIND if column == "terms" else _BEHIND * int(stats.num_indexed_rows))


def _bring_up_to_date(table: Any, name: str) -> None:
    table.checkout_latest()
    table.to_lance().optimize.optimize_indices(index_names=[name])
    table.checkout_latest()
