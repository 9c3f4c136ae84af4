"""One half in one process, the other in another, on one store: what the first has seen the second answers about."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENCE
from PIL import Image
from serving import made_album, serving

from qsplit.models.language.model import LanguageModel
from qsplit.models.splitting import split
from qsplit.models.vision.encoder import VisionEncoder

QUESTION = "Is the picture bright or dark?"


@contextmanager
def process(folder: Path, role: str, model: Path) -> Iterator[str]:
    """The URL of a service that runs in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "qsplit",
        "serve",
        "--store",
        str(folder / "album.qsplit"),
        "--port",
        "0",
        "--json",
    ]
    log = (folder / f"{role}.log").open("w")
    with log, subprocess.Popen(
        [*command, "--role", role, "--model", str(model), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=log, text=True, env=dict(os.environ),
    ) as running:  # fmt: skip
        try:
            assert running.stdout is not None
            yield json.loads(running.stdout.readline())["url"]
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("roles")
    split("", folder / "halves", cache=str(folder / "cache"))
    with ExitStack() as stack:
        # The first makes the store.
        yield {
            role: stack.enter_context(process(folder, role, folder / "halves" / role))
            for role in ("vision", "language")
        }


def drawn(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (112, 112), colour).save(data, "PNG")
    return data.getvalue()


def ask(url: str, **picture: Any) -> httpx.Response:
    content = [picture, {"type": "text", "text": QUESTION}]
    request = {"messages": [{"role": "user", "content": content}], "exact": True}
    return httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE)


def test_what_one_process_has_seen_the_other_answers_about(
    urls: dict[str, str], mini_vision: VisionEncoder, mini_language: LanguageModel
) -> None:
    data = drawn("white")
    sent = httpx.post(f"{urls['vision']}/api/v1/images", files={"file": data}, timeout=PATIENCE)
    assert (sent.status_code, sent.json()["encoded"]) == (201, True)
    expected = mini_language.answer(mini_vision.encode([Image.open(io.BytesIO(data))]), QUESTION)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for picture in (
        {"type": "qsplit_image", "id": sent.json()["id"]},
        {"type": "image_url", "image_url": {"url": url}},
    ):
        answer = ask(urls["language"], **picture)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == expected.text
        assert answer.headers["x-qsplit-reused"].startswith("features=1/1")
    loaded = {role: httpx.get(f"{url}/api/v1/status").json()["models"] for role, url in urls.items()}
    assert loaded == {role: {half: half == role for half in ("vision", "language")} for role in urls}


def test_each_says_what_it_cannot_do(urls: dict[str, str]) -> None:
    new = {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(drawn('red')).decode()}"}}
    for answer, said in (
        (ask(urls["language"], **new), "no vision half"),
        (httpx.post(f"{urls['language']}/api/v1/images", files={"file": drawn("red")}), "no vision half"),
        (ask(urls["vision"], type="text", text="Hello."), "language half of the model is left out"),
        (httpx.post(f"{urls['vision']}/v1/embeddings", json={"input": "a"}), "language half of the model is left out"),
        (
            httpx.post(f"{urls['vision']}/api/v1/search", json={"text": "a dog"}),
            "language half of the model is left out",
        ),
    ):
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
    assert httpx.get(f"{urls['vision']}/v1/models").json()["data"] == []


def test_a_job_that_needs_what_is_left_out_is_refused(
    tmp_path: Path, photos: list[Path], mini_vision: VisionEncoder
) -> None:
    album = made_album(tmp_path, photos[:1], mini_vision)
    with serving(album, role="vision") as client:
        for job in ({"kind": "check", "policy": "moderation"}, {"kind": "refresh", "semantic": True}):
            answer = client.post("/api/v1/jobs", json=job)
            assert (answer.status_code, "no language half" in answer.text) == (400, True), answer.text
    assert not album.has_loaded("language")
