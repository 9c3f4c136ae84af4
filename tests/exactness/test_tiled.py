"""Families that are shown a picture in pieces: split == unsplit, prompts as their own processors make them, and gates.

The unsplit model is given pixels by the family's own processor, its placeholders in the family's own chat template.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answer_from_store import QUESTION, TOKENS
from models import make_checkpoint, unsplit
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled import TILE, TILED
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer

import qsplit
from qsplit.errors import (
    CheckpointError,
    CorruptStore,
    IncompatibleFeatures,
    InvalidFeatures,
    UnsupportedImage,
    UsageError,
)
from qsplit.features.features import Features, Payload
from qsplit.features.layouts import LINES, TILES, n_tokens
from qsplit.features.sizing import Resize
from qsplit.media.images import Limits, open_picture
from qsplit.models.checkpoint import Checkpoint, resolve
from qsplit.models.families import HALVES
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow, check_row, feature_record

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CASES = [f"{family}-{dtype}-{device}" for family in TILED for dtype in ("bfloat16", "float32") for device in DEVICES]
QUESTIONS = ("What is it?", "How many red circles are there in this picture, please?", "Is there a dog?", "有几个？")
# Height and width: lying, upright, small, very wide, and so large that LLaVA-OneVision shrinks what it saw of it.
SIZES = ((100, 140), (224, 150), (60, 60), (40, 300), (224, 224))
# The three numbers of each picture's grid, counted by hand from the processors' rules.
GRIDS = {
    "llava_onevision": [(4, 8, 12), (4, 16, 10), (4, 8, 8), (4, 2, 16), (4, 12, 12)],
    "internvl": [(2, 2, 3), (2, 3, 2), (2, 1, 1), (2, 1, 6), (2, 2, 2)],
    "idefics3": [(2, 3, 3), (2, 3, 2), (2, 3, 3), (2, 1, 3), (2, 3, 3)],
}
GRIDS["smolvlm"] = GRIDS["idefics3"]


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in SIZES]


@dataclass
class Case:
    """One family, dtype and device: what the unsplit model made and said, and what the vision half made."""

    checkpoint: Path
    features: list[Features]
    reference: list[torch.Tensor]
    ids: dict[int, torch.Tensor]
    logits: dict[int, torch.Tensor]
    tokens: dict[int, list[int]]


def ask_processor(checkpoint: Path, images: Sequence[Image.Image], question: str = QUESTION, system: str = "") -> Any:
    """What the family's processor makes of a question about pictures."""
    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[text], images=list(images) or None, return_tensors="pt")


def look(model: Any, inputs: Any) -> torch.Tensor:
    """The unsplit model's own features ``(tokens, width)`` of all pictures in its processor's inputs."""
    taken = {name: inputs[name] for name in signature(model.get_image_features).parameters if name in inputs}
    seen = model.get_image_features(**taken, return_dict=True).pooler_output
    return seen.flatten(0, 1) if isinstance(seen, torch.Tensor) else torch.cat(list(seen))


def make_case(name: str, folder: Path) -> tuple[Case, dict[str, Any]]:
    family, dtype, device = name.split("-")
    options: dict[str, Any] = {"dtype": dtype, "tied": dtype != "float32", "sharded": dtype != "bfloat16"}
    checkpoint = make_checkpoint(folder / name, family, **options)
    vision = VisionEncoder.from_pretrained(str(checkpoint), device=device)
    case = Case(checkpoint, vision.encode(pictures()), [], {}, {}, {})
    store = FeatureStore(folder / f"{name}.qsplit", create=True)
    rows = [FeatureRow(f"{i:064x}", one, vision.provenance) for i, one in enumerate(case.features)]
    store.put_features(rows)
    model = unsplit(checkpoint, dtype).to(device)
    with torch.no_grad():
        case.reference = [look(model, ask_processor(checkpoint, [one]).to(device)).cpu() for one in pictures()]
        for n in (1, 2):
            inputs = ask_processor(checkpoint, pictures()[:n]).to(device)
            case.ids[n] = inputs.input_ids.cpu()
            case.logits[n] = model(**inputs).logits[0].cpu()
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            case.tokens[n] = out[0, inputs.input_ids.shape[1] :].tolist()
    keys = [row.key for row in rows]
    return case, {"name": name, "checkpoint": str(checkpoint), "store": store.uri, "device": device, "keys": keys}


