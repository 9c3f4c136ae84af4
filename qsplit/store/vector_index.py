"""Which index a table of vectors gets, by what it holds: none as long as reading everything is quick.

Rows that are in no index yet are read beside it, so an index that is behind costs time and never a match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lance.indices import IndicesBuilder
from lance.lance import indices as of_lance  # where the builder has it from
from lancedb.index import FTS, IvfRq

__all__ = ["INDEXED_FROM", "PROBES", "REFINE", "Plan", "index_of", "make", "make_part", "planned", "publish", "tending"]

INDEXED_FROM = 50_000  # vectors: below that, reading them all is as quick and finds all
REFINE = 5  # times as many as wanted are compared exactly
PROBES = 96  # partitions that are looked into: at 100,000 vectors half of them, which finds .99 of the ten nearest
_PARTITION = 500  # vectors
_SAMPLED = 256  # of them, that centroids are made of; what Lance takes by itself
_BEHIND = 0.1  # of the rows: what may be in no index
_WORDS_BEHIND = 5_000
_FTS = FTS(base_tokenizer="whitespace", ascii_folding=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How an index is made in parts, on whatever machines: what the parts share, so that they are searched as one.

    Each part is of some fragments of one version of the table; ``centroids`` and ``rotation`` are Lance's own.
    """

    column: str
    version: int
    parts: tuple[tuple[int, ...], ...]
    partitions: int
    centroids: Any
    rotation: str


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
    made = _FTS if column == "terms" else IvfRq(distance_type="cosine", num_partitions=_partitions(count))
    table.create_index(column, config=made, replace=True)


def planned(table: Any, column: str, count: int, parts: int) -> Plan | None:
    """How the index that a column of vectors should have by now is made in parts, or fewer; None if it has it."""
    if count < INDEXED_FROM or index_of(table, column) is not None:
        return None
    table.checkout_latest()
    dataset, partitions = table.to_lance(), _partitions(count)
    fragments = [fragment.fragment_id for fragment in dataset.get_fragments()]
    sampled = min(_SAMPLED, count // partitions)
    ivf = IndicesBuilder(dataset, column).train_ivf(partitions, distance_type="cosine", sample_rate=sampled)
    shared = tuple(tuple(fragments[start::parts]) for start in range(min(parts, len(fragments))))
    rotation = of_lance.build_rq_model(dataset.schema.field(column).type.list_size, IvfRq().num_bits)
    return Plan(column, dataset.version, shared, partitions, ivf.centroids, rotation)


def make_part(dataset: Any, plan: Plan, fragments: Sequence[int]) -> Any:
    """One part of an index, which nobody sees until it is published: Lance's description of it, which can be sent."""
    return dataset.checkout_version(plan.version).create_index_uncommitted(
        plan.column,
        "IVF_RQ",
        name=_name(plan.column),
        metric="cosine",
        num_partitions=plan.partitions,
        ivf_centroids=plan.centroids,
        rabitq_model=plan.rotation,
        num_bits=IvfRq().num_bits,
        fragment_ids=list(fragments),
    )


def publish(table: Any, plan: Plan, parts: Sequence[Any]) -> None:
    """Make the parts of an index seen, as one; rows that came meanwhile are in none, as after any index."""
    table.checkout_latest()
    table.to_lance().commit_existing_index_segments(_name(plan.column), plan.column, list(parts))
    table.checkout_latest()


def _name(column: str) -> str:
    """What lancedb calls the index of a column."""
    return f"{column}_idx"


def _partitions(count: int) -> int:
    return max(1, count // _PARTITION)


def _is_behind(table: Any, name: str, column: str) -> bool:
    stats = table.index_stats(name)
    left = int(stats.num_unindexed_rows)
    return left > (_WORDS_BEHIND if column == "terms" else _BEHIND * int(stats.num_indexed_rows))


def _bring_up_to_date(table: Any, name: str) -> None:
    table.checkout_latest()
    table.to_lance().optimize.optimize_indices(index_names=[name])
    table.checkout_latest()
