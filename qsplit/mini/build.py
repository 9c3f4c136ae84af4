"""The shape of the bundled checkpoint, and all of its files but the weights: tokenizer, chat template, processors.

They follow from this source byte for byte, so the committed files can be checked against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from qsplit.mini.packing import IMAGE_PROMPT, TEXT_PROMPT
from qsplit.mini.tokenizer_corpus import lines
from qsplit.models.retrieval_config import Retrieval

__all__ = [
    "PIXELS", "RETRIEVAL", "SPECIAL_TOKENS", "TEXT", "VISION", "VOCAB_SIZE", "half_sizes", "new_model", "write_assets",
    "write_checkpoint", "write_tokenizer",
]  # fmt: skip

VOCAB_SIZE = 1536  # special tokens included
MAX_TOKENS = 32_768
# In the order, and directly after the merges, where Qwen2-VL has them.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKEN_IDS = {token: VOCAB_SIZE - len(SPECIAL_TOKENS) + i for i, token in enumerate(SPECIAL_TOKENS)}

# How Qwen2 cuts text before merging; digits stay single.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# No token is longer than a word: " photographs" is 12 bytes, four hanzi are too.
MAX_TOKEN_BYTES = 12

CHAT_TEMPLATE = """\
{%- set count = namespace(image=0, video=0) -%}
{%- macro vision(kind, label, number) -%}
    {%- if add_vision_id -%}{{ label ~ ' ' ~ number ~ ': ' }}{%- endif -%}
    {{- '<|vision_start|><|' ~ kind ~ '_pad|><|vision_end|>' -}}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set count.image = count.image + 1 -%}
                {{- vision('image', 'Picture', count.image) -}}
            {%- elif part['type'] == 'video' or 'video' in part -%}
                {%- set count.video = count.video + 1 -%}
                {{- vision('video', 'Video', count.video) -}}
            {%- elif 'text' in part -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

PIXELS: dict[str, Any] = {
    "min_pixels": 56 * 56,
    "max_pixels": 224 * 224,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 224 * 224},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "processor_class": "Qwen2VLProcessor",
}

VISION = {
    "depth": 4,
    "embed_dim": 192,
    "num_heads": 6,
    "mlp_ratio": 4,
    "hidden_size": 192,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    # A theta of 1e6 hardly turns the height and width axes over pictures this small.
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
    "bos_token_id": TOKEN_IDS["<|endoftext|>"],
    "eos_token_id": TOKEN_IDS["<|im_end|>"],
    "pad_token_id": TOKEN_IDS["<|endoftext|>"],
    "tie_word_embeddings": True,
}
# What is trained to be found by; where good matches end is measured afterwards, by `qsplit.mini.calibrate_search`.
RETRIEVAL = Retrieval(
    system="",
    image_prompt=IMAGE_PROMPT,
    text_prompt=TEXT_PROMPT,
    centred=False,
    caption_prompts=("Describe the picture.", "请描述这张图片。"),
)
# Of the weights before training; embeddings are smaller, because the output layer is tied to them.
INIT_STD = 0.04
EMBEDDING_STD = 0.02


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, so that nothing is ever unknown
        max_token_length=MAX_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Train the tokenizer, and write its files into ``folder`` in the forms that readers take."""
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, for readers that know no tokenizer.json
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2VLProcessor",
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": token, **flags} for token, number in TOKEN_IDS.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
        "padding_side": "left",
        "model_max_length": MAX_TOKENS,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_processors(folder: Path) -> None:
    write_json(folder / "preprocessor_config.json", PIXELS | {"image_processor_type": "Qwen2VLImageProcessor"})
    write_json(folder / "video_preprocessor_config.json", PIXELS | {"video_processor_type": "Qwen2VLVideoProcessor"})


def model_config() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config=TEXT,
        vision_config=VISION,
        tie_word_embeddings=True,
        image_token_id=TOKEN_IDS["<|image_pad|>"],
        video_token_id=TOKEN_IDS["<|video_pad|>"],
        vision_start_token_id=TOKEN_IDS["<|vision_start|>"],
        vision_end_token_id=TOKEN_IDS["<|vision_end|>"],
    )


def new_model(seed: int) -> Qwen2VLForConditionalGeneration:
    """The model before training, in float32."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(model_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=EMBEDDING_STD if "embed_tokens" in name else INIT_STD)
    return model


def write_model(folder: Path, model: Qwen2VLForConditionalGeneration) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=TOKEN_IDS["<|endoftext|>"],
        eos_token_id=[TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]],
        pad_token_id=TOKEN_IDS["<|endoftext|>"],
        do_sample=False,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it its owner's alone


def half_sizes(model: Qwen2VLForConditionalGeneration) -> tuple[int, int]:
    """Count the parameters of the vision half and of the language half; tied embeddings count once."""
    vision = sum(weight.numel() for weight in model.model.visual.parameters())
    return vision, sum(weight.numel() for weight in model.parameters()) - vision


def write_assets(folder: Path) -> None:
    """Write all of the checkpoint but its weights and its card into ``folder``, which is made if it is not there.

    Every byte follows from the source, and from the versions of transformers and tokenizers, which write some of the
    JSON. Raises `OSError` where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_processors(folder)


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write the whole checkpoint but its card, with these weights rounded to bfloat16."""
    model = Qwen2VLForConditionalGeneration(model_config())
    model.load_state_dict(weights)
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' wrapper of `to` takes the dtype for self
    write_assets(folder)
    RETRIEVAL.write(folder)
    write_model(folder, model)