@dataclass
class Run:
    """Every case, and what a new process said to it with the language half alone."""

    cases: dict[str, Case]
    answers: dict[str, Any]
    logits: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tiled")
    made = {name: make_case(name, folder) for name in CASES}
    plan = folder / "plan.json"
    plan.write_text(json.dumps([request for _, request in made.values()]))
    subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "answer_from_store.py"), str(plan)], check=True
    )
    answers = json.loads(plan.with_suffix(".answers.json").read_text())
    logits = load_file(plan.with_suffix(".logits.safetensors"))
    return Run({name: case for name, (case, _) in made.items()}, answers, logits)


# --- split == unsplit ---


@pytest.mark.parametrize("name", CASES)
def test_features_of_the_vision_half_are_those_of_the_whole_model(run: Run, name: str) -> None:
    case = run.cases[name]
    assert [one.grid_thw for one in case.features] == GRIDS[name.partition("-")[0]]
    for one, expected in zip(case.features, case.reference, strict=True):
        assert torch.equal(one.to_torch()[0].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_prompt_logits_and_tokens_from_the_store_are_those_of_the_whole_model(run: Run, name: str, n: int) -> None:
    case, answer = run.cases[name], run.answers[f"{name}-{n}"]
    assert torch.equal(run.logits[f"{name}-{n}"], case.logits[n])
    assert answer["tokens"] == case.tokens[n]
    assert answer["exact"]
    assert (answer["vision parameters"], answer["vision code"]) == (0, False)


def test_other_pictures_give_other_answers(run: Run) -> None:
    """Else every comparison of this file could pass with features that say nothing."""
    for case in run.cases.values():
        assert not torch.equal(case.logits[1][-1], case.logits[2][-1])
    assert any(case.tokens[1] != case.tokens[2] for case in run.cases.values())


@pytest.mark.parametrize("family", TILED)
def test_the_prompt_is_what_the_processor_makes(run: Run, family: str) -> None:
    case = run.cases[f"{family}-bfloat16-cpu"]
    language = LanguageModel.from_pretrained(str(case.checkpoint))
    for n in (1, 2):
        assert torch.equal(language.prompt(case.features[:n], QUESTION).input_ids, case.ids[n])
    for chosen in ((), (2,), (3, 2, 0), (4, 1)):
        for system in ("", "Answer in one word."):
            inputs = ask_processor(case.checkpoint, [pictures()[i] for i in chosen], "What? 是什么？", system)
            prompt = language.prompt([case.features[i] for i in chosen], "What? 是什么？", system=system)
            assert prompt.input_ids.tolist() == inputs.input_ids.tolist()
            assert int(prompt.mm_token_type_ids.sum()) == sum(len(case.features[i]) for i in chosen)


@pytest.mark.parametrize("family", TILED)
def test_an_answer_goes_on_as_the_template_writes_one(run: Run, family: str) -> None:
    language = LanguageModel.from_pretrained(str(run.cases[f"{family}-bfloat16-cpu"].checkpoint))
    tokenizer = language._tokenizer
    wanted = " Yes" if family in ("idefics3", "smolvlm") else "Yes"
    assert language.tokens_of("Yes") == tuple(tokenizer(wanted).input_ids)
    said = language.prompt((), "And?", history=[("Is it?", "Yes")]).input_ids[0].tolist()
    assert tokenizer(wanted).input_ids[0] in said


def test_what_a_text_begins_with_is_said_once(tmp_path: Path) -> None:
    """Some tokenizers put it before every text, and the templates that go with them write it too."""
    checkpoint = make_checkpoint(tmp_path / "whole", "idefics3")
    begin = "<|endoftext|>"
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, bos_token=begin)
    number = tokenizer.convert_tokens_to_ids(begin)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A", None, [(begin, number)])
    tokenizer.chat_template = begin + tokenizer.chat_template
    tokenizer.save_pretrained(checkpoint)
    assert AutoTokenizer.from_pretrained(checkpoint)("").input_ids == [number]
    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image", "image": pictures()[0]}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    features = VisionEncoder.from_pretrained(str(checkpoint)).encode(pictures()[:1])
    prompt = LanguageModel.from_pretrained(str(checkpoint)).prompt(features, QUESTION)
    assert prompt.input_ids.tolist() == torch.tensor(inputs["input_ids"]).tolist()
    assert prompt.input_ids.tolist()[0].count(number) == 1


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_a_picture_that_is_not_cut_has_no_places(tmp_path: Path, family: str) -> None:
    checkpoint = make_checkpoint(tmp_path / family, family)
    settings = checkpoint / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_image_splitting": False}))
    (features,) = VisionEncoder.from_pretrained(str(checkpoint), device="cpu").encode(pictures()[:1])
    assert features.grid_thw == (2, 1, 1)
    inputs = ask_processor(checkpoint, pictures()[:1])
    prompt = LanguageModel.from_pretrained(str(checkpoint), device="cpu").prompt([features], QUESTION)
    assert prompt.input_ids.tolist() == inputs.input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(features.to_torch()[0], look(unsplit(checkpoint, "bfloat16"), inputs))


