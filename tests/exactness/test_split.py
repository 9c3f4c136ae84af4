"""Split == unsplit, bit for bit: features, and after a store, a new process and a read, logits and greedy tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answer_from_store import QUESTION, TOKENS
from models import DTYPES, FAMILIES, OTHERS, by_tier, make_checkpoint, unsplit
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qsplit.features.features import Features
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CASES = [f"{family}-{dtype}-{device}" for family in FAMILIES for dtype in DTYPES for device in DEVICES]
CASES += [f"{family}-bfloat16-{device}" for family in OTHERS for device in DEVICES]
PARAMS = by_tier(CASES, thorough=[name for name in CASES if name.split("-")[1] == "float16"])


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    sizes = ((100, 140), (224, 150), (60, 60))
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


@dataclass
class Case:
    """One family, dtype and device: what the unsplit model said, and what the vision half made."""

    reference: list[Features]
    alone: list[Features]
    tokens: dict[int, list[int]]
    logits: dict[int, torch.Tensor]


def make_case(name: str, folder: Path) -> tuple[Case, dict[str, Any]]:
    family, dtype, device = name.split("-")
    checkpoint = make_checkpoint(
        folder / name, family, dtype=dtype, tied=dtype != "float32", sharded=dtype != "bfloat16"
    )
    images = pictures()
    vision = VisionEncoder.from_pretrained(str(checkpoint), device=device)
    alone = vision.encode(images)
    store = FeatureStore(folder / f"{name}.qsplit", create=True)
    rows = [FeatureRow(f"{i:064x}", features, vision.provenance) for i, features in enumerate(alone)]
    store.put_features(rows)
    case = Case([], alone, {}, {})
    _ask_unsplit(case, checkpoint, dtype, device, images)
    keys = [row.key for row in rows]
    return case, {"name": name, "checkpoint": str(checkpoint), "store": store.uri, "device": device, "keys": keys}


def _ask_unsplit(case: Case, checkpoint: Path, dtype: str, device: str, images: list[Image.Image]) -> None:
    model = unsplit(checkpoint, dtype).to(device)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    language = LanguageModel.from_pretrained(str(checkpoint), device=device)  # for the prompt's ids only
    with torch.no_grad():
        for image, features in zip(images, case.alone, strict=True):
            out = model.get_image_features(**processor(images=[image], return_tensors="pt").to(device))
            levels = tuple(level[0].cpu() for level in getattr(out, "deepstack_features", None) or ())
            case.reference.append(
                Features.from_torch([out.pooler_output[0].cpu(), *levels], features.grid_thw, features.encoder)
            )
        for n in (1, 2):
            prompt = language.prompt(case.alone[:n], QUESTION)
            inputs = processor(images=images[:n], return_tensors="pt") | {
                "input_ids": prompt.input_ids,
                "attention_mask": torch.ones_like(prompt.input_ids),
            }
            if "mm_token_type_ids" in signature(model.forward).parameters:
                inputs["mm_token_type_ids"] = prompt.mm_token_type_ids
            inputs = {key: value.to(device) for key, value in inputs.items()}
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            if device == "cuda" and n > 1:  # a GPU sums otherwise where pictures share a pass: each has had its own
                _give_one_by_one(inputs, case.reference[:n], device)
            case.logits[n] = model(**inputs).logits[0].cpu()
            case.tokens[n] = out[0, prompt.input_ids.shape[1] :].tolist()


def _give_one_by_one(inputs: dict[str, Any], reference: list[Features], device: str) -> None:
    """In place of the pixels, what the whole model itself made of each picture alone."""
    del inputs["pixel_values"]
    each: Any = (
        tuple(one.to(device) for one in tensors) for tensors in zip(*(one.to_torch() for one in reference), strict=True)
    )
    tokens, *levels = each
    output = (
        BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=levels)
        if levels
        else BaseModelOutputWithPooling(pooler_output=tokens)
    )
    inputs["mm_encoder_outputs"] = {"image": output}


@dataclass
class Run:
    """Every case, and what a new process said to it."""

    cases: dict[str, Case]
    answers: dict[str, Any]
    logits: dict[str, torch.Tensor]


def asked(request: pytest.FixtureRequest) -> list[str]:
    """The cases that tests of this run take, whose tier may leave some out; the first if none does."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    here = [item.callspec.params for item in functions if item.path == request.path and hasattr(item, "callspec")]
    taken = {params.get("name") for params in here}
    return [name for name in CASES if name in taken] or CASES[:1]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Those that this run asks about; one process answers all of them."""
    folder = tmp_path_factory.mktemp("split")
    made = {name: make_case(name, folder) for name in asked(request)}
    plan = folder / "plan.json"
    plan.write_text(json.dumps([request for _, request in made.values()]))
    subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "answer_from_store.py"), str(plan)], check=True
    )
    answers = json.loads(plan.with_suffix(".answers.json").read_text())
    logits = load_file(plan.with_suffix(".logits.safetensors"))
    return Run({name: case for name, (case, _) in made.items()}, answers, logits)


@pytest.fixture(scope="module")
def cases(run: Run) -> dict[str, Case]:
    return run.cases


@pytest.fixture(scope="module")
def answers(run: Run) -> dict[str, Any]:
    return run.answers


@pytest.fixture(scope="module")
def logits(run: Run) -> dict[str, torch.Tensor]:
    return run.logits


def payloads(features: list[Features]) -> list[str]:
    return [one.to_payload().sha256 for one in features]


@pytest.mark.parametrize("name", PARAMS)
def test_features_of_the_vision_half_are_those_of_the_whole_model(cases: dict[str, Case], name: str) -> None:
    assert payloads(cases[name].alone) == payloads(cases[name].reference)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", PARAMS)
def test_logits_from_the_store_are_those_of_the_whole_model(
    cases: dict[str, Case], logits: dict[str, torch.Tensor], name: str, n: int
) -> None:
    assert torch.equal(logits[f"{name}-{n}"], cases[name].logits[n])


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", PARAMS)
def test_greedy_tokens_from_the_store_are_those_of_the_whole_model(
    cases: dict[str, Case], answers: dict[str, Any], name: str, n: int
) -> None:
    answer = answers[f"{name}-{n}"]
    assert answer["tokens"] == cases[name].tokens[n]
    assert answer["exact"]


def test_the_answering_process_had_nothing_of_the_vision_half(answers: dict[str, Any]) -> None:
    assert {answer["vision parameters"] for answer in answers.values()} == {0}
    assert {answer["vision code"] for answer in answers.values()} == {False}


def test_other_pictures_give_other_answers(cases: dict[str, Case]) -> None:
    """Else every comparison of this file could pass with features that say nothing."""
    case = next(iter(cases.values()))
    assert case.tokens[1] != case.tokens[2]
    assert not torch.equal(case.logits[1][-1], case.logits[2][-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_stored_at_different_times_are_asked_about_in_the_order_given(tmp_path: Path, family: str) -> None:
    checkpoint = make_checkpoint(tmp_path / family, family)
    first, second, _ = pictures()
    vision = VisionEncoder.from_pretrained(str(checkpoint), device="cpu")
    FeatureStore(tmp_path / "album.qsplit", create=True)
    keys = []
    for i, image in enumerate((first, second)):
        row = FeatureRow(f"{i:064x}", vision.encode([image])[0], vision.provenance)
        FeatureStore(tmp_path / "album.qsplit").put_features([row])
        keys.append(row.key)
    found = FeatureStore(tmp_path / "album.qsplit").get_features(keys)
    language = LanguageModel.from_pretrained(str(checkpoint), device="cpu")
    model, processor = unsplit(checkpoint, "bfloat16"), AutoImageProcessor.from_pretrained(checkpoint)
    said = []
    for order in ((1, 0, 1), (0, 1, 1)):  # one of them twice
        prompt = language.prompt([found[keys[i]] for i in order], QUESTION)
        inputs = processor(images=[(first, second)[i] for i in order], return_tensors="pt") | {
            "input_ids": prompt.input_ids,
            "attention_mask": torch.ones_like(prompt.input_ids),
            "mm_token_type_ids": prompt.mm_token_type_ids,
        }
        with torch.no_grad():
            expected = model(**inputs).logits[0]
        assert torch.equal(language.logits(prompt), expected)
        said.append(expected[-1])
    assert not torch.equal(*said)
