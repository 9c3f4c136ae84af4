"""Sequences side by side: the keys and values of several prompts and answers, as one pass of the model takes them.

Each is filled up at its beginning to the length of the longest. What fills it up is marked, and nothing looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from qsplit.prefixes import Prefix

__all__ = ["Batch"]


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
