"""A query -> ranked matches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsplit.errors import UsageError
from qsplit.store import FeatureStore

__all__ = ["Match", "nearest"]


@dataclass(frozen=True, slots=True)
class Match:
    """One image found: ``score`` is 1 at best, and ``kind`` says what it measures."""

    id: str
    path: str | None
    score: float
    kind: str = "cosine"


def nearest(
    store: FeatureStore,
    encoder_id: str,
    vector: np.ndarray[Any, np.dtype[np.float32]],
    *,
    limit: int = 20,
    without: Collection[str] = (),
) -> list[Match]:
    """The images whose pooled features are most like a vector ``(width,)``, best first, those of ``without`` left out.

    An image of which no file is left is not found. Equal scores are ordered by id. Raises `UsageError` for a limit
    below 1.
    """
    if limit < 1:
        raise UsageError(f"limit is {limit}, but must be at least 1.")
    wanted = limit + len(without) + 1
    while True:
        found = store.nearest(encoder_id, vector, wanted)
        paths = store.paths_of(image_id for image_id, _ in found)
        matches = [
            Match(image_id, paths[image_id][0], round(score, 6))
            for image_id, score in found
            if image_id in paths and image_id not in without
        ]
        matches.sort(key=lambda match: (-match.score, match.id))
        if len(found) < wanted or (len(matches) > limit and matches[limit].score < matches[limit - 1].score):
            return matches[:limit]
        wanted *= 2  # some of the best had no file left, or more of them score the same as the last
