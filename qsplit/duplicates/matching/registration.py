"""How well two pictures agree where a map lays one over the other, and how much of each the other holds.

The map is first refined, from coarse to fine, until the brightness of both agrees best (Lucas and Kanade 1981, with a
gain and an offset, and robust to what was written or pasted over). Then the local correlation is taken of every small
window that has texture. Copies agree nearly everywhere, however they were saved or coloured; a second shot of the same
scene agrees in parts, however like it looks as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.duplicates.matching.motion import Overlay
from qsplit.duplicates.matching.transforms import Map, applied, composed, inverse, scale_of, whole
from qsplit.media.gray_planes import Plane, blurred, sampled, shrunk, windows

__all__ = ["Agreement", "agreement"]

Array = npt.NDArray[Any]

_STAGES = (40, 80, 150)  # long edges of the common part at which the map is refined, in pixels
_STEPS = 6  # at each
_PIXELS = 3000  # that are looked at in a step, about
_RADIUS = 4  # of a window
_TEXTURE = 16.0  # squared grey levels: the least variance of a window that is looked at
_FILLED = 1.0  # below it, a window was painted over
_LEAST_SIDE = 12  # pixels of a common part that tells anything
_LEAST_WINDOWS = 60
_HEAVIEST = 20.0  # grey levels: contrast beyond it counts no more


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was found where one picture lies over the other.

    ``mean`` is the mean correlation of windows with texture, weighted by contrast, ``against`` the share of that weight
    that disagrees, and ``painted`` the share of them that is plain in one and not in the other. ``covers`` is the share
    of the one picture that the other holds, ``covered`` that of the other. ``overlay`` is both, as they were compared.
    """

    map: Map
    mean: float
    against: float
    painted: float
    covers: float
    covered: float
    overlay: Overlay


def agreement(one: Plane, other: Plane, start: Map) -> Agreement | None:
    """Lay two grey thumbnails over each other, ``start`` taking places of the one to the other.

    None where the common part is too small or too plain to tell anything.
    """
    if scale_of(start) > 1:
        turned = agreement(other, one, inverse(start))
        return turned and _swapped(turned)
    return _compared(one, other, start)


def _swapped(found: Agreement) -> Agreement:
    return replace(found, map=inverse(found.map), covers=found.covered, covered=found.covers)


def _compared(fine: Plane, coarse: Plane, start: Map) -> Agreement | None:
    """``start`` takes the finer picture to the coarser one, which is left as it is."""
    corner = _corner_of_common(fine, coarse, start)
    if corner is None:
        return None
    (left, top), part = corner
    to_part = np.array([[1.0, 0, -left], [0, 1, -top]])
    back = inverse(composed(to_part, start))
    for stage in _STAGES:
        factor = min(1.0, stage / max(part.shape))
        image, target = shrunk(fine, min(1.0, factor * scale_of(start))), shrunk(part, factor)
        into, out = whole(_size(fine), _size(image)), whole(_size(target), _size(part))
        refined = _refined(blurred(image, 1.0), blurred(target, 1.0), composed(into, back, out))
        if refined is None:
            return None
        back = composed(inverse(into), refined, inverse(out))
        if factor == 1.0:
            break
    image = shrunk(fine, min(1.0, scale_of(start)))
    found = composed(whole(_size(fine), _size(image)), back, np.eye(2, 3))
    share = part.size / coarse.size
    return _measured(blurred(image, 1.0), blurred(part, 1.0), found, share, composed(inverse(to_part), inverse(back)))


def _size(plane: Plane) -> tuple[int, int]:
    return plane.shape[1], plane.shape[0]


def _corner_of_common(fine: Plane, coarse: Plane, start: Map) -> tuple[tuple[int, int], Plane] | None:
    """The part of the coarser picture that the finer one may cover, and where it begins; None if it is too small."""
    (w, h), (to_w, to_h) = _size(fine), _size(coarse)
    corners = applied(start, np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]]))
    left, top = (max(0, int(low) - 1) for low in np.floor(corners.min(0)))
    right, bottom = (min(most, int(high) + 2) for most, high in zip((to_w, to_h), np.ceil(corners.max(0)), strict=True))
    if right - left < _LEAST_SIDE or bottom - top < _LEAST_SIDE:
        return None
    return (left, top), np.ascontiguousarray(coarse[top:bottom, left:right])


