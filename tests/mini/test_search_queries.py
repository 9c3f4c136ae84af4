"""What drawn scenes are searched for: what fits is as people would say, and bounds are those of what was searched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsplit import bundled
from qsplit.mini import calibrate_search
from qsplit.mini.calibrate_search import Searched, measured
from qsplit.mini.questions import caption
from qsplit.mini.rerank_questions import QUESTIONS
from qsplit.mini.scenes import Scene, Thing
from qsplit.mini.search_queries import KINDS, Query, Wanted, album, descriptions, invent, queries, wanted
from qsplit.models.retrieval_config import RETRIEVAL, Retrieval
from qsplit.search.relevance import Cut

STAR, RING = Thing("star", "red", 0.3, 0.2, 0.1), Thing("ring", "blue", 0.7, 0.25, 0.1)
SCENE = Scene((STAR, RING), "white", 168, 168)
RED_STAR, BLUE_RING = ("red", "star"), ("blue", "ring")


@pytest.mark.parametrize(
    ("kind", "first", "second", "side", "number", "fits"),
    [
        ("thing", RED_STAR, ("", ""), 0, 0, True),
        ("thing", ("blue", "star"), ("", ""), 0, 0, False),
        ("things", RED_STAR, BLUE_RING, 0, 0, True),
        ("things", RED_STAR, ("red", "ring"), 0, 0, False),
        ("beside", RED_STAR, BLUE_RING, 0, 0, True),
        ("beside", RED_STAR, BLUE_RING, 1, 0, False),
        ("beside", BLUE_RING, RED_STAR, 1, 0, True),
        ("over", RED_STAR, BLUE_RING, 0, 0, None),
        ("over", RED_STAR, BLUE_RING, 1, 0, False),
        ("count", ("red", ""), ("", ""), 0, 1, True),
        ("count", ("red", ""), ("", ""), 0, 2, False),
    ],
)
def test_what_fits(
    kind: str, first: tuple[str, str], second: tuple[str, str], side: int, number: int, fits: bool | None
) -> None:
    assert Wanted(kind, {}, first, second, side, number).fits(SCENE) is fits


def test_queries_are_of_what_is_there_or_is_not() -> None:
    rng = np.random.default_rng(1)
    made = album(rng, 30)
    assert len({caption(scene, "en") for scene in made}) == 30
    for kind in KINDS:
        there = wanted(rng, made, kind, 5, there=True)
        absent = wanted(rng, made, kind, 5, there=False)
        assert len(there) == len(absent) == 5
        assert all(any(one.fits(scene) for scene in made) for one in there)
        assert not any(one.fits(scene) or one.fits(scene) is None for one in absent for scene in made)
    one = invent(np.random.default_rng(0), "beside")
    assert " of a" in one.texts["en"]
    assert one.texts["zh"].endswith("边")
    assert descriptions(made[:1], "en")[0].startswith("The picture shows")


QUERY = Query("thing", "en", "a red star", frozenset())


def test_half_of_the_queries_are_for_nothing() -> None:
    rng = np.random.default_rng(2)
    made = album(rng, 20)
    found = queries(made, rng, 3)
    assert len(found) == 2 * 2 * 3 * (1 + len(KINDS))
    assert sum(not one.right for one in found) == len(found) / 2
    whole = [one for one in found if one.kind == "whole" and one.language == "en" and one.right]
    assert [one.text for one in whole] == descriptions(made[:3], "en")
    assert [one.right for one in whole] == [{0}, {1}, {2}]


def searches(rng: np.random.Generator, number: int) -> list[Searched]:
    found = []
    for there in (True, False):
        standing = rng.normal(1.3 if there else 1.0, 0.2, number)
        odds = rng.normal(4 if there else -4, 2, number)
        probability = 1 / (1 + np.exp(-odds))
        found += [
            Searched(QUERY, there, (float(s), 0.5), (float(p), 0.01))
            for s, p in zip(standing, probability, strict=True)
        ]
    return found


def test_bounds_deny_as_few_of_what_is_there_as_was_asked_for() -> None:
    found = searches(np.random.default_rng(0), 1000)
    cut = measured(found)
    denied = {
        there: np.mean([one.agreement(cut.weight) < cut.agreement for one in found if one.fits == there])
        for there in (True, False)
    }
    assert denied[True] == pytest.approx(calibrate_search.WRONGLY, abs=0.01)
    assert denied[False] > 0.95, "both signs together tell more than one"
    assert cut.asks == calibrate_search.ASKS
    assert Cut.read(json.loads(json.dumps(cut.written()))) == cut


def test_bounds_are_measured_and_written(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(bundled.checkpoint(), tmp_path / "checkpoint"))
    held = replace(Retrieval.read(checkpoint), questions=(), cut=None)
    held.write(checkpoint)
    cut = calibrate_search.write_bounds(checkpoint, sizes=(12,), each=2)
    written = json.loads((checkpoint / RETRIEVAL).read_text(encoding="utf-8"))
    assert Cut.read(written["cut"]) == cut
    assert len(written["questions"]) == len(QUESTIONS)
    assert Retrieval.read(checkpoint).identity() == held.identity()
