"""Embeddings in OpenAI's form: texts and pictures as vectors that can be compared with each other.

They are those that ``qsplit search`` compares a text with, so the album's own vectors may be compared with them too.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from qsplit.errors import UsageError
from qsplit.search.semantic_vectors import Semantics, known, semantic_vectors, text_vectors
from qsplit.server.openai.image_inputs import Looked, look, on_a_thread
from qsplit.server.openai.messages import Part, TextPart, Words, shown_in
from qsplit.server.service import Held, Service
from qsplit.store.tables.vectors import Vector

__all__ = ["router"]

router = APIRouter(prefix="/v1/embeddings", tags=["openai"])

_MOST = 256


class EmbeddingsRequest(BaseModel):
    """Texts, and beside what OpenAI takes, pictures in the parts that a chat shows them by."""

    input: Words | list[Words | Part] = Field(min_length=1)
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str = ""

    def parts(self) -> list[Part]:
        given = [self.input] if isinstance(self.input, str) else self.input
        if len(given) > _MOST:
            raise UsageError(f"The request has {len(given)} inputs; {_MOST} are taken.")
        return [TextPart(type="text", text=one) if isinstance(one, str) else one for one in given]


class Embedding(BaseModel):
    """A unit vector: numbers, or base64 of their little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """In tokens, those of pictures among them."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """In the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("")
async def embed(asked: EmbeddingsRequest, request: Request, response: Response, service: Held) -> Embeddings:
    """Unit vectors of texts and pictures; those of one identity, which a header tells, can be compared."""
    work = partial(_made, service, asked, request.state.may_write)
    with service.engine.turn():
        shown = shown_in(asked.parts())
        made, looked, identity = await on_a_thread(service, shown, service.vector_threads, work)
    response.headers["x-qsplit-semantics"] = identity
    response.headers["x-qsplit-reused"] = f"features={looked.known}/{len(looked.features)}"
    return made


def _made(service: Service, asked: EmbeddingsRequest, may_write: bool) -> tuple[Embeddings, Looked, str]:
    engine, parts = service.engine, asked.parts()
    language = engine.language
    engine.check_model(asked.model)
    if asked.dimensions not in (None, language.checkpoint.width):
        raise UsageError(f"This model's vectors have {language.checkpoint.width} dimensions.")
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    looked = look(service, shown_in(parts), may_write=may_write)
    semantics = _semantics(service)
    of_texts = iter(text_vectors(language, semantics, texts) if texts else ())
    of_pictures = iter(semantic_vectors(language, semantics, looked.features) if looked.features else ())
    vectors = [next(of_texts if isinstance(part, TextPart) else of_pictures) for part in parts]
    tokens = sum(len(language.tokens_of(text)) for text in texts) + sum(map(len, looked.features))
    return _embeddings(asked, vectors, engine.model, tokens), looked, semantics.id


def _semantics(service: Service) -> Semantics:
    """How the album's vectors are made; where it has none yet, as they would be made of its first pictures."""
    language = service.engine.language
    encoder_id = language.wanted.id
    found = known(service.album.store, language, encoder_id)
    checkpoint = language.checkpoint
    return found or Semantics(encoder_id, checkpoint.fingerprint("language"), checkpoint.retrieval)


def _embeddings(asked: EmbeddingsRequest, vectors: Sequence[Vector], model: str, tokens: int) -> Embeddings:
    data = [
        Embedding(index=i, embedding=_base64(vector) if asked.encoding_format == "base64" else vector.tolist())
        for i, vector in enumerate(vectors)
    ]
    return Embeddings(data=data, model=model, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens))


def _base64(vector: Vector) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
