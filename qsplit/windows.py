"""Two grey planes of one shape compared window by window, a window around each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.planes import Plane, averaged

__all__ = ["NOISE", "Windows", "coverage", "moments", "windows"]

NOISE = 9.0  # squared grey levels that do not count


@dataclass(frozen=True, eq=False)
class Windows:
    """How well the two correlate in each window, -1..1, how much each varies there (squared grey levels), and which
    share of the window counts."""

    correlation: npt.NDArray[Any]
    of_one: npt.NDArray[Any]
    of_other: npt.NDArray[Any]
    full: npt.NDArray[Any]


def windows(one: Plane, other: Plane, seen: Plane, radius: int) -> Windows:
    """Compare two planes where ``seen`` is 1; windows reach ``radius`` pixels from their middle."""
    full = coverage(seen, radius)
    a, b = one * seen, other * seen
    (mean_a, of_a), (mean_b, of_b) = (moments(plane, full, radius) for plane in (a, b))
    both = averaged(a * b, radius) / full - mean_a * mean_b
    return Windows(both / np.sqrt((of_a + NOISE) * (of_b + NOISE)), of_a, of_b, full)


def coverage(seen: Plane, radius: int) -> Plane:
    """Which share of each window counts, never quite 0."""
    return np.maximum(averaged(seen, radius), 1e-6)


def moments(plane: Plane, full: Plane, radius: int) -> tuple[Plane, Plane]:
    """Mean and variance in each window of a plane that is 0 where it does not count."""
    mean = averaged(plane, radius) / full
    return mean, np.maximum(averaged(plane * plane, radius) / full - mean**2, 0)
