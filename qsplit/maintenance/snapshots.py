"""The states of a store that are kept under names."""

from __future__ import annotations

from datetime import datetime

from qsplit.maintenance import garbage
from qsplit.store.feature_store import FeatureStore

__all__ = ["Snapshots"]


class Snapshots:
    """Those of one album; ``qsplit.open(..., snapshot=name)`` reads one."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def make(self, name: str) -> None:
        """Keep the store as it is now under a name; raises `UsageError` for one that is taken."""
        garbage.snapshot(self._store, name)

    def all(self) -> dict[str, datetime]:
        """Map the name of each snapshot to its time, oldest first."""
        return garbage.snapshots(self._store)

    def restore(self, name: str) -> None:
        """Make the store what it was at a snapshot; raises `NotFound`."""
        garbage.restore(self._store, name)

    def delete(self, name: str) -> None:
        """Let go of a snapshot; `Album.compact` then gives its room back. Raises `NotFound`."""
        garbage.drop_snapshot(self._store, name)
