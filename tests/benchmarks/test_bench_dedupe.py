"""The benchmark of duplicates judges as it says, and its transforms do what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import photograph

from benchmarks.duplicates import bench_dedupe, copyset

ROWS = [
    ("album/a.jpg", "scene 0", "original"),
    ("album/b.jpg", "scene 1", "original"),
    ("album/d.jpg", "distractor 0", "distractor"),
    ("album/s.jpg", "burst 0", "burst"),
    ("queries/a1.jpg", "scene 0", "crop"),
    ("queries/a2.jpg", "scene 0", "text"),
    ("queries/b1.jpg", "scene 1", "crop"),
    ("queries/s1.jpg", "burst 0", "burst"),
]
PAIRS = {
    ("queries/a1.jpg", "album/a.jpg"): 0.9,
    ("queries/s1.jpg", "album/s.jpg"): 0.8,
    ("queries/b1.jpg", "album/b.jpg"): 0.7,
    ("queries/b1.jpg", "album/d.jpg"): 0.7,
    ("queries/a2.jpg", "album/b.jpg"): 0.1,
}


@pytest.fixture
def truth(tmp_path: Path) -> bench_dedupe.Truth:
    rows = [dict(zip(("file", "scene", "transform"), row, strict=True)) for row in ROWS]
    (tmp_path / "truth.json").write_text(json.dumps(rows))
    return bench_dedupe.Truth(tmp_path)


def test_pairs_are_judged(truth: bench_dedupe.Truth) -> None:
    """Three copies are to be found: the first of five pairs is right, and of two equals the wrong one counts first."""
    found = truth.judged("way", PAIRS, 0.5)
    assert found["way: µAP"] == pytest.approx((1 / 1 + 2 / 4) / 3)
    assert found["way: recall at 0.9"] == pytest.approx(1 / 3)
    assert found["way: recall at the default"] == pytest.approx(2 / 3)
    assert found["way: precision at the default"] == pytest.approx(2 / 4)
    assert found["way: similar pairs called copies"] == 1.0
    assert truth.by_transform(PAIRS, 0.5) == {"crop": 1.0, "text": 0.0}


def test_groups_are_judged(truth: bench_dedupe.Truth) -> None:
    whole = [["album/a.jpg", "queries/a1.jpg", "queries/a2.jpg"], ["album/b.jpg", "queries/b1.jpg"]]
    assert truth.b_cubed(whole) == 1.0
    nothing = truth.b_cubed([])
    recall = (3 * 1 / 3 + 2 * 1 / 2 + 3) / 8
    assert nothing == pytest.approx(2 * recall / (1 + recall))
    assert truth.b_cubed([["album/a.jpg", "album/b.jpg"]]) < nothing


def test_groups_are_stars(truth: bench_dedupe.Truth) -> None:
    chain = [("album/a.jpg", "queries/a1.jpg"), ("queries/a1.jpg", "queries/a2.jpg")]
    assert bench_dedupe.stars(chain, truth) == [["album/a.jpg", "queries/a1.jpg"]]


def test_planted_pairs_are_found() -> None:
    found = bench_dedupe.scale(6000, 64)
    assert found["near pairs found"] >= 0.99


def test_every_transform_does_something() -> None:
    image = photograph("astronaut.jpg")
    others = [photograph("coffee.jpg")] * 4
    for name, change in copyset.changes(others).items():
        changed = change(image, np.random.default_rng(0))
        assert changed.mode == "RGB", name
        assert (
            changed.size != image.size or np.abs(np.asarray(changed, np.int16) - np.asarray(image, np.int16)).max() > 8
        ), name
        again = change(image, np.random.default_rng(0))
        assert again.tobytes() == changed.tobytes(), name
    crop = copyset.changes(others)["crop 50 %"](image, np.random.default_rng(0))
    assert crop.width * crop.height == pytest.approx(image.width * image.height / 2, rel=0.01)
