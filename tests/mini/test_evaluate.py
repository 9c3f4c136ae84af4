"""The bundled checkpoint answers as often right as its card says, and from the features, not from the question."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsplit import bundled
from qsplit.mini import questions, scenes
from qsplit.mini.evaluate import (
    Examinee,
    Row,
    copies,
    exam,
    garments,
    photos,
    retrieval,
    samples,
    scene_exam,
)
from qsplit.mini.model_card import EVALUATION
from qsplit.mini.questions import LANGUAGES, Asker
from qsplit.models.language.model import LanguageModel, Sampling

# The first pictures of Fashion-MNIST's test split; tests/data/README.md states their licence.
GARMENTS = Path(__file__).parents[1] / "data" / "fashion-mnist-t10k-first-320.gz"
POINTS_BELOW = 0.03
PICTURES = 500  # each is asked of four times over: of fewer, a subset alone may be 3 points off
AT_LEAST = 200  # questions a skill


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    return Examinee(bundled.checkpoint())


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundled.checkpoint() / EVALUATION).read_text(encoding="utf-8"))
    return found


def by_skill(rows: Sequence[Any]) -> dict[str, tuple[int, float]]:
    """(questions, share right) of each skill."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row["skill"]].append(row)
    return {
        skill: (
            n := sum(row["n"] for row in members),
            sum(row["right"] * row["n"] for row in members) / n,
        )
        for skill, members in groups.items()
    }


def holds(rows: Sequence[Row], report: dict[str, Any], part: str) -> None:
    measured = by_skill([{name: getattr(row, name) for name in Row.__slots__} for row in rows])
    stated = by_skill([row for row in report["rows"] if row["part"] == part])
    assert measured.keys() == stated.keys()
    below = {
        skill: (right, stated[skill][1])
        for skill, (_, right) in measured.items()
        if right < stated[skill][1] - POINTS_BELOW
    }
    assert not below, f"(measured, stated) on {part}: {below}"
    assert all(n >= AT_LEAST for n, _ in measured.values()), measured


@pytest.mark.thorough
def test_scenes_are_answered_as_the_card_says(examinee: Examinee, report: dict[str, Any]) -> None:
    holds(scene_exam(examinee, PICTURES, control=False), report, "scenes")


@pytest.mark.thorough
def test_photographs_are_answered_as_the_card_says(examinee: Examinee, report: dict[str, Any]) -> None:
    holds(photos(examinee, "samples", samples(), PICTURES, control=False), report, "samples")


@pytest.mark.thorough
def test_garments_are_answered_as_the_card_says(examinee: Examinee, report: dict[str, Any]) -> None:
    data = gzip.decompress(GARMENTS.read_bytes())
    pictures = np.frombuffer(data, np.uint8)[: 320 * 784].reshape(320, 28, 28)
    holds(garments(examinee, pictures, np.frombuffer(data, np.uint8)[320 * 784 :], control=False), report, "garments")


def test_texts_find_their_scenes(examinee: Examinee, report: dict[str, Any]) -> None:
    # Among fewer pictures more are found first, so the card's figures over 1,000 are a floor.
    found = retrieval(examinee, AT_LEAST)
    for language in LANGUAGES:
        for cut in ("recall@1", "recall@10"):
            assert found[f"{cut} {language}"] >= report["retrieval"][f"{cut} {language}"] - POINTS_BELOW


def test_pooled_vectors_find_copies_where_hashes_do_not(examinee: Examinee) -> None:
    found = copies(examinee, [image for image, _ in samples()], 8)
    assert found["queries"] >= AT_LEAST
    assert found["pooled"] > found["pHash"]
    assert found["pooled"] > found["dHash"]


def test_the_exam_s_shortcut_agrees_with_generation(examinee: Examinee) -> None:
    """What is called right is what the product's own greedy decoding says."""
    rng = np.random.default_rng(5)
    scene = scenes.invent(rng, 168, 168, count=3)
    (features,) = examinee.see([scenes.draw(scene, rng)])
    language = LanguageModel.from_pretrained(str(bundled.checkpoint()))
    kinds = ("colour", "background", "shape", "count", "presence", "beside", "where", "shapes")
    asked = [q for kind in kinds for lang in LANGUAGES if (q := questions.about_scene(scene, Asker(rng, lang), kind))]
    said = [language.answer([features], q.text, sampling=Sampling(16)).text == q.answer for q in asked]
    assert examinee.right([features], [(0, q, "trained") for q in asked]) == said


def test_an_exam_counts_its_baselines(examinee: Examinee) -> None:
    rng = np.random.default_rng(6)
    made = [scenes.invent(rng, 112, 112, count=1) for _ in range(4)]
    features = examinee.see([scenes.draw(scene, rng) for scene in made])
    asked = []
    for i, scene in enumerate(made):
        question = questions.about_scene(scene, Asker(rng, "en"), "background")
        assert question
        asked.append((i, question, "trained"))
    (row,) = exam(examinee, "scenes", features, asked)
    commonest = max(sum(scene.background == other.background for other in made) for scene in made)
    assert (row.n, row.majority) == (4, commonest / 4)
