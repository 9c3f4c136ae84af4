"""The vectors, captions and filter columns of one encoder: what a search reads, and what is added to them later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pyarrow as pa
from lancedb.expr import Expr, col, lit
from lancedb.query import FullTextOperator, MatchQuery

from qsplit.errors import UsageError
from qsplit.store import schema
from qsplit.store.row_ids import check_ids
from qsplit.store.text_analysis import terms_of
from qsplit.store.vector_index import PROBES, REFINE, Plan, index_of, make, planned, publish, tending

__all__ = ["Column", "Lacking", "Place", "Vector", "Vectors"]

T = TypeVar("T")
Column = Literal["pooled", "semantic"]
Vector = np.ndarray[Any, np.dtype[np.float32]]

_EXACTLY = 20_000  # rows that a filter leaves: so many are read whole, whatever index there is
_NAME = "the vectors"
_AT_ONCE = 4_096  # vectors in memory, where all are read


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table is (none, before there is anything in it), and how it is read and written; `FeatureStore` tells."""

    table: Callable[[], Any | None]
    read: Callable[[Callable[[], Any]], Any]
    commit: Callable[[Callable[[], Any], str], Any]  # and what is being done, for the message of a failure


@dataclass(frozen=True, slots=True)
class Lacking:
    """An image without a semantic vector or a caption of the wanted identity."""

    image_id: str
    pixels_digest: str


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of one version of the table: the indexed columns, and whether some vectors are of other
    identities.
    """

    version: int
    indexed: frozenset[str]
    mixed: bool


class Vectors:
    """One encoder's table, from `FeatureStore.vectors(encoder_id, semantics_id)`.

    ``semantic`` vectors are those of one identity (`qsplit.search.semantic_vectors.Semantics.id`); an image with one of
    another is as good as without. ``where`` may name image_id, pixels_digest, taken_at, camera, latitude, longitude,
    width, height and caption. A table that is not there yet is an empty one.
    """

    def __init__(self, place: Place, semantics_id: str = "") -> None:
        self._place, self._semantics_id = place, semantics_id
        self._state = _State(-1, frozenset(), mixed=False)
        self._sampled: dict[tuple[int, Column, int], list[Vector]] = {}

    # --- read ---

    def count(self, column: Literal["pooled", "semantic", "caption"], where: Expr | None = None) -> int:
        """How many images have one."""
        return self._read(0, lambda table: _count(table, _both(self._has(column), where)))

    def get(self, column: Column, image_ids: Iterable[str]) -> dict[str, Vector]:
        """Image id -> unit vector ``(width,)``; an image without is left out."""
        ids = sorted(set(image_ids))
        where = _both(self._has(column), col("image_id").isin(ids)) if ids else lit(False)
        rows = self._rows(["image_id", column], where)
        return {row["image_id"]: np.asarray(row[column], np.float32) for row in rows}

    def rows(
        self, image_ids: Iterable[str] | None, columns: Sequence[str], where: Expr | None = None
    ) -> dict[str, dict[str, Any]]:
        """Image id -> some columns of its row, of the given images or (None) of all."""
        if image_ids is not None:
            ids = sorted(set(image_ids))
            where = _both(col("image_id").isin(ids) if ids else lit(False), where)
        return {row["image_id"]: row for row in self._rows(list(dict.fromkeys(["image_id", *columns])), where)}

    def nearest(self, column: Column, vector: Vector, limit: int, where: Expr | None = None) -> list[tuple[str, float]]:
        """(image id, cosine), best first, equal ones by id; the cosines are exact, whatever index found the images.

        Raises `UsageError` for a vector that is zero, NaN or infinite.
        """
        if not np.isfinite(vector).all() or not vector.any():
            raise UsageError("The query vector is zero, NaN or infinite, which no cosine search can rank.")

        def search(table: Any, number: int) -> list[tuple[str, float]]:
            found = check_ids(self._nearest(table, column, vector, number, where), _NAME)
            ids, distances = found["image_id"].to_pylist(), found["_distance"].to_pylist()
            return [(one, 1.0 - distance) for one, distance in zip(ids, distances, strict=True)]

        return self._best(search, limit)

    def matching(
        self, words: str, limit: int, where: Expr | None = None, *, every: bool = False
    ) -> list[tuple[str, float]]:
        """(image id, BM25) of the captions that hold some of the words, or all, best first, equal ones by id."""
        terms = terms_of(words)
        if not terms or not self._read(0, lambda table: _count(table, self._has("caption"), 1)):
            return []

        def search(table: Any, number: int) -> list[tuple[str, float]]:
            query = table.search(_asking(terms, every=every), query_type="fts")
            query = query if where is None else query.where(where)
            found = check_ids(query.limit(number).select(["image_id", "_score"]).to_arrow(), _NAME)
            return list(zip(found["image_id"].to_pylist(), found["_score"].to_pylist(), strict=True))

        return self._best(search, limit)

    def scores(self, column: Column, vector: Vector, where: Expr | None = None, *, sample: int = 0) -> Vector:
        """The cosine of every image's vector ``(n,)``, in no order; with ``sample``, of so many of them at most."""
        unit, nothing = vector / np.linalg.norm(vector), np.empty(0, np.float32)
        if sample:
            some: list[Vector] = self._read([], lambda table: self._sample(table, column, where, sample))
            return np.concatenate([nothing, *(vectors @ unit for vectors in some)])
        whole = _both(self._has(column), where)

        def score(table: Any) -> Vector:
            query = table.search().select([column])
            batches = (query if whole is None else query.where(whole)).limit(None).to_batches(_AT_ONCE)
            return np.concatenate([nothing, *(_matrix(batch[column]) @ unit for batch in batches)])

        return self._read(nothing, score)

    def lacking(self, what: Literal["semantic", "caption"], identity: str) -> list[Lacking]:
        """The images that have no semantic vector or caption, or one of another identity, in the table's order."""
        mark = f"{what}_id"
        rows = self._rows(["image_id", "pixels_digest", mark], None)
        return [Lacking(row["image_id"], row["pixels_digest"]) for row in rows if row[mark] != identity]

    # --- write ---

    def put_semantic(self, image_ids: Sequence[str], vectors: Vector) -> None:
        """Set the semantic vectors ``(n, width)`` of images, in one commit; one that was forgotten meanwhile is left
        out.
        """
        marks = [self._semantics_id] * len(image_ids)
        width = vectors.shape[1]
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), width)
        self._update(width, {"image_id": image_ids, "semantic": values, "semantic_id": marks})

    def put_captions(self, identity: str, captions: Mapping[str, str]) -> None:
        """Set the captions of images, image id -> text, in one commit."""
        texts = list(captions.values())
        marks, terms = [identity] * len(texts), list(map(terms_of, texts))
        self._update(1, {"image_id": list(captions), "caption": texts, "caption_id": marks, "terms": terms})
        table = self._place.table()
        if table is not None and texts and index_of(table, "terms") is None:
            # It alone knows of stems: words of rows that no index holds are read by the index' rules, if there is one.
            self._place.commit(partial(make, table, "terms", 1), "Indexing")

    def tend(self, by_many: Callable[[Plan], Sequence[Any]] | None = None, parts: int = 1) -> None:
        """Make the indexes that the table should have by now, and bring those that it has up to date.

        ``by_many`` makes the parts of a plan, that of the pooled vectors, with `qsplit.store.vector_index.make_part`
        wherever it likes; ``parts`` is how many at most.
        """
        table = self._place.table()
        if table is None:
            return
        counts = {"pooled": self.count("pooled"), "terms": self.count("caption")}
        plan = planned(table, "pooled", counts["pooled"], parts) if by_many else None
        if by_many and plan:
            made = by_many(plan)
            self._place.commit(lambda: publish(table, plan, made), "Indexing")
        counts["semantic"] = self._read(0, lambda table: _count(table, col("semantic_id") >= lit("")))
        for step in tending(table, counts):
            self._place.commit(step, "Indexing")

    def _update(self, width: int, columns: Mapping[str, Any]) -> None:
        """Replace some columns of the rows that are there."""
        made = schema.vectors_schema(width)
        batch = pa.table(dict(columns), schema=pa.schema([made.field(name) for name in columns]))
        table = self._place.table()
        if table is not None and len(batch):
            merge = table.merge_insert("image_id").use_index(False).when_matched_update_all()
            self._place.commit(lambda: merge.execute(batch), f"Writing {len(batch)} rows")

    # --- how ---

    def _read(self, empty: T, read: Callable[[Any], T]) -> T:
        table = self._place.table()
        return empty if table is None else cast("T", self._place.read(lambda: read(table)))

    def _rows(self, columns: list[str], where: Expr | None) -> list[dict[str, Any]]:
        def scan(table: Any) -> list[dict[str, Any]]:
            query = table.search().select(columns)
            rows = (query if where is None else query.where(where)).limit(None).to_arrow()
            return list(check_ids(rows, _NAME).to_pylist())

        return self._read([], scan)

    def _has(self, column: str) -> Expr | None:
        """What is true of the rows that have a vector or a caption; nothing need be asked of those that all have."""
        if column == "pooled":
            return None
        return col("caption_id") >= lit("") if column == "caption" else col("semantic_id") == lit(self._semantics_id)

    def _best(self, search: Callable[[Any, int], list[tuple[str, float]]], limit: int) -> list[tuple[str, float]]:
        """The best of what a search finds, if need be among more, so that equals at the end are told apart by id."""
        wanted = limit + 1
        while True:
            found: list[tuple[str, float]] = self._read([], partial(_searched, search, wanted))
            found.sort(key=lambda one: (-one[1], one[0]))
            if len(found) < wanted or found[limit - 1][1] > found[-1][1]:
                return found[:limit]
            wanted *= 2

    def _nearest(self, table: Any, column: Column, vector: Vector, number: int, where: Expr | None) -> pa.Table:
        state = self._known(table)
        own = self._has(column) if state.mixed else None
        query = table.search(vector, vector_column_name=column).distance_type("cosine")
        whole = _both(own, where)
        query = query if whole is None else query.where(whole)
        query = query.limit(number).select(["image_id", "_distance"])
        if column not in state.indexed:
            return query.bypass_vector_index().to_arrow()
        everything = int(table.count_rows())
        left = everything if whole is None else _count(table, whole)
        if left < max(_EXACTLY, number):
            return query.bypass_vector_index().to_arrow()
        # What a filter leaves of a partition is less, so its nearest lie in more of them.
        found = query.nprobes(PROBES * -(-everything // left)).refine_factor(REFINE).to_arrow()
        return found if len(found) == number else query.bypass_vector_index().to_arrow()

    def _known(self, table: Any) -> _State:
        version = int(table.version)
        if self._state.version != version:
            indexed = frozenset(one for one in ("pooled", "semantic") if index_of(table, one))
            mixed = _count(table, col("semantic_id") != lit(self._semantics_id), 1) > 0
            self._state = _State(version, indexed, mixed)
        return self._state

    def _sample(self, table: Any, column: Column, where: Expr | None, number: int) -> list[Vector]:
        """Some vectors from all over the table, ``(n, width)`` or none; those of a search without filter are kept."""
        key = int(table.version), column, number
        if where is None and key in self._sampled:
            return self._sampled[key]
        whole = _both(self._has(column), where)
        query = table.search().select(["width"]).with_row_id(True).limit(None)
        ids = (query if whole is None else query.where(whole)).to_arrow()["_rowid"].to_numpy()
        some = ids[:: max(1, -(-len(ids) // number))].tolist()
        found = [_matrix(table.take_row_ids(some).select([column]).to_arrow()[column])] if some else []
        if where is None:
            self._sampled = {key: found}
        return found


def _searched(search: Callable[[Any, int], T], number: int, table: Any) -> T:
    return search(table, number)


def _asking(terms: str, *, every: bool) -> MatchQuery:
    operator = FullTextOperator.AND if every else FullTextOperator.OR
    return MatchQuery(terms, "terms", operator=operator)  # type: ignore[call-arg]  # pydantic hides defaults


def _both(one: Expr | None, other: Expr | None) -> Expr | None:
    return other if one is None else one if other is None else one & other


def _count(table: Any, where: Expr | None, most: int | None = None) -> int:
    """The rows of which an expression is true; counting ends at ``most``."""
    if where is None:
        return int(table.count_rows())
    return int(table.search().select(["width"]).where(where).limit(most).to_arrow().num_rows)


def _matrix(column: Any) -> Vector:
    """A column of vectors ``(n, width)``."""
    held = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: Vector = held.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(held), -1)