def _refined(image: Plane, target: Plane, start: Map) -> Map | None:
    """The map from places of the target to those of the image at which their brightness agrees best.

    None where they hardly overlap, or where the map degenerates on the way.
    """
    height, width = target.shape
    step = 1 + int((height * width / _PIXELS) ** 0.5)
    y, x = (index.ravel().astype(np.float64) for index in np.mgrid[:height:step, :width:step])
    down, across = (np.asarray(each, np.float32) for each in np.gradient(image))
    middle, spread = np.array([x.mean(), y.mean()]), max(float(x.std()), float(y.std()), 1.0)
    u, v = (x - middle[0]) / spread, (y - middle[1]) / spread
    # The map in these coordinates, so that its six numbers are of like size.
    found = composed(start, np.array([[spread, 0, middle[0]], [0, spread, middle[1]]]))
    wanted = np.ascontiguousarray(target[::step, ::step]).ravel()
    for _ in range(_STEPS):
        at_x, at_y = applied(found, np.stack([u, v], axis=1)).T
        inside = (at_x >= 0) & (at_x <= image.shape[1] - 1) & (at_y >= 0) & (at_y <= image.shape[0] - 1)
        if inside.sum() < _LEAST_SIDE**2 / 2:
            return None
        change = _step(image, across, down, (at_x[inside], at_y[inside]), (u[inside], v[inside]), wanted[inside])
        found = found + change
        if np.abs(change).max() < 0.02:
            break
    if not _is_sane(found, image.shape, spread):
        return None
    return composed(found, np.array([[1 / spread, 0, -middle[0] / spread], [0, 1 / spread, -middle[1] / spread]]))


def _step(
    image: Plane, across: Plane, down: Plane, at: tuple[Array, Array], uv: tuple[Array, Array], wanted: Array
) -> Map:
    """One Gauss-Newton step over the six numbers of a map and gain and offset; large differences weigh little."""
    values, dx, dy = (sampled(plane, *at).astype(np.float64) for plane in (image, across, down))
    (u, v), one = uv, np.ones_like(values)
    gain, offset = _exposure(values, wanted)
    error = values - gain * wanted - offset
    typical = 1.4826 * np.median(np.abs(error)) + 0.5
    weight = 1 / (1 + (error / (2 * typical)) ** 2)
    design = np.stack([dx * u, dx * v, dx, dy * u, dy * v, dy, -wanted, -one], axis=1)
    weighted = design * weight[:, None]
    normal = weighted.T @ design
    normal[np.diag_indices(6)] += 1e-4 * np.trace(normal[:6, :6]) / 6 + 1e-9  # what has no texture stays where it is
    normal[[6, 7], [6, 7]] += 1e-9
    step: Map = np.linalg.solve(normal, -weighted.T @ values)[:6].reshape(2, 3)
    return step


def _exposure(values: Array, wanted: Array) -> tuple[float, float]:
    """Gain and offset between two samples of brightness."""
    a, b = values - values.mean(), wanted - wanted.mean()
    gain = float((a * b).sum() / max(float((b * b).sum()), 1e-6))
    return gain, float(np.median(values - gain * wanted))


def _is_sane(found: Map, shape: tuple[int, ...], spread: float) -> bool:
    values = np.linalg.svd(found[:, :2] / spread, compute_uv=False)
    return bool(np.isfinite(found).all() and values[1] > 0.1 and values[0] < max(shape))


def _measured(image: Plane, part: Plane, found: Map, share: float, back: Map) -> Agreement | None:
    """``found`` takes places of the part to the image; ``share`` is the part's of its picture."""
    height, width = part.shape
    y, x = np.mgrid[:height, :width]
    at = applied(found, np.stack([x.ravel(), y.ravel()], axis=1)).T.reshape(2, height, width)
    inside = (at[0] >= -0.5) & (at[0] <= image.shape[1] - 0.5) & (at[1] >= -0.5) & (at[1] <= image.shape[0] - 0.5)
    seen = inside.astype(np.float32)
    laid = sampled(image, at[0], at[1])
    local = windows(laid, part, seen, _RADIUS)
    compared = inside & (local.full > 0.6)
    textured = compared & (np.maximum(local.of_one, local.of_other) > _TEXTURE)
    painted = textured & (np.minimum(local.of_one, local.of_other) < _FILLED)
    told = textured & ~painted
    if told.sum() < _LEAST_WINDOWS:
        return None
    contrast = np.minimum(np.sqrt(np.maximum(local.of_one, local.of_other)), _HEAVIEST)
    weight = np.where(told, contrast, 0)
    weight = weight / weight.sum()
    correlation = local.correlation
    area = abs(float(np.linalg.det(found[:, :2])))
    return Agreement(
        back,
        float((correlation * weight).sum()),
        float(weight[correlation < 0.1].sum()),
        float(painted.sum() / max(textured.sum(), 1)),
        min(1.0, float(inside.sum()) * area / image.size),
        min(1.0, float(inside.mean()) * share),
        Overlay(laid, part, seen, weight, correlation, _RADIUS),
    )
