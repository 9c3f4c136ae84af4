"""A language half that a vLLM server runs: the same questions and choices over stored features, asked by HTTP.

The server neither checks what it is sent nor says whose model it runs, and a wrong tensor ends it or is answered
wrongly. So everything is checked here, before it is sent: that the features are sound (`Features` cannot be made
otherwise), that they were made for the checkpoint, that the prompt fits, and once, by `qsplit.models.probe`, that the
server's model is that checkpoint; and of each answer, that the server read as many tokens as the prompt has here.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import httpx

from qsplit.errors import IncompatibleFeatures, RemoteError, UsageError
from qsplit.features.features import Encoder, Features, Making, check_compatible
from qsplit.features.sizing import Resize
from qsplit.integrations.vllm.embeds import TAKEN, image_part
from qsplit.models.checkpoint import Checkpoint, resolve
from qsplit.models.language.choice_scoring import Choice, Ways, calibrated
from qsplit.models.language.model import Answer, Sampling, wanted_by
from qsplit.models.language.prompts import Chat, Message, Prompt
from qsplit.models.probe import read_probe

__all__ = ["PATIENCE", "Heard", "RemoteLanguage", "Server", "has_timed_out"]

_EXTENDED = 8  # times the checkpoint's own context: more than servers are told to stretch it to
_AT_ONCE = 16  # requests: the server batches what comes at a time
_TRIES = 4
_PAUSE = 0.5  # seconds, doubled from try to try
_AGAIN = (429, 502, 503, 504)  # what was not begun, or not by whoever answered
PATIENCE = 600.0  # seconds until the next piece of an answer
_CONNECTING = 10.0
_EVENT = "data: "
_NUMBERED = "token_id:"
_UNTOLD = 2**31  # tokens, where a server does not say how many it takes


class RemoteLanguage:
    """A vLLM server (``--enable-mm-embeds``) as the language half of a checkpoint whose small files are here.

    ``checkpoint`` needs no weights. No answer is exact: a server computes in another order, and says nothing of it.
    """

    def __init__(self, checkpoint: Checkpoint, wanted: Encoder, server: Server, *, trust_encoder: str = "") -> None:
        if checkpoint.family.model_type not in TAKEN:
            raise UsageError(
                f"Features of a {checkpoint.family.model_type} cannot be sent to a server; those of {', '.join(TAKEN)} "
                "can.",
                fix="Ask without --language.",
            )
        self.checkpoint = checkpoint
        self.wanted = wanted
        self.chat = Chat(checkpoint, context=_EXTENDED * checkpoint.context)
        self._server = server
        self._trusted = trust_encoder
        self._turn = Lock()
        self._known = False

    @classmethod
    def connect(
        cls,
        url: str,
        model: str = "",
        *,
        key: str = "",
        revision: str = "",
        dtype: str = "",
        resize: Resize | None = None,
        trust_encoder: str = "",
        cache: str = "~/.cache/qsplit",
    ) -> RemoteLanguage:
        """The server at a ``url`` such as ``http://host:8000/v1`` as the language half of ``model``.

        ``key`` is its API key; the other options are those of `LanguageModel.from_pretrained`. Nothing is sent yet.
        """
        checkpoint = resolve(model, "language", revision=revision, cache=cache)
        wanted = wanted_by(checkpoint, dtype, resize, trusted=bool(trust_encoder))
        return cls(checkpoint, wanted, Server(url, key), trust_encoder=trust_encoder)

    def check(self, encoder: Encoder) -> bool:
        """As `LanguageModel.check`, but for what is exact: False; raises `IncompatibleFeatures`."""
        check_compatible(encoder, self.wanted, trusted=self._trusted)
        return False

    def is_native(self, making: Making) -> bool:  # noqa: ARG002  # a server does not tell how it computes
        """As `LanguageModel.is_native`: False."""
        return False

    def answer(
        self,
        features: Sequence[Features],
        question: str,
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        reuse: bool = False,  # noqa: ARG002  # what a server reuses is its own affair
    ) -> Answer:
        """As `LanguageModel.answer`; raises `RemoteError` too, for a server that does not answer as it should."""
        shown = self._shown(features)
        prompt = self.chat.prompt(features, question, system=system, history=history)
        return self._answer(shown, prompt, sampling or Sampling(), on_text)

    def answers(
        self,
        features: Sequence[Features],
        questions: Sequence[str],
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """As `LanguageModel.answers`: many are asked at a time, and the server reads the images once for all."""
        shown = self._shown(features)

        def ask(question: str) -> Answer:
            prompt = self.chat.prompt(features, question, system=system, history=history)
            return self._answer(shown, prompt, sampling or Sampling(), None)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(ask, questions))

    def choose(
        self,
        features: Sequence[Features],
        asked: Sequence[tuple[str, Sequence[str]]],
        *,
        system: str = "",
        exact: bool = False,
        prior: Features | None = None,
    ) -> list[Choice]:
        """As `LanguageModel.choose`, by the log probabilities that the server gives the choices' tokens."""
        shown = self._shown(features)

        def choose(one: tuple[str, Sequence[str]]) -> Choice:
            question, choices = one
            ways = Ways(choices, self.chat.tokens_of)
            prompt = self.chat.prompt(features, question, system=system)
            request = self._request(shown, prompt)
            said = {context: self._next(prompt, request, context, ways) for context in ways.contexts}
            return ways.weighed(said, exact=False)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            chosen = list(pool.map(choose, asked))
        if prior is None:
            return chosen
        of_nothing = self.choose([prior] * len(features), asked, system=system, exact=exact)
        return list(map(calibrated, chosen, of_nothing))

    def prompt_of(self, features: Sequence[Features], conversation: Sequence[Message], *, system: str = "") -> Prompt:
        """As `Chat.prompt_of`."""
        return self.chat.prompt_of(features, conversation, system=system)

    def hear(self, prompt: Prompt, sampling: Sampling, *, top: int | None = None, seconds: float) -> Hearing:
        """The answer to a prompt as it comes; to close it ends it at the server, too.

        ``top`` asks for the chances of the tokens and of so many of the likeliest; no piece is waited for longer than
        ``seconds``. Raises as `answer` does.
        """
        return self._hear(self._shown(prompt.features), prompt, sampling, top=top, seconds=seconds)

    def _shown(self, features: Sequence[Features]) -> _Shown:
        """Features that may be sent to this server."""
        for one in features:
            self.check(one.encoder)
        self._check_server()
        return _Shown.of(features)

    def _check_server(self) -> None:
        """Refuse a server that says otherwise of a known picture than the checkpoint did."""
        with self._turn:
            if self._known:
                return
            probe = read_probe(self.checkpoint.folder)
            # Pictures may be prepared otherwise than the probe's was; everything else must be the same.
            self.check(replace(probe.features.encoder, processor=self.wanted.processor))

            def say(features: Features, question: str, number: int) -> Sequence[int]:
                sampling = Sampling(max_new_tokens=number)
                prompt = self.chat.prompt([features], question)
                return self._answer(_Shown.of([features]), prompt, sampling, None).tokens

            mistaken = probe.mistaken(say)
            if mistaken:
                raise IncompatibleFeatures(
                    [f"the server runs {self._server.model!r}, which is not {self.checkpoint.name}: {mistaken}"],
                    fix="Have the server run the checkpoint that the features belong to.",
                )
            self._known = True

    def _answer(
        self,
        shown: _Shown,
        prompt: Prompt,
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
    ) -> Answer:
        began, first = time.perf_counter(), 0.0
        text, tokens = "", list[int]()
        for heard in self._hear(shown, prompt, sampling):
            first = first or (time.perf_counter() if heard.tokens else 0.0)
            text += heard.text
            tokens += heard.tokens
            if heard.text and on_text is not None:
                on_text(heard.text)
        ended = time.perf_counter()
        first = first or ended
        return Answer(text, tuple(tokens), exact=False, prefill=first - began, decode=ended - first)

    def _hear(
        self,
        shown: _Shown,
        prompt: Prompt,
        sampling: Sampling,
        *,
        top: int | None = None,
        seconds: float = PATIENCE,
    ) -> Hearing:
        sampling = sampling.within(self._server.longest - prompt.input_ids.shape[1])
        self._check_length(prompt, sampling.most)
        request = self._request(shown, prompt) | _sampled(sampling)
        if top is not None:
            request |= {"logprobs": True, "top_logprobs": top}
        read = 0
        with closing(self._server.hear(request, seconds=seconds)) as hearing:
            for heard in hearing:
                read = heard.read or read
                yield heard
        self._check_read(read, prompt)

    def _next(
        self, prompt: Prompt, request: Mapping[str, Any], context: tuple[int, ...], ways: Ways
    ) -> Mapping[int, float]:
        """The log probabilities of what choices go on with behind some of their tokens."""
        self._check_length(prompt, len(context) + 1)
        if context:
            begun = {"role": "assistant", "content": self.chat.text_of(context)}
            going_on = {"add_generation_prompt": False, "continue_final_message": True}
            request = {**request, **going_on, "messages": [*request["messages"], begun]}
        wanted = sorted(ways.after(context))
        asked = {"logprobs": True, "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
        found = self._server.post({**request, **asked, "max_tokens": 1, "temperature": 0})
        self._check_read(int(found["usage"]["prompt_tokens"]), prompt, len(context))
        try:
            (first,) = found["choices"][0]["logprobs"]["content"]
            said = {str(one["token"]): float(one["logprob"]) for one in first["top_logprobs"]}
            return {token: said[f"{_NUMBERED}{token}"] for token in wanted}
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{self._server.url} does not tell how likely given tokens are.", fix="Serve with vLLM 0.20 or later."
            ) from error

    def _request(self, shown: _Shown, prompt: Prompt) -> dict[str, Any]:
        parts = iter(shown.parts)

        def filled(content: Any) -> Any:
            if isinstance(content, str):
                return content
            return [next(parts) if part["type"] == "image" else part for part in content]

        said = [{"role": one["role"], "content": filled(one["content"])} for one in prompt.said]
        return {"model": self._server.model, "messages": said}

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return self.chat.text_of(tokens)

    def _check_length(self, prompt: Prompt, new_tokens: int) -> None:
        length = prompt.input_ids.shape[1]
        if length + new_tokens > self._server.longest:
            raise UsageError(
                f"The prompt has {length} tokens and {new_tokens} are to be generated; "
                f"the server takes {self._server.longest}.",
                fix="Ask about fewer images, ask for a shorter answer, or serve with a larger --max-model-len.",
            )

    def _check_read(self, read: int, prompt: Prompt, more: int = 0) -> None:
        length = prompt.input_ids.shape[1] + more
        if read != length:
            raise RemoteError(
                f"{self._server.url} read {read} tokens of a prompt of {length}: it writes chats otherwise than "
                f"{self.checkpoint.name}.",
                fix="Serve with the chat template of the checkpoint.",
            )


