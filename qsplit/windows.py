"""Two grey planes of one shape compared window by window, a window around each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.planes import Plane, averaged

__all__ = ["Windows", "windows"]

_NOISE = 9.0  # squared grey levels that do not count


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
    full = np.maximum(averaged(seen, radius), 1e-6)
    a, b = one * seen, other * seen
    mean_a, mean_b = averaged(a, radius) / full, averaged(b, radius) / full
    of_a = np.maximum(averaged(a * a, radius) / full - mean_a**2, 0)
    of_b = np.maximum(averaged(b * b, radius) / full - mean_b**2, 0)
    both = averaged(a * b, radius) / full - mean_a * mean_b
    return Windows(both / np.sqrt((of_a + _NOISE) * (of_b + _NOISE)), of_a, of_b, full)
