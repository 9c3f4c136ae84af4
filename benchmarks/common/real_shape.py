"""Write a Qwen2-VL checkpoint of a published shape with random weights.

    python -m benchmarks.common.real_shape FOLDER

Speed and memory depend on a checkpoint's shapes and files, not on what it has learned. So where no model hub can be
reached, a folder with the sizes, tensor names, dtype, shards and settings of the published Qwen2-VL-2B-Instruct stands
in for it. Its tokenizer is the one bundled with qsplit (ids below 1,024 of the 151,936), with its special tokens' ids.

The model is built on the meta device for its names and shapes only, and each tensor is drawn and written by itself:
the process never holds more than the largest one (0.47 GB for 2b).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from qsplit import bundled
from qsplit.features.codecs import as_bytes
from qsplit.models.families import FAMILIES
from qsplit.models.hub import INDEX, SINGLE
from qsplit.models.tensor_hashes import header

__all__ = ["SHAPES", "Shape", "ShapeName", "make"]

ShapeName = Literal["2b", "small"]
FAMILY = FAMILIES["qwen2_vl"]
ITEM = 2  # bytes of a bfloat16
STD = 0.02
FIRST_SHARES = 0.902  # of all bytes in the shards before the last: published are 3.99 and 0.43 GB
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of both halves, under the names of the published ``config.json``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: int = 4

    def mrope_section(self) -> list[int]:
        """Rotary frequencies for time, height and width: 2:3:3 of half a head, as 16, 24, 24 of 64."""
        half = self.hidden_size // self.num_attention_heads // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side]


SHAPES: dict[ShapeName, Shape] = {
    "2b": Shape(1536, 8960, 28, 12, 2, 151_936, depth=32, embed_dim=1280, num_heads=16),
    "small": Shape(256, 640, 4, 4, 2, 1536, depth=4, embed_dim=128, num_heads=4),
}
PROCESSOR = {
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 128 * 128,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}


def make(folder: Path, shape: ShapeName = "2b", seed: int = 0, shards: int = 2) -> Path:
    """Write a complete checkpoint; the same seed gives the same bytes on one version of torch.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     sorted(file.name for file in make(Path(place), "small").glob("*.safetensors"))
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(SHAPES[shape])
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PROCESSOR)
    _write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    for name in COPIED:
        shutil.copy(bundled.checkpoint() / name, folder / name)
    shapes = _published_shapes(folder)
    files = _shared_out(shapes, shards)
    for number, (file, names) in enumerate(files.items()):
        generator = torch.Generator().manual_seed(seed + number)
        _write_safetensors(folder / file, {name: shapes[name] for name in names}, generator)
    if shards > 1:
        _write_json(folder / INDEX, _index(files, shapes))
    return folder


def _config(shape: Shape) -> dict[str, Any]:
    """Flat, as published: the language half's settings beside the vision half's."""
    ours = json.loads((bundled.checkpoint() / "config.json").read_text())
    special = {key: value for key, value in ours.items() if key.endswith("_token_id")}
    return {
        "architectures": [FAMILY.class_name],
        "model_type": "qwen2_vl",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        **special,
        "bos_token_id": ours["text_config"]["bos_token_id"],
        "eos_token_id": ours["text_config"]["eos_token_id"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": shape.mrope_section()},
        "use_sliding_window": False,
        "vision_config": {
            "depth": shape.depth,
            "embed_dim": shape.embed_dim,
            "num_heads": shape.num_heads,
            "mlp_ratio": shape.mlp_ratio,
            "hidden_size": shape.hidden_size,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _published_shapes(folder: Path) -> dict[str, torch.Size]:
    """Published tensor name -> shape, in the model's own order; a tied output layer has no tensor."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.Qwen2VLForConditionalGeneration(config)
    return {_published(name): parameter.shape for name, parameter in model.named_parameters()}


def _published(name: str) -> str:
    """The name that the published files have for a parameter of today's class."""
    published = name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)
    assert FAMILY.canonical(published) == name, f"{published} would be loaded as {FAMILY.canonical(published)}"
    return published


def _shared_out(shapes: Mapping[str, torch.Size], shards: int) -> dict[str, list[str]]:
    """File name -> tensor names: the last shard is the small rest, as where a model is cut every 4 GB."""
    if shards == 1:
        return {SINGLE: list(shapes)}
    share = FIRST_SHARES * sum(map(prod, shapes.values())) / (shards - 1)
    files: dict[str, list[str]] = {f"model-{n:05}-of-{shards:05}.safetensors": [] for n in range(1, shards + 1)}
    names, written = list(files), 0
    for name, shape in shapes.items():
        written += prod(shape)
        files[names[min(int(written / share), shards - 1)]].append(name)
    return files


def _index(files: Mapping[str, list[str]], shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": ITEM * sum(map(prod, shapes.values()))},
        "weight_map": dict(sorted((name, file) for file, names in files.items() for name in names)),
    }


def _write_safetensors(file: Path, shapes: Mapping[str, torch.Size], generator: torch.Generator) -> None:
    """By hand, because `safetensors.torch.save_file` wants every tensor of a file in memory at once."""
    ordered = dict(sorted(shapes.items()))  # as safetensors orders tensors of one dtype
    with file.open("wb") as stream:
        stream.write(header({name: ("BF16", shape, ITEM * prod(shape)) for name, shape in ordered.items()}))
        for name, shape in ordered.items():
            stream.write(as_bytes(_draw(name, shape, generator).view(torch.int16).numpy()))
        stream.flush()
        os.fsync(stream.fileno())  # pages still to be written cannot be dropped from the cache by a benchmark


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A tensor of small random values; norms scale by one, so that activations stay in range through every layer."""
    tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(std=STD, generator=generator)
    return tensor + 1 if len(shape) == 1 and name.endswith("weight") else tensor


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=2)
    options = parser.parse_args()
    folder = make(options.folder, options.shape, options.seed, options.shards)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{folder}: {size / 1e9:.3f} GB in {options.shards} shards, shape {options.shape}, seed {options.seed}")


if __name__ == "__main__":
    main()
