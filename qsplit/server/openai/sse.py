"""Server-sent events, as OpenAI's clients read them: an object each, and ``[DONE]`` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

__all__ = ["DONE", "EventStream", "event"]

DONE = b"data: [DONE]\n\n"


def event(data: BaseModel | dict[str, Any]) -> bytes:
    """One event.

    >>> event({"text": "好"}).decode().splitlines()
    ['data: {"text":"好"}', '']
    """
    said = data.model_dump(mode="json", exclude_unset=True) if isinstance(data, BaseModel) else data
    return b"data: " + json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events; ``at_end`` is called when it ends, however it ends: the client may leave in its midst."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str], at_end: Callable[[], None]) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no", **headers}, media_type="text/event-stream")
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()
