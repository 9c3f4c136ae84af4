"""Which keys a table holds, read of each fragment once.

A filter by keys opens every fragment each time, and many workers leave many. Whoever writes again and again knows what
was there, and looks at what is new.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qsplit.store.payload_reader import FRAGMENT

__all__ = ["Keys"]

Digests = npt.NDArray[np.uint64]  # (n, 2)
_State = tuple[int, str]  # a fragment, and the file that says which of its rows are deleted

_DIGEST = 16  # bytes: of a billion keys, no two have the same
_NONE: Digests = np.empty((0, 2), np.uint64)


class Keys:
    """The keys in a column of one version of a table: 16 bytes a row.

    >>> import lance, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keys = Keys("key").look(lance.write_dataset(pa.table({"key": ["a", "b", "b"]}), folder))
    >>> sorted(keys.among(["a", "b", "c"])), keys.doubled(["a", "b", "c"]), keys.fragments(["a"])
    (['a', 'b'], {'b'}, [0])
    """

    def __init__(self, column: str, held: Mapping[_State, Digests] | None = None) -> None:
        self._column = column
        self._held = held or {}

    def look(self, dataset: Any) -> Keys:
        """The keys of another version, ``dataset`` in pylance: read of those fragments that differ."""
        fragments = {(one.fragment_id, one.deletion_file() or ""): one for one in dataset.get_fragments()}
        known = {state: digests for state, digests in self._held.items() if state in fragments}
        fresh = {one.fragment_id: state for state, one in fragments.items() if state not in known}
        read: dict[int, list[Digests]] = {fragment: [] for fragment in fresh}
        if fresh:
            some = [fragments[state] for state in fresh.values()]
            scanner = dataset.scanner(columns=[self._column], fragments=some, with_row_address=True)
            for batch in scanner.to_batches():
                _share_out(batch, self._column, read)
        new = {state: np.concatenate([_NONE, *read[fragment]]) for fragment, state in fresh.items()}
        return Keys(self._column, known | new)

    def among(self, values: Iterable[str]) -> set[str]:
        """Those of the values that are keys."""
        return {value for value, times in self._count(values).items() if times}

    def doubled(self, values: Iterable[str]) -> set[str]:
        """Those of the values that are keys of more than one row."""
        return {value for value, times in self._count(values).items() if times > 1}

    def fragments(self, values: Iterable[str]) -> list[int]:
        """The fragments that hold the values, and perhaps some more."""
        firsts = _digests(sorted(set(values)))[:, 0]
        return sorted(fragment for (fragment, _), held in self._held.items() if np.isin(held[:, 0], firsts).any())

    def _count(self, values: Iterable[str]) -> dict[str, int]:
        wanted = sorted(set(values))
        digests, held = _digests(wanted), np.concatenate([_NONE, *self._held.values()])
        counts = Counter(map(bytes, held[np.isin(held[:, 0], digests[:, 0])]))
        return {value: counts[bytes(digest)] for value, digest in zip(wanted, digests, strict=True)}


def _share_out(batch: pa.RecordBatch, column: str, read: dict[int, list[Digests]]) -> None:
    """Give each fragment its rows' digests."""
    digests = _digests(batch[column].to_pylist())
    of = batch["_rowaddr"].to_numpy() >> np.uint64(FRAGMENT)
    starts = np.flatnonzero(np.diff(of)) + 1
    for some, theirs in zip(np.split(of, starts), np.split(digests, starts), strict=True):
        if len(some):
            read[int(some[0])].append(theirs)


def _digests(keys: Sequence[str]) -> Digests:
    """Two halves of a digest of each key."""
    joined = b"".join(hashlib.blake2b(key.encode(), digest_size=_DIGEST).digest() for key in keys)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)
