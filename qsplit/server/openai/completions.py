"""What OpenAI's clients read of an answer: whole, or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from qsplit.server.engine.decoding import Said

__all__ = [
    "Choice",
    "ChunkChoice",
    "Completion",
    "CompletionChunk",
    "Delta",
    "Facts",
    "Logprobs",
    "Usage",
    "logprobs_of",
]

FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A token that might have been said."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was said; the logarithms are natural ones."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Token by token."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """An answer; there is one."""

    index: int = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


class CachedTokens(BaseModel):
    """How many tokens of the prompt were known."""

    cached_tokens: int


class Usage(BaseModel):
    """In tokens, those of pictures among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Facts(BaseModel):
    """What an answer rests on: whether the unsplit model would have given it token for token, whose features it is
    over, and how many of its pictures took no encoding."""

    exact: bool
    encoder: str | None
    pictures: int
    features_reused: int


class Completion(BaseModel):
    """OpenAI's ``chat.completion``, with ``qsplit`` beside."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    qsplit: Facts


class Delta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The part of a chunk that is of the answer."""

    index: int = 0
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class CompletionChunk(BaseModel):
    """OpenAI's ``chat.completion.chunk``; the last one has ``qsplit`` beside."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    qsplit: Facts | None = None


def logprobs_of(said: Sequence[Said]) -> Logprobs:
    """The chances of some tokens that were said."""
    return Logprobs(
        content=[
            TokenLogprob(
                token=one.text,
                logprob=one.logprob,
                bytes=list(one.text.encode()),
                top_logprobs=[
                    TopLogprob(token=text, logprob=logprob, bytes=list(text.encode())) for text, logprob in one.top
                ],
            )
            for one in said
        ]
    )
