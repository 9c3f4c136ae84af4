"""Checkpoints: the halves, strict loading, fingerprints, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rows
import torch
import transformers
from models import DTYPES, FAMILIES, OTHERS, by_tier, make_checkpoint, save_as_transformers_5, unsplit
from patience import PATIENCE
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled import TILED

from qsplit.errors import CheckpointError, IncompatibleFeatures, UsageError
from qsplit.features.sizing import Resize
from qsplit.models import hub, tensor_hashes
from qsplit.models.checkpoint import BUNDLED, Checkpoint, resolve
from qsplit.models.export_manifest import MANIFEST, Manifest
from qsplit.models.families import FAMILIES as KNOWN
from qsplit.models.families import HALVES, files_of_half
from qsplit.models.hub import INDEX
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.language.prompts import Chat, messages
from qsplit.models.vision.encoder import VisionEncoder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "qwen2_vl", "qwen2_vl")


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns(tensor_hashes.CACHE))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint whose halves lie in different files."""
    folder = make_checkpoint(tmp_path / "sharded", "qwen2_vl", tied=False)
    split_files(folder)
    return folder


def split_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    parts = {
        half: {k: v for k, v in tensors.items() if k.startswith("visual.") == (half == "vision")} for half in HALVES
    }
    for half, part in parts.items():
        save_file(part, folder / f"{half}.safetensors", metadata={"format": "pt"})
    weight_map = {key: f"{half}.safetensors" for half, part in parts.items() for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(file: Path, changed: dict[str, Any]) -> None:
    """Change settings in a JSON file; those that become None are left out."""
    settings = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def flip_one_bit(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key].view(torch.int16).view(-1)[0] ^= 1

    return edit


# --- the halves ---


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", by_tier([*FAMILIES, *TILED]))
def test_halves_hold_the_whole_models_parameters_and_no_others(tmp_path: Path, family: str, tied: bool) -> None:
    folder = make_checkpoint(tmp_path / family, family, tied=tied, sharded=True)
    found = resolve(str(folder), "vision")
    whole = dict(unsplit(folder, "bfloat16").named_parameters())
    vision = dict(found.load("vision").named_parameters())
    language = dict(found.load("language").named_parameters())
    assert vision.keys() | language.keys() == whole.keys()
    assert not vision.keys() & language.keys()
    assert all(torch.equal(parameter, whole[name]) for name, parameter in (vision | language).items())
    assert found.count("vision") == sum(parameter.numel() for parameter in vision.values())


@pytest.mark.parametrize(("half", "other"), [("vision", "language"), ("language", "vision")])
def test_a_half_loads_where_the_other_halfs_files_are_absent(sharded: Path, half: Any, other: str) -> None:
    (sharded / f"{other}.safetensors").unlink()
    found = resolve(str(sharded), half)
    assert found.has(half)
    assert not found.has("language" if half == "vision" else "vision")
    assert sum(parameter.numel() for parameter in found.load(half).parameters()) == found.count(half)


def test_the_other_halfs_file_is_not_even_opened(sharded: Path) -> None:
    (sharded / "language.safetensors").write_bytes(b"this is no safetensors file")
    assert VisionEncoder.from_pretrained(str(sharded)).n_parameters > 0


def test_the_bundled_checkpoint_is_the_default() -> None:
    assert resolve("", "vision").name == BUNDLED == resolve(BUNDLED, "vision").name


def test_loading_leaves_the_programs_logging_as_it_was(whole: Path) -> None:
    level = transformers.logging.get_verbosity()
    resolve(str(whole), "vision").load("vision")
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled()


# --- strict loading ---


@pytest.mark.parametrize(
    ("half", "key"),
    [("vision", "visual.blocks.0.norm1.weight"), ("language", "model.layers.1.mlp.up_proj.weight")],
)
def test_one_missing_tensor_is_an_error_that_names_it(copied: Path, half: Any, key: str) -> None:
    change(copied, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=f"missing tensor: '{KNOWN['qwen2_vl'].canonical(key)}'"):
        resolve(str(copied), half).load(half)


@pytest.mark.parametrize(("half", "key"), [("vision", "visual.extra.weight"), ("language", "model.layers.9.extra")])
def test_one_unexpected_tensor_is_an_error_that_names_it(copied: Path, half: Any, key: str) -> None:
    change(copied, lambda tensors: tensors.update({key: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=f"unexpected tensor: '{KNOWN['qwen2_vl'].canonical(key)}'"):
        resolve(str(copied), half).load(half)


def test_a_tensor_of_another_shape_is_an_error_that_names_it(copied: Path) -> None:
    change(copied, lambda tensors: tensors.update({"visual.merger.ln_q.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"model\.visual\.merger\.ln_q\.weight"):
        resolve(str(copied), "vision").load("vision")


# Of predicting several tokens at once, of a trainer's value head, and of what the class itself says that it ignores.
LEFTOVERS = [
    ("qwen2_vl", "v_head.summary.weight"),
    ("qwen2_vl", "audio.weight"),
    ("qwen3_5", "mtp.fc.weight"),
    ("qwen3_5_moe", "mtp.layers.0.mlp.gate.weight"),
    ("exaone4_5", "mtp.norm.weight"),
    ("glm_ocr", "model.language_model.layers.16.eh_proj.weight"),
    ("paddleocr_vl", "visual.vision_model.head.probe"),
]


@pytest.mark.parametrize(("family", "key"), LEFTOVERS)
def test_a_tensor_that_the_model_has_no_place_for_is_left_out(tmp_path: Path, family: str, key: str) -> None:
    folder = make_checkpoint(tmp_path / family, family)
    before = {half: dict(resolve(str(folder), half).load(half).named_parameters()) for half in HALVES}
    change(folder, lambda tensors: tensors.update({key: torch.ones(2, 2, dtype=torch.bfloat16)}))
    whole = dict(unsplit(folder, "bfloat16").named_parameters())
    for half in HALVES:
        after = dict(resolve(str(folder), half).load(half).named_parameters())
        assert after.keys() == before[half].keys()
        assert all(torch.equal(parameter, whole[name]) for name, parameter in after.items())


@pytest.mark.parametrize(("family", "key"), LEFTOVERS[:5])
def test_a_tensor_of_neither_half_changes_no_fingerprint(tmp_path: Path, family: str, key: str) -> None:
    folder = make_checkpoint(tmp_path / family, family)
    before = {half: (Checkpoint(folder, "").fingerprint(half), Checkpoint(folder, "").count(half)) for half in HALVES}
    change(folder, lambda tensors: tensors.update({key: torch.ones(2, 2)}))
    found = Checkpoint(folder, "")
    assert {half: (found.fingerprint(half), found.count(half)) for half in HALVES} == before


def test_a_half_whose_tensors_have_other_names_is_missing(copied: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("visual.")]:
            tensors[f"base_model.{key}"] = tensors.pop(key)

    change(copied, rename)
    assert not Checkpoint(copied, "").has("vision")
    with pytest.raises(CheckpointError, match=r"vision half of .* missing tensor"):
        resolve(str(copied), "vision").load("vision")


def test_an_index_that_lies_is_an_error_that_names_tensor_and_file(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["visual.promised.weight"] = "vision.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"promised\.weight.*vision\.safetensors"):
        resolve(str(sharded), "vision").load("vision")


def test_a_truncated_file_is_an_error_that_names_it(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        resolve(str(copied), "vision").load("vision")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        resolve(str(copied), "vision").fingerprint("vision")


# --- what is refused ---


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_a_folder_of_nothing_but_pickles_is_refused(copied: Path, name: str) -> None:
    (copied / "model.safetensors").rename(copied / name)
    with pytest.raises(CheckpointError, match=f"{name}, a pickle") as refused:
        resolve(str(copied), "vision")
    assert "safetensors" in refused.value.fix


def test_what_trainers_leave_beside_the_weights_is_never_opened(copied: Path, tmp_path: Path) -> None:
    (copied / "global_step3").mkdir()
    marker = tmp_path / "opened"
    torch.save({"learning_rate": 1e-5}, copied / "training_args.bin")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "global_step3/mp_rank_00_model_states.pt"):
        torch.save(Bomb(marker), copied / name)
    os.mkfifo(copied / "pytorch_model.bin")  # whoever opened it would wait for ever
    out = tmp_path / "halves"
    program = (
        "import sys; from PIL import Image; from qsplit.models.splitting import split\n"
        "from qsplit.models.language.model import LanguageModel, Sampling\n"
        "from qsplit.models.vision.encoder import VisionEncoder; import pathlib\n"
        "split(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "features = VisionEncoder.from_pretrained(sys.argv[1]).encode([Image.new('RGB', (56, 56))])\n"
        "print(LanguageModel.from_pretrained(sys.argv[1]).answer(features, 'What?', sampling=Sampling(2)).exact)\n"
    )
    command = [sys.executable, "-c", program, str(copied), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.split() == ["True"]
    assert not marker.exists()
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]


CODE = ["config.json", "preprocessor_config.json", "tokenizer_config.json"]


@pytest.mark.parametrize("file", CODE)
def test_remote_code_of_a_type_that_nobody_knows_is_refused(copied: Path, file: str) -> None:
    edit(copied / "config.json", {"model_type": "their_own"})
    edit(copied / file, {"auto_map": {"AutoModel": "code.Model"}})
    with pytest.raises(CheckpointError, match=f"{file} asks for code"):
        resolve(str(copied), "language")


def test_remote_code_of_a_known_type_never_runs(copied: Path, whole: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copied / "code.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    names = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoVideoProcessor", "AutoProcessor")
    code = {"auto_map": dict.fromkeys(names, "code.Theirs") | {"AutoTokenizer": ["code.Theirs", None]}}
    for file in (*CODE, "video_preprocessor_config.json"):
        edit(copied / file, code)
    features = VisionEncoder.from_pretrained(str(copied)).encode([Image.new("RGB", (56, 56))])
    assert LanguageModel.from_pretrained(str(copied)).answer(features, "What?", sampling=Sampling(2)).exact
    assert Checkpoint(copied, "").encoder() == Checkpoint(whole, "").encoder()
    assert not marker.exists()


def test_a_pointer_of_git_lfs_says_how_to_get_the_file(copied: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (copied / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="Git LFS") as refused:
        resolve(str(copied), "vision").load("vision")
    assert "git lfs pull" in refused.value.fix


def test_one_file_of_weights_comes_before_an_index_of_others(copied: Path, whole: Path) -> None:
    """A merged model is often saved into a copy of the sharded one."""
    index = {"metadata": {}, "weight_map": {"visual.patch_embed.proj.weight": "model-00001-of-00002.safetensors"}}
    (copied / INDEX).write_text(json.dumps(index))
    for half in HALVES:
        assert Checkpoint(copied, "").fingerprint(half) == Checkpoint(whole, "").fingerprint(half)
    expected = dict(unsplit(copied, "bfloat16").named_parameters())
    for half in HALVES:
        loaded = dict(resolve(str(copied), half).load(half).named_parameters())
        assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "of type 'bert'"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    ],
)
def test_a_broken_folder_is_refused(copied: Path, edit: Callable[[Path], object], message: str) -> None:
    edit(copied)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(copied), "vision").load("vision")


@pytest.mark.parametrize(
    ("file", "half", "message"),
    [
        ("preprocessor_config.json", VisionEncoder, "no preprocessor_config.json"),
        ("tokenizer.json", LanguageModel, "no tokenizer.json"),
    ],
)
def test_a_missing_part_is_named(copied: Path, file: str, half: Any, message: str) -> None:
    (copied / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        half.from_pretrained(str(copied))


def test_a_missing_chat_template_is_named(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        LanguageModel.from_pretrained(str(copied))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        resolve("/no/such/folder", "vision")
    with pytest.raises(UsageError, match="dtype is 'int8'"):
        VisionEncoder.from_pretrained(dtype="int8")


# --- processors, and the template of a chat, in either form ---


@pytest.mark.parametrize("family", by_tier([*FAMILIES, *OTHERS, *TILED]))
def test_settings_in_one_file_are_those_in_several(tmp_path: Path, family: str) -> None:
    """The encoder is the same, so whatever was stored before is found after a fine-tuning that saved it so."""
    folder = make_checkpoint(tmp_path / family, family)
    before = Checkpoint(folder, "").encoder()
    save_as_transformers_5(folder)
    assert not list(folder.glob("*preprocessor_config.json"))
    assert Checkpoint(folder, "").encoder() == before


def test_another_setting_in_the_one_file_is_another_encoder(copied: Path) -> None:
    save_as_transformers_5(copied)
    before = Checkpoint(copied, "").processor_digest(Resize())
    settings = json.loads((copied / "processor_config.json").read_text())
    for kind in ("image_processor", "video_processor"):
        edit(copied / "processor_config.json", {kind: settings[kind] | {"merge_size": 4}})
        assert Checkpoint(copied, "").processor_digest(Resize()) != before
        edit(copied / "processor_config.json", {kind: settings[kind]})
    assert Checkpoint(copied, "").processor_digest(Resize()) == before


@pytest.mark.parametrize("form", ["several", "one", "both", "one without videos", "several without videos"])
def test_of_both_forms_the_one_counts_that_counts_for_transformers(copied: Path, form: str) -> None:
    several = [copied / "preprocessor_config.json", copied / "video_preprocessor_config.json"]
    texts = [path.read_text() for path in several]
    if "one" in form or form == "both":
        save_as_transformers_5(copied)
        nested = json.loads((copied / "processor_config.json").read_text())
        sized = {
            kind: nested[kind] | {"size": {"shortest_edge": 4000, "longest_edge": 5000}}
            for kind in ("image_processor", "video_processor")
        }
        edit(copied / "processor_config.json", sized)
    if form != "one":
        for path, text in zip(several, texts, strict=True):
            path.write_text(text)
    if "without" in form:
        several[1].unlink()
    if form == "one without videos":
        edit(copied / "processor_config.json", {"video_processor": None})
    whole = transformers.AutoProcessor.from_pretrained(copied, local_files_only=True)
    found = Checkpoint(copied, "")
    assert found.image_processor().to_dict() == whole.image_processor.to_dict()
    assert found.video_processor().to_dict() == whole.video_processor.to_dict()
    (sized_to,) = {one.to_dict()["size"]["longest_edge"] for one in (found.image_processor(),)}
    assert sized_to == (224 * 224 if "several" in form else 5000)


@pytest.mark.parametrize("content", [{"processor_class": "Qwen2VLProcessor"}, {"image_processor": None}])
def test_one_file_without_settings_of_pictures_is_not_enough(copied: Path, content: dict[str, Any]) -> None:
    (copied / "preprocessor_config.json").unlink()
    (copied / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="unknown how pictures are prepared") as refused:
        Checkpoint(copied, "").image_processor()
    assert "processor_config.json" in refused.value.fix


TEMPLATES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


@pytest.mark.parametrize("n", range(len(TEMPLATES)))
@pytest.mark.parametrize("named", [False, True])
def test_the_chat_template_is_that_of_the_processor(copied: Path, n: int, named: bool) -> None:
    """Of all places that it may be written in, in the order in which transformers looks."""
    save_as_transformers_5(copied)
    for place in TEMPLATES[n:]:
        said = "{{ 'said in " + place + "' }}"
        if place.endswith(".jinja"):
            (copied / place).write_text(said)
        else:
            old = json.loads((copied / place).read_text()) if (copied / place).exists() else {}
            template: Any = said
            if named and place == "processor_config.json":
                template = {"default": said, "tools": "other"}
            if named and place == "tokenizer_config.json":
                template = [{"name": "default", "template": said}, {"name": "tools", "template": "other"}]
            (copied / place).write_text(json.dumps(old | {"chat_template": template}))
    for place in TEMPLATES[:n]:
        if "config" not in place:
            (copied / place).unlink(missing_ok=True)
    processor = transformers.AutoProcessor.from_pretrained(copied, local_files_only=True)
    conversation = messages((), "What?", ())
    reader = processor if processor.chat_template else processor.tokenizer
    expected = reader.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert expected == f"said in {TEMPLATES[n]}"
    assert Chat(Checkpoint(copied, "")).text(conversation) == expected


# --- the dtype ---


def bare(folder: Path, **text: Any) -> None:
    """Take what a config says of its dtype away, and have its text config say something else."""
    config = json.loads((folder / "config.json").read_text())
    for settings in (config, config["text_config"], config["vision_config"]):
        for name in ("dtype", "torch_dtype"):
            settings.pop(name, None)
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "qwen2_vl"])
def test_a_dtype_that_the_text_config_alone_says_is_that_of_both_halves(tmp_path: Path, family: str, name: str) -> None:
    folder = make_checkpoint(tmp_path / family, family)
    before = Checkpoint(folder, "").encoder()
    bare(folder, **{name: "bfloat16"})
    assert Checkpoint(folder, "").encoder() == before
    for half in HALVES:
        assert resolve(str(folder), half).load(half).dtype == torch.bfloat16


def test_the_config_s_own_dtype_comes_first(copied: Path) -> None:
    bare(copied, dtype="bfloat16")
    edit(copied / "config.json", {"dtype": "float16"})
    assert Checkpoint(copied, "").dtype == "float16"
    edit(copied / "config.json", {"dtype": None, "torch_dtype": "float32"})
    assert Checkpoint(copied, "").dtype == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sharded", [False, True])
def test_without_a_word_of_the_dtype_it_is_what_most_is_stored_in(tmp_path: Path, dtype: str, sharded: bool) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2_vl", dtype=dtype, sharded=sharded)
    bare(folder)
    found = Checkpoint(folder, "")
    assert found.dtype == dtype
    assert {str(found.load(half).dtype) for half in HALVES} == {f"torch.{dtype}"}


def test_whole_numbers_and_eight_bits_are_no_dtype_to_run_in(copied: Path) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for key, tensor in tensors.items():
            kept = tensor.ndim == 1
            tensors[key] = tensor if kept else tensor.to(torch.int8 if "up_proj" in key else torch.float8_e4m3fn)

    bare(copied)
    change(copied, quantise)
    assert Checkpoint(copied, "").dtype == "bfloat16"
    change(copied, lambda tensors: tensors.update({key: one.to(torch.int8) for key, one in tensors.items()}))
    assert Checkpoint(copied, "").dtype == "float32"


def test_leftovers_have_no_say_in_the_dtype(copied: Path) -> None:
    bare(copied)
    change(copied, lambda tensors: tensors.update({"v_head.summary.weight": torch.zeros(1000, 1000)}))
    assert Checkpoint(copied, "").dtype == "bfloat16"


def test_a_dtype_that_is_none_is_an_error_that_names_it(copied: Path) -> None:
    edit(copied / "config.json", {"dtype": "float64"})
    with pytest.raises(CheckpointError, match="is in float64"):
        _ = Checkpoint(copied, "").dtype
    edit(copied / "config.json", {"dtype": "no_such_dtype"})
    with pytest.raises(CheckpointError, match="no_such_dtype"):
        _ = Checkpoint(copied, "").dtype


# --- the hub ---


def published_index() -> dict[str, str]:
    """Shards as of a 7B checkpoint: vision and the first layers in one file, layers in the others."""
    weights = {"visual.patch_embed.proj.weight": "model-00001-of-00003.safetensors"}
    weights |= {f"visual.blocks.{i}.mlp.fc1.weight": "model-00001-of-00003.safetensors" for i in range(4)}
    weights |= {f"model.layers.{i}.mlp.up_proj.weight": f"model-0000{1 + i}-of-00003.safetensors" for i in range(3)}
    return weights | {"lm_head.weight": "model-00003-of-00003.safetensors"}


def test_only_the_shards_of_the_half_are_chosen() -> None:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files_of_half(KNOWN["qwen2_vl"], published_index(), "vision") == names[:1]
    assert files_of_half(KNOWN["qwen2_vl"], published_index(), "language") == names


def test_only_the_shards_of_the_half_are_downloaded(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is the one thing that these tests cannot reach: a folder stands in for it."""
    cache = tmp_path / "hub" / "c0ffee"
    cache.mkdir(parents=True)

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo, revision) == ("somebody/some-model", None)
        for pattern in allow_patterns:
            for path in sharded.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    found = resolve("somebody/some-model", "vision")
    assert sorted(path.name for path in cache.glob("*.safetensors")) == ["vision.safetensors"]
    assert (found.name, found.revision) == ("somebody/some-model", "c0ffee")
    assert found.load("vision") is not None


def test_a_hub_id_without_a_connection_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        resolve("nobody/no-such-model-here", "vision")


# --- fingerprints ---


@pytest.mark.parametrize("half", HALVES)
def test_a_fingerprint_survives_resharding_and_renaming(copied: Path, whole: Path, half: Any) -> None:
    names = KNOWN["qwen2_vl"].canonical
    renamed = {names(key): value for key, value in load_file(copied / "model.safetensors").items()}
    save_file(renamed, copied / "model.safetensors", metadata={"format": "pt"})
    assert "model.visual.patch_embed.proj.weight" in renamed
    assert Checkpoint(copied, "").fingerprint(half) == Checkpoint(whole, "").fingerprint(half)
    resharded = shutil.copytree(whole, copied.with_name("resharded"))
    split_files(resharded)
    assert Checkpoint(resharded, "").fingerprint(half) == Checkpoint(whole, "").fingerprint(half)


@pytest.mark.parametrize(("family", "setting"), [("qwen2_vl", "num_heads"), ("qwen2_5_vl", "window_size")])
def test_a_setting_that_changes_features_changes_the_fingerprint(tmp_path: Path, family: str, setting: str) -> None:
    folder = make_checkpoint(tmp_path / family, family)
    before = Checkpoint(folder, "").fingerprint("vision")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][setting] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint(folder, "").fingerprint("vision") != before


def test_one_bit_changes_the_fingerprint_of_its_half_alone(copied: Path, whole: Path) -> None:
    before, language = (Checkpoint(whole, "").fingerprint(half) for half in ("vision", "language"))
    change(copied, flip_one_bit("visual.blocks.1.mlp.fc1.weight"))
    assert Checkpoint(copied, "").fingerprint("vision") != before
    assert Checkpoint(copied, "").fingerprint("language") == language


def test_features_of_vision_weights_that_differ_by_one_bit_are_refused(
    copied: Path, whole: Path, mini_vision: VisionEncoder
) -> None:
    change(copied, flip_one_bit("visual.blocks.1.mlp.fc1.weight"))
    features = VisionEncoder.from_pretrained(str(copied)).encode([Image.new("RGB", (56, 56), "red")])
    language = LanguageModel.from_pretrained(str(whole))
    with pytest.raises(IncompatibleFeatures, match="other vision weights") as refused:
        language.answer(features, "What is it?")
    assert len(refused.value.reasons) == 1


def test_a_fingerprint_is_cached_until_the_file_changes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = tensor_hashes._sha256

    def counted(file: Path, tensor: tensor_hashes.StoredTensor) -> str:
        hashed.append(file.name)
        return real(file, tensor)

    monkeypatch.setattr(tensor_hashes, "_sha256", counted)
    first = Checkpoint(copied, "").fingerprint("vision")
    count = len(hashed)
    assert count == len(Checkpoint(copied, "").tensors("vision"))
    assert Checkpoint(copied, "").fingerprint("vision") == first
    assert len(hashed) == count
    change(copied, flip_one_bit("visual.blocks.1.mlp.fc1.weight"))
    assert Checkpoint(copied, "").fingerprint("vision") != first
    assert len(hashed) == 2 * count


def test_a_folder_that_cannot_be_written_is_cached_elsewhere(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / tensor_hashes.CACHE).mkdir()  # stands in for a read-only folder: root may write anywhere
    found = Checkpoint(copied, "", cache=tmp_path / "cache")
    first = found.fingerprint("vision")
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    monkeypatch.setattr(tensor_hashes, "_sha256", lambda *_: pytest.fail("hashed again"))
    assert found.fingerprint("vision") == first


def test_a_broken_cache_is_no_cache(copied: Path) -> None:
    first = Checkpoint(copied, "").fingerprint("vision")
    for nonsense in ("{", "[]", '{"model.safetensors": {}}', '{"model.safetensors": 3}'):
        (copied / tensor_hashes.CACHE).write_text(nonsense)
        assert Checkpoint(copied, "").fingerprint("vision") == first


def test_a_byte_that_changed_behind_the_file_systems_back_is_found(copied: Path) -> None:
    found = Checkpoint(copied, "")
    found.check_weights("vision")  # nothing is known yet, so nothing can be another
    first = {half: found.fingerprint(half) for half in HALVES}
    found.check_weights("vision")
    file, key = found.tensors("vision")["model.visual.blocks.1.mlp.fc1.weight"]
    before = file.stat()
    rows.flipped(file, tensor_hashes.stored_tensors(file)[key].begin, 1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {half: found.fingerprint(half) for half in HALVES} == first
    found.check_weights("language")
    with pytest.raises(CheckpointError, match=r"1 tensors .* 'model.visual.blocks.1.mlp.fc1.weight'"):
        found.check_weights("vision")


# --- which vision half a language half belongs to ---


def test_a_language_folder_that_does_not_tell_is_refused(sharded: Path) -> None:
    (sharded / "vision.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unknown which vision half") as refused:
        LanguageModel.from_pretrained(str(sharded))
    assert "--trust-encoder" in refused.value.fix


def test_a_language_folder_with_a_manifest_is_exact(sharded: Path) -> None:
    vision = VisionEncoder.from_pretrained(str(sharded))
    features = vision.encode([Image.new("RGB", (56, 56), "red")])
    found = resolve(str(sharded), "vision")
    Manifest(found.fingerprint("vision"), found.fingerprint("language")).write(sharded)
    (sharded / "vision.safetensors").unlink()
    answer = LanguageModel.from_pretrained(str(sharded)).answer(features, "What?", sampling=Sampling(2))
    assert answer.exact


def test_a_user_may_vouch_and_the_answer_says_so(sharded: Path) -> None:
    vision = VisionEncoder.from_pretrained(str(sharded))
    features = vision.encode([Image.new("RGB", (56, 56), "red")])
    (sharded / "vision.safetensors").unlink()
    trusting = LanguageModel.from_pretrained(str(sharded), trust_encoder=vision.encoder.id[:12])
    assert not trusting.answer(features, "What?", sampling=Sampling(2)).exact
    with pytest.raises(UsageError, match="too short"):
        LanguageModel.from_pretrained(str(sharded), trust_encoder=vision.encoder.id[:11])
    other = LanguageModel.from_pretrained(str(sharded), trust_encoder="0" * 12)
    with pytest.raises(IncompatibleFeatures, match="other vision weights"):
        other.answer(features, "What?")


@pytest.mark.parametrize("text", ["{", "[]", '{"vision_weights": "a"}', '{"odd": 1}'])
def test_a_broken_manifest_is_refused(sharded: Path, text: str) -> None:
    (sharded / MANIFEST).write_text(text)
    (sharded / "vision.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no qsplit manifest"):
        resolve(str(sharded), "language").fingerprint("vision")


def test_a_manifest_of_a_later_version_is_refused(sharded: Path) -> None:
    Manifest("a", "b", version=2).write(sharded)
    with pytest.raises(CheckpointError, match="version 2"):
        Manifest.read(sharded)


# --- sizes ---


def test_sizes_must_make_sense() -> None:
    with pytest.raises(UsageError, match="min_pixels is 0"):
        Resize(min_pixels=0)
    with pytest.raises(UsageError, match="together"):
        Resize(resized_height=56)


def test_sizes_are_part_of_the_processors_digest(whole: Path) -> None:
    found = Checkpoint(whole, "")
    sizes = [Resize(), Resize(max_pixels=4000), Resize(max_pixels=5000), Resize(resized_height=56, resized_width=84)]
    assert len({found.processor_digest(size) for size in sizes}) == len(sizes)


def test_processor_settings_are_part_of_its_digest(copied: Path, whole: Path) -> None:
    settings = json.loads((copied / "preprocessor_config.json").read_text())
    (copied / "preprocessor_config.json").write_text(json.dumps({**settings, "max_pixels": 9999}))
    assert Checkpoint(copied, "").processor_digest(Resize()) != Checkpoint(whole, "").processor_digest(Resize())
