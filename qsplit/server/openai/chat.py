"""Chat completions in OpenAI's form: messages and pictures in, an answer out, whole or as it is written."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from qsplit.errors import DeadlineExceeded, QsplitError, UsageError
from qsplit.models.language.model import Sampling
from qsplit.models.language.prompts import Prompt
from qsplit.server.engine.decoding import Piece, held_back
from qsplit.server.engine.remote_scheduler import Passed
from qsplit.server.engine.scheduler import Ticket, too_late
from qsplit.server.middleware import problems
from qsplit.server.openai.completions import (  # fmt: skip
    AnswerMessage,
    CachedTokens,
    Choice,
    ChunkChoice,
    Completion,
    CompletionChunk,
    Delta,
    Facts,
    Logprobs,
    Usage,
    logprobs_of,
)
from qsplit.server.openai.image_inputs import Looked, look, on_a_thread
from qsplit.server.openai.messages import Conversation, Message, conversation_of
from qsplit.server.openai.sse import DONE, EventStream, event
from qsplit.server.service import Held, Service

__all__ = ["router"]

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"])

_PATH = "/v1/chat/completions"
_REUSED = "x-qsplit-reused"
_LEFT = 499  # nobody reads it; the log does
# What clients send along and what changes no answer.
_IDLE = frozenset(
    {
        "functions", "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier",
        "store", "tools", "user",
    }
)  # fmt: skip
# What they send along by default, and what it is then.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "modalities": (["text"],), "response_format": ({"type": "text"},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "top_k": (-1, 0), "min_p": (0,), "skip_special_tokens": (True,),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),  # a model may always answer without a tool
}  # fmt: skip

_GRACE = 1.0  # seconds that the engine has to end an answer where it is, after the deadline
_UNBOUNDED = 2**31  # tokens: it is the context that ends an answer
_COLD = 1e-4  # of temperature: below, floats cannot tell it from greedy

StopString = Annotated[str, Field(max_length=256)]
# Some clients send -1 where others send nothing.
Bound = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(lambda value: None if value == -1 else value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}, {"type": "null"}]}),
]  # fmt: skip
T = TypeVar("T")


class StreamOptions(BaseModel):
    """Whether a last chunk tells the usage."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request as OpenAI's clients send it. Without ``temperature`` the answer is greedy, and without ``max_tokens``
    it goes on to its end.

    ``exact`` has the answer computed by itself, token for token as the unsplit model would.
    """

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1, max_length=1000)
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Bound = None
    max_completion_tokens: Bound = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    exact: bool = False

    def sampling(self, most: int | None = None) -> Sampling:
        """How to answer, in ``most`` so many tokens where that is no more than the context has left.

        Raises `UsageError` for what an answer would have to heed and cannot.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _IDLE or value is None or value in _NEUTRAL.get(name, ()):
                continue
            if name in ("tool_choice", "function_call"):
                raise UsageError(f"Tools are not supported; {name} requires one.", fix='Send "auto", or leave it out.')
            raise UsageError(f"{name} is not supported.", fix="Leave it out.")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        asks = self.max_completion_tokens or self.max_tokens
        return Sampling(
            min(asks, most or asks) if asks else None,
            0.0 if (self.temperature or 0.0) < _COLD else float(self.temperature or 0.0),
            self.seed,
            1.0 if self.top_p is None else self.top_p,
            tuple(stop),
            at_most=most or _UNBOUNDED,
        )

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens are told beside each that is said; None if no chances are."""
        return (self.top_logprobs or 0) if self.logprobs else None


_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.post("", response_model=Completion, responses=_STREAM)
async def complete(asked: ChatRequest, request: Request, service: Held) -> Response:
    """Answer a conversation about pictures of the album, or about such as come along and are taken into it."""
    deadline = time.monotonic() + service.options.deadline_s
    answer = await _begun(service, asked, request.state.may_write, deadline)
    try:
        await _unless_left(request, answer.first())
        if asked.stream:
            return EventStream(answer.events(), answer.headers(), answer.leave)
        completion = await _unless_left(request, answer.whole())
    except _LeftError:
        answer.leave()
        return Response(status_code=_LEFT)
    except BaseException:
        answer.leave()
        raise
    return Response(completion.model_dump_json(), headers=answer.headers(), media_type="application/json")


async def _begun(service: Service, asked: ChatRequest, may_write: bool, deadline: float) -> _Answer:
    """An answer that has begun; raises `DeadlineExceeded` where that takes too long, whatever it waits for."""
    beginning = asyncio.ensure_future(_begin(service, asked, may_write, deadline))
    try:
        await asyncio.wait({beginning}, timeout=max(0.0, deadline - time.monotonic()))
    finally:
        if not beginning.done():  # what is on a thread takes its turn to its end
            beginning.add_done_callback(_leave)
    if not beginning.done():
        raise too_late()
    return beginning.result()


def _leave(begun: asyncio.Future[_Answer]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().leave()


async def _begin(service: Service, asked: ChatRequest, may_write: bool, deadline: float) -> _Answer:
    with service.engine.turn():
        conversation = conversation_of(asked.messages)
        work = partial(_prepare, service, asked, conversation, may_write, deadline)
        prepared = await on_a_thread(service, conversation.shown, service.chat_threads, work)
        answer = _Answer(asked, service.engine.model, prepared, deadline, service.engine.answerer.text_of)
        answer.begin(service)
        return answer


@dataclass(frozen=True, slots=True)
class _Prepared:
    prompt: Prompt
    sampling: Sampling
    looked: Looked


def _prepare(
    service: Service, asked: ChatRequest, conversation: Conversation, may_write: bool, deadline: float
) -> _Prepared:
    """What the language half is to read; blocks while a new picture is encoded."""
    if time.monotonic() > deadline:  # nobody waits any longer for what it is to do
        raise too_late()
    language = service.engine.answerer  # before a picture is taken in for nothing
    service.engine.check_model(asked.model)
    sampling = asked.sampling(service.options.max_answer_tokens)
    looked = look(service, conversation.shown, may_write=may_write)
    prompt = language.prompt_of(looked.features, conversation.messages, system=conversation.system)
    return _Prepared(prompt, sampling, looked)


@dataclass
class _Answer:
    """One answer on its way to a client."""

    asked: ChatRequest
    model: str
    prepared: _Prepared
    deadline: float  # of the monotonic clock
    text_of: Callable[[Sequence[int]], str]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _told: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    _first: Piece | None = None
    _tokens: list[int] = field(default_factory=list)  # that were told
    _text: str = ""  # that was told
    _has_begun: bool = False  # whether a piece was told
    _ticket: Ticket | Passed | None = None

    def begin(self, service: Service) -> None:
        loop = asyncio.get_running_loop()

        def tell(what: Piece | Exception) -> None:
            loop.call_soon_threadsafe(self._told.put_nowait, what)

        self._ticket = service.engine.together.submit(
            self.prepared.prompt,
            self.prepared.sampling,
            tell,
            exact=self.asked.exact,
            top=self.asked.top,
            deadline=self.deadline,
        )

    @property
    def ticket(self) -> Ticket | Passed:
        assert self._ticket is not None
        return self._ticket

    def leave(self) -> None:
        """Nobody reads on."""
        self.ticket.cancel()

    async def first(self) -> None:
        """Wait for the first token: until then an error has a status of its own."""
        self._first = await self._next()

    async def whole(self) -> Completion:
        pieces = [piece async for piece in self._pieces()]
        choice = Choice(
            message=AnswerMessage(content="".join(piece.text for piece in pieces)),
            finish_reason="length" if pieces[-1].finish == "length" else "stop",
            logprobs=self._logprobs(pieces),
        )
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            usage=self._usage(),
            qsplit=self._facts(),
        )

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks; what goes wrong by now is the last of them."""
        try:
            yield event(self._chunk(Delta(role="assistant", content="")))
            async for piece in self._pieces():
                yield event(self._chunk_of(piece))
        except QsplitError as error:
            status, message, fix = problems.told(_PATH, error)
            yield event(problems.body(_PATH, status, type(error).__name__, message, fix))
            return
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            told = CompletionChunk(id=self.id, created=self.created, model=self.model, choices=[], usage=self._usage())
            yield event(told.model_dump(exclude={"qsplit"}))
        yield DONE

    def headers(self) -> dict[str, str]:
        """What was not computed for this answer: pictures that were encoded before, and tokens of the prompt."""
        looked, length = self.prepared.looked, self.prepared.prompt.input_ids.shape[1]
        return {_REUSED: f"features={looked.known}/{len(looked.features)}, prefix={self.ticket.known}/{length}"}

    async def _pieces(self) -> AsyncIterator[Piece]:
        piece, self._first = self._first, None
        while True:
            piece = piece or await self._onward()
            self._has_begun = True
            self._text += piece.text
            if piece.said:
                self._tokens.append(piece.said.id)
            yield piece
            if piece.finish:
                return
            piece = None

    async def _onward(self) -> Piece:
        """What is told next. An answer that has begun ends at the deadline where it is: the engine says so after the
        token that it is at, and if that takes long, nobody waits for it.
        """
        if not self._has_begun:
            return await self._next()
        try:
            return await self._next(_GRACE)
        except DeadlineExceeded:
            self.leave()
            return Piece(held_back(self.text_of, self._tokens, self._text), None, "length")

    async def _next(self, grace: float = 0.0) -> Piece:
        """What is told next; nobody waits past the deadline, whatever keeps the engine from telling of it."""
        left = max(0.0, self.deadline + grace - time.monotonic())
        try:
            what = self._told.get_nowait() if self._told.qsize() else await asyncio.wait_for(self._told.get(), left)
        except TimeoutError:
            raise too_late() from None
        if isinstance(what, Exception):
            raise what
        return what

    def _chunk_of(self, piece: Piece) -> CompletionChunk:
        chunk = self._chunk(Delta(content=piece.text), logprobs=self._logprobs([piece]))
        if piece.finish:
            chunk.choices[0].finish_reason = piece.finish
            chunk.qsplit = self._facts()
        return chunk

    def _chunk(self, delta: Delta, **choice: Any) -> CompletionChunk:
        choices = [ChunkChoice(index=0, delta=delta, finish_reason=None, **choice)]
        return CompletionChunk(
            id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices
        )

    def _logprobs(self, pieces: Sequence[Piece]) -> Logprobs | None:
        return None if self.asked.top is None else logprobs_of([piece.said for piece in pieces if piece.said])

    def _usage(self) -> Usage:
        length, said = self.prepared.prompt.input_ids.shape[1], len(self._tokens)
        return Usage(
            prompt_tokens=length,
            completion_tokens=said,
            total_tokens=length + said,
            prompt_tokens_details=CachedTokens(cached_tokens=self.ticket.known),
        )

    def _facts(self) -> Facts:
        features = self.prepared.looked.features
        return Facts(
            exact=self.ticket.exact,
            encoder=features[0].encoder.id if features else None,
            pictures=len(features),
            features_reused=self.prepared.looked.known,
        )


class _LeftError(Exception):
    """The client has left."""


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of some work; raises `_LeftError` as soon as nobody waits for it any longer."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _LeftError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
