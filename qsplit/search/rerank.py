"""Pictures asked whether they are what a text says: multiple-choice questions over their stored features.

A model that was taught to judge any sentence is asked whether the picture shows it. A checkpoint that was taught other
questions says in its ``retrieval.json`` which: each has a pattern that finds, in a text, what it is asked about. What a
picture scores is how likely the wanted answer is, for several questions the product, as if each were by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsplit.errors import CheckpointError, InvalidFeatures, NotIndexed
from qsplit.features.features import Features
from qsplit.models.language.model import LanguageModel
from qsplit.models.retrieval_config import RETRIEVAL
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import feature_key

__all__ = ["ANY", "Form", "RerankQuestion", "asked_of", "chance", "forms_of", "probabilities", "probability"]

_FETCHED = 32  # pictures whose features are in memory at a time


@dataclass(frozen=True, slots=True)
class RerankQuestion:
    """A question, the answers to choose from, and the one that makes a picture fit."""

    question: str
    choices: tuple[str, ...]
    wanted: str


@dataclass(frozen=True, slots=True)
class Form:
    """A way of asking: where ``pattern`` is found in a text, its named groups fill ``question`` and ``wanted``.

    ``means`` replaces what then stands in ``wanted``, as texts may say in other words what is answered.

    >>> side = Form("a (?P<a>[a-z]+) (?P<side>left|right) of a (?P<b>[a-z]+)", "Is the {a} left or right of the {b}?",
    ...             ("left", "right"), "{side}")
    >>> side.asked("a cat left of a dog")
    [RerankQuestion(question='Is the cat left or right of the dog?', choices=('left', 'right'), wanted='left')]
    """

    pattern: str
    question: str
    choices: tuple[str, ...]
    wanted: str
    means: Mapping[str, str] = field(default_factory=dict)

    def asked(self, text: str) -> list[RerankQuestion]:
        """What is asked about each place of a text where the pattern is found."""
        found = [one.groupdict() for one in re.finditer(self.pattern, text, re.IGNORECASE)]
        wanted = [self.wanted.format_map(groups).lower() for groups in found]
        return [
            RerankQuestion(self.question.format_map(groups), self.choices, self.means.get(answer, answer))
            for groups, answer in zip(found, wanted, strict=True)
        ]


ANY = Form("(?s)^(?P<text>.+)$", "Does the picture show this: {text}? Answer yes or no.", ("yes", "no"), "yes")


def forms_of(language: LanguageModel) -> tuple[Form, ...]:
    """The questions that a checkpoint says it was taught; raises `CheckpointError` for one that makes no sense."""
    try:
        forms = tuple(_form(given) for given in language.checkpoint.retrieval.questions)
    except (TypeError, ValueError, KeyError, re.error) as error:
        raise CheckpointError(
            f"{RETRIEVAL} of {language.checkpoint.name} holds a question that is none: {error}."
        ) from error
    return forms


def asked_of(texts: Sequence[str], forms: Sequence[Form]) -> list[RerankQuestion]:
    """All that is asked of a picture to know whether it is what the texts say, each question once."""
    asked: dict[RerankQuestion, None] = {}
    for text in texts:
        found = [one for form in forms for one in form.asked(text)]
        asked |= dict.fromkeys(found or ANY.asked(text))
    return list(asked)


def chance(texts: Sequence[str], forms: Sequence[Form]) -> float:
    """The log odds with which a guess answers each question of some texts, added up.

    >>> chance(["a red boat"], [])
    0.0
    """
    return sum(-math.log(len(one.choices) - 1) for one in asked_of(texts, forms))


def probabilities(language: LanguageModel, features: Features, asked: Sequence[RerankQuestion]) -> list[float]:
    """How likely the wanted answer to each question is; raises as `LanguageModel.choose` does."""
    chosen = language.choose([features], [(one.question, one.choices) for one in asked])
    return [choice.probabilities[one.wanted] for choice, one in zip(chosen, asked, strict=True)]


def probability(
    store: FeatureStore, language: LanguageModel, encoder_id: str, pictures: Mapping[str, str], texts: Sequence[str]
) -> dict[str, float]:
    """Image id -> how likely it is what all of the texts say, of pictures given with their pixels digests.

    Raises `NotIndexed` for one without features of the encoder, `IncompatibleFeatures`, and `InvalidFeatures` for one
    of which the model produces NaN: nothing is known of how well it fits.
    """
    asked = asked_of(texts, forms_of(language))
    found: dict[str, float] = {}
    ids = list(pictures)
    for start in range(0, len(ids), _FETCHED):
        keys = {one: feature_key(pictures[one], encoder_id) for one in ids[start : start + _FETCHED]}
        features = store.get_features(keys.values())
        for image_id, key in keys.items():
            if key not in features:
                raise NotIndexed(
                    f"The picture {image_id[:12]} has no features of the encoder.", fix="Run `qsplit refresh`."
                )
            try:
                found[image_id] = math.prod(probabilities(language, features[key], asked))
            except InvalidFeatures as error:
                raise InvalidFeatures(
                    f"The image {image_id[:12]} cannot be judged. {error.message}", fix=error.fix
                ) from error
    return found


def _form(given: Mapping[str, Any]) -> Form:
    form = Form(**{**given, "choices": tuple(given["choices"])})
    re.compile(form.pattern)
    return form
