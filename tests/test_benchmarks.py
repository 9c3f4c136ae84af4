"""The benchmarks run, in the small, and what they read and say is verified; how fast they are is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(tmp_path: Path, name: str, **options: Any) -> dict[str, dict[str, float]]:
    """The figures and ratios of a run in a process of its own."""
    given = [f"--{option}={value}" for option, value in options.items()]
    told = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / name), f"--json={told}", f"--folder={tmp_path}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [told.name]
    return dict(json.loads(told.read_text()))


def test_the_store_beside_its_peers(tmp_path: Path) -> None:
    found = run(tmp_path, "bench_store.py", rows=8, tokens=16, width=64, many=200, asked=1, repeat=1)
    bench_store = importlib.import_module("bench_store")
    assert found["ratios"].keys() == bench_store.GOALS.keys() - {"one, over a 2B model's prefill"}
    assert found["ratios"]["add one, over its own bytes"] >= 1
    assert found["figures"]["bytes of raw, raw"] == 1


def test_a_row_that_is_another_is_wrong() -> None:
    bench_store = importlib.import_module("bench_store")
    rows = bench_store.Rows(16, 64)
    rows.check(3, rows[3].features.tokens)
    with pytest.raises(bench_store.Wrong, match="row 4"):
        rows.check(4, rows[3].features.tokens)
    with pytest.raises(bench_store.Wrong, match="NaN"):
        bench_store.checked(torch.tensor([1.0, float("nan")]))


def test_questions_beside_the_unsplit_model(tmp_path: Path) -> None:
    found = run(tmp_path, "bench_ask.py", shape="small", questions=2, side=84, asked=1, pictures=30, repeat=1)
    bench_ask = importlib.import_module("bench_ask")
    assert bench_ask.GOALS.keys() <= found["ratios"].keys()
    assert 0 <= found["figures"]["answers equal, random weights, 16 tokens"] <= 1
    assert 0.5 < found["ratios"]["most that was kept, over its bound"] <= 1