def test_an_album_is_indexed_asked_and_searched(run: Run, tmp_path: Path, photos: list[Path]) -> None:
    checkpoint = str(run.cases["smolvlm-bfloat16-cpu"].checkpoint)
    album = qsplit.open(tmp_path / "album.qsplit", model=checkpoint)
    assert album.index(*photos[:2]).encoded == 2
    (reply,) = album.ask(str(photos[0]), [QUESTION], sampling=Sampling(TOKENS))
    features = VisionEncoder.from_pretrained(checkpoint).encode([open_picture(photos[0], Limits())])
    expected = LanguageModel.from_pretrained(checkpoint).answer(features, QUESTION, sampling=Sampling(TOKENS))
    assert (reply.tokens, reply.exact) == (expected.tokens, True)
    assert next(iter(album.search(like=str(photos[0])))).path


# --- names of tensors ---


def test_published_names_are_those_of_the_classes_of_today(tmp_path: Path) -> None:
    """Published files have the vision tower, and all have the language model, a level deeper."""
    checkpoint = make_checkpoint(tmp_path / "whole", "llava_onevision")
    before = [Checkpoint(checkpoint, "").fingerprint(half) for half in HALVES]
    file = checkpoint / "model.safetensors"
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in load_file(file)}
    assert {name.split(".")[0] for name in names} == {
        "image_newline", "language_model", "multi_modal_projector", "vision_tower",
    }  # fmt: skip
    assert sum(name.startswith("language_model.model.") for name in names) > 30
    save_file({names[name]: tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    found = Checkpoint(checkpoint, "")
    assert [found.fingerprint(half) for half in HALVES] == before
    (features,) = VisionEncoder.from_pretrained(str(checkpoint), device="cpu").encode(pictures()[:1])
    with torch.no_grad():
        assert torch.equal(
            features.to_torch()[0], look(unsplit(checkpoint, "bfloat16"), ask_processor(checkpoint, pictures()[:1]))
        )


@pytest.mark.parametrize("key", ["image_newline", "multi_modal_projector.linear_1.weight"])
def test_one_missing_tensor_of_the_vision_half_is_an_error_that_names_it(tmp_path: Path, key: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "whole", "llava_onevision")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[key]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing tensor: 'model.{key}'"):
        VisionEncoder.from_pretrained(str(checkpoint))
    assert resolve(str(checkpoint), "language").load("language")


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("llava_onevision", "image_grid_pinpoints", [[TILE, TILE]]),
        ("llava_onevision", "vision_feature_layer", -2),
        ("internvl", "projector_hidden_act", "relu"),
    ],
)
def test_a_setting_that_changes_features_is_part_of_the_identity(
    tmp_path: Path, family: str, setting: str, value: object
) -> None:
    checkpoint = make_checkpoint(tmp_path / "whole", family)
    before = Checkpoint(checkpoint, "").fingerprint("vision")
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {setting: value}))
    assert Checkpoint(checkpoint, "").fingerprint("vision") != before


