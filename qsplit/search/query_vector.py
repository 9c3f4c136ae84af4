"""Terms of a query -> the vector that is searched by, made by the halves that this takes and no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qsplit.errors import NotIndexed, UsageError
from qsplit.features.features import Features
from qsplit.media.images import Limits, Picture, open_picture
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search.query_parser import Term
from qsplit.search.semantic_vectors import Semantics, known, semantic_vectors, text_vectors
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import locate
from qsplit.store.tables.vectors import Column, Vector

__all__ = ["Halves", "Like", "Target", "aim", "semantics_of"]

Like = str | os.PathLike[str] | Image.Image
_LEAST = 1e-4  # of the terms' weights, that is left of them together


@dataclass(frozen=True, slots=True)
class Halves:
    """Who makes vectors and answers questions, each loaded when it is first called for."""

    language: Callable[[], LanguageModel]
    vision: Callable[[], VisionEncoder]
    limits: Limits


@dataclass(frozen=True)
class Target:
    """The unit vector ``(width,)`` that a column is searched by; ``without`` are the pictures that the query names.

    ``is_text`` says that nothing but one text made it: what was measured of texts then holds for it.
    """

    column: Column
    vector: Vector
    semantics_id: str = ""
    without: frozenset[str] = frozenset()
    is_text: bool = False


def aim(store: FeatureStore, encoder_id: str, terms: Sequence[Term], like: Sequence[Like], halves: Halves) -> Target:
    """The target of terms, and of pictures that are looked for beside them.

    Pictures alone are compared by their pooled features, which takes no language half, and for those of the album no
    half at all; texts by semantic vectors. The vectors of several are added, each by its weight. Raises `NotIndexed`
    where the album has no such vectors, and `UsageError` for terms that cancel each other out.
    """
    wanted: list[tuple[float, Like]] = [(term.weight, term.value) for term in terms if term.kind == "picture"]
    pictures = _Pictures(store, encoder_id, [*wanted, *((1.0, one) for one in like)], halves)
    texts = [term for term in terms if term.kind == "text"]
    if not texts:
        return Target("pooled", _sum(pictures.pooled()), without=pictures.named)
    semantics = semantics_of(store, halves.language(), encoder_id)
    made = text_vectors(halves.language(), semantics, [term.value for term in texts])
    parts = [(term.weight, vector) for term, vector in zip(texts, made, strict=True)]
    vector = _sum([*parts, *pictures.semantic(semantics)])
    return Target("semantic", vector, semantics.id, pictures.named, is_text=len(parts) == 1 and not pictures.found)


def semantics_of(store: FeatureStore, language: LanguageModel, encoder_id: str) -> Semantics:
    """By what texts and pictures are compared; raises `NotIndexed` where that was not made yet."""
    semantics = known(store, language, encoder_id)
    if semantics is None:
        raise NotIndexed(
            "The album has no vectors that a text could be compared with.",
            fix="Make them: `qsplit refresh --semantic`.",
        )
    return semantics


class _Pictures:
    """The pictures of a query: those of the album by their ids, others as they are."""

    def __init__(
        self, store: FeatureStore, encoder_id: str, wanted: Sequence[tuple[float, Like]], halves: Halves
    ) -> None:
        self._store, self._encoder_id, self._halves = store, encoder_id, halves
        self.found = [(weight, self._find(one)) for weight, one in wanted]
        self.named = frozenset(one for _, one in self.found if isinstance(one, str))

    def _find(self, one: Like) -> str | Picture | Image.Image:
        if isinstance(one, Image.Image):
            return one
        try:
            return locate(self._store, one, self._halves.limits).image.image_id
        except NotIndexed:
            return open_picture(one, self._halves.limits)

    def pooled(self) -> list[tuple[float, Vector]]:
        return self._vectors("pooled", "", lambda features: features.pooled())

    def semantic(self, semantics: Semantics) -> list[tuple[float, Vector]]:
        def make(features: Features) -> Vector:
            vector: Vector = semantic_vectors(self._halves.language(), semantics, [features])[0]
            return vector

        return self._vectors("semantic", semantics.id, make)

    def _vectors(
        self, column: Column, semantics_id: str, make: Callable[[Features], Vector]
    ) -> list[tuple[float, Vector]]:
        held = self._store.vectors(self._encoder_id, semantics_id).get(column, self.named)
        for image_id in self.named - held.keys():
            fix = "Run `qsplit index` on it." if column == "pooled" else "Run `qsplit refresh --semantic`."
            name = next(iter(self._store.paths_of([image_id]).get(image_id, ())), image_id[:12])
            raise NotIndexed(f"{name} has no {column} vector of the current encoder.", fix=fix)
        return [
            (weight, held[one] if isinstance(one, str) else make(self._halves.vision().encode([one])[0]))
            for weight, one in self.found
        ]


def _sum(parts: Sequence[tuple[float, Vector]]) -> Vector:
    """The unit vector ``(width,)`` of weighted unit vectors."""
    total: Vector = np.sum([np.float32(weight) * vector for weight, vector in parts], axis=0, dtype=np.float32)
    length = float(np.linalg.norm(total))
    if length <= _LEAST * sum(abs(weight) for weight, _ in parts):
        raise UsageError("The terms of the query cancel each other out.", fix="Give one of them more weight: `2:TEXT`.")
    vector: Vector = total / np.float32(length)
    return vector
