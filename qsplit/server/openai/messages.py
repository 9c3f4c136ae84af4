"""OpenAI's messages -> the conversation as chat templates take it, and the pictures that it shows, in their order."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, Field

from qsplit.errors import UsageError

__all__ = ["Conversation", "Message", "Part", "Shown", "Words", "bytes_of", "conversation_of", "shown_in"]


Words = Annotated[str, Field(max_length=2_000_000)]  # more letters than any context holds


class TextPart(BaseModel):
    """Words."""

    type: Literal["text"]
    text: Words


class ImageUrl(BaseModel):
    """A data URL, or where pictures of other sites are allowed, its address; ``detail`` changes nothing here."""

    url: str
    detail: str | None = "auto"


class ImagePart(BaseModel):
    """A picture that comes with the request."""

    type: Literal["image_url"]
    image_url: ImageUrl


class StoredPart(BaseModel):
    """A picture of the album, by its id or the first digits of it."""

    type: Literal["qsplit_image"]
    id: str


Part = Annotated[TextPart | ImagePart | StoredPart, Field(discriminator="type")]


class Message(BaseModel):
    """What somebody said; pictures are shown by the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Words | list[Part] | None = None
    name: str | None = None

    @property
    def parts(self) -> Sequence[Part]:
        if isinstance(self.content, list):
            return self.content
        return [TextPart(type="text", text=self.content)] if self.content else []


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture that a request shows: one of the album by its ``id``, or one at a ``url``."""

    id: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """``messages`` hold a part ``{"type": "image"}`` for each of the pictures ``shown``."""

    system: str
    messages: list[dict[str, Any]]
    shown: tuple[Shown, ...]


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """Raises `UsageError` for a conversation in which there is nothing to answer, or a picture that a user did not
    show.
    """
    system = [_text(one) for one in messages if one.role in ("system", "developer")]
    said = [one for one in messages if one.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        raise UsageError("The last message is not the user's.", fix="End the messages with a question.")
    if any(shown_in(one.parts) for one in messages if one.role != "user"):
        raise UsageError("A picture stands in a message that is not the user's.", fix="Show it in a question.")
    told = [{"role": one.role, "content": list(map(_templated, one.parts))} for one in said]
    return Conversation(
        "\n".join(filter(str.strip, system)), told, tuple(s for one in said for s in shown_in(one.parts))
    )


def shown_in(parts: Sequence[Part]) -> list[Shown]:
    """The pictures among some parts."""
    return list(_shown(parts))


def _shown(parts: Sequence[Part]) -> Iterator[Shown]:
    for part in parts:
        if isinstance(part, StoredPart):
            yield Shown(id=part.id)
        elif isinstance(part, ImagePart):
            yield Shown(url=part.image_url.url)


def bytes_of(url: str) -> bytes:
    """What a data URL holds (RFC 2397); raises `UsageError` for what is none.

    >>> bytes_of("data:text/plain;base64,aGk="), bytes_of("data:,a%20b")
    (b'hi', b'a b')
    """
    head, comma, data = url.partition(",")
    if not comma or head[:5].lower() != "data:":
        raise UsageError("The picture's data URL holds no data.", fix="Send data:image/jpeg;base64,...")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(unquote_to_bytes(data), validate=True)
    except binascii.Error as error:
        raise UsageError(f"The picture's data URL is not base64: {error}.") from error


def _templated(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
