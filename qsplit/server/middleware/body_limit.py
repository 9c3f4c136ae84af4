"""A bound on what a request may bring, counted while it is read."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PICTURES", "Bodies"]

PICTURES = ("/api/v1/images", "/api/v1/search/picture")  # take one
_FORM = 1 << 16  # bytes of a form beside its picture
_JSON = 1 << 20  # bytes of a request that brings no picture


class Bodies:
    """ASGI middleware: refuses a body that is longer than its path takes, whatever it says of its length."""

    def __init__(self, app: ASGIApp, max_picture: int) -> None:
        self._app, self._max_picture = app, max_picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound, read = self._bound(scope["path"]), 0
        length = Headers(scope=scope).get("content-length", "")
        said = int(length) if length.isdecimal() else 0

        async def receive_bounded() -> Message:
            nonlocal read
            message: Message = {} if said > bound else await receive()
            read += len(message.get("body", b""))
            if max(read, said) > bound:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request has at most {bound:,} bytes here.")
            return message

        await self._app(scope, receive_bounded, send)

    def _bound(self, path: str) -> int:
        """The most bytes that a request may bring."""
        if path.startswith("/v1/"):
            return 4 * self._max_picture  # some pictures in base64
        return self._max_picture + _FORM if path in PICTURES else _JSON
