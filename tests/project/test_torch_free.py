"""Whoever only reads a store loads neither torch nor transformers: each is seen in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qsplit
from qsplit import bundled

HEAVY = ("torch", "transformers", "torchvision")
LIGHT = (
    "qsplit.store.feature_store",
    "qsplit.duplicates.detector",
    "qsplit.duplicates.cleanup",
    "qsplit.duplicates.html_report",
    "qsplit.maintenance.status",
    "qsplit.maintenance.garbage",
    "qsplit.maintenance.verify",
    "qsplit.album",
    "qsplit.integrations.export",
    "qsplit.integrations.vllm.embeds",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_module_that_only_reads_a_store_loads_no_model_library(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


COMMANDS = (
    ["status"],
    ["duplicates"],
    ["verify"],
    ["export", "{out}"],
    ["snapshot", "today"],
    ["forget", "{photo}", "--dry-run"],
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for name in ("one.jpg", "other.jpg"):  # two that are duplicates
        shutil.copy(bundled.photos()[0], folder / name)
    qsplit.open(folder / "album.qsplit", device="cpu").index(folder)
    return folder / "album.qsplit"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_that_only_reads_a_store_runs_without_model_libraries(
    store: Path, tmp_path: Path, command: list[str]
) -> None:
    names = {"out": tmp_path / "out", "photo": store.with_name("one.jpg")}
    words = [word.format(**names) for word in command]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))\n"  # whoever imports them now fails
        "from qsplit.cli.main import main; main(sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", code, *words, "--store", str(store), "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines() or [""])
