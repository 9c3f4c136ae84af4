"""Features of the pictures that were asked about last: a question about one of them reads nothing from the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from qsplit.features.features import Features
from qsplit.store.feature_store import FeatureStore

__all__ = ["Recent"]

_TABLES = ("images", "features")  # what is written to them may change what a name means
_BYTES = 2**28  # about 340 pictures of 256 tokens of a 2B model


State = tuple[int, ...]


class Recent:
    """By the names that requests gave them, as long as the store is what it was; on any thread."""

    def __init__(self, max_bytes: int = _BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._state: State = ()
        self._turn = Lock()

    def get(self, store: FeatureStore, names: Sequence[str]) -> tuple[State, dict[str, Features]]:
        """The state of the store, and those of some names that are held and still are what they were."""
        state = store.state(*_TABLES)
        with self._turn:
            if state != self._state:
                self._held.clear()
                self._state = state
            found = {name: self._held[name] for name in names if name in self._held}
            for name in found:
                self._held.move_to_end(name)
        return state, found

    def put(self, state: State, features: Mapping[str, Features]) -> None:
        """Hold what was read since the store was in a state; the oldest beyond the bound are let go of."""
        with self._turn:
            if state != self._state:
                return
            self._held |= features
            held = sum(one.nbytes for one in self._held.values())
            while held > self._max_bytes:
                _, oldest = self._held.popitem(last=False)
                held -= oldest.nbytes
