"""Which pictures of a vLLM server's requests are on a shelf: looked for on threads, while its scheduler goes on.

The scheduler asks again and again whether a request may begin, then for each picture whether it is there, and then says
that it has made room for it; between these nothing may take long, and nothing that was said may turn out wrong.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from qsplit.integrations.vllm.feature_cache import Shelf

__all__ = ["LOG", "Finder", "Handed"]

LOG = logging.getLogger("vllm.qsplit")  # below vLLM's own, so that its settings hold
_READERS = 4


@dataclass(slots=True)
class Handed:
    """What the workers are told of one step, by vLLM's names of pictures: embeddings to take, as vLLM lays them out,
    and the digest and grid of those to keep once they are made.
    """

    found: dict[str, torch.Tensor] = field(default_factory=dict)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What came of looking for a picture; without a digest, it is not to be kept either."""

    shown: str = ""
    grid: tuple[int, ...] = ()
    embedded: torch.Tensor | None = None


class Finder:
    """What is known of the pictures of requests that have begun; requests are vLLM's own."""

    def __init__(self, shelf: Shelf, *, keeps: bool) -> None:
        self._shelf, self._keeps = shelf, keeps
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="finder")
        self._looked: dict[str, Future[_Looked]] = {}
        self._handed: dict[str, set[str]] = {}  # request -> its pictures that were handed over
        self._next = Handed()

    def has_looked(self, request: Any, computed: int) -> bool:
        """Whether every picture of a request that is not computed yet has been looked for; begins it if need be."""
        handed = self._handed.get(request.request_id, ())
        wanted = [
            one
            for one in request.mm_features
            if _is_ours(one)
            and one.identifier not in handed
            and one.mm_position.offset + one.mm_position.length > computed
        ]
        futures = [self._look(one) for one in wanted]  # all of them, before one is waited for
        return all(future.done() for future in futures)

    def has(self, identifier: str) -> bool:
        """Whether a picture was looked for and found."""
        looked = self._looked.get(identifier)
        return looked is not None and looked.done() and looked.result().embedded is not None

    def hand(self, request: Any, index: int) -> None:
        """Have the next step take a picture, or keep what is made of it."""
        name = request.mm_features[index].identifier
        self._handed.setdefault(request.request_id, set()).add(name)
        future = self._looked.pop(name, None)
        looked = future.result() if future is not None and future.done() else _Looked()
        if looked.embedded is not None:
            self._next.found[name] = looked.embedded
        elif looked.shown and self._keeps:
            self._next.wanted[name] = (looked.shown, looked.grid)

    def handed(self) -> Handed:
        """What is told of the step that is about to begin."""
        now, self._next = self._next, Handed()
        return now

    def freed(self, request: Any, index: int) -> None:
        """The server let go of a picture, which may have to be looked for again."""
        self._handed.get(request.request_id, set()).discard(request.mm_features[index].identifier)

    def finished(self, request: Any) -> None:
        """Forget a request."""
        self._handed.pop(request.request_id, None)
        for one in request.mm_features:
            self._looked.pop(one.identifier, None)

    def _look(self, one: Any) -> Future[_Looked]:
        if one.identifier not in self._looked:
            self._looked[one.identifier] = self._pool.submit(self._find, one)
        return self._looked[one.identifier]

    def _find(self, one: Any) -> _Looked:
        try:
            data = one.data.get_data()
            grid = tuple(int(number) for number in data["image_grid_thw"].flatten())
            shown, features = self._shelf.find(data["pixel_values"].cpu(), grid)
        except Exception as error:  # noqa: BLE001  # whatever it is, the server can still look at the picture
            LOG.warning("A picture cannot be looked for, and is computed: %s", error)
            return _Looked()
        embedded = None if features is None else torch.cat(features.to_torch(), dim=1)
        if embedded is not None and len(embedded) != one.mm_position.get_num_embeds():
            LOG.warning("Features of %d tokens were found for a picture of another size.", len(embedded))
            return _Looked()
        LOG.info("A picture %s: %s", "is computed" if embedded is None else "is found", shown[:12])
        return _Looked(shown, grid, embedded)


def _is_ours(one: Any) -> bool:
    """A picture whose patches are here, and whose features no adapter changes: that would stand before its name."""
    return one.modality == "image" and one.data is not None and one.mm_hash in (None, one.identifier)
