"""A service on a socket of this process, for clients that come by HTTP, and a way to hold its model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import openai
import pytest
import torch
import uvicorn
from patience import PATIENCE

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.server.app import create_app
from qsplit.server.config import ServeOptions
from qsplit.server.service import Service


class Gate:
    """Holds a language half before its next step, so that a test can say who is there then."""

    def __init__(self, language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open, self.sizes = Event(), Event(), list[int]()
        self._step = language.step
        monkeypatch.setattr(language, "step", self._held)

    def _held(self, batch: Any, tokens: Any) -> torch.Tensor:
        self.reached.set()
        assert self._open.wait(PATIENCE)
        self.sizes.append(len(tokens))
        return self._step(batch, tokens)

    def open(self) -> None:
        self._open.set()


@contextmanager
def listening(album: Album, **options: Any) -> Iterator[tuple[str, Service]]:
    """(URL, service); it ends with the block."""
    app = create_app(album, ServeOptions(**options))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5)
    server, bound = uvicorn.Server(config), config.bind_socket()
    thread = Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", app.state.service
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def heard(answer: Any) -> tuple[str, str, Any]:
    """(text, finish reason, usage) of an answer to OpenAI's client, whole or as it is streamed with its usage."""
    if isinstance(answer, openai.Stream):
        *chunks, last = list(answer)
        choices = [chunk.choices[0] for chunk in chunks]
        return "".join(one.delta.content or "" for one in choices), choices[-1].finish_reason or "", last.usage
    (choice,) = answer.choices
    return choice.message.content, choice.finish_reason, answer.usage


def until(holds: Callable[[], Any]) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends, "it never held"
        time.sleep(0.01)
