"""The stored patch tokens of a picture as things to be found again in another: freed of their place, and whitened.

A vision transformer writes into each token where in the frame it is, and does so more loudly than what is there: pairs
of unlike pictures agree on "top left" everywhere. So what a place alone predicts, a polynomial of the fourth degree
fitted over tokens of the album, is taken away, and directions in which all tokens vary count less. Pairs are mutual
nearest neighbours by cosine, as in image matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qsplit.features.codecs import as_float32

if TYPE_CHECKING:
    from qsplit.features.features import Features

__all__ = ["SAMPLE", "TokenGrid", "TokenSpace", "mutual"]

SAMPLE = 256  # pictures that a space is fitted over
MOST = 32  # tokens a side; a larger grid is averaged
_FITTED = 4096  # tokens
_DIRECTIONS = 256
_FLOOR = 0.01  # of the largest variance: directions of less are noise
_LEAST_COSINE = 0.3
_DEGREE = 4

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Unit vectors ``(n, d)`` and where their tokens lie, ``(n, 2)`` in long edges of the picture; ``step`` apart."""

    vectors: Vectors
    places: npt.NDArray[np.float64]
    step: float

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, eq=False)
class TokenSpace:
    """What tokens of one encoder have in common, as far as a sample of pictures tells; see `TokenSpace.fitted`."""

    by_place: Vectors  # (terms, width)
    whiten: Vectors  # (width, d)

    @classmethod
    def fitted(cls, sample: Sequence[Features]) -> TokenSpace:
        """Learn what to take away from tokens of a few hundred pictures of one encoder, in any order."""
        tokens, terms = (np.concatenate(parts) for parts in zip(*map(_flat, sample), strict=True))
        stride = -(-len(tokens) // _FITTED)
        tokens, terms = tokens[::stride], terms[::stride]
        ridge = 1e-3 * len(terms) * np.eye(terms.shape[1])
        by_place = np.linalg.solve(terms.T @ terms + ridge, terms.T @ tokens)
        left = tokens - terms @ by_place
        return cls(by_place.astype(np.float32), _whitening(left).astype(np.float32))

    def grid(self, features: Features) -> TokenGrid:
        """The tokens of a picture, ready to be compared."""
        tokens, terms = _flat(features)
        vectors = (tokens - terms @ self.by_place) @ self.whiten
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rows, columns = _shape(features)
        edge = max(rows, columns)
        return TokenGrid(vectors.astype(np.float32), _middles(rows, columns) * [columns / edge, rows / edge], 1 / edge)


def mutual(one: TokenGrid, other: TokenGrid) -> npt.NDArray[np.intp]:
    """Pairs ``(n, 2)`` of tokens each of which is the other's nearest, and near at all."""
    cosines = one.vectors @ other.vectors.T
    forth, back = cosines.argmax(1), cosines.argmax(0)
    here = np.nonzero((back[forth] == np.arange(len(one))) & (cosines.max(1) >= _LEAST_COSINE))[0]
    return np.stack([here, forth[here]], axis=1)


def _shape(features: Features) -> tuple[int, int]:
    """Rows and columns of the grid that is compared."""
    _, h, w = features.grid_thw
    merge = features.encoder.merge_size
    return min(h // merge, MOST), min(w // merge, MOST)


def _flat(features: Features) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tokens ``(n, width)`` and the terms of their places ``(n, terms)``; of a video, the mean over time."""
    t, h, w = features.grid_thw
    merge = features.encoder.merge_size
    tokens = as_float32(features.tokens, features.encoder.dtype).reshape(t, h // merge, w // merge, -1).mean(0)
    for axis, most in enumerate(_shape(features)):
        edges = np.arange(most) * tokens.shape[axis] // most
        counts = np.diff([*edges, tokens.shape[axis]])
        tokens = np.add.reduceat(tokens, edges, axis=axis) / np.expand_dims(counts, (1 - axis, 2))
    return tokens.reshape(-1, tokens.shape[-1]).astype(np.float64), _terms(_middles(*_shape(features)))


def _middles(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """Where the cells of a grid lie, x and y in 0..1, row by row."""
    y, x = np.mgrid[:rows, :columns]
    return np.stack([(x.ravel() + 0.5) / columns, (y.ravel() + 0.5) / rows], axis=1)


def _terms(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x, y = 2 * places.T - 1
    powers = [x**i * y**j for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    return np.stack(powers, axis=1)


def _whitening(left: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The main directions, scaled to even variances; every direction as it is, where the sample is too small."""
    if len(left) < 2 * left.shape[1]:
        return np.eye(left.shape[1])
    variances, directions = np.linalg.eigh(left.T @ left / len(left))
    variances, directions = variances[::-1][:_DIRECTIONS], directions[:, ::-1][:, :_DIRECTIONS]
    scaled: npt.NDArray[np.float64] = directions / np.sqrt(variances + _FLOOR * variances[0] + 1e-12)
    return scaled
