"""Where good matches end: what a search leaves out, and when it says that there is no good match.

A fixed distance cannot tell: what is near depends on the model, on the album, and most of all on the query. So the
album itself is the measure. The cosines of a text with all pictures, most of which it does not mean, say how such ones
lie: by their median, and by how far their lower part, which no match is in, reaches below it. From that follows where
the largest of so many would lie if nothing fitted and all were normally distributed; how much of the way there a cosine
goes is how far it stands out. A checkpoint may also name how many of the best are then asked whether they are what the
text says (`qsplit.search.rerank`), and bounds that were measured with that: ``cut`` of its ``retrieval.json``, which
`qsplit.mini.calibrate_search` wrote for the bundled one. Without, a best match that stands out no further than the
largest would if nothing fitted is no good one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np

from qsplit.errors import CheckpointError

__all__ = ["Cut", "Spread", "agreement"]

_LOWER = 100 * 0.158655  # percent of a normal distribution that lies more than its spread below its middle
_FEWEST = 8  # cosines that say how an album lies
_SURE = 1e-6  # probabilities are no nearer to 0 and 1


@dataclass(frozen=True, slots=True)
class Spread:
    """How the cosines of a text with an album's pictures lie: ``number`` of them, round ``middle``, so far apart.

    >>> scores = np.random.default_rng(0).normal(0.2, 0.05, 1000).astype(np.float32)
    >>> spread = Spread.of(scores)
    >>> round(spread.middle, 1), round(spread.width, 2), 0.7 < spread.standing(float(scores.max())) < 1.1
    (0.2, 0.05, True)
    """

    number: int
    middle: float
    width: float

    @classmethod
    def of(cls, scores: np.ndarray[Any, np.dtype[np.float32]]) -> Spread:
        """From the cosines ``(n,)`` of pictures from all over an album."""
        if not len(scores):
            return cls(0, 0.0, 0.0)
        lower, middle = np.percentile(scores, [_LOWER, 50])
        return cls(len(scores), float(middle), float(middle - lower))

    @property
    def reach(self) -> float:
        """By how much the largest would lie above the middle if nothing fitted."""
        # Blom's approximation of the largest of n normal values.
        return (
            self.width * NormalDist().inv_cdf((self.number - 0.375) / (self.number + 0.25)) if self.number > 1 else 0.0
        )

    def standing(self, cosine: float) -> float:
        """How far a cosine stands out: 1 for what the largest would be if nothing fitted."""
        return (cosine - self.middle) / self.reach if self.reach > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Cut:
    """``standing`` is the least of the best match where nobody is asked, ``tail`` that of all that follow it.

    ``asks`` is how many of the best are asked, ``agreement`` what one of them must reach: log odds of all answers, less
    those of guesses, with its standing counting by ``weight``. ``probable`` is the least probability that a rerank
    keeps.
    """

    standing: float = 1.0
    tail: float = 0.7
    asks: int = 0
    weight: float = 0.0
    agreement: float = 0.0
    probable: float = 0.5

    @classmethod
    def read(cls, measured: Mapping[str, Any] | None) -> Cut:
        """What a checkpoint says; raises `CheckpointError` for what is no cut."""
        known = {field.name for field in fields(cls)}
        given = dict(measured or {})
        if not (given.keys() <= known and all(isinstance(value, int | float) for value in given.values())):
            raise CheckpointError(f"The cut {given} is none.", fix=f"It holds numbers: {', '.join(sorted(known))}.")
        return cls(**given)

    def written(self) -> dict[str, Any]:
        """As `Cut.read` takes it."""
        return asdict(self)

    def floor(self, spread: Spread) -> float:
        """The lowest cosine that is kept; any in an album that is too small to say."""
        return spread.middle + self.tail * spread.reach if spread.number >= _FEWEST else -math.inf

    def has_good(
        self, spread: Spread, cosines: Sequence[float], probabilities: Sequence[float] = (), chance: float = 0.0
    ) -> bool:
        """Whether something fits, by the cosines of the best, and by how likely each of them is what the text says.

        One picture must both lie near and answer well; ``chance`` is as for `agreement`.
        """
        standings = [spread.standing(one) if spread.number >= _FEWEST else 1.0 for one in cosines]
        if not probabilities:
            return max(standings) >= self.standing
        both = zip(probabilities, standings, strict=True)
        return any(agreement(*one, self.weight, chance) >= self.agreement for one in both)


def agreement(probability: float, standing: float, weight: float, chance: float) -> float:
    """How much speaks for a picture: log odds that it is what the text says, and how far it stands out.

    ``chance`` are the log odds with which guesses would answer all questions (`qsplit.search.rerank.chance`): who is
    asked much, or for one of many, is right more seldom, and surer to have seen it.
    """
    sure = min(max(probability, _SURE), 1 - _SURE)
    return math.log(sure / (1 - sure)) - chance + weight * min(standing, 10.0)
