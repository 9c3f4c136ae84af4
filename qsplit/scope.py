"""Which images may match: conditions, as far as the store's expressions can tell them, and the rest by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from lancedb.expr import Expr, col

from qsplit.filters import Filters
from qsplit.store.feature_store import FeatureStore
from qsplit.store.tables.vectors import Vectors

__all__ = ["Hit", "Scope", "scope_of"]

_IDS = 10_000  # values in one expression

Hit = tuple[str, float]  # image id and score


@dataclass(frozen=True)
class Scope:
    """An expression over the rows of a vectors table, and where that does not say all, the ids that may match."""

    where: Expr | None = None
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    filters: Filters = field(default_factory=Filters)

    def less(self, image_ids: Collection[str]) -> Scope:
        """Without some images, that the query names."""
        return replace(self, without=self.without | frozenset(image_ids))

    def of(self, hits: Iterable[Hit]) -> list[Hit]:
        """Those that may match."""
        return [hit for hit in hits if hit[0] not in self.without and (self.only is None or hit[0] in self.only)]

    def paths(self, store: FeatureStore, image_ids: Iterable[str]) -> dict[str, str]:
        """Image id -> the first path that is asked for, of those that are still there."""
        found = {one: next(filter(self.filters.takes, paths), "") for one, paths in store.paths_of(image_ids).items()}
        return {one: path for one, path in found.items() if path}


def scope_of(store: FeatureStore, vectors: Vectors, filters: Filters) -> Scope:
    """What fulfils the conditions among the images of a vectors table."""
    where, only = filters.where(), None
    if filters.near:
        rows = vectors.rows(None, ["latitude", "longitude"], where)
        only = {one for one, row in rows.items() if filters.near.holds(row["latitude"], row["longitude"])}
    if filters.path:
        files = store.column("files", "path", "image_id", "state")
        lying = {image_id for path, image_id, state in files if state == "ok" and filters.takes(path)}
        only = lying if only is None else only & lying
    if only is None:
        return Scope(where, filters=filters)
    if len(only) <= _IDS:  # a filter leaves the store nothing to skip over in vain
        where = col("image_id").isin(sorted(only) or [""])
    return Scope(where, frozenset(only), filters=filters)
