"""Vectors of what is seen, that texts can be compared with, from the language half over stored features.

What a vector is of, and how it was made, is its identity: encoder, language weights, prompts, layer and means. Vectors
of two identities are never compared. Of a checkpoint that was not trained for it, pictures and texts lie in two places
far apart, so the mean of each is taken off: that of pictures is measured over some of the album when its first vectors
are made, and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

import numpy as np

from qsplit.errors import InvalidFeatures, UsageError
from qsplit.features.features import Features
from qsplit.features.layouts import PATCHES
from qsplit.models.language.model import LanguageModel
from qsplit.models.language.prompts import Prompt
from qsplit.models.retrieval_config import Retrieval
from qsplit.search.backfill import Filled, made_of
from qsplit.search.backfill import fill as fill_with
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import SemanticsRow, semantics_key
from qsplit.store.tables.vectors import Vector

__all__ = ["Semantics", "fill", "known", "semantic_vectors", "text_vectors"]

_TOKENS_AT_ONCE = 2_048  # in a pass, in which the states of all layers are held
_MEASURED = 128  # pictures that a mean is taken over
_FEWEST = 32  # fewer say too little of where pictures lie
_NONE = np.empty(0, np.float32)
_TEXTS = (
    "a dog on a beach", "a red car in the street", "people at a table", "a city at night", "mountains and snow",
    "a child with a toy", "food on a plate", "a cat on a sofa", "a sheet of text", "flowers in a garden", "a sunset",
    "two friends at a wedding", "an old building", "a boat on a lake", "a screenshot of a phone", "an empty room",
    "沙滩上的狗", "街上的红色汽车", "桌子旁边的人", "城市夜景", "雪山", "拿着玩具的孩子", "盘子里的食物", "沙发上的猫",
    "一页文字", "花园里的花", "日落", "婚礼上的两个朋友", "老房子", "湖上的船", "手机截图", "空房间",
)  # fmt: skip


@dataclass(frozen=True)
class Semantics:
    """An identity of semantic vectors; a mean is ``(width,)``, or ``(0,)`` where none is taken off."""

    encoder_id: str
    language_weights: str
    retrieval: Retrieval
    image_mean: Vector = field(default_factory=lambda: _NONE, repr=False, compare=False)
    text_mean: Vector = field(default_factory=lambda: _NONE, repr=False, compare=False)

    @cached_property
    def id(self) -> str:
        """The key of the row that tells of them."""
        means = (self.image_mean, self.text_mean)
        return semantics_key(self.encoder_id, self.language_weights, _json(self.retrieval), *means)


def known(store: FeatureStore, language: LanguageModel, encoder_id: str) -> Semantics | None:
    """The identity by which a language half searches an encoder's pictures; None if there never was a vector of it."""
    weights, retrieval = language.checkpoint.fingerprint("language"), language.checkpoint.retrieval
    rows = [
        row
        for row in store.semantics(encoder_id)
        if (row.language_weights, row.retrieval) == (weights, _json(retrieval))
    ]
    # Of several, as processes that race may make, all take the same: the first that is centred, if one is.
    row = min(rows, key=lambda row: not row.image_mean, default=None)
    if row is None:
        return None
    means = (np.array(mean, np.float32) for mean in (row.image_mean, row.text_mean))
    return Semantics(encoder_id, weights, retrieval, *means)


def semantic_vectors(language: LanguageModel, semantics: Semantics, features: Sequence[Features]) -> Vector:
    """Unit vectors ``(n, width)`` of pictures, many in a pass; raises as `LanguageModel.answer` does."""
    return _unit(_states_of_pictures(language, features), semantics.image_mean)


def text_vectors(language: LanguageModel, semantics: Semantics, texts: Sequence[str]) -> Vector:
    """Unit vectors ``(n, width)`` of texts; raises `UsageError` for one that is empty or too long."""
    if not all(text.strip() for text in texts):
        raise UsageError("There is nothing to search for in an empty text.")
    return _unit(_states_of_texts(language, texts), semantics.text_mean)


