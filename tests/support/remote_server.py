"""A server that speaks as vLLM does where it is sent features, with a language half of this process behind it.

It counts requests, and fails in the ways that a test asks for.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import torch

from qsplit.features.features import Features
from qsplit.models.language.kv_cache import Batch
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.server.engine.decoding import Answering


@dataclass
class Remote:
    """``refusals`` are statuses for the next chats, ``breaks`` how many pieces of a stream come before it ends.

    ``adds`` is added to the number of prompt tokens that are told, ``key`` is wanted of every request, and ``pause`` is
    how many seconds each token takes; ``said`` counts them. One that ``is_endless`` says as much as it may.
    """

    language: LanguageModel
    url: str = ""
    key: str = ""
    refusals: list[int] = field(default_factory=list)
    breaks: int = -1
    adds: int = 0
    chats: int = 0
    pause: float = 0.0
    is_endless: bool = False
    longest: int = 2048
    said: int = 0

    def features(self, part: dict[str, Any]) -> Features:
        arrays = {name: np.load(io.BytesIO(base64.b64decode(told))) for name, told in part["image_embeds"].items()}
        wanted, grid = self.language.wanted, arrays["image_grid_thw"].tolist()
        embedded = torch.from_numpy(arrays["image_embeds"]).to(getattr(torch, wanted.dtype))
        return Features.from_torch(torch.split(embedded, wanted.width, dim=1), grid, wanted)

    def read(self, body: dict[str, Any]) -> tuple[Any, str]:
        """The prompt of a chat, and what its answer has begun with."""
        features, messages, begun = [], [], ""
        for message in body["messages"]:
            if message["role"] == "assistant" and body.get("continue_final_message"):
                begun = message["content"]
                continue
            parts = message["content"]
            if not isinstance(parts, str):
                features += [self.features(part) for part in parts if part["type"] == "image_embeds"]
                parts = [{"type": "image"} if part["type"] == "image_embeds" else part for part in parts]
            messages.append({"role": message["role"], "content": parts})
        return self.language.prompt_of(features, messages), begun

    def answer(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What a stream tells of an answer, as it is computed."""
        prompt, _ = self.read(body)
        sampling = Sampling(
            body["max_tokens"],
            body["temperature"],
            body.get("seed"),
            body.get("top_p", 1.0),
            tuple(body.get("stop", ())),
        )
        top = body["top_logprobs"] if body.get("logprobs") else None
        answering = Answering(self.language, prompt, sampling, top)
        (read,) = self.language.read([prompt], share=False)
        batch, logits, finish = Batch.alone(read.prefix), read.logits, ""
        while not finish:
            self.said += 1
            piece = answering.next(logits)
            assert piece.said is not None
            finish = "" if self.is_endless and piece.finish == "stop" else piece.finish
            if self.is_endless and len(answering.tokens) == sampling.most:
                finish = "length"
            choice: dict[str, Any] = {
                "delta": {"content": piece.text},
                "token_ids": [piece.said.id],
                "finish_reason": finish or None,
            }
            if top is not None:
                others = [{"token": text, "logprob": value} for text, value in piece.said.top]
                told = {"token": piece.said.text, "logprob": piece.said.logprob, "top_logprobs": others}
                choice["logprobs"] = {"content": [told]}
            yield {"choices": [choice]}
            time.sleep(self.pause)
            logits = self.language.step(batch, [piece.said.id])[0]
        yield {"choices": [], "usage": {"prompt_tokens": prompt.input_ids.shape[1] + self.adds}}

    def likely(self, body: dict[str, Any]) -> tuple[dict[int, float], int]:
        """The log probabilities of the tokens asked for, and how many tokens the prompt has."""
        prompt, begun = self.read(body)
        tokens = self.language.tokens_of(begun) if begun else ()
        said = self.language.logits_after(prompt, [*tokens, 0])[-1].log_softmax(-1)
        return {token: float(said[token]) for token in body["logprob_token_ids"]}, prompt.input_ids.shape[1] + len(
            tokens
        )


class _Handler(BaseHTTPRequestHandler):
    served: Remote

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "a model", "max_model_len": self.served.longest}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.chats += 1
        if self.served.key and self.headers.get("Authorization") != f"Bearer {self.served.key}":
            self._send(401, {"error": {"message": "Unauthorized"}})
        elif self.served.refusals:
            self._send(self.served.refusals.pop(0), {"error": {"message": "try again"}})
        elif body.get("stream"):
            self._stream(self.served.answer(body))
        else:
            self._likely(*self.served.likely(body))

    def _send(self, status: int, told: dict[str, Any]) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for i, event in enumerate(events):
            if i == self.served.breaks:
                self._event({"error": {"message": "the engine ended"}})
                return
            try:
                self._event(event)
            except OSError:  # nobody reads on
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, told: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())

    def _likely(self, said: dict[int, float], read: int) -> None:
        top = [{"token": f"token_id:{token}", "logprob": value} for token, value in said.items()]
        content = [{"token": "", "logprob": 0.0, "top_logprobs": top}]
        self._send(200, {"choices": [{"logprobs": {"content": content}}], "usage": {"prompt_tokens": read}})


@contextmanager
def remote(language: LanguageModel, **options: Any) -> Iterator[Remote]:
    """A server on a free port of this machine."""
    served = Remote(language, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
