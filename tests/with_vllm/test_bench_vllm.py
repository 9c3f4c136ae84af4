"""The benchmark runs, in the small; how fast a server is is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

from vllm_python import vllm_python

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "bench_vllm.py"


def test_stored_pictures_beside_sent_ones(tmp_path: Path) -> None:
    told = tmp_path / "out.json"
    options = ["--shape", "small", "--pictures", "1", "--side", "112", "--json", str(told)]
    command = [sys.executable, str(BENCHMARK), vllm_python(), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ratios = json.loads(told.read_text())["ratios"]
    assert importlib.import_module("bench_vllm").GOALS.keys() <= ratios.keys()
    assert ratios["first tokens that are the same"] == 1
