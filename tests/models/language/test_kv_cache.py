"""What prompts begin with is computed once, and no answer is another than it would have been, nor another picture's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import FAMILIES, language_and_features

from qsplit.errors import UsageError
from qsplit.features.features import Features
from qsplit.models.language import model as language_module
from qsplit.models.language.kv_cache import Prefix, PrefixCache, common_length
from qsplit.models.language.model import LanguageModel, Sampling

QUESTIONS = ("What is it?", "How many red circles are there in this picture, please?", "Is there a dog?", "有几个？")
SAMPLING = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module", params=FAMILIES)
def halves(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, list[Features]]:
    return language_and_features(tmp_path_factory.mktemp("whole"), request.param)


@pytest.fixture
def language(halves: tuple[LanguageModel, list[Features]], monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setattr(halves[0], "prefixes", PrefixCache(2**30))
    return halves[0]


@pytest.fixture
def features(halves: tuple[LanguageModel, list[Features]]) -> list[Features]:
    return halves[1]


@contextmanager
def counted(language: LanguageModel) -> Iterator[list[int]]:
    """How many tokens of how many rows each pass computes, as rows times tokens."""
    passes: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        given = kwargs["inputs_embeds"]
        passes.append(given.shape[0] * given.shape[1])

    hook = language._model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    yield passes
    hook.remove()


def alone(language: LanguageModel, features: list[Features], question: str, **options: Any) -> tuple[int, ...]:
    return language.answer(features, question, sampling=SAMPLING, **options).tokens


@pytest.mark.parametrize("chosen", [(0,), (2, 0), (1, 1), ()])
def test_answers_together_are_those_of_each_alone(
    language: LanguageModel, features: list[Features], chosen: tuple[int, ...]
) -> None:
    shown = [features[i] for i in chosen]
    expected = [alone(language, shown, question) for question in QUESTIONS]
    assert len(set(expected)) == len(QUESTIONS)
    for _ in range(2):  # with nothing known, and behind what the first round left
        found = language.answers(shown, QUESTIONS, sampling=SAMPLING)
        assert [one.tokens for one in found] == expected
        assert not any(one.exact for one in found)
    assert [alone(language, shown, question, reuse=True) for question in QUESTIONS] == expected


def test_pictures_of_one_size_are_never_mixed_up(language: LanguageModel, features: list[Features]) -> None:
    """The prompts have the same token ids; only the features tell the pictures apart."""
    first, second, *_ = features
    for shown in ([first], [second], [first, second], [second, first], [first]):
        prompt = language.prompt(shown, QUESTIONS[0])
        assert len(prompt.pictures) == len(shown)
        expected = alone(language, shown, QUESTIONS[0])
        assert alone(language, shown, QUESTIONS[0], reuse=True) == expected
    assert len(language.prefixes) == 4


def test_features_of_one_payload_and_two_grids_are_never_mixed_up(
    language: LanguageModel, features: list[Features]
) -> None:
    """The tokens of a plain picture may all be alike; where they lie in the picture is not."""
    wide = next(one for one in features if one.grid_thw[1] != one.grid_thw[2])
    tall = replace(wide, grid_thw=(wide.grid_thw[0], wide.grid_thw[2], wide.grid_thw[1]))
    assert wide.to_payload() == tall.to_payload()
    prompts = [language.prompt([one], QUESTIONS[0]) for one in (wide, tall)]
    assert torch.equal(prompts[0].input_ids, prompts[1].input_ids)
    for one in (wide, tall):
        assert language.answer([one], QUESTIONS[0], sampling=SAMPLING, reuse=True).exact
    assert len(language.prefixes) == 2


def test_a_follow_up_computes_what_is_new(language: LanguageModel, features: list[Features]) -> None:
    shown = features[:1]
    history: list[tuple[str, str]] = []
    for question in QUESTIONS:
        expected = alone(language, shown, question, history=history)
        length = language.prompt(shown, question, history=history).input_ids.shape[1]
        with counted(language) as passes:
            answer = language.answer(shown, question, history=history, sampling=SAMPLING, reuse=True)
        assert answer.tokens == expected
        assert answer.exact == (not history)
        assert passes[0] == length if not history else passes[0] < length / 2
        history.append((question, answer.text))
    assert len(language.prefixes) == 1


def test_the_picture_is_computed_once_for_all_questions(language: LanguageModel, features: list[Features]) -> None:
    prompts = [language.prompt(features[:1], question) for question in QUESTIONS]
    shared = common_length([prompt.input_ids[0] for prompt in prompts])
    assert shared >= prompts[0].pictures_end > len(features[0])
    own = sum(prompt.input_ids.shape[1] - shared for prompt in prompts)
    with counted(language) as passes:
        language.answers(features[:1], QUESTIONS, sampling=SAMPLING)
        language.answers(features[:1], QUESTIONS, sampling=Sampling(max_new_tokens=1))
    assert passes[:2] == [shared + own, len(QUESTIONS)]
    assert passes[-1] == own


@pytest.mark.parametrize("attention", ["eager", "another"])
def test_answers_are_the_same_by_another_kind_of_attention(
    attention: str, features: list[Features], language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes no mask of one's own answers each question behind what is known."""
    expected = [one.tokens for one in language.answers(features[:1], QUESTIONS, sampling=SAMPLING)]
    if attention == "eager":
        language = LanguageModel.from_pretrained(str(language.checkpoint.folder), attention="eager")
    else:
        monkeypatch.setattr(language, "_mask_type", None)
    with counted(language) as passes:
        found = language.answers(features[:1], QUESTIONS, sampling=SAMPLING)
    assert [one.tokens for one in found] == expected
    reads = [tokens for tokens in passes if tokens > len(QUESTIONS)]
    assert len(reads) == (1 if attention == "eager" else len(QUESTIONS))


