"""Grey pictures as arrays of numbers: blurred, averaged, read between their pixels, and compared window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from qsplit.media.thumbnails import decode_thumbnail

__all__ = [
    "NOISE",
    "Plane",
    "Windows",
    "averaged",
    "blurred",
    "coverage",
    "enlarged",
    "grey_plane",
    "moments",
    "sampled",
    "shrunk",
    "windows",
]

Plane = npt.NDArray[np.float32]  # (height, width)


def grey_plane(encoded: bytes, what: str = "A thumbnail of the store") -> Plane:
    """The luma of an encoded thumbnail, 0..255; raises `CorruptStore` for bytes that are none, called ``what``."""
    return np.asarray(decode_thumbnail(encoded, what), dtype=np.float32)


def blurred(plane: Plane, sigma: float) -> Plane:
    """Convolved with a Gaussian of ``sigma`` pixels; beyond its edges a picture goes on as it ends."""
    radius = max(1, math.ceil(3 * sigma))
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma * sigma))
    weights = (weights / weights.sum()).astype(np.float32)
    padded = np.pad(plane, radius, mode="edge")
    width = plane.shape[1]
    across = _summed([padded[:, i : i + width] for i in range(len(weights))], weights)
    return _summed([across[i : i + len(plane)] for i in range(len(weights))], weights)


def _summed(shifted: list[Plane], weights: Plane) -> Plane:
    """The weighted sum of planes, of which those at the same distance from the middle weigh the same."""
    middle = len(weights) // 2
    total: Plane = weights[middle] * shifted[middle]
    pair = np.empty_like(total)
    for i in range(middle):
        np.add(shifted[i], shifted[-1 - i], out=pair)
        pair *= weights[i]
        total += pair
    return total


def averaged(plane: Plane, radius: int) -> Plane:
    """The mean over a square of ``2 * radius + 1`` pixels around each pixel, edges repeated.

    >>> averaged(np.eye(3, dtype=np.float32), 1)[1, 1].round(3)
    np.float64(0.333)
    """
    side = 2 * radius + 1
    padded = np.pad(plane, ((radius + 1, radius), (radius + 1, radius)), mode="edge")
    sums = padded.astype(np.float64).cumsum(0).cumsum(1)
    found: Plane = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    return found


def sampled(plane: Plane, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Plane:
    """The values at places between pixels (bilinear); places outside take the value of the edge.

    >>> sampled(np.array([[0, 2], [4, 6]], np.float32), np.array([0.5, 9]), np.array([0, 1])).round(2).tolist()
    [1.0, 6.0]
    """
    height, width = plane.shape
    x = np.clip(x, 0, width - 1).astype(np.float32)
    y = np.clip(y, 0, height - 1).astype(np.float32)
    left, top = np.minimum(x.astype(np.int32), max(width - 2, 0)), np.minimum(y.astype(np.int32), max(height - 2, 0))
    right, below = (x - left), (y - top)
    step, down = (1 if width > 1 else 0), (width if height > 1 else 0)
    flat, at = plane.ravel(), top * width + left
    upper = flat[at] * (1 - right) + flat[at + step] * right
    lower = flat[at + down] * (1 - right) + flat[at + down + step] * right
    found: Plane = upper * (1 - below) + lower * below
    return found


def enlarged(plane: Plane) -> Plane:
    """Twice as wide and high."""
    height, width = plane.shape
    return _resized(plane, 2 * width, 2 * height, Resampling.BILINEAR)


def shrunk(plane: Plane, factor: float) -> Plane:
    """Smaller by a factor in (0, 1], each pixel the mean of those that it stands for."""
    height, width = plane.shape
    return _resized(plane, max(1, round(width * factor)), max(1, round(height * factor)), Resampling.BOX)


def _resized(plane: Plane, width: int, height: int, how: Resampling) -> Plane:
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), how), dtype=np.float32)


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
