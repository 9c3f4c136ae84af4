"""Tiny checkpoints of the real classes with random weights, in the file layout of published ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from qsplit import mini

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DTYPES = ("bfloat16", "float16", "float32")
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_checkpoint(
    folder: Path, family: str, *, dtype: str = "bfloat16", tied: bool = True, sharded: bool = False, seed: int = 0
) -> Path:
    """A complete checkpoint folder of one family: about 300,000 parameters, 64 wide."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(_config(family, tied), dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():  # the default 0.02 would make every answer the same
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
    for name in _TEXT_FILES:
        shutil.copy(mini.path() / name, folder / name)
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(family)))
    video = {"video_processor_type": "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(_processor(family) | video))
    return folder


def unsplit(folder: Path, dtype: str) -> Any:
    """The whole checkpoint in one model: the reference for every answer."""
    kwargs = {"dtype": getattr(torch, dtype), "local_files_only": True}
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()


def _config(family: str, tied: bool) -> Any:
    ids = json.loads((mini.path() / "config.json").read_text())
    special = {name: ids[name] for name in ids if name.endswith("_token_id")}
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": ids["text_config"]["vocab_size"],
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    common = {"text_config": text, "tie_word_embeddings": tied, **special}
    heads: dict[str, Any] = {
        "num_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "depth": 4,
    }
    match family:
        case "qwen2_vl":
            vision: dict[str, Any] = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
            return transformers.Qwen2VLConfig(vision_config=vision, **common)
        case "qwen2_5_vl":
            vision = heads | {"fullatt_block_indexes": [1, 3], "window_size": 56}
            return transformers.Qwen2_5_VLConfig(vision_config=vision, **common)
        case "qwen3_vl":
            vision = heads | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 256, "patch_size": 16}
            return transformers.Qwen3VLConfig(vision_config=vision, **common)
    raise ValueError(family)


def _processor(family: str) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor" if family == "qwen3_vl" else "Qwen2VLProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": 224 * 224,
        "patch_size": 16 if family == "qwen3_vl" else 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
