"""The benchmark runs, in the small; how fast a server is is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vllm_python import vllm_python

from benchmarks.integrations import bench_vllm

ROOT = Path(__file__).parents[2]


def test_stored_pictures_beside_sent_ones(tmp_path: Path) -> None:
    told = tmp_path / "out.json"
    options = ["--shape", "small", "--pictures", "1", "--side", "112", "--json", str(told)]
    command = [sys.executable, "-m", "benchmarks.integrations.bench_vllm", vllm_python(), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    ratios = json.loads(told.read_text())["ratios"]
    assert bench_vllm.GOALS.keys() <= ratios.keys()
    assert ratios["first tokens that are the same"] == 1
