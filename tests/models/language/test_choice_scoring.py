"""Choices: the probability that an answer begins with each, by the model's own logits, however they are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from models import FAMILIES, by_tier, make_checkpoint, unsplit
from PIL import Image
from tiled import TILED

from qsplit.errors import IncompatibleFeatures, UsageError
from qsplit.features.features import Features
from qsplit.models.language.choice_scoring import Choice, Ways, calibrated
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder

ASKED = [
    ("Is there a red circle?", ["yes", "no"]),
    ("有几个？", ["一个", "两个", "三个"]),
    ("Where is it in the picture, please?", ["top", "top left", "top left corner", "bottom right"]),
]
WORDS = ("yes", "Yes", "no", "No", "on", "sure")


def words(text: str) -> tuple[int, ...]:
    """A tokenizer of a few words."""
    return tuple(WORDS.index(word) for word in text.split())


def by_hand(logits: Sequence[Sequence[float]]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.float64).log() for row in logits]


def test_both_cases_of_the_first_letter_count() -> None:
    ways = Ways(["yes", "no"], words)
    assert ways.rows == [()]
    found = ways.score([torch.stack(by_hand([[0.3, 0.2, 0.1, 0.15, 0.05, 0.2]]))], exact=True)
    assert found.mass == pytest.approx(0.75)
    assert found.probabilities == pytest.approx({"yes": 0.5 / 0.75, "no": 0.25 / 0.75})
    assert found.best == "yes"


def test_a_choice_that_begins_another_has_what_that_leaves() -> None:
    ways = Ways(["no", "no sure", "no sure no"], lambda text: words(text.lower()))
    assert ways.rows == [(2, 5)]
    first, second, third = [0, 0, 0.8, 0, 0.2, 0], [0, 0, 0.1, 0, 0.4, 0.5], [0, 0, 0.25, 0, 0.75, 0]
    found = ways.score([torch.stack(by_hand([first, second, third]))], exact=False)
    assert found.probabilities == pytest.approx({"no": 0.5, "no sure": 0.375, "no sure no": 0.125})
    assert found.mass == pytest.approx(0.8)


def test_choices_that_the_model_would_never_say_are_equal() -> None:
    found = Ways(["yes", "no"], words).score([torch.stack(by_hand([[0, 0, 0, 0, 1, 0]]))], exact=True)
    assert found.probabilities == {"yes": 0.5, "no": 0.5}
    assert found.mass == 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [([], "not 0"), (["yes"], "not 1"), (["yes", " "], "empty"), (["yes", "yes"], "alike"), (["yes", "Yes"], "alike")],
)
def test_choices_that_cannot_be_told_apart_are_refused(choices: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ways(choices, words)


def test_calibration_divides_by_the_prior() -> None:
    found = calibrated(Choice({"a": 0.6, "b": 0.4}, 0.9, True), Choice({"a": 0.75, "b": 0.25}, 0.5, False))
    assert found.probabilities == pytest.approx({"a": 0.8 / 2.4, "b": 1.6 / 2.4})
    assert (found.mass, found.exact) == (0.9, False)


@pytest.fixture(
    scope="module",
    params=by_tier([*FAMILIES, "qwen3_5", "glm4v", "exaone4_5", *TILED], thorough=["qwen2_5_vl", "glm4v", "internvl"]),
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole"), request.param, dtype="float32")


@pytest.fixture(scope="module")
def language(checkpoint: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(str(checkpoint))


@pytest.fixture(scope="module")
def features(checkpoint: Path) -> list[Features]:
    pictures = [Image.linear_gradient("L").resize((112, 84)).convert("RGB"), Image.new("RGB", (140, 112), "red")]
    return VisionEncoder.from_pretrained(str(checkpoint)).encode(pictures)


def expected(language: LanguageModel, features: list[Features], question: str, choices: list[str]) -> dict[str, float]:
    """Of one choice after another, by the logits over the whole prompt with the choice behind it."""
    prompt = language.prompt(features, question)
    length = prompt.input_ids.shape[1]
    model = unsplit(language.checkpoint.folder, "float32").to(language._model.device)
    chances: dict[str, float] = {}
    for choice in choices:
        total = 0.0
        for said in {choice, choice[0].upper() + choice[1:]}:
            tokens = language.tokens_of(said)
            whole = language.prompt(features, question)
            whole.input_ids = torch.cat([prompt.input_ids, torch.tensor([tokens])], dim=1)
            whole.mm_token_type_ids = torch.nn.functional.pad(prompt.mm_token_type_ids, (0, len(tokens)))
            with torch.no_grad():
                logits = model(**language._inputs(whole)).logits[0].log_softmax(-1)
            total += math.exp(sum(float(logits[length - 1 + i, token]) for i, token in enumerate(tokens)))
        chances[choice] = total
    for choice in sorted(choices, key=len):
        longer = [other for other in choices if other.startswith(choice + " ")]
        chances[choice] -= sum(chances[one] for one in longer[:1])
    return chances


@pytest.mark.parametrize("chosen", [(0,), (1, 0), ()])
def test_probabilities_are_the_unsplit_models(
    language: LanguageModel, features: list[Features], chosen: tuple[int, ...]
) -> None:
    shown = [features[i] for i in chosen]
    exact = language.choose(shown, ASKED, exact=True)
    for _ in range(2):  # with nothing known, and behind what was kept
        together = language.choose(shown, ASKED)
        for (question, choices), one, alone in zip(ASKED, together, exact, strict=True):
            wanted = expected(language, shown, question, choices)
            mass = sum(wanted.values())
            for found in (one, alone):
                assert found.mass == pytest.approx(mass, rel=1e-3)
                assert found.probabilities == pytest.approx(
                    {name: chance / mass for name, chance in wanted.items()}, rel=1e-3, abs=1e-6
                )
            assert alone.exact
            assert one.exact == (not language.can_share)
            assert sum(one.probabilities.values()) == pytest.approx(1)


def test_calibration_asks_of_as_many_pictures_that_show_nothing(
    language: LanguageModel, features: list[Features]
) -> None:
    null = features[1]
    for some in (features[:1], features):
        plain = language.choose(some, ASKED[:1], exact=True)
        prior = language.choose([null] * len(some), ASKED[:1], exact=True)
        assert language.choose(some, ASKED[:1], exact=True, prior=null) == list(map(calibrated, plain, prior))


def test_nothing_can_be_told_of_a_picture_that_shows_nothing(language: LanguageModel, features: list[Features]) -> None:
    (found,) = language.choose(features[:1], ASKED[:1], exact=True, prior=features[0])
    assert found.probabilities == pytest.approx({"yes": 0.5, "no": 0.5})


def test_features_are_checked(language: LanguageModel, mini_vision: VisionEncoder) -> None:
    foreign = mini_vision.encode([Image.new("RGB", (56, 56))])
    with pytest.raises(IncompatibleFeatures):
        language.choose(foreign, ASKED)


def test_no_question_has_no_choice(language: LanguageModel, features: list[Features]) -> None:
    assert language.choose(features[:1], []) == []
