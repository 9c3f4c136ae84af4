"""Send every file of a folder to a service, hostile pictures among them, and say what it answered and what it took.

    pip download --no-deps --no-binary pillow pillow==13.0.0 && tar xf pillow-13.0.0.tar.gz
    python -m benchmarks.server.bench_hostile pillow-13.0.0/Tests/images

Fails if the service ends, answers with a status of 500 or more, or is not ready afterwards.
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.common.report import peak_gib
from qsplit import bundled

REFUSALS = (400, 413, 415)


class Memory:
    """The highest resident memory, in MB, of a process and of any below it, which are looked at each 10 ms."""

    def __init__(self, process: int) -> None:
        self._process, self.children, self._ended = process, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak(self) -> float:
        return _peak(self._process)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.children = max([self.children, *map(_peak, _below(self._process))])


def _below(process: int) -> list[int]:
    found, waiting = [], [process]
    while waiting:
        with suppress(OSError):
            tasks = Path(f"/proc/{waiting.pop()}/task").glob("*/children")
            new = [int(child) for path in tasks for child in path.read_text().split()]
            found += new
            waiting += new
    return found


def _peak(process: int) -> float:
    with suppress(OSError, IndexError):  # it has ended
        return peak_gib(process) * 2**30 / 1e6
    return 0.0


def _resident(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def send(connection: http.client.HTTPConnection, data: bytes) -> int:
    connection.request("POST", "/api/v1/images", data, {"content-type": "application/octet-stream"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def run(folder: Path, store: Path) -> dict[str, object]:
    """Send everything to a service with an album of its own; what it answered, by status, and its memory."""
    command = [sys.executable, "-m", "qsplit", "serve", "--store", str(store), "--port", "0", "--json"]
    with (
        (store.parent / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as service,
    ):
        assert service.stdout is not None
        connection = http.client.HTTPConnection(urlsplit(json.loads(service.stdout.readline())["url"]).netloc)
        for path in bundled.photos():
            send(connection, path.read_bytes())  # the model is loaded, and has seen photographs
        memory = Memory(service.pid)
        before, began, answers = memory.peak, time.monotonic(), Counter[int]()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            status = send(connection, path.read_bytes())
            answers[status] += 1
            assert status in (200, 201, *REFUSALS), f"{path}: {status}"
        seconds = time.monotonic() - began
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        found = {
            "files": len(files),
            "answers": dict(sorted(answers.items())),
            "seconds": round(seconds, 1),
            "service MB before": round(before),
            "service MB at most": round(memory.peak),
            "service MB afterwards": round(_resident(service.pid)),
            "decoder MB at most": round(memory.children),
        }
        memory.end()
        service.terminate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        for name, value in run(folder, Path(scratch) / "album.qsplit").items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