def test_a_budget_of_tokens_bounds_what_is_answered_at_once(
    language: LanguageModel, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [one.tokens for one in language.answers(features[:1], QUESTIONS, sampling=SAMPLING)]
    longest = max(language.prompt(features[:1], question).input_ids.shape[1] for question in QUESTIONS)
    for name, budget in (
        ("_TOKENS_AT_ONCE", 1),
        ("_TOKENS_AT_ONCE", 3 * (longest + SAMPLING.most)),
        ("_TAILS_AT_ONCE", 1),
    ):
        monkeypatch.setattr(language_module, name, budget)
        found = language.answers(features[:1], QUESTIONS, sampling=SAMPLING)
        assert [one.tokens for one in found] == expected


def test_another_system_prompt_is_another_beginning(language: LanguageModel, features: list[Features]) -> None:
    for system in ("", "Answer in one word.", "Answer in one line.", ""):
        expected = alone(language, features[:1], QUESTIONS[0], system=system)
        answer = language.answer(features[:1], QUESTIONS[0], system=system, sampling=SAMPLING, reuse=True)
        assert (answer.tokens, answer.exact) == (expected, True)
    assert len(language.prefixes) == 1


def test_what_is_drawn_is_drawn_for_each_question_alone(language: LanguageModel, features: list[Features]) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.7, seed=3)
    expected = [language.answer(features[:1], one, sampling=sampling).tokens for one in QUESTIONS]
    assert [one.tokens for one in language.answers(features[:1], QUESTIONS, sampling=sampling)] == expected


def test_one_question_alone_is_exact(language: LanguageModel, features: list[Features]) -> None:
    (answer,) = language.answers(features[:1], QUESTIONS[:1], sampling=SAMPLING)
    assert answer.exact
    assert language.answers(features[:1], [], sampling=SAMPLING) == []


def test_a_prompt_that_does_not_fit_is_said_before_anything_is_computed(
    language: LanguageModel, features: list[Features]
) -> None:
    with counted(language) as passes, pytest.raises(UsageError, match="context is 4096"):
        language.answers(features[:1], ["short", "long " * 5000], sampling=SAMPLING)
    assert passes == []


def test_what_is_kept_stays_within_its_bound(language: LanguageModel, features: list[Features]) -> None:
    language.answers(features[:1], QUESTIONS, sampling=SAMPLING)
    one = language.prefixes.nbytes
    language.prefixes = PrefixCache(2 * one + one // 2)
    orders = [features[:1], features[1:2], features[:1], [features[0], features[1]], [features[1], features[0]]]
    for shown in orders:
        language.answers(shown, QUESTIONS, sampling=SAMPLING)
        assert 0 < language.prefixes.nbytes <= language.prefixes.max_bytes
    language.prefixes = PrefixCache(one - 1)  # too little for any
    language.answers(features[:1], QUESTIONS, sampling=SAMPLING)
    assert len(language.prefixes) == language.prefixes.nbytes == 0


def test_the_one_used_last_stays() -> None:
    class Layer:
        def __init__(self) -> None:
            self.keys = self.values = torch.zeros(4)  # 16 bytes

    class Held:
        def __init__(self) -> None:
            self.layers = [Layer()]

    def prefix(name: str) -> Prefix:
        return Prefix(torch.tensor([1]), (name,), Held(), torch.zeros(1, 1))

    cache = PrefixCache(3 * 32)
    for name in "abc":
        cache.put(prefix(name))
    taken = cache.take(("a",))
    assert taken is not None
    assert cache.take(("a",)) is None
    cache.put(taken)
    cache.put(prefix("d"))
    assert [name for name in "abcd" if cache.take((name,))] == ["a", "c", "d"]
