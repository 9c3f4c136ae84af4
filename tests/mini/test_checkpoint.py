"""The bundled checkpoint is what others load: a whole Qwen2-VL folder, and what its card says of it is so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from qsplit import bundled
from qsplit.mini.build import RETRIEVAL, SPECIAL_TOKENS, VOCAB_SIZE, half_sizes, write_assets
from qsplit.mini.model_card import EVALUATION, card
from qsplit.mini.photographs import labels_of
from qsplit.models.retrieval_config import Retrieval

IMAGE_TOKEN = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "evaluation.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "retrieval.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
}
# What training decides; the rest follows from the source.
TRAINED = {
    "README.md",
    "config.json",
    "evaluation.json",
    "generation_config.json",
    "model.safetensors",
    "retrieval.json",
}


@pytest.fixture(scope="session")
def model() -> Any:  # transformers' own types cannot call `generate`
    return AutoModelForImageTextToText.from_pretrained(bundled.checkpoint())


@pytest.fixture(scope="session")
def processor() -> Any:
    return AutoProcessor.from_pretrained(bundled.checkpoint())


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bundled.checkpoint())


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt")
    write_assets(folder)
    return folder


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def answer(model: Any, processor: Any, image: Image.Image, limit: int) -> list[int]:
    inputs = processor.apply_chat_template(
        user({"type": "image", "image": image}, {"type": "text", "text": "Is the picture bright or dark?"}),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens: list[int] = model.generate(**inputs, max_new_tokens=limit)[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def test_importing_the_path_loads_no_torch() -> None:
    code = "import sys, qsplit.bundled; qsplit.bundled.checkpoint(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folder_holds_the_published_layout_and_stays_small() -> None:
    shipped = [
        file for file in bundled.checkpoint().iterdir() if not file.name.startswith(".")
    ]  # caches beside it are hidden
    assert {file.name for file in shipped} == FILES
    assert sum(file.stat().st_size for file in shipped) <= 12_000_000


def test_model_is_qwen2_vl(model: Any) -> None:
    assert type(model) is Qwen2VLForConditionalGeneration
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(half_sizes(model)) == model.num_parameters()


def test_every_weight_is_read_from_the_file() -> None:
    load: Any = AutoModelForImageTextToText.from_pretrained  # its type knows nothing of the second result
    _, info = load(bundled.checkpoint(), output_loading_info=True)
    assert {kind: list(keys) for kind, keys in info.items() if keys} == {}


def test_the_card_states_the_parameters_of_both_halves(model: Any) -> None:
    card = (bundled.checkpoint() / "README.md").read_text(encoding="utf-8")
    vision, language = half_sizes(model)
    assert f"| vision | {vision:,} |\n| language | {language:,} |\n" in card
    assert "license: apache-2.0" in card


# Other versions may word the JSON differently; the release that wrote the files must write them again.
@pytest.mark.thorough
@pytest.mark.skipif(
    transformers.__version__ != json.loads((bundled.checkpoint() / "config.json").read_text())["transformers_version"],
    reason="the committed files were written by another transformers",
)
@pytest.mark.parametrize("name", sorted(FILES - TRAINED))
def test_the_committed_bytes_follow_from_the_source(rebuilt: Path, name: str) -> None:
    assert (rebuilt / name).read_bytes() == (bundled.checkpoint() / name).read_bytes()


@pytest.mark.thorough
def test_the_build_writes_no_other_files_and_anyone_may_read_them(rebuilt: Path) -> None:
    assert {file.name for file in rebuilt.iterdir()} == FILES - TRAINED
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (*rebuilt.iterdir(), *bundled.checkpoint().iterdir()))


def test_it_says_what_it_was_trained_to_be_found_by() -> None:
    assert Retrieval.read(bundled.checkpoint()).identity() == RETRIEVAL.identity()


def test_the_card_is_what_the_evaluation_found() -> None:
    report = json.loads((bundled.checkpoint() / EVALUATION).read_text(encoding="utf-8"))
    assert (bundled.checkpoint() / "README.md").read_text(encoding="utf-8") == card(report)


def test_special_tokens_stand_last_and_in_order(tokenizer: Any) -> None:
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert tokenizer.is_fast
    assert len(tokenizer) == VOCAB_SIZE
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(VOCAB_SIZE - len(SPECIAL_TOKENS), VOCAB_SIZE))
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert (tokenizer.bos_token, tokenizer.unk_token) == (None, None)


def test_model_and_tokenizer_agree_on_ids(model: Any, processor: Any) -> None:
    number = processor.tokenizer.convert_tokens_to_ids
    config = model.config
    assert config.image_token_id == processor.image_token_id == number("<|image_pad|>")
    assert config.video_token_id == processor.video_token_id == number("<|video_pad|>")
    assert config.vision_start_token_id == number("<|vision_start|>")
    assert config.vision_end_token_id == number("<|vision_end|>")
    assert model.generation_config.eos_token_id == [number("<|im_end|>"), number("<|endoftext|>")]
    assert model.generation_config.pad_token_id == number("<|endoftext|>")
    assert config.text_config.vocab_size == VOCAB_SIZE


@given(st.text())
def test_any_text_survives_the_tokenizer_up_to_nfc(tokenizer: Any, text: str) -> None:
    # The tokenizer's own NFC: its Unicode tables may be newer than those of `unicodedata`.
    assert tokenizer.decode(tokenizer(text).input_ids) == tokenizer.backend_tokenizer.normalizer.normalize_str(text)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("What's in it, 3 boats?\n\n  No : 12 .", "What's in it, 3 boats?\n\n  No : 12 ."),
        ("图片里有狐狸。🦊\x00", "图片里有狐狸。🦊\x00"),
        ("cafe\u0301", "caf\u00e9"),
        ("a<|im_end|> b", "a<|im_end|> b"),
    ],
)
def test_decoded_text_is_literal(tokenizer: Any, text: str, decoded: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == decoded


def test_words_of_the_corpus_are_single_tokens(tokenizer: Any) -> None:
    words = ["red", " colour", " triangle", " photograph", "Yes", "图片", "红色", "正方形"]
    assert [len(tokenizer(word).input_ids) for word in words] == [1] * len(words)


@pytest.mark.parametrize("which", ["processor", "tokenizer"])
def test_chat_template_renders_one_picture_and_one_question(which: str, request: pytest.FixtureRequest) -> None:
    rendered = request.getfixturevalue(which).apply_chat_template(
        user({"type": "image"}, {"type": "text", "text": "What is in the picture?"}),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is in the picture?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "options", "rendered"),
    [
        ([{"role": "user", "content": "Hi"}], {}, f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " a\n"}],
            {},
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n a\n<|im_end|>\n",
        ),
        (
            [*user({"type": "text", "text": "Hi"}), {"role": "assistant", "content": "Yes?"}],
            {},
            f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n",
        ),
        (
            user({"type": "video"}),
            {},
            f"{SYSTEM}<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n",
        ),
        (
            user({"type": "image_url", "image_url": "a.png"}, {"type": "image"}),
            {"add_vision_id": True},
            f"{SYSTEM}<|im_start|>user\nPicture 1: {IMAGE_TOKEN}Picture 2: {IMAGE_TOKEN}<|im_end|>\n",
        ),
    ],
    ids=["string", "system", "answered", "video", "numbered"],
)
def test_chat_template_forms(
    tokenizer: Any, messages: list[dict[str, Any]], options: dict[str, Any], rendered: str
) -> None:
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == rendered


@pytest.mark.parametrize(
    ("size", "grid"),
    [((112, 56), [1, 4, 8]), ((20, 20), [1, 4, 4]), ((2000, 1000), [1, 10, 22])],
    ids=["as it is", "smallest", "largest"],
)
def test_processor_bounds_the_pixels(processor: Any, size: tuple[int, int], grid: list[int]) -> None:
    inputs = processor(images=[Image.new("RGB", size)], text=[IMAGE_TOKEN], return_tensors="pt")
    patches = grid[1] * grid[2]
    assert inputs["image_grid_thw"].tolist() == [grid]
    assert inputs["pixel_values"].shape == (patches, 3 * 2 * 14 * 14)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == patches // 4


def test_video_goes_through_the_same_bounds(processor: Any) -> None:
    video = torch.zeros(4, 3, 448, 448, dtype=torch.uint8)  # (frames, channels, height, width)
    inputs = processor(videos=[video], text=["<|video_pad|>"], do_sample_frames=False, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[2, 16, 16]]


def test_greedy_answer_ends_at_the_limit_or_at_eos(model: Any, processor: Any) -> None:
    tokens = answer(model, processor, Image.new("RGB", (140, 112), "white"), limit=8)
    ends = model.generation_config.eos_token_id
    assert not set(tokens[:-1]) & set(ends)
    assert len(tokens) == 8 or tokens[-1] in ends


@pytest.mark.parametrize("photograph", bundled.photos()[2:6], ids=lambda path: str(path.stem))
@pytest.mark.parametrize(("light", "said"), [(1.9, "bright"), (0.25, "dark")])
def test_plain_transformers_gives_the_true_answer(
    model: Any, processor: Any, photograph: Path, light: float, said: str
) -> None:
    """Of photographs, as the checkpoint was taught: a picture of one colour is none."""
    with Image.open(photograph) as image:
        lit = ImageEnhance.Brightness(image.convert("RGB").resize((252, 168))).enhance(light)
    assert labels_of(lit)["brightness"] == said  # it is so by the stated bounds, and not between them
    tokens = answer(model, processor, lit, limit=8)
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == said