# --- many questions ---


@pytest.fixture(scope="module", params=TILED)
def halves(request: pytest.FixtureRequest, run: Run) -> tuple[LanguageModel, list[Features]]:
    """In float32, where no two tokens are so close that the order of sums decides."""
    case = run.cases[f"{request.param}-float32-cpu"]
    return LanguageModel.from_pretrained(str(case.checkpoint)), case.features


@pytest.mark.parametrize("chosen", [(0,), (2, 0), (1, 1), ()])
def test_answers_together_are_those_of_each_alone(
    halves: tuple[LanguageModel, list[Features]], chosen: tuple[int, ...]
) -> None:
    language, features = halves
    shown, sampling = [features[i] for i in chosen], Sampling(max_new_tokens=8)
    expected = [language.answer(shown, question, sampling=sampling).tokens for question in QUESTIONS]
    assert len(set(expected)) > 1
    for _ in range(2):  # with nothing known, and behind what the first round left
        found = language.answers(shown, QUESTIONS, sampling=sampling)
        assert [one.tokens for one in found] == expected
        assert not any(one.exact for one in found)
    again = [language.answer(shown, question, sampling=sampling, reuse=True).tokens for question in QUESTIONS]
    assert again == expected


def test_a_follow_up_goes_on_from_what_is_known(halves: tuple[LanguageModel, list[Features]]) -> None:
    language, features = halves
    history: list[tuple[str, str]] = []
    for question in QUESTIONS:
        options: dict[str, Any] = {"history": history, "sampling": Sampling(max_new_tokens=8)}
        expected = language.answer(features[:1], question, **options)
        answer = language.answer(features[:1], question, **options, reuse=True)
        assert answer.tokens == expected.tokens
        assert expected.exact
        history.append((question, answer.text))
    assert not answer.exact


# --- gates ---


@pytest.mark.parametrize(
    ("layout", "grid", "n"),
    [(TILES, (2, 1, 1), 4), (TILES, (2, 1, 2), 12), (LINES, (4, 2, 3), 24), (LINES, (1, 1, 1), 3)],
)
def test_a_grid_stands_for_so_many_tokens(layout: int, grid: tuple[int, int, int], n: int) -> None:
    assert n_tokens(layout, grid, 2) == n


@pytest.mark.parametrize("family", TILED)
def test_a_wrong_number_of_tokens_is_refused(run: Run, family: str) -> None:
    features = run.cases[f"{family}-bfloat16-cpu"].features[0]
    side, rows, cols = features.grid_thw
    for grid in ((side, rows, cols + 1), (side, rows + 1, cols), (side + 1, rows, cols), (side, 0, cols)):
        with pytest.raises(InvalidFeatures, match="grid_thw"):
            replace(features, grid_thw=grid)
    for tokens in (features.tokens[1:], np.tile(features.tokens, (2, 1))):
        with pytest.raises(InvalidFeatures, match=f"gives {len(features)} tokens"):
            replace(features, tokens=tokens)
    payload = features.to_payload()
    with pytest.raises(InvalidFeatures, match="bytes"):
        Features.from_payload(Payload(payload.data, payload.sha256), (side, rows, cols + 1), features.encoder)


