"""A real vLLM server for each checkpoint, in its own environment, which ``make test-vllm`` sets up."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from object_stores import free_port

PYTHON = os.environ.get("VLLM_PYTHON", "")
_READY = 400.0  # seconds: it warms up for two or three minutes
_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """The address of a server of a checkpoint, ``http://127.0.0.1:port/v1``."""
    if not Path(PYTHON).exists():
        pytest.fail("There is no environment with vLLM. Run `make test-vllm`, which makes one.")
    port = free_port()
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
        "--enable-mm-embeds", "--dtype", "float32", "--enforce-eager", "--max-model-len", "4096", *options,
    ]  # fmt: skip
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **_ENV})
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
        assert server.poll() is None, f"The server ended: {log.read_text()[-2000:]}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _READY
    while time.monotonic() < until:
        if server.poll() is not None:
            pytest.fail(f"The server ended with {server.returncode}: {log.read_text()[-2000:]}")
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    pytest.fail(f"The server is not ready after {_READY:.0f} s: {log.read_text()[-2000:]}")
