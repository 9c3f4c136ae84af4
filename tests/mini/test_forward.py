"""The training forward is transformers' own forward: batched, and with questions packed behind one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor

from qsplit import bundled
from qsplit.mini import scenes
from qsplit.mini.build import new_model
from qsplit.mini.dataset import TOKEN, patches
from qsplit.mini.losses import Learner
from qsplit.mini.packing import Segment
from qsplit.mini.questions import Asker, about_scene

GRIDS = [(3, 3), (6, 4), (5, 8)]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(new_model(0).eval(), Tokenizer.from_file(str(bundled.checkpoint() / "tokenizer.json")))


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(bundled.checkpoint())


def drawn(grid: tuple[int, int], number: int) -> list[Image.Image]:
    rng = np.random.default_rng(7)
    return [scenes.draw(scenes.invent(rng, grid[0] * TOKEN, grid[1] * TOKEN), rng) for _ in range(number)]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_batch_of_pictures_gives_the_features_of_each(
    learner: Learner, processor: Any, grid: tuple[int, int]
) -> None:
    images = drawn(grid, 3)
    inputs = processor.image_processor(images, return_tensors="pt")
    assert inputs.image_grid_thw.tolist() == [[1, 2 * grid[1], 2 * grid[0]]] * 3
    torch.testing.assert_close(patches(images).flatten(0, 1), inputs.pixel_values[:, PATCH_OF_ONE_FRAME])
    with torch.no_grad():
        expected = learner.model.get_image_features(inputs.pixel_values, inputs.image_grid_thw, return_dict=True)
        features = learner.see(images, grid)
    torch.testing.assert_close(features, torch.stack(expected.pooler_output), atol=2e-5, rtol=1e-4)


# The processor's patch is (channel, frame, row, column), with the frame twice.
PATCH_OF_ONE_FRAME = np.arange(3 * 2 * 14 * 14).reshape(3, 2, 14, 14)[:, 0].ravel()


@pytest.mark.parametrize("grid", GRIDS)
def test_packed_questions_get_the_states_that_they_get_alone(
    learner: Learner, processor: Any, grid: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    scene = scenes.invent(rng, grid[0] * TOKEN, grid[1] * TOKEN, count=2)
    image = scenes.draw(scene, rng)
    questions = [about_scene(scene, Asker(rng, language), "count") for language in ("en", "zh", "en")]
    packer = learner.reader.packer
    segments = [packer.question(question) for question in questions if question]
    with torch.no_grad():
        packed, states, early = learner.reader.read([segments], learner.see([image], grid), grid)
        inputs = processor.image_processor([image], return_tensors="pt")
        head = [*packer.head, packer.vision[0]]
        for (tokens, _), (_, last) in zip(segments, packed.ends.tolist(), strict=True):
            ids = torch.tensor([[*head, *[packer.pad] * (grid[0] * grid[1]), packer.vision[1], *tokens]])
            alone = learner.model.model(
                input_ids=ids,
                pixel_values=inputs.pixel_values,
                image_grid_thw=inputs.image_grid_thw,
                mm_token_type_ids=(ids == packer.pad).long(),
                output_hidden_states=True,
            )
            torch.testing.assert_close(states[0, last], alone.last_hidden_state[0, -1], atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(early[0, last], alone.hidden_states[-2][0, -1], atol=2e-4, rtol=1e-3)


def test_a_question_is_the_chat_template_s(learner: Learner, processor: Any) -> None:
    scene = scenes.invent(np.random.default_rng(0), 168, 168)
    question = about_scene(scene, Asker(np.random.default_rng(0), "en"), "background")
    assert question
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]},
        {"role": "assistant", "content": question.answer},
    ]
    rendered = processor.apply_chat_template(messages, tokenize=False)
    packer = learner.reader.packer
    tokens, learnt = packer.question(question)
    ours = [*packer.head, packer.vision[0], packer.pad, packer.vision[1], *tokens]
    assert packer.tokenizer.decode(ours, skip_special_tokens=False) + "\n" == rendered
    assert packer.tokenizer.decode(tokens[-learnt:], skip_special_tokens=False) == f"{question.answer}<|im_end|>"


def test_padding_and_neighbours_change_nothing(learner: Learner) -> None:
    reader = learner.reader
    encode = reader.packer.encode
    one, long = (encode("What colour is the star?"), 0), (encode("Describe the picture in one sentence. " * 3), 0)

    def last(rows: list[list[Segment]], index: int) -> torch.Tensor:
        with torch.no_grad():
            packed, states, _ = reader.read(rows)
        return packed.at_ends(states)[index]

    alone = last([[one]], 0)
    torch.testing.assert_close(last([[one], [long, long]], 0), alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(last([[long, one]], 1), alone, atol=2e-5, rtol=1e-4)
