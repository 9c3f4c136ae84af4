"""Tiny checkpoints of the real classes with random weights, in the file layout of published ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled import TILED, make_tokenizer, tiled_config, write_processors

from qsplit import bundled
from qsplit.features.features import Features
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
OTHERS = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v", "glm_ocr", "exaone4_5", "paddleocr_vl")
DTYPES = ("bfloat16", "float16", "float32")
# Each is a variant of one that the quick run has too.
LONG_TAIL = ("qwen3_vl_moe", "qwen3_5_moe", "glm46v", "glm_ocr", "exaone4_5", "paddleocr_vl", "idefics3")
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_WIDE = {
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]},
}  # fmt: skip
_HEADS = {"num_heads": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "depth": 4}
_PLACED = _HEADS | {"num_position_embeddings": 256, "patch_size": 16}
_WINDOWED = _HEADS | {"fullatt_block_indexes": [1, 3], "window_size": 56}
_GLM = _HEADS | {"image_size": 224}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"], "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
_SLIDING = {
    "model_type": "exaone4", "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
# As published files say it; some servers take no default for it.
_NORMALISED = {
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
# Family -> the class of its config, the vision half's settings, and what the language half's have beside `_TEXT`.
_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        "Qwen2VLConfig", {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}, {},
    ),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", _WINDOWED, {}),
    "qwen3_vl": ("Qwen3VLConfig", _PLACED | {"deepstack_visual_indexes": [0, 1]}, {}),
    "qwen3_vl_moe": ("Qwen3VLMoeConfig", _PLACED | {"deepstack_visual_indexes": [0, 1]}, _EXPERTS),
    "qwen3_5": ("Qwen3_5Config", _PLACED, _LINEAR),
    "qwen3_5_moe": ("Qwen3_5MoeConfig", _PLACED, _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "glm4v": ("Glm4vConfig", _GLM, {}),
    "glm46v": ("Glm46VConfig", _GLM | {"model_type": "glm4v_vision"}, {"model_type": "glm4v_text"}),
    "glm_ocr": ("GlmOcrConfig", _GLM, {}),
    "exaone4_5": ("Exaone4_5_Config", _WINDOWED | {"num_key_value_heads": 2}, _SLIDING),
    "paddleocr_vl": (
        "PaddleOCRVLConfig",
        {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 224,
        },
        {},
    ),
}  # fmt: skip


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    dtype: str = "bfloat16",
    tied: bool = True,
    sharded: bool = False,
    seed: int = 0,
    wide_heads: bool = False,
) -> Path:
    """A complete checkpoint folder of one family: about 300,000 parameters, 64 wide.

    With ``wide_heads`` heads have 32 numbers in both halves, which is the least that some kernels take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = (
        _tiled_config(folder, family, tied) if family in TILED else _config(family, tied, _WIDE if wide_heads else {})
    )
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():  # the default 0.02 would make every answer the same
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
    if family in TILED:
        write_processors(folder, family)
        return folder
    for name in _TEXT_FILES:
        shutil.copy(bundled.checkpoint() / name, folder / name)
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(family)))
    video = {"video_processor_type": "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(_processor(family) | video))
    return folder


def by_tier(names: Iterable[str], *, thorough: Iterable[str] = ()) -> list[Any]:
    """Parameters of a test: families, or cases named after one, those of the long tail for the thorough run alone."""
    slow = set(thorough)
    return [
        pytest.param(name, marks=pytest.mark.thorough)
        if name in slow or name.partition("-")[0] in LONG_TAIL
        else pytest.param(name)
        for name in names
    ]


def save_as_transformers_5(folder: Path) -> Path:
    """Have the processors' settings in one file, where ``save_pretrained`` of transformers 5 writes them all."""
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()
    processor.save_pretrained(folder)
    return folder


def unsplit(folder: Path, dtype: str) -> Any:
    """The whole checkpoint in one model: the reference for every answer."""
    kwargs = {"dtype": getattr(torch, dtype), "local_files_only": True}
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()


def unsplit_tokens(folder: Path, pictures: Sequence[Path], question: str, number: int) -> tuple[int, ...]:
    """What the whole model generates from the pictures themselves, in float32."""
    model = unsplit(folder, "float32")
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [Image.open(path).convert("RGB") for path in pictures]
    inputs = processor(text=[text], images=images, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=number, do_sample=False)
    return tuple(found[0, inputs.input_ids.shape[1] :].tolist())


def _config(family: str, tied: bool, heads: dict[str, Any]) -> Any:
    ids = json.loads((bundled.checkpoint() / "config.json").read_text())
    special = {name: ids[name] for name in ids if name.endswith("_token_id")}
    class_name, vision, text = deepcopy(_CONFIGS[family])  # configs change the mappings that they are made from
    if heads:
        vision["num_heads"] = 1
    words = (
        deepcopy(_TEXT)
        | {"vocab_size": ids["text_config"]["vocab_size"], "tie_word_embeddings": tied}
        | text
        | deepcopy(heads)
    )
    if family.startswith("qwen3"):
        words["rope_parameters"]["mrope_interleaved"] = True  # published files say it; the class knows nothing else
    return getattr(transformers, class_name)(
        vision_config=vision, text_config=words, tie_word_embeddings=tied, **special
    )


def _tiled_config(folder: Path, family: str, tied: bool) -> Any:
    tokenizer = make_tokenizer(folder, family)
    class_name, vision, text, whole = deepcopy(tiled_config(family, tokenizer))
    words = deepcopy(_TEXT) | {"vocab_size": len(tokenizer), "tie_word_embeddings": tied} | text
    words["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    return getattr(transformers, class_name)(vision_config=vision, text_config=words, tie_word_embeddings=tied, **whole)


def _processor(family: str) -> dict[str, Any]:
    newer = family.startswith("qwen3")
    kinds = {
        "glm4v": "Glm4vImageProcessor",
        "glm_ocr": "Glm4vImageProcessor",
        "glm46v": "Glm46VImageProcessor",
        "paddleocr_vl": "PaddleOCRVLImageProcessor",
    }
    classes = {"qwen2_5_vl": "Qwen2_5_VLProcessor"}
    return {
        "image_processor_type": kinds.get(family, "Qwen2VLImageProcessorFast"),
        "processor_class": classes.get(family, "Qwen3VLProcessor" if newer else "Qwen2VLProcessor"),
        "min_pixels": 56 * 56,
        "max_pixels": 224 * 224,
        "patch_size": 16 if newer else 14,
        "temporal_patch_size": 1 if family == "paddleocr_vl" else 2,
        "merge_size": 2,
        **(_NORMALISED if family.startswith("qwen") else {}),
    }


def language_and_features(folder: Path, family: str) -> tuple[LanguageModel, list[Features]]:
    """A language half in float32, where no two tokens are so close that the order of sums decides, and features."""
    whole = str(make_checkpoint(folder, family, dtype="float32"))
    up = Image.linear_gradient("L").resize((112, 84)).convert("RGB")
    pictures = [up, up.rotate(180), Image.new("RGB", (140, 112), "red")]
    return LanguageModel.from_pretrained(whole), VisionEncoder.from_pretrained(whole).encode(pictures)


def overflow(folder: Path) -> Path:
    """Change a checkpoint in float32 so that its language half overflows on what `overflowing` makes, and on no other.

    One neuron of the first layer multiplies a channel that lies within 4 of zero in any ordinary state, and reaches 8
    where it is the only one that is not zero, by nearly the largest float. Its gate is shut: 0 times a number is
    nothing, and 0 times infinity is NaN.
    """
    file = folder / "model.safetensors"
    weights = load_file(file)
    names = {one: next(name for name in weights if name.endswith(f"layers.0.mlp.{one}_proj.weight"))
             for one in ("up", "gate")}  # fmt: skip
    weights[names["gate"]][0] = 0
    weights[names["up"]][0] = 0
    weights[names["up"]][0, 5] = 4.6e37
    save_file(weights, file, {"format": "pt"})
    return folder


def overflowing(features: Features) -> Features:
    """Sound features for which the language half of an `overflow` checkpoint produces NaN."""
    tokens, *levels = features.to_torch()
    tokens = torch.zeros_like(tokens)
    tokens[:, 5] = 1000.0
    return Features.from_torch([tokens, *levels], features.grid_thw, features.encoder, making=features.making)
