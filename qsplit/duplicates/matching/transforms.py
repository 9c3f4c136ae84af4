"""Which turn, scale and shift takes places of one picture to places of another, fitted though many pairs are wrong.

A map is an array ``(2, 3)``: x and y of the other picture from x, y and 1 of the one. Pairs vote for similarities
(one landmark pair, or two pairs of plain places, fix one each), and the one that most agree with is fitted to those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Fit", "Map", "applied", "composed", "fit_oriented", "fit_places", "inverse", "scale_of", "turn_of", "whole"]

Map = npt.NDArray[np.float64]  # (2, 3)
Places = npt.NDArray[Any]  # (n, 2) or, with size and angle, (n, 4)

_ROUNDS = 4
_FOR_AFFINE = 8  # pairs: fewer tell too little of a stretch
_MOST_STRETCH = 2.5  # of the two axes, one to the other
_HYPOTHESES = 4000  # pairs of pairs that are tried; more would be slow and say the same
_LARGEST_SCALE = 8.0


@dataclass(frozen=True, eq=False)
class Fit:
    """A map, and which of the pairs agree with it."""

    map: Map
    agree: npt.NDArray[np.bool_]

    @property
    def n(self) -> int:
        return int(self.agree.sum())


def applied(found: Map, places: Places) -> npt.NDArray[np.float64]:
    """Where a map takes places ``(n, 2)``.

    >>> applied(np.array([[2.0, 0, 1], [0, 2, 0]]), np.array([[3, 4]])).tolist()
    [[7.0, 8.0]]
    """
    mapped: npt.NDArray[np.float64] = places @ found[:, :2].T + found[:, 2]
    return mapped


def inverse(found: Map) -> Map:
    """The map back."""
    turned = np.linalg.inv(found[:, :2])
    return np.hstack([turned, -(turned @ found[:, 2:])])


def composed(*maps: Map) -> Map:
    """The map that does the last of these first, as matrices are multiplied."""
    product = np.eye(3)
    for one in maps:
        product = product @ np.vstack([one, [0, 0, 1]])
    return product[:2]


def whole(size: tuple[int, int], other: tuple[int, int]) -> Map:
    """The map that lays one picture's frame over another's; sizes are width and height, pixel centres are whole."""
    (w, h), (to_w, to_h) = size, other
    x, y = to_w / w, to_h / h
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def scale_of(found: Map) -> float:
    """How many times larger lengths become, over both axes."""
    return float(abs(np.linalg.det(found[:, :2])) ** 0.5)


def turn_of(found: Map) -> float:
    """Degrees that the one picture is turned by, -180 to 180, clockwise as y points down."""
    return float(np.degrees(np.arctan2(found[1, 0] - found[0, 1], found[0, 0] + found[1, 1])))


def fit_oriented(one: Places, other: Places, tolerance: float) -> Fit | None:
    """Fit pairs of landmarks ``(n, 4)``: x, y, size, angle. Each pair alone fixes a similarity; None below 3."""
    if len(one) < 3:
        return None
    turn = other[:, 3] - one[:, 3]
    scale = other[:, 2] / one[:, 2]
    factor = scale * np.exp(1j * turn)
    here, there = _complex(one), _complex(other)
    off = np.abs(factor[:, None] * (here[None] - here[:, None]) + there[:, None] - there[None])
    apart = np.abs(np.angle(np.exp(1j * (turn[None] - turn[:, None]))))
    steps = np.abs(np.log(scale[None] / scale[:, None]))
    agree = (off < 2 * tolerance * np.maximum(1, scale)[:, None]) & (apart < 0.5) & (steps < 0.5)
    return _fitted(one, other, agree[agree.sum(1).argmax()], tolerance)


def fit_places(one: Places, other: Places, tolerance: float, least: float) -> Fit | None:
    """Fit pairs of places ``(n, 2)``. Two pairs that are at least so far apart fix a similarity; None below 3."""
    if len(one) < 3:
        return None
    here, there = _complex(one), _complex(other)
    i, j = np.triu_indices(len(one), 1)
    i, j = (index[:: 1 + len(index) // _HYPOTHESES] for index in (i, j))
    far = (np.abs(here[j] - here[i]) >= least) & (np.abs(there[j] - there[i]) > 0)
    i, j = i[far], j[far]
    factor = (there[j] - there[i]) / (here[j] - here[i])
    sane = np.abs(np.log(np.abs(factor))) < np.log(_LARGEST_SCALE)
    i, factor = i[sane], factor[sane]
    if not len(i):
        return None
    off = np.abs(factor[:, None] * (here[None] - here[i, None]) + there[i, None] - there[None])
    agree = off < tolerance * np.maximum(1, np.abs(factor))[:, None]
    return _fitted(one, other, agree[agree.sum(1).argmax()], tolerance)


def _complex(places: Places) -> npt.NDArray[np.complex128]:
    found: npt.NDArray[np.complex128] = places[:, 0] + 1j * places[:, 1].astype(np.float64)
    return found


def _fitted(one: Places, other: Places, agree: npt.NDArray[np.bool_], tolerance: float) -> Fit | None:
    """Fit to those that agree, see who agrees then, and so on; at last with a stretch, if there are enough."""
    one, other = one[:, :2].astype(np.float64), other[:, :2].astype(np.float64)
    fit = None
    for _ in range(_ROUNDS):
        if agree.sum() < 3:
            return None
        found = _similarity(one[agree], other[agree])
        agree = _within(found, one, other, tolerance)
        fit = Fit(found, agree)
    if fit is None or fit.n < _FOR_AFFINE:
        return fit if fit and fit.n >= 3 else None
    stretched = _affine(one[fit.agree], other[fit.agree])
    values = np.linalg.svd(stretched[:, :2], compute_uv=False)
    if values[1] <= 0 or values[0] / values[1] > _MOST_STRETCH:
        return fit
    return max(fit, Fit(stretched, _within(stretched, one, other, tolerance)), key=lambda each: each.n)


def _within(found: Map, one: Places, other: Places, tolerance: float) -> npt.NDArray[np.bool_]:
    agree: npt.NDArray[np.bool_] = np.linalg.norm(applied(found, one) - other, axis=1) < tolerance * max(
        1.0, scale_of(found)
    )
    return agree


def _similarity(one: Places, other: Places) -> Map:
    here, there = _complex(one), _complex(other)
    near, far = here - here.mean(), there - there.mean()
    factor = (near.conj() * far).sum() / max(float((np.abs(near) ** 2).sum()), 1e-9)
    shift = there.mean() - factor * here.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _affine(one: Places, other: Places) -> Map:
    design = np.hstack([one, np.ones((len(one), 1))])
    found: Map = np.linalg.lstsq(design, other, rcond=None)[0].T
    return found
