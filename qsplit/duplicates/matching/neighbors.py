"""Which of many vectors, hashes or landmarks are near each other, without comparing all with all where that is long.

Vectors are sorted into buckets by their six nearest of 256 centroids, and only those that share a bucket are compared:
a seventh of the multiplications, and what is nearly the same shares a bucket all but always.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Marks", "near_hashes", "near_vectors", "nearest_few", "shared_landmarks"]

Vectors = npt.NDArray[np.float32]  # (n, width), unit length
Index = npt.NDArray[np.intp]
Array = npt.NDArray[Any]

_CENTROIDS = 256
_PROBES = 6  # buckets that each vector is put into
_BUCKETED = 4096  # vectors: fewer are compared all with all
_SAMPLE = 8192  # vectors that the centroids are made of
_ROUNDS = 3
_ROWS = 1024  # of a block: its cosines take 4 KB a column

_HASHES = 2048  # compared at once: the matrix of distances takes a few megabytes


# Vectors


def near_vectors(vectors: Vectors, least: float) -> Iterator[tuple[Index, Index, Vectors]]:
    """Pairs ``i < j`` of unit vectors whose cosine is at least ``least``, each once: (i, j, cosine), block by block."""
    buckets = _buckets(vectors)
    for number, members in enumerate(_members(buckets)):
        held = vectors[members]
        for start in range(0, len(members), _ROWS):
            rows = members[start : start + _ROWS]
            cosines = held[start : start + _ROWS] @ held[start:].T
            a, b = np.nonzero(cosines >= least)
            later = b > a
            a, b = a[later], b[later]
            i, j = rows[a], members[start + b]
            first = _first_shared(buckets[i], buckets[j]) == number  # several buckets may hold the same pair
            i, j, found = i[first], j[first], cosines[a[first], b[first]]
            yield np.minimum(i, j), np.maximum(i, j), found


def nearest_few(vectors: Vectors, fresh: Index, few: int) -> tuple[Index, Vectors]:
    """Of each fresh vector the ``few`` nearest others, nearest first: (indices, cosines), -1 and -inf for none."""
    found = np.full((len(fresh), few), -1), np.full((len(fresh), few), -np.inf, np.float32)
    if len(vectors) <= _BUCKETED or len(fresh) * 16 < len(vectors):
        everything = np.arange(len(vectors))
        _merge_nearest(found, vectors, fresh, np.arange(len(fresh)), everything)
        return found
    buckets = _buckets(vectors)
    row_of = np.full(len(vectors), -1)
    row_of[fresh] = np.arange(len(fresh))
    for members in _members(buckets):
        asked = members[row_of[members] >= 0]
        _merge_nearest(found, vectors, asked, row_of[asked], members)
    return found


def _merge_nearest(found: tuple[Index, Vectors], vectors: Vectors, asked: Index, rows: Index, among: Index) -> None:
    """Put the nearest of ``among`` into the rows of ``found``, beside what is there."""
    few = found[0].shape[1]
    held = vectors[among] if len(among) < len(vectors) else vectors
    for start in range(0, len(asked), _ROWS):
        some, into = asked[start : start + _ROWS], rows[start : start + _ROWS]
        cosines = vectors[some] @ held.T
        cosines[among[None] == some[:, None]] = -np.inf
        best = np.argpartition(-cosines, min(few, len(among)) - 1, axis=1)[:, :few]
        index = np.concatenate([found[0][into], among[best]], axis=1)
        cosine = np.concatenate([found[1][into], np.take_along_axis(cosines, best, axis=1)], axis=1)
        again = (index[:, None, :few] == index[:, few:, None]).any(2)  # known from another bucket
        cosine[:, few:][again] = -np.inf
        order = np.lexsort((index, -cosine), axis=1)[:, :few]
        found[1][into] = np.take_along_axis(cosine, order, axis=1)
        found[0][into] = np.where(np.isfinite(found[1][into]), np.take_along_axis(index, order, axis=1), -1)


def _buckets(vectors: Vectors) -> Index:
    """The buckets of each vector, ``(n, probes)``, in order; for a few vectors, the same one for all."""
    if len(vectors) <= _BUCKETED:
        return np.zeros((len(vectors), 1), np.intp)
    rng = np.random.default_rng(0)
    sample = vectors[rng.choice(len(vectors), min(len(vectors), _SAMPLE), replace=False)]
    centroids = sample[:_CENTROIDS].copy()
    for _ in range(_ROUNDS):
        nearest = (sample @ centroids.T).argmax(1)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centroids)
    found = np.empty((len(vectors), _PROBES), np.intp)
    for start in range(0, len(vectors), _SAMPLE):
        cosines = vectors[start : start + _SAMPLE] @ centroids.T
        found[start : start + _SAMPLE] = np.sort(np.argpartition(-cosines, _PROBES, axis=1)[:, :_PROBES], axis=1)
    return found


def _members(buckets: Index) -> Iterator[Index]:
    """The vectors of each bucket, in order."""
    for number in range(int(buckets.max(initial=-1)) + 1):
        yield np.nonzero((buckets == number).any(1))[0]


def _first_shared(one: Index, other: Index) -> Index:
    """The lowest bucket that both of a pair are in."""
    shared = (one[:, :, None] == other[:, None]).any(2)
    return np.take_along_axis(one, shared.argmax(1)[:, None], axis=1)[:, 0]


# Hashes


def near_hashes(hashes: Array, distance: int) -> Iterator[tuple[int, Array, Array]]:
    """For each 64-bit hash, in order: its number, the later ones within ``distance`` bits, and in how many bits they
    differ.
    """
    for begin in range(0, len(hashes), _HASHES):
        block = hashes[begin : begin + _HASHES]
        rest = hashes[begin:]
        pairs: dict[int, list[tuple[Any, Any]]] = {}
        for start in range(0, len(rest), _HASHES):
            bits = np.bitwise_count(block[:, None] ^ rest[None, start : start + _HASHES])
            rows, columns = np.nonzero(bits <= distance)
            for i in np.unique(rows):
                later = columns[rows == i]
                later = later[later + start > i]
                pairs.setdefault(int(i), []).append((later + start + begin, bits[i, later]))
        for i in sorted(pairs):
            near, bits_of_near = (np.concatenate(parts) for parts in zip(*pairs[i], strict=True))
            if len(near):
                yield begin + i, near, bits_of_near


# Landmarks

_WORDS = 8  # ways of looking a hash up: by so many choices of its bits
_WORD_BITS = 24
_ALIKE = 22  # bits of 128 in which hashes of the same landmark differ at most
_COMMON = 64  # landmarks of one word, at most: more of them tell nothing
_AT_ONCE = 1 << 21  # pairs of landmarks
_CELL = np.array([80.0, 80.0, 0.7, np.radians(40)])  # pixels, pixels, of a scale's logarithm, of a turn
_MIDDLE = np.array([128.0, 96.0])  # of a thumbnail, about


@dataclass(frozen=True, eq=False)
class Marks:
    """The landmarks of many pictures: packed hashes ``(n, 16)``, points ``(n, 4)`` and the picture that each is of."""

    bits: npt.NDArray[np.uint8]
    points: npt.NDArray[np.float32]
    owners: Index


def shared_landmarks(marks: Marks, fresh: Marks) -> dict[tuple[int, int], int]:
    """How many landmarks pictures share that agree about how one lies over the other: (owner, fresh owner) -> number.

    A pair of landmarks tells a turn, a scale and a shift; those that fall into one cell of these agree. Pairs of
    pictures that share fewer than two are left out.
    """
    pairs = _alike(marks, fresh)
    here, there = pairs >> 32, pairs & 0xFFFFFFFF
    owners = marks.owners[here].astype(np.int64) << 32 | fresh.owners[there]
    votes = _votes(marks.points[here].astype(np.float64), fresh.points[there].astype(np.float64))
    found: dict[tuple[int, int], int] = {}
    for shift in (0.0, 0.5):  # what is cut by the cells of one grid is whole in those of the other
        cells = np.floor(votes / _CELL + shift).astype(np.int64) @ np.array([1 << 24, 1 << 16, 1 << 8, 1])
        for (one, other), n in _most(owners, cells, here, there):
            found[one, other] = max(n, found.get((one, other), 0))
    return found


def _alike(marks: Marks, fresh: Marks) -> npt.NDArray[np.int64]:
    """Pairs of landmarks of different pictures with nearly the same hash, as ``here << 32 | there``."""
    rng = np.random.default_rng(0)
    found = [np.empty(0, np.int64)]
    for _ in range(_WORDS):
        chosen = rng.choice(8 * marks.bits.shape[1], _WORD_BITS, replace=False)
        for here, there in _same_word(_words(marks.bits, chosen), _words(fresh.bits, chosen)):
            apart = np.nonzero(marks.owners[here] != fresh.owners[there])[0]
            near = apart[_distance(marks.bits[here[apart]], fresh.bits[there[apart]]) <= _ALIKE]
            found.append(here[near].astype(np.int64) << 32 | there[near])
    return np.unique(np.concatenate(found))


def _votes(one: Array, other: Array) -> Array:
    """Where each pair of landmarks takes the middle of a picture, how much larger, and how far turned: ``(n, 4)``."""
    turn, scale = other[:, 3] - one[:, 3], other[:, 2] / one[:, 2]
    factor = scale * np.exp(1j * turn)
    middle = factor * (complex(*_MIDDLE) - (one[:, 0] + 1j * one[:, 1])) + other[:, 0] + 1j * other[:, 1]
    return np.stack([middle.real, middle.imag, np.log(scale), turn % (2 * np.pi)], axis=1)


def _most(owners: Array, cells: Array, here: Array, there: Array) -> Iterator[tuple[tuple[int, int], int]]:
    """The most votes of any cell of each pair of pictures; a landmark that is like many of the other counts once."""
    _, place = np.unique(np.stack([owners, cells], axis=1), axis=0, return_inverse=True)
    place = place.ravel()
    votes = np.full((2, place.max(initial=-1) + 1), 0)
    for row, marks in enumerate((here, there)):
        once = np.unique(np.stack([place, marks], axis=1), axis=0)[:, 0]
        votes[row] = np.bincount(once, minlength=votes.shape[1])
    owner_of = np.zeros(votes.shape[1], np.int64)
    owner_of[place] = owners
    counted = votes.min(0)
    for owner, n in zip(owner_of[counted >= 2].tolist(), counted[counted >= 2].tolist(), strict=True):
        yield (owner >> 32, owner & 0xFFFFFFFF), n


def _words(bits: Array, chosen: Index) -> Index:
    """A number made of the chosen bits of each hash."""
    words = np.zeros(len(bits), np.intp)
    for position in chosen:
        words = words << 1 | (bits[:, position // 8] >> (7 - position % 8)) & 1
    return words


def _same_word(words: Index, fresh: Index) -> Iterator[tuple[Index, Index]]:
    """Pairs of landmarks with the same word, a few million at a time."""
    order = np.argsort(fresh, kind="stable")
    known, starts, counts = np.unique(fresh[order], return_index=True, return_counts=True)
    counts[counts > _COMMON] = 0
    at = np.searchsorted(known, words)
    at[at == len(known)] = 0
    here = np.nonzero((known[at] == words) & (counts[at] > 0))[0] if len(known) else np.empty(0, np.intp)
    at = at[here]
    ends = np.cumsum(counts[at])
    begin = 0
    while begin < len(here):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + _AT_ONCE)), begin + 1)
        each = counts[at[begin:end]]
        of = np.repeat(np.arange(begin, end), each)
        place = np.arange(len(of)) - np.repeat(np.cumsum(each) - each, each)
        yield here[of], order[starts[at[of]] + place]
        begin = end


def _distance(one: Array, other: Array) -> Array:
    """Bits in which packed hashes differ, row by row."""
    differ = np.ascontiguousarray(one).view(np.uint64) ^ np.ascontiguousarray(other).view(np.uint64)
    distance: Array = np.bitwise_count(differ).sum(1, dtype=np.intp)
    return distance
