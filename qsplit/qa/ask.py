"""Questions over stored features. Nothing here can reach the vision half: what is asked about is what was stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qsplit.errors import IncompatibleFeatures, NotIndexed
from qsplit.features.codecs import is_lossless
from qsplit.features.features import Features
from qsplit.models.language.backend import Answerer
from qsplit.models.language.model import Answer, Sampling
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture
from qsplit.store.records import FeatureHead

__all__ = ["AskedImage", "Reply", "Seconds", "ask", "best_head", "fetch"]


@dataclass(frozen=True, slots=True)
class AskedImage:
    id: str
    path: str | None


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of an answer went: reading features, the first token, the tokens after it."""

    fetch: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what it rests on; ``exact`` says that the unsplit model would have given it token for token."""

    images: tuple[AskedImage, ...]
    question: str
    answer: str
    tokens: tuple[int, ...]
    model: str
    encoder: str
    exact: bool
    seconds: Seconds


def ask(
    store: FeatureStore,
    language: Answerer,
    pictures: Sequence[StoredPicture],
    questions: Sequence[str],
    *,
    system: str = "",
    history: Sequence[tuple[str, str]] = (),
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] | None = None,
    exact: bool = False,
) -> Iterator[Reply]:
    """One reply per question, each about all the pictures in the order given.

    ``history`` holds earlier (question, answer) pairs. What questions begin with is computed once for all of them,
    and many are answered at a time; ``exact`` computes each by itself, as the unsplit model would. Raises `NotIndexed`
    for a picture without features and `IncompatibleFeatures` for features that this language model was not made for.
    """
    began = time.perf_counter()
    features = fetch(store, language, pictures)
    seconds = time.perf_counter() - began
    images = tuple(AskedImage(picture.image.image_id, picture.path) for picture in pictures)
    options: dict[str, Any] = {"system": system, "history": history, "sampling": sampling}
    answers: Iterable[Answer]
    if exact or on_text is not None:
        answers = (language.answer(features, one, **options, on_text=on_text, reuse=not exact) for one in questions)
    else:
        answers = language.answers(features, questions, **options)
    for question, answer in zip(questions, answers, strict=True):
        yield Reply(
            images,
            question,
            answer.text,
            answer.tokens,
            model=language.checkpoint.name,
            encoder=features[0].encoder.id,
            exact=answer.exact,
            seconds=Seconds(seconds, answer.prefill, answer.decode),
        )
        seconds = 0.0  # fetched once for all questions


def fetch(store: FeatureStore, language: Answerer, pictures: Sequence[StoredPicture]) -> list[Features]:
    """The features of each picture that the language model can take, the exact ones first choice."""
    heads = store.heads(picture.image.pixels_digest for picture in pictures)
    chosen = [best_head(picture, heads, language).key for picture in pictures]
    found = store.get_features(chosen)
    return [found[key] for key in chosen]


def best_head(picture: StoredPicture, heads: Sequence[FeatureHead], language: Answerer) -> FeatureHead:
    """Of the features rows of some pictures, the one of this picture that the language model can take best.

    Raises `NotIndexed` if there is none of it, `IncompatibleFeatures` if none that was made for the model.
    """
    name = picture.path or picture.image.image_id[:12]
    own = [head for head in heads if head.pixels_digest == picture.image.pixels_digest]
    if not own:
        raise NotIndexed(f"{name} has no features in the store.", fix=f"Run `qsplit index {name}`.")
    refusals: list[IncompatibleFeatures] = []
    inexact: list[FeatureHead] = []
    for head in own:
        try:
            if language.check(head.encoder) and is_lossless(head.codec):
                return head
            inexact.append(head)
        except IncompatibleFeatures as error:
            refusals.append(error)
    if inexact:
        return inexact[0]
    raise min(refusals, key=lambda refusal: len(refusal.reasons))