@pytest.mark.parametrize("family", TILED)
def test_a_row_whose_grid_contradicts_it_is_corrupt(run: Run, family: str) -> None:
    case = run.cases[f"{family}-bfloat16-cpu"]
    vision = VisionEncoder.from_pretrained(str(case.checkpoint))
    record = feature_record(FeatureRow("0" * 64, case.features[0], vision.provenance))
    check_row(record, vision.encoder)
    side, rows, cols = record["grid_thw"]
    with pytest.raises(CorruptStore, match="number of tokens than it holds"):
        check_row(record | {"grid_thw": [side, rows, cols + 1]}, vision.encoder)


def test_a_layout_that_is_not_known_is_said(run: Run) -> None:
    features = run.cases["internvl-bfloat16-cpu"].features[0]
    with pytest.raises(InvalidFeatures, match="layout 9; this qsplit knows 1, 2, 3"):
        replace(features, encoder=replace(features.encoder, layout=9))


def test_features_of_another_family_or_layout_are_refused(run: Run) -> None:
    language = LanguageModel.from_pretrained(str(run.cases["smolvlm-bfloat16-cpu"].checkpoint))
    with pytest.raises(IncompatibleFeatures, match="other processor settings"):
        language.answer(run.cases["idefics3-bfloat16-cpu"].features[:1], QUESTION)
    with pytest.raises(IncompatibleFeatures, match=r"other layout \(3, the language model takes 2\)"):
        language.answer(run.cases["llava_onevision-bfloat16-cpu"].features[:1], QUESTION)


def test_a_picture_of_which_no_detail_is_left_is_refused(run: Run) -> None:
    vision = VisionEncoder.from_pretrained(str(run.cases["llava_onevision-bfloat16-cpu"].checkpoint))
    for size in ((300, 4), (4, 300)):
        with pytest.raises(UnsupportedImage, match="too narrow"):
            vision.encode([Image.new("RGB", size, "red")])


def test_a_picture_that_only_the_model_refuses_is_skipped_and_the_others_are_not(run: Run, tmp_path: Path) -> None:
    for name, size in (("a", (90, 60)), ("b", (300, 4)), ("c", (60, 90))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    album = qsplit.open(tmp_path / "album.qsplit", model=str(run.cases["llava_onevision-bfloat16-cpu"].checkpoint))
    report = album.index(tmp_path)
    assert report.encoded == 2
    ((skipped, reason),) = [(Path(one.path).name, one.reason) for one in report.unreadable]
    assert skipped == "b.png"
    assert "too narrow" in reason


@pytest.mark.parametrize("family", TILED)
def test_sizes_and_videos_are_refused(run: Run, family: str) -> None:
    checkpoint = str(run.cases[f"{family}-bfloat16-cpu"].checkpoint)
    for half in (VisionEncoder, LanguageModel):
        with pytest.raises(UsageError, match="cuts them into pieces"):
            half.from_pretrained(checkpoint, resize=Resize(max_pixels=4000))
    with pytest.raises(UnsupportedImage, match=f"is a {family}, of which no videos are taken"):
        VisionEncoder.from_pretrained(checkpoint).encode_video(pictures()[:2])


def test_a_system_prompt_that_the_template_leaves_out_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "whole", "internvl")
    template = checkpoint / "chat_template.jinja"
    template.write_text("{% set messages = messages | selectattr('role', 'ne', 'system') %}" + template.read_text())
    language = LanguageModel.from_pretrained(str(checkpoint))
    assert language.answer((), QUESTION, sampling=Sampling(2)).tokens
    with pytest.raises(UsageError, match="leaves a system prompt out"):
        language.answer((), QUESTION, system="Answer in one word.")


def test_a_tokenizer_without_the_tokens_around_a_picture_is_said(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "whole", "internvl")
    settings = checkpoint / "tokenizer_config.json"
    kept = {name: value for name, value in json.loads(settings.read_text()).items() if "image_token" not in name}
    kept.pop("model_specific_special_tokens")
    settings.write_text(json.dumps(kept))
    features = VisionEncoder.from_pretrained(str(checkpoint)).encode(pictures()[:1])
    with pytest.raises(CheckpointError, match="no start_image_token"):
        LanguageModel.from_pretrained(str(checkpoint)).answer(features, QUESTION)