def _sampled(sampling: Sampling) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.most < _UNTOLD // 2:  # else the server knows its context, and does not tell it
        found["max_tokens"] = sampling.most
    if sampling.temperature:
        found |= {"top_p": sampling.top_p, "top_k": -1, "seed": sampling.seed}
    return found | ({"stop": list(sampling.stop)} if sampling.stop else {})


@dataclass(frozen=True, slots=True)
class _Shown:
    """Features with the parts of a chat that stand for them, which are megabytes and the same for every question."""

    features: Sequence[Features]
    parts: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, features: Sequence[Features]) -> _Shown:
        return cls(features, list(map(image_part, features)))


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of an answer: some text, its tokens and what was said of their chances; ``finish`` is why it ended.

    ``read`` is how many tokens the prompt had, in the last piece.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    chances: tuple[dict[str, Any], ...] = ()
    finish: str = ""
    read: int = 0

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Heard:
        """What an event of a stream tells."""
        read = int((event.get("usage") or {}).get("prompt_tokens", 0))
        for choice in event.get("choices", ()):
            return cls(
                text=(choice.get("delta") or {}).get("content") or "",
                tokens=tuple(choice.get("token_ids") or ()),
                chances=tuple((choice.get("logprobs") or {}).get("content") or ()),
                finish=choice.get("finish_reason") or "",
                read=read,
            )
        return cls(read=read)


