"""Something made of the tables of a store, kept until one of them is written to."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from qsplit.store.feature_store import FeatureStore

__all__ = ["Kept"]

T = TypeVar("T")


class Kept(Generic[T]):
    """What ``make`` makes of some ``tables``, or of all; on any thread.

    It is made when it is first asked for, and again after a change.
    """

    def __init__(self, make: Callable[[FeatureStore], T], *tables: str) -> None:
        self._make, self._tables = make, tables
        self._held: tuple[tuple[int, ...], T] | None = None
        self._turn = Lock()

    def of(self, store: FeatureStore) -> T:
        """What it is now."""
        with self._turn:
            state = store.state(*(self._tables or store.tables()))
            if self._held is None or self._held[0] != state:
                self._held = state, self._make(store)
            return self._held[1]
