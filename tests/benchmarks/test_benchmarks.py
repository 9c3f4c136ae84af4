"""The benchmarks run, in the small, and what they read and say is verified; how fast they are is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from benchmarks.models import bench_encode
from benchmarks.qa import bench_ask, tables
from benchmarks.search import search_garments, search_scenes
from benchmarks.server import bench_serve
from benchmarks.store import bench_store
from qsplit.search.pagination import Match

ROOT = Path(__file__).parents[2]
PROGRAMS = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "ArgumentParser(" in path.read_text()]


def run(tmp_path: Path, name: str, *parts: str, **options: Any) -> dict[str, dict[str, float]]:
    """The figures and ratios of a run in a process of its own."""
    given = [f"--{option}={value}" for option, value in options.items()]
    told = tmp_path / "out.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--json={told}", f"--folder={tmp_path}", *parts, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [told.name]
    return dict(json.loads(told.read_text()))


@pytest.mark.thorough
def test_the_store_beside_its_peers(tmp_path: Path) -> None:
    found = run(tmp_path, "store.bench_store", rows=8, tokens=16, width=64, many=200, asked=1, repeat=1)
    assert found["ratios"].keys() == bench_store.GOALS.keys() - {"one, over a 2B model's prefill"}
    assert found["ratios"]["add one, over its own bytes"] >= 1
    assert found["figures"]["bytes of raw, raw"] == 1


def test_a_row_that_is_another_is_wrong() -> None:
    rows = bench_store.Rows(16, 64)
    rows.check(3, rows[3].features.to_torch()[0])
    with pytest.raises(bench_store.Wrong, match="row 4"):
        rows.check(4, rows[3].features.to_torch()[0])
    with pytest.raises(bench_store.Wrong, match="NaN"):
        bench_store.checked(torch.tensor([1.0, float("nan")], dtype=torch.bfloat16))


@pytest.mark.thorough
def test_questions_beside_the_unsplit_model(tmp_path: Path) -> None:
    found = run(
        tmp_path, "qa.bench_ask", shape="small", questions=2, side=84, checked=2, asked=1, pictures=30, repeat=1
    )
    assert bench_ask.GOALS.keys() <= found["ratios"].keys()
    assert 0 <= found["figures"]["answers equal, random weights, 16 tokens"] <= 1
    assert 0.5 < found["ratios"]["most that was kept, over its bound"] <= 1


@pytest.mark.thorough
def test_the_service_beside_the_plain_server(tmp_path: Path) -> None:
    found = run(tmp_path, "server.bench_serve", shape="small", clients=4, requests=4, tokens=2, side=84)
    assert bench_serve.GOALS.keys() <= found["ratios"].keys()
    assert found["figures"]["answers that chances say are equal, shared"] == 1


@pytest.mark.thorough
def test_encoding_beside_the_plain_loop(tmp_path: Path) -> None:
    found = run(tmp_path, "models.bench_encode", shape="small", side=112, repeat=1, asked=1, photographs=1)
    assert bench_encode.GOALS.keys() <= found["ratios"].keys()
    assert found["figures"]["drift, mixed, packed: lowest cosine"] > 0.99
    assert found["figures"]["from files, index, s a picture"] > 0


@pytest.mark.thorough
def test_texts_to_drawn_scenes(tmp_path: Path) -> None:
    found = run(tmp_path, "search.bench_search", "scenes", scenes=15, queries=1)
    assert search_scenes.GOALS.keys() <= found["ratios"].keys()
    shares = [value for name, value in found["figures"].items() if "recall" in name or name.startswith("cut")]
    assert len(shares) > 60
    assert all(0 <= share <= 1 for share in shares)


def test_a_share_counts_what_was_asked_for() -> None:
    matches = [Match(f"id {i}", f"/garments/{i}.png", 1.0) for i in range(4)]
    assert search_garments.share(matches, np.array([1, 0, 1, 1]), 1) == 0.75
    assert search_garments.share([], np.array([1]), 1) == 0


def test_one_other_bit_is_not_the_same() -> None:
    tokens = torch.ones(4, 8, dtype=torch.bfloat16)
    other = tokens.clone()
    other.view(torch.int16)[3, 7] += 1
    assert bench_encode.same([((1, 4, 4), tokens)], [((1, 4, 4), tokens.clone())])
    assert not bench_encode.same([((1, 4, 4), tokens)], [((1, 4, 4), other)])


def test_the_readme_has_the_table_and_the_chart_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {f"8 questions, {n} token{s} s, {way}": 2.5 for n, s in ((1, ""), (16, "s")) for way in tables.WAYS}
    figures |= {"20 checks of each picture s, split": 9.0, "pictures checked": 10.0}
    figures |= {
        f"curve s, {n}, {way}": n * scale for n in (1, 2, 4) for way, scale in (("split", 1.0), ("unsplit", 3.0))
    }
    assert "| 8 answers of 16 tokens | 2.5 | 2.5 | 2.5 | 2.5 |" in tables.table(figures)
    assert tables.curves(figures) == {"split": [(1, 1), (2, 2), (4, 4)], "unsplit": [(1, 3), (2, 6), (4, 12)]}
    drawn = ET.fromstring(tables.chart(tables.curves(figures)))
    assert {"split, 4.0 s", "unsplit, 12.0 s"} <= {text.text for text in drawn.iter() if text.tag.endswith("text")}

    readme, results = tmp_path / "README.md", tmp_path / "ask.json"
    readme.write_text("before\n<!-- bench_ask -->\nold\n<!-- /bench_ask -->\nafter\n")
    results.write_text(json.dumps({"figures": figures}))
    for name, path in {"ROOT": tmp_path, "README": readme, "RESULTS": results, "CHART": tmp_path / "ask.svg"}.items():
        monkeypatch.setattr(tables, name, path)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    assert "old" in readme.read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
    text = readme.read_text()
    assert "old" not in text
    assert tables.table(figures) in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.stem))
def test_every_benchmark_says_how_it_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(name).main()
    assert f"python -m {name} " in capsys.readouterr().out
