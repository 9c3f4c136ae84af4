"""Each half as a folder of its own is the half that it was: same bits, same identity, nothing of the other."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, OTHERS, by_tier, make_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled import TILED

from qsplit import bundled
from qsplit.errors import CheckpointError, UsageError
from qsplit.models import splitting
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.families import HALVES
from qsplit.models.hub import INDEX
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.splitting import split
from qsplit.models.vision.encoder import VisionEncoder

VISION_CLASSES = {
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "qwen3_vl": "Qwen3VLVisionModel",
}
SAMPLING = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / family, family, sharded=True)


@pytest.fixture(scope="module")
def out(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    split(str(whole), folder)
    return folder


@pytest.fixture
def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((112, 84)).convert("RGB")


def test_the_halves_answer_as_the_whole(whole: Path, out: Path, picture: Image.Image) -> None:
    made = {folder: VisionEncoder.from_pretrained(str(folder)).encode([picture]) for folder in (whole, out / "vision")}
    (expected,), (features,) = made.values()
    assert features.encoder == expected.encoder
    assert features.to_payload() == expected.to_payload()
    answers = [
        LanguageModel.from_pretrained(str(folder)).answer([features], "What is it?", sampling=SAMPLING)
        for folder in (whole, out / "language")
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[1].exact


@pytest.mark.parametrize("family", by_tier([*OTHERS, *TILED]))
def test_every_family_can_be_split(tmp_path: Path, picture: Image.Image, family: str) -> None:
    whole = make_checkpoint(tmp_path / family, family, sharded=True)
    done = split(str(whole), tmp_path / "out")
    assert sum(one.parameters for one in done.halves) == sum(Checkpoint(whole, "").count(half) for half in HALVES)
    (features,) = VisionEncoder.from_pretrained(str(tmp_path / "out" / "vision")).encode([picture])
    assert features.to_payload() == VisionEncoder.from_pretrained(str(whole)).encode([picture])[0].to_payload()
    answers = [
        LanguageModel.from_pretrained(str(folder)).answer([features], "What is it?", sampling=SAMPLING)
        for folder in (whole, tmp_path / "out" / "language")
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[1].exact


def test_a_plain_vision_class_loads_the_vision_folder(
    family: str, whole: Path, out: Path, picture: Image.Image
) -> None:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    plain = getattr(module, VISION_CLASSES[family])
    model, report = plain.from_pretrained(out / "vision", output_loading_info=True)
    assert not any(report.values()), report
    (features,) = VisionEncoder.from_pretrained(str(whole), device="cpu").encode([picture])
    inputs = Checkpoint(out / "vision", "").image_processor()(images=[picture], return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(inputs["pixel_values"].to(torch.bfloat16), grid_thw=inputs["image_grid_thw"])
    assert torch.equal(found.pooler_output, features.to_torch()[0])


def test_each_half_holds_its_own_tensors_and_no_more(whole: Path, out: Path) -> None:
    checkpoint = Checkpoint(whole, "")
    for half in HALVES:
        found = Checkpoint(out / half, "")
        assert found.tensors(half).keys() == checkpoint.tensors(half).keys() == found._named.keys()
        for name, (file, key) in found.tensors(half).items():
            original, original_key = checkpoint.tensors(half)[name]
            assert torch.equal(load_file(file)[key], load_file(original)[original_key]), name


@pytest.mark.parametrize("says", ["nothing", "the text config"])
def test_both_halves_are_run_in_the_dtype_of_the_whole(tmp_path: Path, picture: Image.Image, says: str) -> None:
    """Also where the config does not say it, and a half by itself is stored in another."""
    whole = make_checkpoint(tmp_path / "whole", "qwen3_vl")
    config = json.loads((whole / "config.json").read_text())
    for settings in (config, config["text_config"], config["vision_config"]):
        settings.pop("dtype", None)
    if says == "the text config":
        config["text_config"]["dtype"] = "bfloat16"
    (whole / "config.json").write_text(json.dumps(config))
    tensors = load_file(whole / "model.safetensors")
    wide = {key: one.float() if ".visual." in key else one for key, one in tensors.items()}
    assert 0 < sum(one.dtype == torch.float32 for one in wide.values()) < len(wide)
    save_file(wide, whole / "model.safetensors", metadata={"format": "pt"})
    split(str(whole), tmp_path / "out")
    found = [Checkpoint(folder, "") for folder in (whole, tmp_path / "out" / "vision", tmp_path / "out" / "language")]
    assert [one.dtype for one in found] == ["bfloat16"] * 3
    assert len({one.encoder().id for one in found}) == 1
    features = VisionEncoder.from_pretrained(str(found[1].folder)).encode([picture])
    assert features[0].to_torch()[0].dtype == torch.bfloat16
    assert LanguageModel.from_pretrained(str(found[2].folder)).answer(features, "What?", sampling=SAMPLING).exact


def test_what_belongs_to_neither_half_is_left_behind(tmp_path: Path) -> None:
    """Also where it has a shard of its own, which no download fetches."""
    whole = make_checkpoint(tmp_path / "whole", "qwen3_5", sharded=True)
    plain = split(str(whole), tmp_path / "plain")
    index = json.loads((whole / INDEX).read_text())
    index["weight_map"] |= {
        "mtp.fc.weight": "model-mtp.safetensors",
        "v_head.summary.bias": min(whole.glob("*-of-*")).name,
    }
    (whole / INDEX).write_text(json.dumps(index))
    done = split(str(whole), tmp_path / "out")
    assert done.bytes == plain.bytes
    assert [one.parameters for one in done.halves] == [one.parameters for one in plain.halves]
    for half in HALVES:
        found, before = (Checkpoint(tmp_path / name / half, "") for name in ("out", "plain"))
        assert found.tensors(half).keys() == before.tensors(half).keys()
        assert found.fingerprint(half) == before.fingerprint(half)
        assert not [key for key in found.weight_map if key.startswith(("mtp", "v_head"))]


def test_the_half_that_is_not_there_is_refused(out: Path) -> None:
    with pytest.raises(CheckpointError):
        LanguageModel.from_pretrained(str(out / "vision"))
    with pytest.raises(CheckpointError):
        VisionEncoder.from_pretrained(str(out / "language"))
    with pytest.raises(CheckpointError, match="nothing to split"):
        split(str(out / "language"), out / "again")


def test_the_sizes_add_up_to_the_whole(tmp_path: Path) -> None:
    """Of the bundled checkpoint; of a real one the settings that are there twice are a far smaller part."""
    done = split("", tmp_path)
    assert sum(one.bytes for one in done.halves) <= 1.02 * done.bytes
    weights = sum(path.stat().st_size for path in bundled.checkpoint().glob("*.safetensors"))
    assert weights < done.bytes < 1.1 * weights
    assert [one.parameters for one in done.halves] == [
        Checkpoint(bundled.checkpoint(), "").count(half) for half in HALVES
    ]


def test_what_is_there_is_kept_and_what_was_cut_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = splitting._copy_tensors

    def full(source: Path, tensors: Any, target: Path) -> None:
        if "language" in str(target):
            target.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        real(source, tensors, target)

    with monkeypatch.context() as patched:
        patched.setattr(splitting, "_copy_tensors", full)
        with pytest.raises(OSError, match="No space"):
            split("", tmp_path)
    assert not (tmp_path / "language").exists()
    assert [one.written for one in split("", tmp_path).halves] == [False, True]
    assert [one.written for one in split("", tmp_path).halves] == [False, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language", "vision"]


def test_another_folder_is_never_written_over(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="there already and is not the vision half"):
        split("", tmp_path)
    assert (tmp_path / "vision" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("half", ["vision", "language"])
def test_a_spoilt_half_is_not_taken_for_the_half(tmp_path: Path, half: str) -> None:
    split("", tmp_path)
    (file,) = (tmp_path / half).glob("*.safetensors")
    tensors = load_file(file)
    tensors[min(tensors)].flatten()[0] += 1
    save_file(tensors, file)
    with pytest.raises(UsageError, match=f"is not the {half} half"):
        split("", tmp_path)


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"takes 0\.01 GB; .* has 0\.00 GB free"):
        split("", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qsplit", "split", "qsplit-mini", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    halves = json.loads(done.stdout)["halves"]
    assert [Path(one["folder"]) for one in halves] == [tmp_path / "vision", tmp_path / "language"]
    again = subprocess.run(command[:-1], capture_output=True, text=True, check=True)
    assert again.stdout.count("there already") == 2
