"""Which pictures of an album are worth being compared: a few pairs out of all that there are.

Pairs are proposed by their hashes as a whole, by pooled vectors, by landmarks that they share, and by when they were
taken. A cosine means little by itself, where pictures of one trip are all alike: it counts by how far it is above those
of a picture's further neighbours, as copy detection normalises scores (Douze et al. 2021, the DISC challenge).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from qsplit.duplicates.descriptors import Portraits
from qsplit.duplicates.matching.neighbors import near_hashes, nearest_few, shared_landmarks

__all__ = ["BURST", "Candidate", "candidates"]

BURST = timedelta(minutes=2)  # between shots that may be of one burst

_BITS = 12  # of 64: the pictures are looked at after, so more than a copy usually has
_FEW = 12  # neighbours by vector
_NEAREST = 3  # of them are always compared, if they are near at all
_FURTHER = slice(4, 12)  # neighbours that a cosine is measured against
_NEAR = 0.4  # cosine of centred vectors
_NEAR_IN_A_MIRROR = 0.6
_ABOVE = 0.15  # cosine over the further neighbours' mean
_SHARED = 3  # landmarks
_LIKE_A_BURST = 0.5  # cosine of centred vectors, for shots at about one time
_SHOTS = 8  # that follow a shot are compared with it
_COPIES_AT_MOST = 2000  # pairs of one picture by hash: a thousand screens of one colour are not compared one by one


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two pictures by number, ``one < other``, with the cosine of their vectors (0 if they have none)."""

    one: int
    other: int
    mirrored: bool
    cosine: float


def candidates(portraits: Portraits, fresh: npt.NDArray[np.intp], *, mirrored: bool = False) -> list[Candidate]:
    """The pairs to compare of which at least one picture is ``fresh``, by number; with ``mirrored`` also such pairs."""
    if not len(fresh):
        return []
    vectors = portraits.vectors()
    plain = {*_by_hash(portraits, fresh), *_by_landmarks(portraits, fresh, mirrored=False)}
    turned: set[tuple[int, int]] = set()
    if vectors is not None:
        near = set(_by_vector(vectors, fresh))
        plain |= near
        plain |= set(_by_time(portraits, vectors, fresh))
        turned |= {pair for pair in near if mirrored and vectors[pair[0]] @ vectors[pair[1]] >= _NEAR_IN_A_MIRROR}
    if mirrored:
        turned |= set(_by_landmarks(portraits, fresh, mirrored=True))
    return [
        Candidate(one, other, in_mirror, 0.0 if vectors is None else round(float(vectors[one] @ vectors[other]), 4))
        for pairs, in_mirror in ((plain, False), (turned, True))
        for one, other in sorted(pairs)
    ]


def _by_hash(portraits: Portraits, fresh: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Pictures that look alike as a whole; what is nearly blank has a hash of its noise, and no texture to compare."""
    hashes = np.array([image.phash for image in portraits.images], np.uint64)
    new = np.zeros(len(hashes), bool)
    new[fresh] = True
    if len(fresh) == len(hashes):
        for one, others, _ in near_hashes(hashes, _BITS):
            yield from ((one, int(other)) for other in others[:_COPIES_AT_MOST])
        return
    for one in fresh:
        others = np.nonzero(np.bitwise_count(hashes ^ hashes[one]) <= _BITS)[0]
        yield from (_ordered(int(one), int(other)) for other in others[:_COPIES_AT_MOST] if other != one)


def _by_vector(vectors: npt.NDArray[np.float32], fresh: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    index, cosine = nearest_few(vectors, fresh, _FEW)
    further = np.where(np.isfinite(cosine[:, _FURTHER]), cosine[:, _FURTHER], 0).mean(1)
    near = (cosine >= _NEAR) & ((cosine - further[:, None] >= _ABOVE) | (np.arange(_FEW) < _NEAREST))
    for row, column in zip(*np.nonzero(near), strict=True):
        yield _ordered(int(fresh[row]), int(index[row, column]))


def _by_landmarks(portraits: Portraits, fresh: npt.NDArray[np.intp], *, mirrored: bool) -> Iterator[tuple[int, int]]:
    everything = portraits.marks(range(len(portraits)))
    wanted = portraits.marks(fresh.tolist(), mirrored=mirrored)
    for (one, other), shared in shared_landmarks(everything, wanted).items():
        if shared >= _SHARED:
            yield _ordered(one, other)


def _by_time(
    portraits: Portraits, vectors: npt.NDArray[np.float32], fresh: npt.NDArray[np.intp]
) -> Iterator[tuple[int, int]]:
    """Shots that were taken soon after each other and are alike."""
    times = sorted((image.taken_at, i) for i, image in enumerate(portraits.images) if image.taken_at is not None)
    new = set(fresh.tolist())
    for position, (taken_at, one) in enumerate(times):
        for then, other in times[position + 1 : position + 1 + _SHOTS]:
            near = then - taken_at <= BURST and float(vectors[one] @ vectors[other]) >= _LIKE_A_BURST
            if near and (one in new or other in new):
                yield _ordered(one, other)


def _ordered(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
