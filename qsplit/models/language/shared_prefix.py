"""What several prompts say after a beginning that they share, read in one pass, none looking at another.

    beginning | rest of the first | rest of the second | ...

A pass over the weights of a large model costs more than the few tokens of a question do, so that all questions are read
in one, and the beginning with them if it was not read before. To generate, each prompt then gets a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["Tails"]

_ROOM = 64  # tokens that a row can grow by before it is moved


@dataclass(frozen=True, slots=True)
class Tails:
    """The tokens ``(n,)`` of each prompt after the first ``begin`` ones, which all of them share."""

    begin: int
    rows: Sequence[torch.Tensor]

    @property
    def ids(self) -> torch.Tensor:
        """All of them, one after the other ``(1, total)``."""
        return torch.cat(list(self.rows))[None]

    @property
    def places(self) -> torch.Tensor:
        """The index that each token has in its own prompt ``(total,)``."""
        return torch.cat([torch.arange(self.begin, self.begin + len(row)) for row in self.rows])

    def mask(self) -> torch.Tensor:
        """What each token of the sequence looks at ``(begin + total, begin + total)``: itself, and what its own prompt
        has before it."""
        owner = torch.cat([torch.full((len(row),), i) for i, row in enumerate([torch.empty(self.begin), *self.rows])])
        seen = (owner[None] == 0) | (owner[None] == owner[:, None])
        return seen.tril()

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """The states ``(length, width)`` that end with the tails', each tail's by itself."""
        sizes = [len(row) for row in self.rows]
        return list(torch.split(states[-sum(sizes) :], sizes))

    def side_by_side(self, cache: Any, wanted: Sequence[int]) -> Any:
        """The keys and values of the whole sequence in rows: those of some prompts, each behind the beginning.

        The shorter ones have something between their two parts that must not be looked at; see `mask_of`.
        """
        index = self._index(wanted)
        rows = DynamicCache()
        rows.layers = [_Roomy(layer.keys, layer.values, index) for layer in cache.layers]
        return rows

    def mask_of(self, wanted: Sequence[int]) -> torch.Tensor:
        """Which places of the rows that `side_by_side` makes are looked at ``(rows, length)``, as 0 and 1."""
        ones = [torch.ones(len(self.rows[i]), dtype=torch.long) for i in wanted]
        return self._behind(torch.ones(len(wanted), self.begin, dtype=torch.long), ones, 0)

    def ids_of(self, beginning: torch.Tensor, wanted: Sequence[int], filler: int) -> torch.Tensor:
        """The tokens of those rows ``(rows, length)``; ``beginning`` are the first ``(begin,)``."""
        return self._behind(beginning.expand(len(wanted), -1), [self.rows[i] for i in wanted], filler)

    def _index(self, wanted: Sequence[int]) -> torch.Tensor:
        """Where each place of the rows is in the whole sequence ``(rows, length)``."""
        places = torch.arange(self.begin, self.begin + sum(map(len, self.rows)))
        own = self.split(places)
        return self._behind(torch.arange(self.begin).expand(len(wanted), -1), [own[i] for i in wanted], 0)

    def _behind(self, beginning: torch.Tensor, rows: Sequence[torch.Tensor], filler: int) -> torch.Tensor:
        ends = pad_sequence(list(rows), batch_first=True, padding_value=filler, padding_side="left")
        return torch.cat([beginning, ends], dim=1)


class _Roomy(DynamicLayer):
    """Keys and values with room for those to come: one that grows by concatenation copies all with each token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor) -> None:
        """``keys`` and ``values`` ``(1, heads, places, width)``; ``index`` ``(rows, length)`` says where each row's
        are."""
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is typed in part
        self.lazy_initialization(keys, values)
        roomy = pad(index, (0, _ROOM)).to(keys.device)
        self._all = [one[0][:, roomy].transpose(0, 1) for one in (keys, values)]
        self._show(index.shape[1])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write down what belongs to the next tokens ``(rows, heads, n, width)``; returns that of all until then."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self._all[0].shape[-2]:
            self._all = [pad(one, (0, 0, 0, end - one.shape[-2] + _ROOM)) for one in self._all]
        for one, new in zip(self._all, (key_states, value_states), strict=True):
            one[:, :, begin:end] = new
        return self._show(end)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (one[:, :, :length] for one in self._all)
        self.keys, self.values = keys, values
        return keys, values
