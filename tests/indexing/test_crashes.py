"""Whatever an index run is cut off by, and wherever: the store reads, keeps what it acknowledged, and converges.

The quick run fails every 120th change of a file, in two of the ways, and kills five times; the thorough one fails every
change in all of them, and kills two hundred times over a thousand pictures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that fails changes of files, compiled by whatever C compiler there is."""
    if not sys.platform.startswith("linux"):
        pytest.skip("faults are injected through LD_PRELOAD and /proc, which only Linux has")
    compiler = [shutil.which("cc")] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    made = tmp_path_factory.mktemp("shim") / "faults.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(made), str(SUPPORT / "faults.c"), "-ldl"]
    done = subprocess.run([*map(str, compiler), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nThis test needs a C compiler: pip install ziglang"
    return made


def crash(folder: Path, shim: Path, *options: object) -> dict[str, Any]:
    environment = os.environ | {"LD_PRELOAD": str(shim), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUPPORT / "crashing.py"), folder, shim, *options]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("mode", "step"),
    [
        ("error", 120),
        ("kill", 120),
        *(pytest.param(mode, 1, marks=pytest.mark.thorough) for mode in ("error", "full", "kill", "stays-full")),
    ],
)
def test_a_run_that_is_cut_off_at_any_change_of_a_file(tmp_path: Path, shim: Path, mode: str, step: int) -> None:
    found = crash(tmp_path, shim, "faults", mode, 1 if step == 1 else 1 + len(mode), step)
    assert found["failures"] == []
    assert found["changes"] > 50  # of an undisturbed run
    assert found["cut"] >= found["changes"] // step - 1


@pytest.mark.parametrize(("pictures", "number"), [(60, 5), pytest.param(1000, 200, marks=pytest.mark.thorough)])
def test_a_store_whose_runs_are_killed_at_random(tmp_path: Path, shim: Path, pictures: int, number: int) -> None:
    found = crash(tmp_path, shim, "kills", pictures, number, 0)
    assert found["failures"] == []
    assert found["cut"] == number
