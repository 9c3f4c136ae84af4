"""A service as its operator sees it: started and ended by the shell, with its log, its figures and its failures."""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from serving import KEY, made_album, service_of, serving

from qsplit import bundled, errors
from qsplit.cli import main
from qsplit.errors import QsplitError
from qsplit.server.middleware import problems
from qsplit.server.middleware.logs import JsonLines


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(made_album(tmp_path_factory.mktemp("running"))) as client:
        yield client


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """A service in a process of its own, and a connection to it; its log is a file."""
    command = [sys.executable, "-m", "qsplit", "serve", "--store", str(folder / "album.qsplit"), "--port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--json", "--log-json", *options],
            stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "QSPLIT_KEYS": f"other, {KEY}"},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert (started["store"], started["role"]) == (str(folder / "album.qsplit"), "all")
        with closing(http.client.HTTPConnection(urlsplit(started["url"]).netloc)) as connection:
            yield process, connection
    finally:
        process.kill()
        process.communicate()


def test_what_runs_is_answered_before_the_service_ends(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(picture, "PNG")
    data = picture.getvalue()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "image/png", "content-length": str(len(data))}
    with served(tmp_path) as (process, connection):
        connection.putrequest("POST", "/api/v1/images")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(data[:20])
        with closing(http.client.HTTPConnection(connection.host, connection.port)) as other:
            other.request("GET", "/readyz")  # by its answer, the first request has been read
            assert other.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        connection.send(data[20:])
        assert connection.getresponse().status == 201
        assert process.wait() in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = next(line for line in lines if line.get("route") == "/api/v1/images")
    assert (told["method"], told["status"], len(told["request_id"])) == ("POST", 201, 32)
    assert lines[-1]["message"].startswith("Finished server process")
    assert KEY not in (tmp_path / "log").read_text()


def test_an_answer_ends_where_it_is_when_the_service_ends(tmp_path: Path) -> None:
    model = Path(shutil.copytree(bundled.checkpoint(), tmp_path / "endless"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0]}))
    body = json.dumps({"messages": [{"role": "user", "content": "Go on."}], "stream": True})
    with served(tmp_path, "--model", str(model)) as (process, connection):
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait() in (0, -signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_another_address_needs_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["serve", "--host", "0.0.0.0", "--store", str(tmp_path / "a.qsplit"), "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["fix"] == "Set a key with QSPLIT_KEYS, or serve 127.0.0.1."
    assert not (tmp_path / "a.qsplit").exists()


def test_every_request_is_counted_by_its_route(client: TestClient) -> None:
    for path in ("/api/v1/images/000000", "/api/v1/images/111111", "/nowhere/a", "/nowhere/b"):
        client.get(path)
    client.request("BREW", "/healthz")
    text = client.get("/metrics").text
    for line in (
        'qsplit_requests_total{method="GET",route="/api/v1/images/{image_id}",status="404"} 2.0',
        'qsplit_requests_total{method="GET",route="none",status="404"} 2.0',
        'qsplit_requests_total{method="other",route="/healthz",status="405"} 1.0',
        'qsplit_request_seconds_count{route="/api/v1/images/{image_id}"} 2.0',
        "qsplit_requests_running 1.0",
    ):
        assert line in text.splitlines(), text


@pytest.mark.parametrize("given", ["mine-1", "", "no\tid", "x" * 65, "a b"])
def test_a_request_is_known_by_an_id(client: TestClient, caplog: pytest.LogCaptureFixture, given: str) -> None:
    caplog.set_level(logging.INFO, "qsplit.server")
    found = client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]
    assert found == given if given == "mine-1" else len(found) == 32
    assert caplog.records[-1].message.startswith("GET /healthz 200")


def test_a_line_of_the_log_is_an_object() -> None:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "%s\nfailed", ("x",), sys.exc_info())
    record.told = {"route": "/"}
    text = JsonLines().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["level"], line["message"], line["route"]) == ("error", "x\nfailed", "/")
    assert "ValueError" in line["error"]


def test_a_defect_is_an_answer_without_its_reason(
    client: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service_of(client), "check_ready", broken)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["title"]) == (500, "Internal Server Error")
    assert "secret" not in answer.text
    assert "default-src" in client.get("/healthz").headers["content-security-policy"]
    assert "/secret/path" in caplog.text


def test_an_ending_service_is_not_ready(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_of(client), "draining", True)
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_request_is_a_span(client: TestClient) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    client.get("/healthz", headers={"x-request-id": "mine-2"})
    ids = [(one.attributes or {}).get("qsplit.request_id") for one in exporter.get_finished_spans()]
    assert "mine-2" in ids


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Unauthorized("a"), 401),
        (errors.Forbidden("a"), 403),
        (errors.QueueFull("a"), 429),
        (errors.NotReady("a"), 503),
        (errors.DeadlineExceeded("a"), 504),
        (errors.ImageTooLarge("a"), 413),
        (errors.UnreadableImage("a"), 415),
        (errors.UnsupportedImage("a"), 415),
        (errors.UsageError("a"), 400),
        (errors.IncompatibleFeatures(["a"]), 409),
        (errors.NotFound("a"), 404),
        (errors.NotIndexed("a"), 404),
        (errors.CorruptStore("/path"), 500),
        (errors.StoreError("/path"), 500),
        (errors.StoreVersionError("/path"), 500),
        (errors.CheckpointError("/path"), 500),
        (errors.InvalidFeatures("/path"), 500),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/images"])
def test_every_error_has_a_status(error: QsplitError, status: int, path: str) -> None:
    answer = problems.answer(path, error)
    body = json.loads(bytes(answer.body))
    assert answer.status_code == status
    assert (answer.headers.get("retry-after") is not None) == (status == 429)
    assert "/path" not in str(body)
    if path.startswith("/v1/"):
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
    else:
        assert body.keys() == {"type", "title", "status", "detail", "fix"}
