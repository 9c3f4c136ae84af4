"""Whoever only reads a store loads neither torch nor transformers: each module is imported in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
