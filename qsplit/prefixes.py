"""What the language half has computed of a prompt, kept for prompts that begin in the same way.

Questions about one picture begin with it, and a conversation begins with all that was said before. Token ids alone do
not tell pictures of one size apart, so a prefix is known by the digests of its pictures' features too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Prefix", "PrefixCache", "common_length"]

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
