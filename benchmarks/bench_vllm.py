"""The first token of a vLLM server about a picture that is stored, and about the picture itself, in one run.

    python benchmarks/bench_vllm.py VLLM_PYTHON [--shape 2b|small] [--side 448] [--pictures 8] [--tokens 8] [--json F]

VLLM_PYTHON is the interpreter of an environment with vLLM, as ``make test-vllm`` leaves it in ``.venv-vllm``. A
checkpoint of a published shape with random weights stands in for a real one. The pictures are indexed first, which is
not timed. Then they are asked about by turns: by features that are read from the store and sent as `qsplit.remote`
sends them, and by a data URL of their PNG, with one client. What is timed begins with reading the row, or the file. No
picture is sent twice before it is timed, so no cache of the server helps either way.

The two towers round otherwise, so answers may part after some tokens; how often the first token is the same is told. A
missed goal is only printed; the exit code is 1 if no first token agrees.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import real_shape
from PIL import Image
from report import at_most, tell, timed

import qsplit
from qsplit.parts import image_part
from qsplit.rows import feature_key
from qsplit.store import FeatureStore

QUESTION = "What is in the picture?"
GOALS = {"first token, stored of sent": at_most(0.5)}
WAIT = 1200.0
_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


@contextmanager
def serving(python: str, model: Path, port: int, log: Path) -> Iterator[str]:
    """The address of a vLLM server that is ready."""
    options = ["--enable-mm-embeds", "--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "4"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), *options]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **_ENV})
    try:
        until = time.monotonic() + WAIT
        while not _is_ready(port):
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"The server is not ready: {log.read_text()[-2000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


Part = dict[str, Any]


def ask(url: str, model: str, part: Callable[[], Part], tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the tokens, of a question with a part of a chat that is made first."""
    began = time.perf_counter()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [part(), {"type": "text", "text": QUESTION}]}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    first, found = 0.0, list[int]()
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=WAIT) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                if choice.get("token_ids") and not found:
                    first = time.perf_counter() - began
                found += choice.get("token_ids") or ()
    return first, found


def sent(file: Path) -> Part:
    """The picture itself."""
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def stored(store: FeatureStore, key: str) -> Part:
    """Its features."""
    return image_part(store.get_features([key])[key])


def made(folder: Path, number: int, side: int) -> list[Path]:
    """So many pictures, each noise of its own over a gradient."""
    folder.mkdir()
    ramp = np.linspace(0, 127, side)[:, None, None]
    for i in range(number):
        noise = np.random.default_rng(i).integers(0, 128, (side, side, 3))
        Image.fromarray((ramp + noise).astype(np.uint8)).save(folder / f"{i:03}.png")
    return sorted(folder.iterdir())


def run(options: argparse.Namespace, place: Path) -> tuple[dict[str, float], dict[str, float]]:
    model = real_shape.make(place / "model", options.shape)
    files = made(place / "pictures", 2 * options.pictures + 2, options.side)
    album = qsplit.open(place / "album.qsplit", model=str(model))
    seconds, _ = timed(album.index, *files)
    store, encoder_id = album.store, album.store.settings().encoder
    keys = [feature_key(album.locate(file).image.pixels_digest, encoder_id) for file in files]
    first: dict[str, list[float]] = {"stored": [], "sent": []}
    same = 0
    with serving(options.python, model, options.port, place / "server.log") as url:
        name = str(model)
        ask(url, name, partial(stored, store, keys[-1]), 2)  # kernels and caches
        ask(url, name, partial(sent, files[-2]), 2)
        for i in range(options.pictures):
            took, tokens = ask(url, name, partial(stored, store, keys[i]), options.tokens)
            first["stored"].append(took)
            first["sent"].append(ask(url, name, partial(sent, files[options.pictures + i]), options.tokens)[0])
            same += tokens[:1] == ask(url, name, partial(sent, files[i]), 1)[1]
    figures = {"index, s a picture": seconds / len(files)}
    figures |= {f"first token, {way}, s": median(values) for way, values in first.items()}
    ratios = {
        "first token, stored of sent": median(first["stored"]) / median(first["sent"]),
        "first tokens that are the same": same / options.pictures,
    }
    return figures, ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", metavar="VLLM_PYTHON")
    parser.add_argument("--shape", choices=sorted(real_shape.SHAPES), default="2b")
    parser.add_argument("--side", type=int, default=448, help="Pixels of a picture's sides [448].")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--port", type=int, default=8211)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures, ratios = run(options, Path(place))
    tell(figures, ratios, GOALS, options.json)
    return 0 if ratios["first tokens that are the same"] else 1


if __name__ == "__main__":
    sys.exit(main())
