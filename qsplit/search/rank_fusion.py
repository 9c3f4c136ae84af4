"""Several rankings -> one, by the ranks alone: what a cosine and a BM25 say cannot be added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

__all__ = ["fused"]

_K = 60  # of the paper: how little it matters whether something is first or third


def fused(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """(id, score) of all that some ranking holds, best first, equal ones by id; 1 is for what all have first.

    Reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual
    rank learning methods", 2009.

    >>> fused([["a", "b"], ["b", "c"]])[0][0]
    'b'
    >>> fused([["a", "b"], ["a"]])[0]
    ('a', 1.0)
    """
    sums: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            sums[one] += (_K + 1) / (_K + rank) / len(rankings)
    return sorted(sums.items(), key=lambda one: (-one[1], one[0]))
