"""Where the environment with vLLM is, which ``make test-vllm`` sets up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def vllm_python() -> str:
    """Its interpreter; a test fails where there is none."""
    python = os.environ.get("VLLM_PYTHON", "")
    if not Path(python).is_file():
        pytest.fail("There is no environment with vLLM. Run `make test-vllm`, which makes one.")
    return python