def fill(
    store: FeatureStore,
    language: LanguageModel,
    encoder_id: str,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Filled:
    """Give every picture of an encoder that lacks it its semantic vector; see `qsplit.search.backfill.fill`.

    Vectors of another identity are replaced.
    """
    measured: dict[str, Vector] = {}  # what was read for the mean is not read again
    semantics = _settled(store, language, encoder_id, measured)
    vectors = store.vectors(encoder_id, semantics.id)

    def make(features: Sequence[Features]) -> list[Vector]:
        new = [one for one in features if one.digest() not in measured]
        measured.update(zip((one.digest() for one in new), _states_of_pictures(language, new), strict=True))
        states = np.stack([measured.pop(one.digest()) for one in features])
        return list(_unit(states, semantics.image_mean))

    def put(made: Mapping[str, Vector]) -> None:
        if made:
            vectors.put_semantic(list(made), np.stack(list(made.values())))

    lacking = vectors.lacking("semantic", semantics.id)
    return fill_with(store, encoder_id, lacking, make, put, on_progress=on_progress)


def _settled(store: FeatureStore, language: LanguageModel, encoder_id: str, measured: dict[str, Vector]) -> Semantics:
    """The identity of the vectors to make, remembered by the store; what a mean is measured over goes to ``measured``.

    As long as there are few pictures no mean is taken off; once there are more, their vectors are made anew.
    """
    held, retrieval = known(store, language, encoder_id), language.checkpoint.retrieval
    if held is not None and (len(held.image_mean) or not retrieval.centred):
        return held
    digests = {one.pixels_digest for one in store.vectors(encoder_id).lacking("semantic", "")}
    if retrieval.centred and len(digests) >= _FEWEST:
        _measure(store, language, encoder_id, sorted(digests)[:_MEASURED], measured)
    elif held is not None:
        return held
    means = (_NONE, _NONE)
    if len(measured) >= _FEWEST // 2:
        means = (np.mean(list(measured.values()), axis=0), _states_of_texts(language, _TEXTS).mean(axis=0))
    made = Semantics(encoder_id, language.checkpoint.fingerprint("language"), retrieval, *means)
    store.put_semantics(_row(made, language))
    return made


def _measure(
    store: FeatureStore, language: LanguageModel, encoder_id: str, digests: list[str], measured: dict[str, Vector]
) -> None:
    def make(features: Sequence[Features]) -> list[Vector]:
        states = list(_states_of_pictures(language, features))
        measured.update(zip((one.digest() for one in features), states, strict=True))
        return states

    for start in range(0, len(digests), 32):
        made_of(store, encoder_id, digests[start : start + 32], make, {})


def _row(made: Semantics, language: LanguageModel) -> SemanticsRow:
    return SemanticsRow(
        made.id,
        made.encoder_id,
        made.language_weights,
        language.checkpoint.name,
        language.checkpoint.revision,
        _json(made.retrieval),
        tuple(made.image_mean.tolist()),
        tuple(made.text_mean.tolist()),
        datetime.now(UTC),
    )


def _json(retrieval: Retrieval) -> str:
    return json.dumps(retrieval.identity(), sort_keys=True, ensure_ascii=False)


def _states_of_pictures(language: LanguageModel, features: Sequence[Features]) -> Vector:
    ending = language.checkpoint.retrieval.image_prompt
    return _states(language, [_prompt(language, [one], "", ending) for one in features])


def _states_of_texts(language: LanguageModel, texts: Sequence[str]) -> Vector:
    ending = language.checkpoint.retrieval.text_prompt
    return _states(language, [_prompt(language, [], text.strip(), ending) for text in texts])


def _prompt(language: LanguageModel, features: Sequence[Features], text: str, ending: str) -> Prompt:
    system = language.checkpoint.retrieval.system
    try:
        return language.prompt(features, text, system=system, ending=ending)
    except UsageError:  # a template that has no place for a system prompt, or a text that no prompt can hold
        return language.prompt(features, f"{system}\n{text}", ending=ending)


def _states(language: LanguageModel, prompts: Sequence[Prompt]) -> Vector:
    """The states ``(n, width)`` at the prompts' ends, those of like length in one pass."""
    found: dict[int, Vector] = {}
    for some in _passes(language, prompts):
        states = language.states([prompts[i] for i in some], language.checkpoint.retrieval.layer).numpy()
        found.update(zip(some, states, strict=True))
    return (
        np.stack([found[i] for i in range(len(prompts))])
        if prompts
        else np.empty((0, language.checkpoint.width), np.float32)
    )


def _passes(language: LanguageModel, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Numbers of prompts that share a pass, all filled up to the longest of them."""
    # A picture that is shown in pieces takes a pass of its own: models put several pictures' pieces in one row.
    most = _TOKENS_AT_ONCE if language.checkpoint.family.layout == PATCHES else 0
    some: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i].input_ids.shape[1]):
        if some and (len(some) + 1) * prompts[i].input_ids.shape[1] > most:
            yield some
            some = []
        some.append(i)
    if some:
        yield some


def _unit(states: Vector, mean: Vector) -> Vector:
    vectors = states - mean if len(mean) else states
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise InvalidFeatures("The language half's state over the picture or text has no direction.")
    unit: Vector = (vectors / lengths).astype(np.float32)
    return unit
