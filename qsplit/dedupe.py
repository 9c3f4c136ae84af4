"""Groups of files that show the same picture, with the evidence and the one to keep.

Three kinds, never mixed: ``exact`` (the same bytes), ``pixels`` (other bytes, the same decoded and oriented pixels)
and ``copy`` (re-encoded or resized: near in perceptual hash and of the same shape). Every member matches the one to
keep, so that a chain of small steps never joins two different pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qsplit.rows import ImageRow
from qsplit.store import FeatureStore

__all__ = ["Group", "Member", "find_duplicates"]

# Of 64 bits. On the sample album, saving again (quality 30 to 95) and halving move at most 2 bits, quartering 4; its
# two most alike photographs differ in 20.
_LARGEST_DISTANCE = 6
_LARGEST_ASPECT_CHANGE = 0.03  # a resize rounds to whole pixels
_LEAST_DETAIL = 4.0  # grey levels of deviation; below it a picture is nearly blank and its hash says nothing
_BLOCK = 2048  # hashes compared at once: the matrix of distances takes a few megabytes
_LOSSLESS = ("TIFF", "BMP", "PNG")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a group; ``score`` is its likeness to the one to keep, 1 at best."""

    id: str
    path: str
    score: float


@dataclass(frozen=True, slots=True)
class Group:
    """Files that show one picture; ``keep`` is the path of the best, which is the first member."""

    kind: Literal["exact", "pixels", "copy"]
    keep: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    image: ImageRow
    path: str
    size: int

    def rank(self) -> tuple[Any, ...]:
        """What is kept first: more pixels, EXIF, a lossless format, more bytes, a shorter path."""
        image = self.image
        has_exif = sum(value is not None for value in (image.taken_at, image.camera, image.latitude))
        return (
            -image.width * image.height,
            -has_exif,
            image.format not in _LOSSLESS,
            -self.size,
            len(self.path),
            self.path,
        )


def find_duplicates(store: FeatureStore, *, distance: int = _LARGEST_DISTANCE) -> list[Group]:
    """Every group in the store, exact ones first; ``distance`` bounds the bits in which the hashes of copies differ."""
    images = store.images()
    files = [row for row in store.files().values() if row.state == "ok" and row.image_id in images]
    candidates = sorted(
        (_Candidate(images[str(row.image_id)], row.path, row.size) for row in files), key=_Candidate.rank
    )
    by_id = _grouped(candidates, "image_id")
    by_pixels = _grouped([same[0] for same in by_id], "pixels_digest")
    copies = _copies([same[0] for same in by_pixels], distance)
    return [*_groups("exact", by_id), *_groups("pixels", by_pixels), *copies]


def _grouped(candidates: Iterable[_Candidate], key: str) -> list[list[_Candidate]]:
    """Candidates that agree in one field of their image, the order kept."""
    groups: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(getattr(candidate.image, key), []).append(candidate)
    return list(groups.values())


def _groups(kind: Literal["exact", "pixels"], grouped: Iterable[Sequence[_Candidate]]) -> Iterator[Group]:
    for same in grouped:
        if len(same) > 1:
            yield Group(kind, same[0].path, tuple(Member(c.image.image_id, c.path, 1.0) for c in same))


def _copies(candidates: Sequence[_Candidate], distance: int) -> Iterator[Group]:
    """Each candidate in order of rank takes every later one that is near to it and not yet taken."""
    telling = [c for c in candidates if c.image.detail >= _LEAST_DETAIL]
    hashes = np.array([c.image.phash for c in telling], dtype=np.uint64)
    aspects = np.array([c.image.width / c.image.height for c in telling])
    taken = np.zeros(len(telling), dtype=bool)
    for i, near, bits in _near_pairs(hashes, distance):
        same_shape = np.abs(aspects[near] / aspects[i] - 1) <= _LARGEST_ASPECT_CHANGE
        mine = same_shape & ~taken[near]
        if taken[i] or not mine.any():
            continue
        taken[near[mine]] = True
        members = [Member(telling[i].image.image_id, telling[i].path, 1.0)]
        for j, n in zip(near[mine], bits[mine], strict=True):
            members.append(Member(telling[j].image.image_id, telling[j].path, round(1 - int(n) / 64, 6)))
        yield Group("copy", telling[i].path, tuple(members))


def _near_pairs(hashes: np.ndarray[Any, Any], distance: int) -> Iterator[tuple[int, Any, Any]]:
    """For each hash, in order: its number, the later ones within ``distance`` bits, and in how many bits they
    differ.
    """
    for begin in range(0, len(hashes), _BLOCK):
        block = hashes[begin : begin + _BLOCK]
        rest = hashes[begin:]
        pairs: dict[int, list[tuple[Any, Any]]] = {}
        for start in range(0, len(rest), _BLOCK):
            bits = np.bitwise_count(block[:, None] ^ rest[None, start : start + _BLOCK])
            rows, columns = np.nonzero(bits <= distance)
            for i in np.unique(rows):
                later = columns[rows == i]
                later = later[later + start > i]
                pairs.setdefault(int(i), []).append((later + start + begin, bits[i, later]))
        for i in sorted(pairs):
            near, bits_of_near = (np.concatenate(parts) for parts in zip(*pairs[i], strict=True))
            if len(near):
                yield begin + i, near, bits_of_near
