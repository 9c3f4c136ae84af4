"""How much of a scene has moved between two pictures that lie over each other as well as one map can have them.

A copy that was saved badly, written on or recoloured differs from its original, and no shift of its parts makes it more
like it. In a second shot of a scene something has moved, if only a face, and fits where it now is. So each small window
of the one is moved over the other to where they correlate best (Lucas and Kanade 1981, from coarse to fine), and what
then fits clearly better has moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.media.gray_planes import NOISE, Plane, averaged, coverage, moments, sampled, windows

__all__ = ["Overlay", "moved"]

Array = npt.NDArray[Any]

_RADII = (8, 4, 4)  # of the windows that are moved, in pixels, step by step
_FARTHEST = 6.0  # pixels along an axis
_STRIDE = 3.0  # pixels a step at most
_STIFF = 1e-3  # what has no texture stays where it is
_MOVED = 0.5  # pixels at least
_UNLIKE, _LIKE = 0.9, 0.8  # correlation before, at most, and after, at least
_BETTER = 0.5  # of what was missing of a correlation of 1


@dataclass(frozen=True, eq=False)
class Overlay:
    """Two planes of one shape that lie over each other, compared in windows that reach ``radius`` pixels.

    ``seen`` is 1 where both pictures are, ``weight`` how much each window counts, 0 without texture, and
    ``correlation`` how well they agree there.
    """

    one: Plane
    other: Plane
    seen: Plane
    weight: Array
    correlation: Array
    radius: int


def moved(overlay: Overlay) -> float:
    """The share of the windows, by their weight, that fit once they are moved, 0..1."""
    one, seen = overlay.one * overlay.seen, overlay.seen
    across, down = _flow(one, overlay.other * seen, seen)
    y, x = np.indices(one.shape, np.float32)
    after = windows(sampled(one, x + across, y + down), overlay.other, seen, overlay.radius).correlation
    before = overlay.correlation
    better = (before < _UNLIKE) & (after > _LIKE) & (after - before > _BETTER * (1 - before))
    found = better & (np.hypot(across, down) > _MOVED)
    return float(overlay.weight[found].sum() / max(float(overlay.weight.sum()), 1e-9))


def _flow(one: Plane, other: Plane, seen: Plane) -> tuple[Array, Array]:
    """By how many pixels, across and down, what each window of ``other`` shows lies beside its place in ``one``."""
    y, x = np.indices(other.shape, np.float32)
    across, down = np.zeros_like(other), np.zeros_like(other)
    full = {radius: coverage(seen, radius) for radius in _RADII}
    evened = {radius: _evened(other, seen, full[radius], radius) for radius in full}
    for radius in _RADII:
        here, there = _evened(sampled(one, x + across, y + down), seen, full[radius], radius), evened[radius]
        dy, dx = np.gradient(here)
        missing = there - here
        xx, xy, yy = (averaged(each, radius) for each in (dx * dx, dx * dy, dy * dy))
        px, py = averaged(dx * missing, radius), averaged(dy * missing, radius)
        xx, yy = xx + _STIFF, yy + _STIFF
        size = xx * yy - xy * xy
        step_x, step_y = (yy * px - xy * py) / size, (xx * py - xy * px) / size
        shorter = np.minimum(1, _STRIDE / np.maximum(np.hypot(step_x, step_y), 1e-6))
        across = np.clip(across + step_x * shorter, -_FARTHEST, _FARTHEST).astype(np.float32)
        down = np.clip(down + step_y * shorter, -_FARTHEST, _FARTHEST).astype(np.float32)
    return across, down


def _evened(plane: Plane, seen: Plane, full: Plane, radius: int) -> Array:
    """With mean 0 and about length 1 in each window, so that exposure does not matter."""
    mean, varies = moments(plane * seen, full, radius)
    even: Array = (plane - mean) / np.sqrt(varies + NOISE)
    return even
