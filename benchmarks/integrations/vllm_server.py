"""A vLLM server in an environment of its own, as ``make test-vllm`` makes one in ``.venv-vllm``."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["ENV", "serving"]

ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_READY = 1200.0  # seconds: it warms up for two or three minutes, and longer beside other work
_ENDS = 30.0


@contextmanager
def serving(python: str, model: Path, port: int, log: Path, *options: str) -> Iterator[str]:
    """The address of a server of a checkpoint that is ready, ``http://127.0.0.1:port/v1``.

    ``python`` is the interpreter that has vLLM. Raises `RuntimeError` with the end of the log if the server ends by
    itself, then or later, or is not ready in time.
    """
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
        "--enable-mm-embeds", "--enforce-eager", "--max-model-len", "4096", *options,
    ]  # fmt: skip
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENV})
    try:
        until = time.monotonic() + _READY
        while not _is_ready(port):
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"The server is not ready: {log.read_text()[-2000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
        if server.poll() is not None:
            raise RuntimeError(f"The server ended: {log.read_text()[-2000:]}")
    finally:
        server.terminate()
        try:
            server.wait(_ENDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
