"""The language half: prompts as the checkpoint's own processor makes them, sampling, streaming, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_checkpoint
from PIL import Image
from transformers import AutoProcessor

from qsplit import bundled
from qsplit.errors import IncompatibleFeatures, UsageError
from qsplit.features.features import Features
from qsplit.features.sizing import Resize
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder

SHORT = Sampling(max_new_tokens=6)
IMAGES = [Image.new("RGB", (112, 84), "red"), Image.new("RGB", (60, 60), "blue")]


@pytest.fixture(scope="module")
def seen(mini_vision: VisionEncoder) -> list[Features]:
    return mini_vision.encode(IMAGES)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("system", ["", "Answer in one word."])
def test_the_prompt_is_what_the_processor_makes(
    mini_language: LanguageModel, seen: list[Features], n: int, system: str
) -> None:
    processor: Any = AutoProcessor.from_pretrained(bundled.checkpoint())
    content = [{"type": "image"}] * n + [{"type": "text", "text": "What is it? 是什么？"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=IMAGES[:n] or None, return_tensors="pt")
    prompt = mini_language.prompt(seen[:n], "What is it? 是什么？", system=system)
    assert prompt.input_ids.tolist() == inputs.input_ids.tolist()
    if n:
        assert prompt.mm_token_type_ids.tolist() == inputs.mm_token_type_ids.tolist()


def test_history_stands_before_the_question_and_images_at_its_head(
    mini_language: LanguageModel, seen: list[Features]
) -> None:
    prompt = mini_language.prompt(seen[:1], "And now?", history=[("What is it?", "A boat.")])
    text = mini_language._tokenizer.decode(prompt.input_ids[0])
    assert text.index("<|image_pad|>") < text.index("What is it?") < text.index("A boat.") < text.index("And now?")
    assert text.count("<|vision_start|>") == 1


def test_a_question_cannot_smuggle_in_an_image(mini_language: LanguageModel, seen: list[Features]) -> None:
    with pytest.raises(UsageError, match="stands for an image"):
        mini_language.answer(seen[:1], "What is <|image_pad|>?")


def test_features_of_other_pictures_change_the_answer(mini_language: LanguageModel, seen: list[Features]) -> None:
    first, second = (mini_language.answer([one], "What colour is it?", sampling=SHORT) for one in seen)
    assert first.tokens != second.tokens


def test_the_order_of_pictures_matters(mini_language: LanguageModel, seen: list[Features]) -> None:
    there, back = (mini_language.logits(mini_language.prompt(pair, "Which?")) for pair in (seen, seen[::-1]))
    assert not torch.equal(there[-1], back[-1])


def test_answers_do_not_depend_on_what_was_asked_before(mini_language: LanguageModel, seen: list[Features]) -> None:
    first = mini_language.answer(seen[:1], "What colour is it?", sampling=SHORT)
    logits = mini_language.logits(mini_language.prompt(seen[:1], "What colour is it?"))
    mini_language.answer(seen, "A longer question about both of the pictures?", sampling=SHORT)
    assert mini_language.answer(seen[:1], "What colour is it?", sampling=SHORT).tokens == first.tokens
    assert torch.equal(mini_language.logits(mini_language.prompt(seen[:1], "What colour is it?")), logits)


def test_streamed_text_adds_up_to_the_answer(mini_language: LanguageModel, seen: list[Features]) -> None:
    pieces: list[str] = []
    answer = mini_language.answer(
        seen[:1], "Describe the picture.", sampling=Sampling(max_new_tokens=12), on_text=pieces.append
    )
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1
    assert answer.prefill > 0
    assert answer.decode > 0


def test_sampling_follows_its_seed_and_leaves_the_programs_random_state(
    mini_language: LanguageModel, seen: list[Features]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (
        mini_language.answer(seen[:1], "What is it?", sampling=Sampling(8, temperature=6.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert a.tokens == b.tokens != c.tokens
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"at_most": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**options)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(
    mini_language: LanguageModel, seen: list[Features]
) -> None:
    longest = mini_language._model.config.get_text_config().max_position_embeddings
    length = mini_language.prompt(seen[:1], "What is it?").input_ids.shape[1]
    with pytest.raises(UsageError, match=rf"has {length} tokens and {longest} are .* context is {longest}"):
        mini_language.answer(seen[:1], "What is it?", sampling=Sampling(longest))


@pytest.fixture
def endless(mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """One whose answers end where they have to."""
    monkeypatch.setattr(mini_language, "ends", frozenset())
    monkeypatch.setattr(mini_language._model.generation_config, "eos_token_id", None)
    return mini_language


def test_an_answer_without_a_bound_may_have_1024_tokens(mini_language: LanguageModel) -> None:
    prompt = mini_language.prompt((), "Tell me everything.")
    assert mini_language.bounded([prompt], Sampling()).max_new_tokens == Sampling().most == 1024
    assert mini_language.bounded([prompt], Sampling(2000)).max_new_tokens == 2000


def test_an_answer_without_a_bound_ends_with_the_context(
    endless: LanguageModel, seen: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["What is it?", "What colour is the background of the picture?"]
    lengths = [endless.prompt(seen[:1], one).input_ids.shape[1] for one in questions]
    monkeypatch.setattr(endless._model.config.get_text_config(), "max_position_embeddings", max(lengths) + 9)
    alone = [endless.answer(seen[:1], one) for one in questions]
    assert [len(one.tokens) + length for one, length in zip(alone, lengths, strict=True)] == [max(lengths) + 9] * 2
    many = endless.answers(seen[:1], questions)
    assert [one.tokens for one in many] == [one.tokens[:9] for one in alone]
    assert len(endless.answer(seen[:1], questions[0], sampling=Sampling(at_most=4)).tokens) == 4
    for short in (Sampling(max(lengths)), Sampling(1024)):
        with pytest.raises(UsageError, match="are to be generated; the model's context is"):
            endless.answer(seen[:1], questions[1], sampling=short)
    with pytest.raises(UsageError, match="tokens and 1 are to be generated"):
        endless.answer(seen[:1], "What is it? " * 20)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_features_in_bfloat16_are_taken_by_a_model_in_float32(tmp_path: Path, family: str) -> None:
    folder = str(make_checkpoint(tmp_path / family, family))
    features = VisionEncoder.from_pretrained(folder, dtype="bfloat16").encode(IMAGES[:1])
    answer = LanguageModel.from_pretrained(folder, dtype="float32").answer(features, "What?", sampling=SHORT)
    assert not answer.exact
    with pytest.raises(IncompatibleFeatures, match="other dtype"):
        LanguageModel.from_pretrained(folder, dtype="float16").answer(features, "What?")


def test_features_made_with_other_sizes_are_refused(seen: list[Features]) -> None:
    language = LanguageModel.from_pretrained(resize=Resize(max_pixels=4000))
    with pytest.raises(IncompatibleFeatures, match="other processor settings"):
        language.answer(seen[:1], "What?")


def test_features_without_their_levels_are_refused(tmp_path: Path) -> None:
    folder = str(make_checkpoint(tmp_path / "qwen3", "qwen3_vl"))
    (features,) = VisionEncoder.from_pretrained(folder).encode(IMAGES[:1])
    flat = Features(features.tokens, features.grid_thw, replace(features.encoder, levels=0))
    with pytest.raises(IncompatibleFeatures, match="number of DeepStack levels"):
        LanguageModel.from_pretrained(folder).answer([flat], "What?")


ASKS: dict[str, Callable[[LanguageModel, list[Features]], Any]] = {
    "answer": lambda language, some: language.answer(some, "What?", sampling=SHORT).exact,
    "answers": lambda language, some: language.answers(some, ["What?"], sampling=SHORT)[0].exact,
    "choose": lambda language, some: language.choose(some, [("What?", ("yes", "no"))], exact=True)[0].exact,
    "check_prompt": lambda language, some: language.check_prompt(language.prompt(some, "What?"), 1),
}


@pytest.mark.parametrize("ask", ASKS)
def test_each_of_several_pictures_is_checked(mini_language: LanguageModel, seen: list[Features], ask: str) -> None:
    good, other = seen
    foreign = replace(other, encoder=replace(other.encoder, vision_weights="0" * 64))
    for some in ([good, foreign], [foreign, good]):
        with pytest.raises(IncompatibleFeatures, match="other vision weights"):
            ASKS[ask](mini_language, some)
    ASKS[ask](mini_language, [good, other])


@pytest.mark.parametrize("ask", ASKS)
def test_one_picture_that_was_kept_with_loss_makes_an_answer_inexact(
    mini_language: LanguageModel, seen: list[Features], ask: str
) -> None:
    def kept(one: Features, codec: str) -> Features:
        return Features.from_payload(one.to_payload(codec), one.grid_thw, one.encoder, making=one.making)

    whole = [kept(one, "planes-zstd") for one in seen]
    lossy = [kept(one, "int8") for one in seen]
    found = {}
    for name, some in (("both", whole), ("first", [whole[0], lossy[1]]), ("second", [lossy[0], whole[1]])):
        mini_language.forget()
        found[name] = ASKS[ask](mini_language, some)
    assert found == {"both": True, "first": False, "second": False}


def test_an_answer_ends_before_a_stop_string(mini_language: LanguageModel, seen: list[Features]) -> None:
    whole = mini_language.answer(seen[:1], "Describe the picture.")
    stop = whole.text[len(whole.text) // 2 :][:3]
    place = whole.text.index(stop)
    pieces: list[str] = []
    sampling = Sampling(stop=("never said", stop))
    answer = mini_language.answer(seen[:1], "Describe the picture.", sampling=sampling, on_text=pieces.append)
    assert answer.text == whole.text[:place]
    assert "".join(pieces) == answer.text
    assert answer.tokens == whole.tokens[: len(answer.tokens)]
    assert len(answer.tokens) < len(whole.tokens)
    assert stop in mini_language.text_of(answer.tokens)
    assert stop not in mini_language.text_of(answer.tokens[:-1])


def test_text_that_a_stop_string_may_begin_with_is_held_back(
    mini_language: LanguageModel, seen: list[Features]
) -> None:
    """The string goes over the end of a word, at which text is passed on."""
    whole = mini_language.answer(seen[:1], "Describe the picture.").text
    ends = [place for place, letter in enumerate(whole[:-1]) if letter == " " and place]
    assert ends
    for place in ends[:3]:
        stop = whole[place - 1 : place + 2]
        pieces: list[str] = []
        answer = mini_language.answer(
            seen[:1], "Describe the picture.", sampling=Sampling(stop=(stop,)), on_text=pieces.append
        )
        assert "".join(pieces) == answer.text == whole[: whole.index(stop)]


def test_each_of_many_answers_stops_by_itself(mini_language: LanguageModel, seen: list[Features]) -> None:
    questions = ["Describe the picture.", "What colour is the background?", "请描述这张图片。"]
    whole = [one.text for one in mini_language.answers(seen[:1], questions)]
    stop = (whole[0][3:5], whole[2][1:2])
    found = mini_language.answers(seen[:1], questions, sampling=Sampling(stop=stop))
    alone = [mini_language.answer(seen[:1], one, sampling=Sampling(stop=stop)) for one in questions]
    assert [one.text for one in found] == [one.text for one in alone]
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    assert [one.text for one in found] == [_until(text, stop) for text in whole]
    assert found[0].text != whole[0]


def _until(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def test_a_stop_string_that_only_begins_is_said(mini_language: LanguageModel, seen: list[Features]) -> None:
    whole = mini_language.answer(seen[:1], "Describe the picture.")
    pieces: list[str] = []
    sampling = Sampling(stop=(whole.text[-2:] + "!",))
    mini_language.answer(seen[:1], "Describe the picture.", sampling=sampling, on_text=pieces.append)
    assert "".join(pieces) == whole.text


def test_the_smallest_nucleus_is_greedy(mini_language: LanguageModel, seen: list[Features]) -> None:
    greedy = mini_language.answer(seen[:1], "Describe the picture.")
    sampling = Sampling(temperature=5, top_p=1e-6, seed=1)
    assert mini_language.answer(seen[:1], "Describe the picture.", sampling=sampling).tokens == greedy.tokens
    drawn = mini_language.answer(seen[:1], "Describe the picture.", sampling=Sampling(temperature=5, seed=1))
    assert drawn.tokens != greedy.tokens


@pytest.mark.parametrize("wrong", [{"top_p": 0}, {"top_p": 1.5}, {"stop": ("",)}])
def test_sampling_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)
