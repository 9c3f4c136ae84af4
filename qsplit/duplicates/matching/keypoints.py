"""The landmarks of a picture: up to 200 small patches that are found again when it is cropped, turned, resized or put
into another picture.

Where they are is decided by the differences of Gaussians and their orientation by the gradients around them, both as
in SIFT (Lowe 2004); what a landmark looks like is a hash of 128 bits: which of SIFT's 128 sums of gradients are above
their median. Hashes of the same landmark in a picture and its copy differ in some 12 bits, those of others in 64.
Thumbnails are enough for it, so originals need not be read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.errors import CorruptStore
from qsplit.media.gray_planes import Plane, blurred, enlarged, sampled

__all__ = ["BITS", "VERSION", "Landmarks", "find_landmarks"]

VERSION = 1  # raise it when the same thumbnail gives other landmarks
BITS = 128
MOST = 160  # places; some have two orientations
_LAID_OUT = np.dtype([("x", "<u2"), ("y", "<u2"), ("size", "<f2"), ("angle", "<f2"), ("bits", "u1", BITS // 8)])
_FRACTION = 128  # places are kept in so many parts of a pixel

_LEVELS = 3  # scales to an octave
_OCTAVES = 4
_FIRST_SIGMA = 1.4  # pixels of the enlarged thumbnail
_CONTRAST = 1.2  # grey levels; weaker places are noise
_EDGE = 12.1  # (r + 1)^2 / r for r = 10: the largest ratio of principal curvatures
_CELLS = 4  # a side: of each cell of the picture the strongest places are taken in turn

Places = npt.NDArray[np.float32]  # (n, 7): octave, level, x, y, sigma, contrast, order
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Landmarks:
    """``points`` are ``(n, 4)``: x, y and size in pixels of the thumbnail, angle in radians; ``bits`` are ``(n, 16)``.

    ``width`` and ``height`` are the thumbnail's.
    """

    points: npt.NDArray[np.float32]
    bits: npt.NDArray[np.uint8]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def signs(self) -> npt.NDArray[np.float32]:
        """The bits as 1 and -1, ``(n, 128)``: their products count the bits in which hashes agree."""
        return np.unpackbits(self.bits, axis=1).astype(np.float32) * 2 - 1

    def mirrored(self) -> Landmarks:
        """The landmarks of the picture seen in a mirror, as they would be found there."""
        x, y, size, angle = self.points.T
        points = np.stack([self.width - 1 - x, y, size, np.pi - angle], axis=1)
        bits = np.packbits(np.unpackbits(self.bits, axis=1)[:, _IN_A_MIRROR], axis=1)
        return Landmarks(points, bits, self.width, self.height)

    def to_bytes(self) -> bytes:
        """24 bytes a landmark, little-endian: x and y in 128ths of a pixel, size, angle, bits."""
        rows = np.zeros(len(self), _LAID_OUT)
        rows["x"], rows["y"] = np.round(self.points[:, :2].T * _FRACTION)
        rows["size"], rows["angle"], rows["bits"] = self.points[:, 2], self.points[:, 3], self.bits
        return rows.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, width: int, height: int) -> Landmarks:
        """What `to_bytes` wrote; raises `CorruptStore` for bytes that it cannot have written."""
        if len(data) % _LAID_OUT.itemsize:
            raise CorruptStore(f"{len(data)} bytes are no landmarks, which take {_LAID_OUT.itemsize} each.")
        rows = np.frombuffer(data, _LAID_OUT)
        points = np.stack([rows["x"] / _FRACTION, rows["y"] / _FRACTION, rows["size"], rows["angle"]], axis=1)
        return cls(points.astype(np.float32), rows["bits"].reshape(len(rows), BITS // 8), width, height)


def find_landmarks(plane: Plane) -> Landmarks:
    """The landmarks of a grey thumbnail, 0..255, whose long edge is some 256 pixels.

    >>> len(find_landmarks(np.zeros((192, 256), np.float32)))
    0
    """
    height, width = plane.shape
    octaves = _scale_space(plane)
    places = _strongest(np.concatenate([_extrema(images, i) for i, images in enumerate(octaves)]), plane.shape)
    points, bits = [np.empty((0, 4), np.float32)], [np.empty((0, BITS // 8), np.uint8)]
    for octave, images in enumerate(octaves):
        for level in range(1, _LEVELS + 1):
            here = places[(places[:, 0] == octave) & (places[:, 1] == level)]
            if len(here):
                found, hashed = _described(images[level], *here[:, 2:5].T)
                found[:, :3] *= 2.0 ** (octave - 1)  # the first octave is twice as large as the thumbnail
                points.append(found)
                bits.append(hashed)
    return Landmarks(np.concatenate(points), np.concatenate(bits), width, height)


# Where


def _scale_space(plane: Plane) -> list[list[Plane]]:
    """Octaves of ever more blurred pictures, each octave half the size of the one before."""
    step = 2 ** (1 / _LEVELS)
    image = blurred(enlarged(plane), (_FIRST_SIGMA**2 - 1) ** 0.5)  # enlarging blurs by about a pixel
    octaves = []
    for _ in range(_OCTAVES):
        images = [image]
        for i in range(_LEVELS + 2):
            images.append(blurred(images[-1], _FIRST_SIGMA * step**i * (step**2 - 1) ** 0.5))
        octaves.append(images)
        image = np.ascontiguousarray(images[_LEVELS][::2, ::2])
        if min(image.shape) < 16:
            break
    return octaves


def _extrema(images: list[Plane], octave: int) -> Places:
    """Places where the difference of Gaussians is above or below all of its 26 neighbours, refined between pixels."""
    stack = np.stack([b - a for a, b in pairwise(images)])  # (levels + 2, height, width)
    _, height, width = stack.shape
    flat = stack.ravel()
    inner = np.zeros(stack.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    at = np.flatnonzero((np.abs(stack) > _CONTRAST) & inner)
    sign = np.sign(flat[at])
    for offset in _BESIDE:  # most drop out after a few neighbours
        best = flat[at] * sign > flat[at + offset @ (height * width, width, 1)] * sign
        at, sign = at[best], sign[best]
    level, y, x = np.unravel_index(at, stack.shape)
    return _refined(stack, level, y, x, octave)


def _refined(stack: Array, level: Array, y: Array, x: Array, octave: int) -> Places:
    """By a parabola along each axis; what lies along an edge is left out."""
    value = stack[level, y, x]
    curves, shifts = [], []
    for axis in np.eye(3, dtype=int):
        after = stack[level + axis[0], y + axis[1], x + axis[2]]
        before = stack[level - axis[0], y - axis[1], x - axis[2]]
        curve = after + before - 2 * value
        curves.append(curve)
        shifts.append(np.clip((before - after) / (2 * np.where(curve == 0, 1, curve)), -0.5, 0.5))
    across = (stack[level, y + 1, x + 1] + stack[level, y - 1, x - 1]) / 4
    across -= (stack[level, y + 1, x - 1] + stack[level, y - 1, x + 1]) / 4
    determinant = curves[1] * curves[2] - across**2
    kept = (determinant > 0) & ((curves[1] + curves[2]) ** 2 < _EDGE * determinant)
    sigma = _FIRST_SIGMA * 2 ** ((level + shifts[0]) / _LEVELS)
    octaves = np.full(len(value), octave)
    found: Places = np.stack([octaves, level, x + shifts[2], y + shifts[1], sigma, np.abs(value)], axis=1)[kept]
    return found


def _strongest(places: Places, shape: tuple[int, ...]) -> Places:
    """The strongest of each cell of the picture, then the second strongest, and so on: crops keep their share."""
    scale = 2.0 ** (places[:, 0] - 1)
    column = np.clip(places[:, 2] * scale * _CELLS // shape[1], 0, _CELLS - 1)
    row = np.clip(places[:, 3] * scale * _CELLS // shape[0], 0, _CELLS - 1)
    by_strength = np.lexsort((places[:, 2], places[:, 3], -places[:, 5]))
    cell = (row * _CELLS + column).astype(int)[by_strength]
    turn = np.empty(len(cell), int)
    for one in range(_CELLS**2):
        here = cell == one
        turn[here] = np.arange(here.sum())
    strongest: Places = places[by_strength[np.argsort(turn, kind="stable")[:MOST]]]
    return strongest


# What


def _described(image: Plane, x: Array, y: Array, sigma: Array) -> tuple[npt.NDArray[np.float32], Array]:
    angle, of = _orientations(image, x, y, sigma)
    points = np.stack([x[of], y[of], sigma[of], angle], axis=1).astype(np.float32)
    return points, np.packbits(_hashed(image, *points.T), axis=1)


def _gradients(image: Plane, x: Array, y: Array, sigma: Array, angle: Array, offsets: Array) -> tuple[Array, Array]:
    """Strength ``(n, k, k)`` and direction in turns of the gradients on a grid around each place; offsets in sigmas."""
    across, down = np.meshgrid(offsets, offsets)
    cosine, sine = (sigma * f(angle) for f in (np.cos, np.sin))
    at_x = x[:, None, None] + cosine[:, None, None] * across - sine[:, None, None] * down
    at_y = y[:, None, None] + sine[:, None, None] * across + cosine[:, None, None] * down
    values = sampled(image, at_x, at_y)
    dx, dy = values[:, 1:-1, 2:] - values[:, 1:-1, :-2], values[:, 2:, 1:-1] - values[:, :-2, 1:-1]
    return np.hypot(dx, dy), np.arctan2(dy, dx) / (2 * np.pi)


def _orientations(image: Plane, x: Array, y: Array, sigma: Array) -> tuple[Array, Array]:
    """The directions in which the gradients around each place point most, and whose place each is of."""
    strength, direction = _gradients(image, x, y, sigma, np.zeros(len(x)), _AROUND)
    bins = (direction * 36) % 36
    low = bins.astype(np.intp)
    strength, part = strength * _NEAR, bins - low
    first = 36 * np.arange(len(x))[:, None, None]
    counts: Array = np.bincount((first + low % 36).ravel(), (strength * (1 - part)).ravel(), 36 * len(x))
    counts += np.bincount((first + (low + 1) % 36).ravel(), (strength * part).ravel(), 36 * len(x))
    counts = counts.reshape(len(x), 36)
    for _ in range(2):
        counts = (np.roll(counts, 1, axis=1) + counts + np.roll(counts, -1, axis=1)) / 3
    before, after = np.roll(counts, 1, axis=1), np.roll(counts, -1, axis=1)
    peaks = (counts > before) & (counts >= after) & (counts >= 0.8 * counts.max(1, keepdims=True))
    of, peak = np.nonzero(peaks)
    a, b, c = (side[of, peak] for side in (before, counts, after))
    return (peak + (a - c) / (2 * (a - 2 * b + c) - 1e-9)) / 36 * 2 * np.pi, of


def _hashed(image: Plane, x: Array, y: Array, sigma: Array, angle: Array) -> npt.NDArray[np.bool_]:
    """Which of the 4 x 4 x 8 sums of gradients of a turned patch are above their median, ``(n, 128)``."""
    strength, direction = _gradients(image, x, y, sigma, angle, _PATCH)
    low = np.floor(direction * 8)
    part = direction * 8 - low
    sums = np.zeros((len(x), 8, 16, 16), np.float32)
    strength *= _CENTRAL
    rows, i, j = np.ogrid[: len(x), :16, :16]
    sums[rows, low.astype(int) % 8, i, j] = strength * (1 - part)
    sums[rows, (low.astype(int) + 1) % 8, i, j] = strength * part
    pooled = (_POOL.T @ sums @ _POOL).transpose(0, 2, 3, 1).reshape(len(x), BITS)
    above: npt.NDArray[np.bool_] = pooled > np.median(pooled, axis=1, keepdims=True)
    return above


_BESIDE = sorted(np.array(list(np.ndindex(3, 3, 3))) - 1, key=np.count_nonzero)[1:]  # the nearest first
_AROUND = np.linspace(-5.14, 5.14, 17)  # in sigmas
_NEAR = np.exp(-(_AROUND[1:-1, None] ** 2 + _AROUND[1:-1] ** 2) / (2 * 2.25**2))
_PATCH = (np.arange(18) - 8.5) * 0.75
_CENTRAL = np.exp(-(_PATCH[1:-1, None] ** 2 + _PATCH[1:-1] ** 2) / (2 * 6.0**2))
_POOL = np.maximum(0, 1 - np.abs((np.arange(16)[:, None] + 0.5) / 4 - 0.5 - np.arange(4))).astype(np.float32)
# A mirror swaps the rows of a patch, and turns directions the other way round.
_IN_A_MIRROR = np.arange(BITS).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()
