"""One request does not stop the others: not by failing, not by waiting, and no probe waits for any of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any

import httpx
import pytest
from listening import Gate, listening, until
from patience import PATIENCE
from PIL import Image
from serving import made_album

from qsplit.album import Album
from qsplit.models.language.kv_cache import PrefixCache
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder

CHATS = "/v1/chat/completions"
MANY = 48  # more than the threads that all routes share


class Held:
    """Holds whoever calls a method of something, and counts them."""

    def __init__(self, of: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self._counting, self._go_on = 0, Lock(), Event()
        self._works: Callable[..., Any] = getattr(of, name)
        monkeypatch.setattr(of, name, self._held)

    def _held(self, *given: Any, **how: Any) -> Any:
        with self._counting:
            self.inside += 1
        assert self._go_on.wait(2 * PATIENCE)
        return self._works(*given, **how)

    def open(self) -> None:
        self._go_on.set()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "red.png"
    path.write_bytes(drawn((200, 0, 0)))
    return path


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory, photo: Path, mini_vision: VisionEncoder, mini_language: LanguageModel
) -> Album:
    album = made_album(tmp_path_factory.mktemp("beside"), [photo], mini_vision, mini_language)
    album.refresh(semantic=True)
    return album


@pytest.fixture(autouse=True)
def _nothing_is_known(mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_language, "prefixes", PrefixCache(2**30))


def drawn(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(data, "PNG")
    return data.getvalue()


def said(text: str, picture: bytes = b"", **more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    shown = [{"type": "image_url", "image_url": {"url": url}}] if picture else []
    content = [*shown, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


@contextmanager
def asking(url: str, path: str, bodies: list[Any]) -> Iterator[list[Future[httpx.Response]]]:
    """Requests that are sent side by side; those without a body only read."""

    def send(body: Any) -> httpx.Response:
        if body is None:
            return httpx.get(url + path, timeout=4 * PATIENCE)
        return httpx.post(url + path, json=body, timeout=4 * PATIENCE)

    with ThreadPoolExecutor(len(bodies)) as pool:
        yield [pool.submit(send, body) for body in bodies]


def statuses(asked: list[Future[httpx.Response]]) -> set[int]:
    return {one.result().status_code for one in asked}


def test_health_is_told_while_every_thread_is_taken(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(album) as (url, service):
        held = Held(service, "picture", monkeypatch)
        with asking(url, "/api/v1/images/000000", [None] * MANY) as asked:
            try:
                until(lambda: held.inside == 40)
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert httpx.get(url + path, timeout=PATIENCE).status_code == 200
                assert not any(one.done() for one in asked)
            finally:
                held.open()
        assert statuses(asked) == {404}


def test_new_pictures_in_chats_keep_nothing_else_waiting(
    album: Album, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(album) as (url, service):
        held = Held(service.uploads, "add", monkeypatch)
        bodies = [said("What?", drawn((0, 0, 100 + i))) for i in range(MANY)]
        with asking(url, CHATS, bodies) as asked:
            try:
                until(lambda: held.inside and service.engine._preparing == MANY)
                name = album.locate(photo).image.image_id
                for path in ("/readyz", "/api/v1/status", f"/api/v1/images/{name}/thumbnail"):
                    assert httpx.get(url + path, timeout=PATIENCE).status_code == 200, path
                for body in (said("hi"), said("What?", photo.read_bytes())):
                    assert httpx.post(url + CHATS, json=body, timeout=PATIENCE).status_code == 200
                assert not any(one.done() for one in asked)
                assert held.inside <= 4
            finally:
                held.open()
        assert statuses(asked) == {200}


@pytest.mark.parametrize(
    ("path", "body"), [("/api/v1/search", {"text": "a dog"}), ("/v1/embeddings", {"input": "a dog"})]
)
def test_texts_that_wait_for_the_model_keep_nothing_else_waiting(
    album: Album, mini_language: LanguageModel, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(album) as (url, service):
        held = Held(mini_language, "states", monkeypatch)
        with asking(url, path, [body] * MANY) as asked:
            try:
                until(lambda: service.vector_threads.statistics().tasks_waiting > MANY // 2)
                assert httpx.get(f"{url}/api/v1/status", timeout=PATIENCE).status_code == 200
                assert httpx.post(url + CHATS, json=said("hi"), timeout=PATIENCE).status_code == 200
                assert not any(one.done() for one in asked)
            finally:
                held.open()
        assert statuses(asked) == {200}


def test_a_failure_has_a_status_and_the_next_is_answered(
    album: Album, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(mini_language, "ends", frozenset())  # answers end where they have to
    with listening(album) as (url, _):
        with monkeypatch.context() as patched:
            patched.setattr(mini_language, "read", fail)
            answer = httpx.post(url + CHATS, json=said("hi"), timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "AnswerFailed")
            assert "CUDA" not in answer.text
        with monkeypatch.context() as patched:
            patched.setattr(mini_language, "step", fail)
            answer = httpx.post(url + CHATS, json=said("hi", stream=True), timeout=PATIENCE)
            assert answer.status_code == 200
            assert '"AnswerFailed"' in answer.text
        assert httpx.get(f"{url}/readyz", timeout=PATIENCE).status_code == 200
        assert httpx.post(url + CHATS, json=said("hi"), timeout=PATIENCE).status_code == 200


def test_a_service_whose_answers_have_ended_is_not_ready(
    album: Album, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> Any:
        raise SystemExit

    with listening(album) as (url, _):
        monkeypatch.setattr(mini_language, "read", end)
        for path in (CHATS, CHATS):
            answer = httpx.post(url + path, json=said("hi"), timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "NotReady")
        ready = httpx.get(f"{url}/readyz", timeout=PATIENCE)
        assert ready.status_code == 503
        assert "SystemExit" in ready.json()["detail"]
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_nobody_waits_past_the_deadline_for_a_model_that_is_busy(
    album: Album, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(mini_language, "ends", frozenset())
    gate = Gate(mini_language, monkeypatch)
    with listening(album, deadline_s=3.0) as (url, service):
        try:
            answer = httpx.post(url + CHATS, json=said("hi", stream=stream, max_tokens=9), timeout=PATIENCE)
            assert answer.status_code == 200  # it has begun, and ends where it is
            assert '"finish_reason":"length"' in answer.text
            answer = httpx.post(url + CHATS, json=said("you"), timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "DeadlineExceeded")
            assert not gate.sizes  # it is busy still
        finally:
            gate.open()
        until(lambda: service.engine.n_running == 0)


def test_text_that_might_have_begun_a_stop_string_is_told_at_the_deadline(
    album: Album, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the engine is busy and cannot say so."""
    monkeypatch.setattr(mini_language, "ends", frozenset())
    with listening(album, deadline_s=3.0) as (url, _):
        first = httpx.post(url + CHATS, json=said("Is there a dog?", max_tokens=1), timeout=PATIENCE).json()
        token = first["choices"][0]["message"]["content"]
        gate = Gate(mini_language, monkeypatch)
        try:
            answer = httpx.post(
                url + CHATS, json=said("Is there a dog?", max_tokens=9, stop=token + "never"), timeout=PATIENCE
            )
        finally:
            gate.open()
    assert answer.json()["choices"][0]["message"]["content"] == token != ""
    assert answer.json()["usage"]["completion_tokens"] == 1


def test_nobody_waits_past_the_deadline_for_a_picture_to_be_looked_at(
    album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(album, deadline_s=5.0) as (url, service):
        held = Held(service.uploads, "add", monkeypatch)
        try:
            answer = httpx.post(url + CHATS, json=said("What?", drawn((9, 9, 9))), timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "DeadlineExceeded")
            assert service.engine._preparing == 1  # its turn is taken as long as its thread is
        finally:
            held.open()
        until(lambda: (service.engine._preparing, service.engine.n_waiting, service.engine.n_running) == (0, 0, 0))
