"""A training run learns, and one that was cut off goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from qsplit import bundled
from qsplit.mini.build import write_tokenizer
from qsplit.mini.dataset import BINS, GARMENT_GRIDS, TRAITS, UNKNOWN, Data, make_batch, token_labels, trait_labels
from qsplit.mini.evaluate import average_precision
from qsplit.mini.questions import Question
from qsplit.mini.scenes import COLOURS, SHAPES, Scene, Thing
from qsplit.mini.train import Recipe, Trainer, losses_of, rate_at
from qsplit.models.checkpoint import has_bfloat16

RECIPE = Recipe(vision_steps=6, joint_steps=4, warmup=2, workers=1)


@pytest.fixture(autouse=True)
def _muon_in_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon orthogonalises in bfloat16 whatever the CPU has: a step that takes a second then takes a minute."""
    if not has_bfloat16():
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)


@pytest.fixture(scope="module")
def data() -> Data:
    photographs = []
    for file in bundled.photos():
        with Image.open(file) as image:
            photographs.append((image.convert("RGB").reduce(2), True, file.name))
    rng = np.random.default_rng(0)
    garments, labels = rng.integers(0, 256, (80, 28, 28), np.uint8), rng.integers(0, 10, 80).astype(np.uint8)
    return Data(photographs, garments, labels, [Image.new("RGBA", (40, 90), (200, 30, 30, 255))])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_tokenizer(tmp_path)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield tmp_path
    dist.destroy_process_group()


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.learner.state_dict().items()}


@pytest.mark.thorough
def test_a_run_cut_off_between_the_stages_ends_in_the_same_weights(data: Data, folder: Path) -> None:
    whole = Trainer(0, folder, RECIPE)
    for step in range(8):
        if step == 5:
            whole.save()
        figures = whole.learn(data)
    assert "answers" in figures
    resumed = Trainer(0, folder, RECIPE)
    assert resumed.step == 5
    for _ in range(3):
        resumed.learn(data)
    expected = weights(whole)
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.thorough
@pytest.mark.parametrize("joint", [False, True])
def test_one_batch_is_learnt_by_heart(data: Data, folder: Path, joint: bool) -> None:
    trainer = Trainer(0, folder, RECIPE)
    batch = make_batch(data, np.random.default_rng(1), 0, joint=joint, late=False)
    losses = []
    for _ in range(12):
        loss = sum((part for _, part, _ in losses_of(trainer.learner, batch, joint)), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]  # torch is typed in part
        for optimizer in trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_every_parameter_has_one_optimizer(folder: Path) -> None:
    trainer = Trainer(0, folder, RECIPE)
    held = [id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, trainer.parameters))
    matrices = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert id(trainer.learner.model.lm_head.weight) not in matrices
    assert id(trainer.learner.model.model.language_model.layers[0].mlp.up_proj.weight) in matrices


def test_the_rate_warms_up_twice_and_ends_low() -> None:
    recipe = Recipe(vision_steps=100, joint_steps=100, warmup=10)
    rates = [rate_at(step, recipe) for step in range(200)]
    assert [joint for _, joint in rates] == [False] * 100 + [True] * 100
    assert rates[0][0] == pytest.approx(0.1)
    assert rates[100][0] == pytest.approx(0.1)
    assert max(share for share, _ in rates) <= 1
    assert rates[199][0] < 0.03


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("turn", range(8))
def test_batches_hold_equal_pictures_and_true_labels(data: Data, turn: int, joint: bool) -> None:
    batch = make_batch(data, np.random.default_rng(turn), turn, joint=joint, late=True)
    width, height = batch.images[0].size
    assert (width, height) == (batch.grid[0] * 28, batch.grid[1] * 28)
    assert all(image.size == (width, height) and image.mode == "RGB" for image in batch.images)
    assert all(bool(questions) == joint for questions in batch.questions)
    if batch.pairs:
        assert len(batch.images) == 2 * batch.pairs
    if "garment" in batch.labels:
        assert batch.grid in GARMENT_GRIDS
    for label in batch.labels.values():
        assert len(label) == (batch.pairs or len(batch.images))


def test_a_token_is_labelled_with_what_it_covers() -> None:
    scene = Scene((Thing("ring", "red", 0.25, 0.5, 0.2), Thing("star", "blue", 0.9, 0.1, 0.09)), "white", 112, 112)
    labels = {name: label.reshape(4, 4) for name, label in token_labels(scene, (4, 4)).items()}
    shapes = labels["shape"]
    assert shapes[1, 0] == shapes[1, 1] == shapes[2, 0] == SHAPES.index("ring")
    assert shapes[0, 3] == SHAPES.index("star")
    assert shapes[3, 3] == labels["colour"][3, 3] == labels["row"][3, 3] == UNKNOWN
    assert (labels["column"][2, 1], labels["row"][2, 1]) == (BINS // 4, BINS // 2)
    assert labels["column"][0, 3] == BINS - 1
    assert labels["centre"].sum() == len(scene.things)


def test_a_question_is_labelled_with_what_it_names() -> None:
    things = (Thing("star", "red", 0.1, 0.1, 0.1), Thing("star", "blue", 0.9, 0.1, 0.1))
    scene = Scene(things, "white", 112, 112)

    def labels(*about: tuple[str, str]) -> list[dict[str, int]]:
        question = Question("presence", "presence", "en", "", "", about)
        return [dict(zip(TRAITS, one, strict=True)) for one in trait_labels(scene, question)]

    one = {"number": 1, "shape": SHAPES.index("star"), "colour": COLOURS.index("blue"), "column": BINS - 1, "row": 0}
    nothing = dict.fromkeys(TRAITS, UNKNOWN)
    assert labels(("blue", "")) == [one, nothing]
    # What fits two things, or none, is nowhere.
    assert labels(("", "star"), ("green", "ring")) == [nothing | {"number": 2}, nothing | {"number": 0}]
    assert labels() == [nothing, nothing]


@pytest.mark.thorough
def test_the_vision_half_learns_slowly_once_it_has_been_taught(data: Data, folder: Path) -> None:
    trainer = Trainer(0, folder, RECIPE)
    for step, shares in ((0, {1.0}), (RECIPE.vision_steps, {1.0, RECIPE.vision_share})):
        trainer.step = step
        trainer.learn(data)
        rate = RECIPE.rate * rate_at(step, RECIPE)[0]
        rates = {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
        assert rates == {rate * share for share in shares}


def test_average_precision_ranks_all_pairs_together() -> None:
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([0.9, 0.1, 0.8, 0.2]), truth) == 1
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), truth) == pytest.approx((1 + 2 / 3) / 2)
    # Ties count as if the wrong ones stood first: equal scores for all are no ranking.
    assert average_precision(np.zeros(4), truth) == pytest.approx((1 / 3 + 2 / 4) / 2)
