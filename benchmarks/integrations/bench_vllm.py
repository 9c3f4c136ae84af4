"""The first token of a vLLM server about a picture that is stored, and about the picture itself, in one run.

    python -m benchmarks.integrations.bench_vllm VLLM_PYTHON [--shape 2b|small] [--dtype bfloat16|float32] [--side 448]
        [--pictures 8] [--tokens 8] [--json F]

VLLM_PYTHON is the interpreter of an environment with vLLM, as ``make test-vllm`` leaves it in ``.venv-vllm``. A
checkpoint of a published shape with random weights stands in for a real one. The pictures are indexed first, which is
not timed. Then they are asked about by turns: by features that are read from the store and sent as
`qsplit.integrations.vllm.remote_language` sends them, and by a data URL of their PNG, with one client. What is timed
begins with reading the row, or the file. No picture is sent twice before it is timed, so no cache of the server helps
either way.

Both halves, here and in the server, have the same dtype: choose float32 where the CPU has no bfloat16, which is ten
times slower there. The server is not profiled for larger pictures, which on a CPU takes longer than all the rest.

The two towers round otherwise, so answers may part after some tokens; how often the first token is the same is told. A
missed goal is only printed; the exit code is 1 if no first token agrees.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import qsplit
from benchmarks.common import real_shape
from benchmarks.common.noise import picture
from benchmarks.common.report import at_most, tell, timed
from benchmarks.integrations.vllm_server import serving
from qsplit.integrations.vllm.embeds import image_part
from qsplit.integrations.vllm.remote_language import Server
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import feature_key

QUESTION = "What is in the picture?"
GOALS = {"first token, stored of sent": at_most(0.5)}

Part = dict[str, Any]


def ask(url: str, model: str, part: Callable[[], Part], tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the tokens, of a question with a part of a chat that is made first."""
    making, made_part = timed(part)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [made_part, {"type": "text", "text": QUESTION}]}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    began, first, said = time.perf_counter(), 0.0, list[int]()
    for heard in Server(url).hear(body):
        said += heard.tokens
        first = first or (time.perf_counter() if said else 0.0)
    return making + first - began, said


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
    for i in range(number):
        picture(side, seed=i).save(folder / f"{i:03}.png")
    return sorted(folder.iterdir())


def indexed(uri: Path, files: list[Path], model: Path, dtype: str) -> tuple[float, FeatureStore, list[str]]:
    """Seconds, the store, and the key of each picture's features; the vision half is let go of."""
    album = qsplit.open(uri, model=str(model), dtype=dtype)
    seconds, _ = timed(album.index, *files)
    store, encoder_id = album.store, album.store.settings().encoder
    keys = [feature_key(album.locate(file).image.pixels_digest, encoder_id) for file in files]
    return seconds, store, keys


def run(options: argparse.Namespace, place: Path) -> tuple[dict[str, float], dict[str, float]]:
    model = real_shape.make(place / "model", options.shape)
    files = made(place / "pictures", 2 * options.pictures + 2, options.side)
    seconds, store, keys = indexed(place / "album.qsplit", files, model, options.dtype)
    first: dict[str, list[float]] = {"stored": [], "sent": []}
    same = 0
    given = ["--max-num-seqs", "4", "--dtype", options.dtype, "--skip-mm-profiling", "--max-num-batched-tokens", "1024"]
    with serving(options.python, model, options.port, place / "server.log", *given) as url:
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
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
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
