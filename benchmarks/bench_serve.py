"""Clients of the service against clients of the plainest server of the unsplit model, in the same run.

    python benchmarks/bench_serve.py [--shape 2b|small] [--pictures 2] [--questions 4] [--tokens 8] [--rounds 3]
                                     [--side 448] [--json benchmarks/results/serve.json]

A checkpoint of a published shape with random weights stands in for a real one. Each server is a process of its own and
has the machine to itself while it is asked; `benchmarks/plain_server.py` is the other one. In each round every question
is asked about every picture, all at once, by as many clients; questions are others in each round, and pictures are
those of the first, so what the service holds of them counts from the second round on. Then one client at a time waits
for the first token of a question about a picture that it brings along, and peak memory of both processes is read.

With ``exact``, the service has to give the unsplit model's answers: the chance of every token is compared, bit for bit,
or the exit code is 1. A missed goal is only printed.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import real_shape
from memory_worker import picture
from PIL import Image, ImageChops
from report import at_least, at_most, tell, timed

import qsplit

GOALS = {
    "requests a second, of plain": at_least(5.0),
    "requests a second, first round, of plain": at_least(2.0),
    "first token, of plain": at_most(0.2),
    "peak memory, of plain": at_most(1.0),
}
QUESTIONS = (
    "What is in the picture?", "How many people are there?", "Is it day or night?", "What colour is the car?",
    "Is there any text?", "Where was this taken?", "Is anybody smiling?", "What is in the background?",
)  # fmt: skip
WAIT = 3600.0

Request = dict[str, Any]


class Server:
    """A process that listens; ``wait`` is until it does."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(log.read_text())
        self.url = f"{json.loads(line)['url']}/v1/chat/completions"

    def ask(self, request: Request) -> Any:
        answer = httpx.post(self.url, json=request, timeout=WAIT)
        answer.raise_for_status()
        return answer.json()

    def peak(self) -> float:
        """The most resident memory so far, in GiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def served(command: Sequence[str], log: Path) -> Iterator[Server]:
    server = Server(command, log)
    try:
        yield server
    finally:
        server.end()


def drawn(pictures: int, side: int) -> list[bytes]:
    """PNG files of pictures that are all others."""
    made = []
    for i in range(pictures):
        data = io.BytesIO()
        shown: Image.Image = ImageChops.offset(picture(side), 13 * i)
        shown.save(data, "PNG")
        made.append(data.getvalue())
    return made


def request(data: bytes, question: str, tokens: int, **options: Any) -> Request:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "logprobs": True, **options}


def asked(pictures: Sequence[bytes], options: argparse.Namespace, turn: int, **more: Any) -> list[Request]:
    """Every question about every picture, in the words of a round."""
    questions = [QUESTIONS[i % 8] + f" ({turn}.{i})" for i in range(options.questions)]
    return [request(one, question, options.tokens, **more) for question in questions for one in pictures]


def chances(answer: Any) -> list[float]:
    return [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]


def at_once(server: Server, requests: Sequence[Request]) -> tuple[list[float], list[Any]]:
    """Seconds that each of as many clients waited, and the answers."""
    with ThreadPoolExecutor(len(requests)) as clients:
        found = list(clients.map(partial(timed, server.ask), requests))
    return [seconds for seconds, _ in found], [answer for _, answer in found]


def measure(name: str, server: Server, pictures: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """What clients see of one server."""
    figures: dict[str, float] = {}
    server.ask(request(pictures[0], "Are you there?", 1))  # so that the first round meets weights that were read
    later: list[float] = []
    waits: list[float] = []
    for turn in range(options.rounds):
        requests = asked(pictures, options, turn)
        seconds, (each, _) = timed(at_once, server, requests)
        rate = len(requests) / seconds
        if turn:
            later.append(rate)
            waits += each
        else:
            figures[f"requests a second, first round, {name}"] = rate
    figures[f"requests a second, {name}"] = median(later)
    figures[f"wait s, median, {name}"] = median(waits)
    figures[f"wait s, 95 of 100, {name}"] = quantiles(waits, n=20)[-1]
    first = [timed(server.ask, request(pictures[0], f"First? ({i})", 1))[0] for i in range(options.rounds)]
    figures[f"first token s, {name}"] = median(first)
    figures[f"peak memory GiB, {name}"] = server.peak()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=real_shape.SHAPES, default="2b")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=448, help="Of a picture, in pixels.")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        figures, wrong = compare(Path(name), options)
    names = [name.removesuffix(", plain") for name in figures if name.endswith(", plain")]
    ratios = {}
    for one in names:
        short = one.replace(" s", "", 1) if one.startswith("first") else one.replace(" GiB", "")
        ratios[f"{short}, of plain"] = figures[f"{one}, service"] / figures[f"{one}, plain"]
    tell(figures, ratios, GOALS, options.json)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def compare(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """The figures of both servers, and what was wrong."""
    checkpoint = str(real_shape.make(folder / options.shape, options.shape))
    pictures = drawn(options.pictures, options.side)
    checked = asked(pictures, options, 0)[: options.questions]
    with served([str(Path(__file__).with_name("plain_server.py")), checkpoint], folder / "plain.log") as plain:
        figures = measure("plain", plain, pictures, options)
        expected = [chances(plain.ask(one)) for one in checked]
    store = str(folder / "album.qsplit")
    qsplit.open(store, model=checkpoint, device="cpu").begin()
    command = [
        "-m",
        "qsplit",
        "serve",
        "--store",
        store,
        "--port",
        "0",
        "--json",
        "--device",
        "cpu",
        "--deadline",
        "3600",
    ]
    with served(command, folder / "service.log") as service:
        for one in pictures:  # as an album's are: looked at when they came, not when they are asked about
            service.ask(request(one, "Is it there?", 1))
        figures |= measure("service", service, pictures, options)
        exact = [chances(service.ask({**one, "exact": True})) for one in checked]
        shared = [chances(service.ask(one)) for one in checked]
    wrong = [f"answer {i}: {a} instead of {b}" for i, (a, b) in enumerate(zip(exact, expected, strict=True)) if a != b]
    close = [
        len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) < 0.1
        for a, b in zip(shared, expected, strict=True)
    ]
    figures["answers that chances say are equal, shared"] = sum(close) / len(close)
    return figures, wrong


if __name__ == "__main__":
    sys.exit(main())
