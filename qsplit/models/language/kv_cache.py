"""The keys and values of prompts: kept for those that begin alike, and of several put side by side for one pass.

Questions about one picture begin with it, and a conversation begins with all that was said before. Token ids alone do
not tell pictures of one size apart, so a prefix is known by the digests of its pictures' features too. In a batch each
sequence is filled up at its beginning to the length of the longest; what fills it up is marked, and nothing looks at
it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

__all__ = ["Batch", "Prefix", "PrefixCache", "common_length"]

Pictures = tuple[str, ...]  # the digest of each picture's features, in the order of the prompt


@dataclass(slots=True)
class Prefix:
    """The keys and values of a sequence ``ids (length,)``, and where its pictures put the positions after them.

    ``rope_deltas`` ``(1, 1)`` is what the positions of later tokens are off their index.
    """

    ids: torch.Tensor
    pictures: Pictures
    cache: Any
    rope_deltas: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """The memory that is held, which cropping does not give back."""
        tensors = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def shrink(self, length: int) -> None:
        """Keep the first ``length`` tokens of those that the cache has read, and no more memory than they take."""
        self.cache.crop(length - self.cache.get_seq_length())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    def crop(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        self.cache.crop(length - len(self.ids))
        self.ids = self.ids[:length]


class PrefixCache:
    """One prefix for each choice of pictures, the one used last the last to go, within a bound in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[Pictures, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._held.values())

    def take(self, pictures: Pictures) -> Prefix | None:
        """The prefix of these pictures, which the cache then no longer holds: whoever takes it may change it."""
        return self._held.pop(pictures, None)

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()

    def put(self, prefix: Prefix) -> None:
        """Hold a prefix in place of an earlier one of its pictures, and let go of the oldest ones beyond the bound."""
        self._held.pop(prefix.pictures, None)
        self._held[prefix.pictures] = prefix
        held = self.nbytes
        while held > self.max_bytes:
            _, oldest = self._held.popitem(last=False)
            held -= oldest.nbytes


def common_length(rows: Sequence[torch.Tensor]) -> int:
    """How many tokens all rows ``(length,)`` begin with.

    >>> common_length([torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4, 5])])
    2
    """
    shortest = min(map(len, rows))
    same = torch.stack([row[:shortest] == rows[0][:shortest] for row in rows]).all(0)
    return int(same.long().cumprod(0).sum())


class Batch:
    """``held (n, width)`` says which columns are tokens, ``deltas (n, 1)`` what positions are off their index."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.held = torch.zeros(0, 0, dtype=torch.bool)
        self.deltas = torch.zeros(0, 1, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.held)

    @classmethod
    def alone(cls, prefix: Prefix) -> Batch:
        """One sequence that goes on from what was computed of it, which is this batch's from now on."""
        batch = cls()
        batch.cache, batch.deltas = prefix.cache, prefix.rope_deltas
        batch.held = torch.ones(1, len(prefix), dtype=torch.bool, device=prefix.rope_deltas.device)
        return batch

    def add(self, prefix: Prefix, length: int) -> None:
        """Have a copy of a sequence's first ``length`` tokens join, as the last row; the others stay where it fails."""
        new = [(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in prefix.cache.layers]
        held = torch.ones(1, length, dtype=torch.bool, device=prefix.rope_deltas.device)
        if self.cache is not None:
            width = max(length, self.held.shape[1])
            old = ((layer.keys, layer.values) for layer in self.cache.layers)
            new = [(_stacked(a, c), _stacked(b, d)) for (a, b), (c, d) in zip(old, new, strict=True)]
            held = torch.cat([_widened(self.held, width, 1), _widened(held, width, 1)])
        deltas = torch.cat([self.deltas.to(held.device), prefix.rope_deltas])
        self.cache, self.held, self.deltas = DynamicCache(new), held, deltas

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave, and the columns that are then of no row."""
        if len(rows) == len(self):
            return
        if not rows:
            self.__init__()  # type: ignore[misc]  # as it began
            return
        chosen = torch.tensor(rows, device=self.held.device)
        self.held, self.deltas = self.held[chosen], self.deltas[chosen]
        empty = int(self.held.any(0).int().argmax())
        self.held = self.held[:, empty:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[chosen, :, empty:], layer.values[chosen, :, empty:]

    def row(self, number: int, ids: torch.Tensor, pictures: tuple[str, ...]) -> Prefix:
        """A copy of what was computed of one row, without what filled it up; ``ids`` are its tokens."""
        held = self.held[number]
        parts = [(layer.keys[number : number + 1, :, held], layer.values[number : number + 1, :, held])
                 for layer in self.cache.layers]  # fmt: skip
        return Prefix(ids, pictures, DynamicCache(parts), self.deltas[number : number + 1])


def _stacked(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Keys or values ``(n, heads, length, width)`` of some rows and of others, of one length."""
    length = max(one.shape[2], other.shape[2])
    return torch.cat([_widened(one, length, 2), _widened(other, length, 2)])


def _widened(tensor: torch.Tensor, length: int, axis: int) -> torch.Tensor:
    """Filled up with zeros at the beginning of an axis."""
    lacking = list(tensor.shape)
    lacking[axis] = length - lacking[axis]
    return tensor if not lacking[axis] else torch.cat([tensor.new_zeros(lacking), tensor], dim=axis)
