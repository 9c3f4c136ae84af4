"""Two pictures -> whether one is a copy of the other, by what evidence.

Three things propose how one picture lies over the other: patch tokens that are each other's nearest and agree on one
map, landmarks of the thumbnails that do, and the frames themselves where the pictures look alike as a whole. Each
proposal is then looked at pixel by pixel, and that decides: a second shot of a scene has the same landmarks as a copy,
and other pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import exp, log, log1p

import numpy as np
import numpy.typing as npt
from PIL import Image

from qsplit.duplicates.matching.keypoints import BITS, Landmarks
from qsplit.duplicates.matching.motion import moved
from qsplit.duplicates.matching.registration import Agreement, agreement
from qsplit.duplicates.matching.token_matching import TokenGrid, mutual
from qsplit.duplicates.matching.transforms import (
    Fit,
    Map,
    applied,
    composed,
    fit_oriented,
    fit_places,
    inverse,
    scale_of,
    turn_of,
    whole,
)
from qsplit.media.gray_planes import Plane, averaged

__all__ = ["COPY", "VERSION", "Comparison", "Evidence", "Portrait", "compare"]

VERSION = 3  # raise it when the same pictures are compared otherwise
COPY = 0.5  # the score from which a pair is a copy

_LANDMARKS = 4  # that agree, at least, for a proposal
_TOKENS = 6
_EVEN = 16  # pixels a side of what a picture looks like as a whole
_ALIKE = 0.75  # correlation of whole pictures, at least
_FAR = 40  # bits of 128: landmarks that differ in more are not paired
_CLEARLY = 0.92  # of the distance to the second nearest, at most
_TOLERANCE = 4.0  # pixels of a thumbnail
_TOKEN_TOLERANCE = 0.75  # tokens
_SETTLED = 0.9  # of the pixels' agreement: no other proposal can do better
_HELD = 0.6  # the share of a copy that is in the other picture, at least, of one of both
_LEAST_BEYOND = 0.02  # of a picture
_WINDOW = 3  # radius in pixels
_TEXTURE = 25.0  # squared grey levels
_DRAWN = 40  # patches that are kept to be shown
# What a copy looks like: a logistic regression over the tune split of benchmarks/duplicates/copyset.py, moved until
# .99 of what is called a copy there is one. A copy disagrees nowhere, nothing in it has moved, and much of it can be
# found again. Two shots of a camera that stood still lie exactly over each other, as few copies do, and what went
# through the picture meanwhile looks like something laid over it: there more must speak for a copy.
_WEIGHTS = (-0.4, -7.492, -1.072, 0.672, -15.6, -3.5)  # of 1, √against, the same frame, log landmarks, √moved, painted
_FRAME = (0.03, 2.0, 0.9)  # of the same frame: the logarithm of scale, degrees, and the share of either in the other


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why two pictures belong together; ``map`` takes pixels of the first thumbnail to the second, row by row.

    ``landmarks`` and ``tokens`` are how many pairs of either agree with one map; ``agreement`` is the share of texture
    that correlates where both lie over each other, from which ``painted`` is left out; ``covers`` is the share of the
    first that the second holds, ``covered`` the share of the second that the first holds; ``beyond`` and
    ``beyond_other`` are how much of the rest of the first and of the second has texture: borders have none. ``scale``
    is how many times larger the second shows what both show, in pixels of the files, and ``turn`` by how many degrees
    it is turned.
    ``patches`` are places that were paired: x and y in the first, x and y in the second, each 0..1.
    """

    landmarks: int
    tokens: int
    agreement: float
    painted: float
    covers: float
    covered: float
    beyond: float
    beyond_other: float
    scale: float
    turn: float
    mirrored: bool
    map: list[float]
    patches: list[list[float]]

    def turned_round(self) -> Evidence:
        """The same, with the second picture as the first."""
        back = inverse(np.array(self.map).reshape(2, 3))
        return replace(
            self,
            covers=self.covered,
            covered=self.covers,
            beyond=self.beyond_other,
            beyond_other=self.beyond,
            scale=round(1 / max(self.scale, 1e-4), 4),
            turn=self.turn if self.mirrored else -self.turn,
            map=[round(float(value), 5) for value in back.ravel()],
            patches=[[*patch[2:], *patch[:2]] for patch in self.patches],
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """How surely one picture is a copy of the other, 0..1, and why; ``same_scene`` where it is none, and yet alike."""

    score: float
    same_scene: bool
    evidence: Evidence


@dataclass(frozen=True, eq=False)
class Portrait:
    """What two pictures are compared by: ``plane`` is the grey thumbnail of a picture of ``width`` by ``height``."""

    plane: Plane
    landmarks: Landmarks
    width: int
    height: int
    grid: TokenGrid | None = field(default=None)

    @property
    def size(self) -> tuple[int, int]:
        return self.landmarks.width, self.landmarks.height


@dataclass(frozen=True, eq=False)
class _Proposal:
    """A map, and the pairs of places ``(n, 4)`` in pixels of the thumbnails that speak for it."""

    map: Map
    pairs: npt.NDArray[np.float64]
    tolerance: float

    def agreeing(self, found: Map) -> npt.NDArray[np.float64]:
        """The pairs that also agree with a map that was refined by the pixels."""
        off = np.linalg.norm(applied(found, self.pairs[:, :2]) - self.pairs[:, 2:], axis=1)
        agree: npt.NDArray[np.float64] = self.pairs[off <= self.tolerance * max(1.0, scale_of(found))]
        return agree


def compare(one: Portrait, other: Portrait, *, mirror: bool = False) -> Comparison | None:
    """Compare two pictures, with ``mirror`` the one as it looks in a mirror; None if nothing speaks for a copy."""
    by_landmarks, by_tokens = _landmark_proposal(one, other, mirror), _token_proposal(one, other, mirror)
    best: Agreement | None = None
    for proposal in _promising(one, other, by_landmarks, by_tokens, mirror):
        found = agreement(one.plane, other.plane, proposal)
        if found is not None and (best is None or found.mean > best.mean):
            best = found
        if best is not None and best.mean >= _SETTLED:
            break
    if best is None:
        return None
    pairs = [p.agreeing(best.map) if p else np.empty((0, 4)) for p in (by_landmarks, by_tokens)]
    evidence = _evidence(one, other, best, pairs, mirror)
    score = _score(best, evidence)
    seen = len(pairs[0]) >= 2 * _LANDMARKS or len(pairs[1]) >= 2 * _TOKENS
    return Comparison(score, seen and score < COPY, evidence)


def _promising(
    one: Portrait, other: Portrait, by_landmarks: _Proposal | None, by_tokens: _Proposal | None, mirror: bool
) -> Iterator[Map]:
    if by_landmarks is not None and len(by_landmarks.pairs) >= _LANDMARKS:
        yield by_landmarks.map
    if by_tokens is not None and len(by_tokens.pairs) >= _TOKENS:
        yield by_tokens.map
    a, b = (_even(portrait.plane) for portrait in (one, other))
    if float((a[:, ::-1] if mirror else a).ravel() @ b.ravel()) >= _ALIKE:
        frame = whole(one.size, other.size)
        yield composed(frame, _mirror(one.size)) if mirror else frame


def _even(plane: Plane) -> Plane:
    """A whole picture as 16 x 16 numbers of mean 0 and length 1, whatever its shape."""
    image = Image.fromarray(plane).resize((_EVEN, _EVEN), Image.Resampling.BOX)
    small = np.asarray(image, np.float32)
    small = small - small.mean()
    even: Plane = small / max(float(np.linalg.norm(small)), 1.0)
    return even


def _mirror(size: tuple[int, int]) -> Map:
    return np.array([[-1.0, 0, size[0] - 1], [0, 1, 0]])


def _landmark_proposal(one: Portrait, other: Portrait, mirror: bool) -> _Proposal | None:
    here, there = one.landmarks.mirrored() if mirror else one.landmarks, other.landmarks
    pairs = _paired(here, there)
    fit = fit_oriented(here.points[pairs[:, 0]], there.points[pairs[:, 1]], _TOLERANCE)
    if fit is None:
        return None
    places = here.points[pairs[:, 0], :2], there.points[pairs[:, 1], :2]
    return _proposal(fit, *places, _TOLERANCE, one.size if mirror else None)


def _paired(one: Landmarks, other: Landmarks) -> npt.NDArray[np.intp]:
    """Pairs of landmarks each of which is the other's nearest by its hash, and clearly so."""
    if len(one) < 2 or len(other) < 2:
        return np.empty((0, 2), np.intp)
    distance = (BITS - one.signs @ other.signs.T) / 2
    forth, back = distance.argmin(1), distance.argmin(0)
    two = np.partition(distance, 1, axis=1)[:, :2]
    good = (back[forth] == np.arange(len(one))) & (two[:, 0] <= _FAR) & (two[:, 0] < _CLEARLY * two[:, 1])
    here = np.nonzero(good)[0]
    return np.stack([here, forth[here]], axis=1)


def _token_proposal(one: Portrait, other: Portrait, mirror: bool) -> _Proposal | None:
    if one.grid is None or other.grid is None:
        return None
    pairs = mutual(one.grid, other.grid)
    here, there = one.grid.places[pairs[:, 0]], other.grid.places[pairs[:, 1]]
    a, b = (_pixels(places, portrait.size) for places, portrait in ((here, one), (there, other)))
    if mirror:
        a[:, 0] = one.size[0] - 1 - a[:, 0]
    steps = [portrait.grid.step * max(portrait.size) for portrait in (one, other) if portrait.grid]
    tolerance = _TOKEN_TOLERANCE * max(steps)
    fit = fit_places(a, b, tolerance, least=1.5 * min(steps))
    return None if fit is None else _proposal(fit, a, b, tolerance, one.size if mirror else None)


def _pixels(places: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    return places * max(size) - 0.5


def _proposal(
    fit: Fit,
    here: npt.NDArray[np.floating],
    there: npt.NDArray[np.floating],
    tolerance: float,
    mirrored: tuple[int, int] | None,
) -> _Proposal:
    """A fit with the pairs that agree; what was found in a mirror of this size is taken out of it."""
    if mirrored is None:
        return _Proposal(fit.map, np.hstack([here, there])[fit.agree], tolerance)
    back = _mirror(mirrored)
    return _Proposal(composed(fit.map, back), np.hstack([applied(back, here), there])[fit.agree], tolerance)


def _evidence(
    one: Portrait, other: Portrait, found: Agreement, pairs: list[npt.NDArray[np.float64]], mirror: bool
) -> Evidence:
    files = (other.width / other.size[0]) / (one.width / one.size[0])  # the thumbnails may be reduced unequally
    shown = np.concatenate(pairs[::-1]) / np.array([*one.size, *other.size])  # tokens first
    turned = composed(found.map, _mirror(one.size)) if mirror else found.map
    return Evidence(
        landmarks=len(pairs[0]),
        tokens=len(pairs[1]),
        agreement=round(found.mean, 4),
        painted=round(found.painted, 4),
        covers=round(found.covers, 4),
        covered=round(found.covered, 4),
        beyond=_beyond(one.plane, other.plane, found.map),
        beyond_other=_beyond(other.plane, one.plane, inverse(found.map)),
        scale=round(scale_of(found.map) * files, 4),
        turn=round(turn_of(turned), 2),
        mirrored=mirror,
        map=[round(float(value), 5) for value in found.map.ravel()],
        patches=np.clip(shown[:: 1 + len(shown) // _DRAWN], 0, 1).round(4).tolist(),
    )


def _beyond(plane: Plane, other: Plane, found: Map) -> float:
    """The share of what a picture shows outside the common part that has texture; 0 if there is next to nothing."""
    height, width = plane.shape
    y, x = np.mgrid[:height, :width]
    at = applied(found, np.stack([x.ravel(), y.ravel()], axis=1)).reshape(height, width, 2)
    outside = ((at < -1) | (at > [other.shape[1], other.shape[0]])).any(2)
    if outside.mean() < _LEAST_BEYOND:
        return 0.0
    smooth = averaged(plane, _WINDOW)
    texture = averaged(plane * plane, _WINDOW) - smooth * smooth > _TEXTURE
    return round(float(texture[outside].mean()), 4)


def _score(found: Agreement, evidence: Evidence) -> float:
    """How surely this is a copy, 0..1; where neither picture is mostly in the other, less than half."""
    score = _likely(found, evidence, 0.0)
    if score >= COPY:  # only then is it worth looking for what has moved
        score = _likely(found, evidence, moved(found.overlay))
    held = max(found.covers, found.covered)
    return round(score if held >= _HELD else score * COPY * held, 6)


def _likely(found: Agreement, evidence: Evidence, moved_share: float) -> float:
    frame = float(_is_one_frame(evidence))
    landmarks = log1p(evidence.landmarks)
    features = (1.0, found.against**0.5, frame, landmarks, moved_share**0.5, found.painted)
    return 1 / (1 + exp(-sum(weight * value for weight, value in zip(_WEIGHTS, features, strict=True))))


def _is_one_frame(evidence: Evidence) -> bool:
    """Whether two pictures of one size lie over each other as they are."""
    scale, turn, held = _FRAME
    covered = min(evidence.covers, evidence.covered)
    return abs(log(max(evidence.scale, 1e-4))) < scale and abs(evidence.turn) < turn and covered > held