Hearing = Generator[Heard, None, None]


class Server:
    """The part of OpenAI's API that is asked of a vLLM server; ``url`` ends with ``/v1``.

    What no server has begun to answer is sent again; what broke off is not, and raises `RemoteError`.
    """

    def __init__(self, url: str, key: str = "") -> None:
        if httpx.URL(url).scheme not in ("http", "https") or httpx.URL(url).userinfo:
            raise UsageError(f"{url!r} is no address of a server.", fix="Write it as http://host:8000/v1.")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=f"{self.url}/", headers=headers, timeout=PATIENCE)
        weakref.finalize(self, self._client.close)  # its connections, which stay open for the next question

    @property
    def model(self) -> str:
        """What the server calls its model."""
        return str(self._served["id"])

    @property
    def longest(self) -> int:
        """How many tokens it takes of a prompt and an answer."""
        return int(self._served.get("max_model_len") or _UNTOLD)

    @cached_property
    def _served(self) -> dict[str, Any]:
        models = self._sent("GET", "models", None).json()
        try:
            return dict(models["data"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RemoteError(f"{self.url} serves no model.", fix="Start it with `vllm serve MODEL`.") from error

    def post(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a chat."""
        return dict(self._sent("POST", "chat/completions", request).json())

    def hear(self, request: Mapping[str, Any], *, seconds: float = PATIENCE) -> Hearing:
        """An answer piece by piece, each of which comes within ``seconds``; raises `RemoteError` if not."""
        asked = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
        response = self._sent("POST", "chat/completions", {**request, **asked}, stream=True, seconds=seconds)
        try:
            for event in _events(response):
                if "error" in event:
                    raise RemoteError(f"{self.url} broke off: {event['error'].get('message', event['error'])}")
                yield Heard.of(event)
        except (httpx.HTTPError, ValueError) as error:
            raise RemoteError(f"{self.url} broke off: {error}.", fix="Ask again.") from error
        finally:
            response.close()

    def _sent(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        stream: bool = False,
        seconds: float = PATIENCE,
    ) -> httpx.Response:
        patience = httpx.Timeout(seconds, connect=min(seconds, _CONNECTING))
        for tried in range(1, _TRIES + 1):
            try:
                request = self._client.build_request(method, path, json=body, timeout=patience)
                response = self._client.send(request, stream=stream)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                failed, told = f"cannot be reached: {error}", None
            except httpx.HTTPError as error:
                raise RemoteError(f"{self.url} broke off: {error}.", fix="Look into its log, and ask again.") from error
            else:
                if response.is_success:
                    return response
                response.read()
                failed, told = _refusal(response), response.headers.get("Retry-After")
                if response.status_code not in _AGAIN:
                    break
            if tried < _TRIES:
                time.sleep(float(told) if told and told.isdigit() else _PAUSE * 2**tried)
        raise RemoteError(f"{self.url} {failed}.", fix=_fix(failed))


def has_timed_out(error: Exception) -> bool:
    """Return whether an error of a request says that the server took longer than it was given."""
    return isinstance(error.__cause__, httpx.TimeoutException)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in response.iter_lines():
        if line.startswith(_EVENT) and line != f"{_EVENT}[DONE]":
            yield json.loads(line.removeprefix(_EVENT))


def _refusal(response: httpx.Response) -> str:
    try:
        told = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = response.text[:200]
    return f"answers {response.status_code}: {told}".rstrip(" .")


def _fix(failed: str) -> str:
    if " 401" in failed or " 403" in failed:
        return "Put its key into QSPLIT_LANGUAGE_KEY."
    if "enable-mm-embeds" in failed:
        return "Start it with `vllm serve MODEL --enable-mm-embeds`."
    return "Start it with `vllm serve MODEL --enable-mm-embeds`, and look into its log."
