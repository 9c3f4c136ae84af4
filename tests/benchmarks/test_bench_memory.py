"""The memory benchmark runs end to end on a small checkpoint, and what it verifies holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import real_shape
from benchmarks.models import bench_memory
from benchmarks.models.memory_worker import Job

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("bench")
    folder, out = real_shape.make(place / "checkpoint", "small"), place / "result.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.models.bench_memory",
        "--checkpoint",
        str(folder),
        "--image-size",
        "112",
        "--repeat",
        "1",
    ]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "verified:" in done.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.thorough
def test_every_way_has_a_row_with_a_peak(result: dict[str, Any]) -> None:
    assert [row["way"] for row in result["memory"]] == list(bench_memory.ROWS)
    for row in result["memory"]:
        assert 0.1 < row["peak"] < 3, row
        assert row["ru_maxrss"] == pytest.approx(row["peak"], rel=0.05), row


@pytest.mark.thorough
def test_everything_that_is_compared_is_equal(result: dict[str, Any]) -> None:
    assert result["verified"] is True
    assert len(result["checks"]) == 8
    assert all(result["checks"].values())


@pytest.mark.thorough
def test_loads_are_cold_and_warm_with_their_ratios(result: dict[str, Any]) -> None:
    assert [row["state"] for row in result["loads"]] == ["cold", "warm"]
    for row in result["loads"]:
        assert row["load_touch / read whole"] == pytest.approx(row["load_touch"] / row["read whole"])
    whole, streamed = (result["runs"][f"{name}, cold"][0]["bytes"] for name in ("read whole", "read streamed"))
    assert whole == streamed > 1_000_000


@pytest.mark.thorough
def test_every_goal_says_whether_it_was_met(result: dict[str, Any]) -> None:
    assert len(result["goals"]) == 7
    for goal in result["goals"]:
        assert goal["met"] is (goal["found"] <= goal["at_most"])


def test_other_features_or_tokens_fail_the_verification() -> None:
    row = {"features": "a", "tokens": [1], "logits": "c", "exact": True}
    workers = ("vision, first", "vision half", "naive", "unsplit", "language half")
    bench = bench_memory.Bench(Job("", "", 0, 0, ()), Path(), {f"{w}, cold": [dict(row)] for w in workers})
    assert all(bench_memory.verify(bench).values())
    for worker, wrong in (
        ("naive", {"features": "b"}),
        ("language half", {"tokens": [2]}),
        ("unsplit", {"logits": "d"}),
    ):
        kept = bench.runs[f"{worker}, cold"]
        bench.runs[f"{worker}, cold"] = [row | wrong]
        assert not all(bench_memory.verify(bench).values())
        bench.runs[f"{worker}, cold"] = kept
