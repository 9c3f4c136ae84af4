"""Tiny checkpoints of families that are shown a picture in pieces, with tokens, templates and processors of their own.

Tiles are of 56 pixels, which is 4 x 4 patches; the templates are written as the published ones write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qsplit import bundled

TILED = ("llava_onevision", "internvl", "idefics3", "smolvlm")
TILE = 56
_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": TILE, "patch_size": 14,
}  # fmt: skip
_PINPOINTS = [[TILE * h, TILE * w] for h in range(1, 5) for w in range(1, 5)]
_PLACES = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
_AROUND = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- '<IMG_CONTEXT>\\n' if part['type'] == 'image' else part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# This one reads lists of parts only, images first, and of anything else it says nothing.
_IMAGES_FIRST = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message['role'] ~ ' ' -}}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{- '<image>' -}}{%- endfor -%}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
        {{- '\\n' ~ part['text'] -}}
    {%- endfor -%}
    {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# So does this one, and an answer stands behind a space.
_UTTERANCES = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
    {{- message['role'] | capitalize -}}
    {{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'text' -%}{{- part['text'] -}}
        {%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}
    {%- endfor -%}
    {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
_TEMPLATES = {"llava_onevision": _IMAGES_FIRST, "internvl": _CHATML, "idefics3": _UTTERANCES, "smolvlm": _UTTERANCES}
_TOKENS: dict[str, dict[str, Any]] = {
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "idefics3": {"image_token": "<image>"},
    "smolvlm": {"image_token": "<image>"},
}  # fmt: skip


def make_tokenizer(folder: Path, family: str) -> Any:
    """The bundled tokenizer with the family's own tokens and template, saved into a folder."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.checkpoint(), extra_special_tokens=_TOKENS[family])
    if family in ("idefics3", "smolvlm"):
        tokenizer.add_special_tokens({"additional_special_tokens": _AROUND + _PLACES})
    tokenizer.chat_template = _TEMPLATES[family]
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiled_config(family: str, tokenizer: Any) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The class of a family's config, and the vision half's, the language half's and its other settings."""
    of = {"internvl": "<IMG_CONTEXT>"}
    ids: dict[str, Any] = {"image_token_id": tokenizer.convert_tokens_to_ids(of.get(family, "<image>"))}
    if family == "llava_onevision":
        tower = _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
        whole = {
            "image_token_index": ids["image_token_id"], "image_grid_pinpoints": _PINPOINTS,
            "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        }  # fmt: skip
        return "LlavaOnevisionConfig", tower, {"model_type": "qwen2"}, whole
    if family == "internvl":
        return "InternVLConfig", _TOWER, {"model_type": "qwen2"}, ids | {"image_seq_length": 4}
    name = "SmolVLMConfig" if family == "smolvlm" else "Idefics3Config"
    return name, _TOWER, {"model_type": "llama", "pad_token_id": None}, ids | {"scale_factor": 2}


def write_processors(folder: Path, family: str) -> None:
    """The settings of the family's processors, in the files of published checkpoints."""
    size: dict[str, Any] = {"height": TILE, "width": TILE}
    cut: dict[str, Any] = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}
    images: dict[str, dict[str, Any]] = {
        "llava_onevision": {
            "image_processor_type": "LlavaOnevisionImageProcessor", "size": size, "image_grid_pinpoints": _PINPOINTS,
        },
        "internvl": {"image_processor_type": "GotOcr2ImageProcessor", "size": size, "max_patches": 6},
        "idefics3": {"image_processor_type": "Idefics3ImageProcessor"} | cut,
        "smolvlm": {"image_processor_type": "SmolVLMImageProcessor"} | cut,
    }  # fmt: skip
    whole: dict[str, dict[str, Any]] = {
        "llava_onevision": {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16,
                            "vision_feature_select_strategy": "full"},
        "internvl": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        "idefics3": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        "smolvlm": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    }  # fmt: skip
    videos: dict[str, dict[str, Any]] = {
        "llava_onevision": {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": size},
        "internvl": {"video_processor_type": "InternVLVideoProcessor", "size": size},
        "smolvlm": {"video_processor_type": "SmolVLMVideoProcessor"} | cut,
    }
    name = {"processor_class": whole[family]["processor_class"]}
    _write(folder / "processor_config.json", whole[family])
    _write(folder / "preprocessor_config.json", images[family] | name)
    if family in videos:
        _write(folder / "video_preprocessor_config.json", videos[family] | name)


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings))
