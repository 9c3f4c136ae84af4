"""Clients of the service against clients of the plainest server of the unsplit model, in the same run.

    python -m benchmarks.server.bench_serve [--shape 2b|small] [--clients 1,4,16] [--requests 8] [--tokens 8]
                                           [--side 448] [--json benchmarks/results/serve.json]

A checkpoint of a published shape with random weights stands in for a real one. Each server is a process of its own;
`benchmarks/server/plain_server.py` is the other one. They take turns, and whoever is asked has the machine to itself.
So many clients at once ask ``--requests`` questions between them, or one each if they are more, and read the answers
as they are written:

    new         about a picture that nobody sent before
    known       about a picture that the service has seen, sent along again; the question is a new one
    follow-up   about what was said of a known picture before

Requests a second, and the median of the seconds to the first token, are told for each. With ``exact``, the service has
to give the unsplit model's answers: the chance of every token is compared, bit for bit, or the exit code is 1. A missed
goal is only printed.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from PIL import Image, ImageChops

import qsplit
from benchmarks.common import real_shape
from benchmarks.common.noise import picture
from benchmarks.common.report import at_least, at_most, peak_gib, tell, timed

KINDS = ("new", "known", "follow-up")
AT = 4  # clients, for which there are goals
GOALS = {
    f"known, {AT} clients, requests a second, of plain": at_least(3.0),
    f"known, {AT} clients, first token, of plain": at_most(0.35),
}
QUESTIONS = (
    "What is in the picture?", "How many people are there?", "Is it day or night?", "What colour is the car?",
    "Is there any text?", "Where was this taken?", "Is anybody smiling?", "What is in the background?",
)  # fmt: skip
WAIT = 3600.0
CLOSE = 0.1  # of the logarithms of chances whose sums run in another order, in bfloat16

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
        """The whole answer."""
        answer = httpx.post(self.url, json=request, timeout=WAIT)
        answer.raise_for_status()
        return answer.json()

    def first(self, request: Request) -> float:
        """Seconds until the first token came; the whole answer is read."""
        began, first = time.perf_counter(), 0.0
        with httpx.stream("POST", self.url, json={**request, "stream": True}, timeout=WAIT) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data:") and not first:
                    first = time.perf_counter() - began
        return first

    def peak(self) -> float:
        """The most resident memory so far, in GiB."""
        return peak_gib(self._process.pid)

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


def drawn(side: int) -> Iterator[bytes]:
    """PNG files of pictures that are all others."""
    for i in count():
        data = io.BytesIO()
        shown: Image.Image = ImageChops.offset(picture(side), 7 * i, 3 * i)
        shown.save(data, "PNG")
        yield data.getvalue()


def request(data: bytes, question: str, tokens: int) -> Request:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "logprobs": True}


def chances(answer: Any) -> list[float]:
    return [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]


class Asked:
    """What both servers are asked: pictures, and questions none of which comes twice."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self._pictures = options, drawn(options.side)
        self.known = [next(self._pictures) for _ in range(2)]
        self._number = count()

    def question(self) -> str:
        number = next(self._number)
        return f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"

    def requests(self, kind: str, number: int) -> list[Request]:
        """So many requests of a kind, or what follow-ups follow."""
        pictures = [next(self._pictures) if kind == "new" else self.known[i % 2] for i in range(number)]
        return [request(one, self.question(), self.options.tokens) for one in pictures]

    def follow_up(self, first: Request, answer: Any) -> Request:
        """What comes after an answer; both servers are asked it, whatever they said themselves."""
        (user,) = first["messages"]
        said = answer["choices"][0]["message"]["content"]
        return {**first, "messages": [user, {"role": "assistant", "content": said},
                                      {"role": "user", "content": self.question()}]}  # fmt: skip


def at_once(server: Server, requests: Sequence[Request], clients: int) -> tuple[float, float]:
    """(requests a second, median seconds to the first token) of so many clients."""
    with ThreadPoolExecutor(clients) as pool:
        seconds, firsts = timed(lambda: list(pool.map(server.first, requests)))
    return len(requests) / seconds, median(firsts)


def measure(plain: Server, service: Server, asked: Asked) -> dict[str, float]:
    """What clients see of each server, which take turns."""
    figures: dict[str, float] = {}
    for clients, kind in product(asked.options.clients, KINDS):
        requests = asked.requests(kind, max(clients, asked.options.requests))
        if kind == "follow-up":
            requests = [asked.follow_up(one, service.ask(one)) for one in requests]
        for name, server in (("plain", plain), ("service", service)):
            rate, first = at_once(server, requests, clients)
            figures[f"{kind}, {clients} clients, requests a second, {name}"] = rate
            figures[f"{kind}, {clients} clients, first token s, {name}"] = first
    for name, server in (("plain", plain), ("service", service)):
        figures[f"peak memory GiB, {name}"] = server.peak()
    return figures


def wrong_answers(plain: Server, service: Server, asked: Asked) -> tuple[list[str], float]:
    """Exact answers that are not the plain server's, and the share of those computed together that are close to it."""
    requests = asked.requests("known", 4)
    expected = [chances(plain.ask(one)) for one in requests]
    exact = [chances(service.ask({**one, "exact": True})) for one in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        shared = list(map(chances, pool.map(service.ask, requests)))
    wrong = [f"answer {i}: {a} instead of {b}" for i, (a, b) in enumerate(zip(exact, expected, strict=True)) if a != b]
    close = [
        len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) < CLOSE
        for a, b in zip(shared, expected, strict=True)
    ]
    return wrong, sum(close) / len(close)


def compare(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """The figures of both servers, and what was wrong."""
    checkpoint = str(real_shape.make(folder / options.shape, options.shape))
    store = str(folder / "album.qsplit")
    qsplit.open(store, model=checkpoint, device="cpu").begin()
    options_of_service = ["--store", store, "--port", "0", "--json", "--device", "cpu", "--deadline", str(int(WAIT))]
    asked = Asked(options)
    with (
        served(["-m", "benchmarks.server.plain_server", checkpoint], folder / "plain.log") as plain,
        served(["-m", "qsplit", "serve", *options_of_service], folder / "service.log") as service,
    ):
        for server, one in product((plain, service), asked.requests("known", 2)):
            server.ask(one)  # weights are read, and the known pictures become known
        figures = measure(plain, service, asked)
        wrong, close = wrong_answers(plain, service, asked)
    figures["answers that chances say are equal, shared"] = close
    return figures, wrong


def ratios(figures: dict[str, float]) -> dict[str, float]:
    """What the service shows over what the plain server does."""
    found = {}
    for name, value in figures.items():
        if name.endswith(", plain"):
            one = name.removesuffix(", plain")
            short = one.replace("token s", "token").replace(" GiB", "")
            found[f"{short}, of plain"] = figures[f"{one}, service"] / value
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=real_shape.SHAPES, default="2b")
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default=[1, AT, 16])
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--side", type=int, default=448, help="Of a picture, in pixels.")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        figures, wrong = compare(Path(name), options)
    tell(figures, ratios(figures), GOALS, options.json)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
