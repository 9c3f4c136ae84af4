"""Tables in fewer pieces: rewrite fragments of which much is gone, join small ones, drop versions without a name.

Payloads are large and rows are many, so nothing is rewritten unless something in it is gone, or unless there are so
many small pieces that opening the store takes long.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lance.optimize import Compaction

from qsplit.store.feature_store import FeatureStore
from qsplit.store.layout import check_removable
from qsplit.store.shard_log import Notes

__all__ = ["foreseen", "give_back", "tend"]

_GONE = 0.1  # of a fragment's rows: what it takes to rewrite the others
_MANY = 500  # fragments of a table: each costs every later commit some 160 bytes
_ALL_UNNAMED: dict[str, Any] = {"older_than": timedelta(0), "error_if_tagged_old_versions": False}
_JOINED = 256  # rows a fragment, when many small ones are joined


def tend(store: FeatureStore, *, many: int = 32) -> None:
    """Join what more than ``many`` small commits to a table left behind, and drop the versions between them.

    For those who put pictures one by one: each commit opens what is there of all the commits before.
    """
    for name in store.tables():
        if _rewrite(store, name, many)[0]:
            check_removable(store.uri)
            _drop_versions(store, name, unverified=False)


def give_back(store: FeatureStore, *, unverified: bool = False) -> tuple[int, int]:
    """Rewrite what is wasteful and drop old versions; returns fragments rewritten, and the bytes written for them."""
    fragments = written = 0
    for table in store.tables():
        done = _rewrite(store, table, _MANY)
        fragments, written = fragments + done[0], written + done[1]
        _drop_versions(store, table, unverified=unverified)
    return fragments, written


def foreseen(store: FeatureStore, *, unverified: bool = False) -> tuple[int, int]:
    """Tell what `give_back` would do, without doing it: fragments to rewrite, and bytes that only old versions hold."""
    tables = store.tables()
    fragments = sum(len(_wasteful(store.lance(table), _MANY)) for table in tables)
    return fragments, sum(_droppable(store, table, unverified=unverified) for table in tables)


def _wasteful(table: Any, many: int) -> set[int]:
    """The fragments of which much is gone, and if there are very many fragments the small ones."""
    fragments = table.get_fragments()
    found = {f.fragment_id for f in fragments if f.num_deletions >= max(1, _GONE * f.physical_rows)}
    small = {f.fragment_id for f in fragments if f.physical_rows < _JOINED}
    return found | small if len(small) > many else found


def _rewrite(store: FeatureStore, name: str, many: int) -> tuple[int, int]:
    """Rewrite the wasteful fragments of a table; returns how many, and the bytes written."""

    def commit() -> tuple[int, int]:
        table = store.lance(name)
        wasteful = _wasteful(table, many)
        rows = [f.count_rows() for f in table.get_fragments() if f.fragment_id in wasteful]
        if not wasteful:
            return 0, 0
        options: Any = {
            "target_rows_per_fragment": max(_JOINED if len(wasteful) > many else 1, *rows),
            "materialize_deletions": True,
            "materialize_deletions_threshold": _GONE,
        }
        tasks = [task for task in Compaction.plan(table, options).tasks if _touches(task.fragments, wasteful)]
        before = store.bytes()["total"]
        results = [task.execute(table) for task in tasks]
        written = store.bytes()["total"] - before
        Compaction.commit(table, results)
        return sum(len(task.fragments) for task in tasks), written

    return store.commit(name, commit, f"Compacting {name} of {store.uri}")


def _touches(fragments: Sequence[Any], wanted: set[int]) -> bool:
    return any(one.id in wanted for one in fragments)


def _drop_versions(store: FeatureStore, name: str, *, unverified: bool) -> None:
    """Drop every version but the newest and those that a snapshot names, and the files that only they held."""

    def drop() -> None:
        store.lance(name).cleanup_old_versions(delete_unverified=unverified, **_ALL_UNNAMED)

    Notes(store.uri).forget(all_of_them=unverified)  # before the files go that they tell of
    store.commit(name, drop, f"Dropping old versions of {name} of {store.uri}")


def _droppable(store: FeatureStore, name: str, *, unverified: bool) -> int:
    explained = store.lance(name).explain_cleanup_old_versions(delete_unverified=unverified, **_ALL_UNNAMED)
    return int(explained.stats.bytes_removed)
