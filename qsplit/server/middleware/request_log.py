"""What is written down of each request: an id, a line in the log, figures, and what went wrong unforeseen."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qsplit.server.middleware import problems
from qsplit.server.middleware.metrics import Metrics

__all__ = ["REQUEST_ID", "Observed"]

REQUEST_ID: ContextVar[str] = ContextVar("qsplit request id", default="")  # of the request that is being answered

_LOG = logging.getLogger(__name__)
_HEADER = "X-Request-ID"
_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")

try:
    from opentelemetry import trace
except ImportError:
    trace = None  # type: ignore[assignment]  # an optional extra


class Observed:
    """ASGI middleware, the outermost: whatever happens further in is answered, counted and logged here."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        request_id = given if _GIVEN.fullmatch(given) else uuid.uuid4().hex
        token, began, status = REQUEST_ID.set(request_id), time.monotonic(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        self._metrics.running.inc()
        try:
            _mark_span(request_id)
            await self._app(scope, receive, send_named)
        except Exception:
            _LOG.exception("%s failed", scope["path"])
            if status:
                raise  # half an answer is out: the connection has to break
            await problems.unforeseen(scope["path"])(scope, receive, send_named)
        finally:
            self._metrics.running.dec()
            self._write(scope, status, time.monotonic() - began)
            REQUEST_ID.reset(token)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        """``status`` is 0 where the client left before an answer began."""
        route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        told = {"method": method, "path": scope["path"], "route": route, "status": status, "seconds": round(seconds, 6)}
        _LOG.info("%s %s %s %.3f s", method, scope["path"], status, seconds, extra={"told": told})


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _route(scope: Scope) -> str:
    """The path as it was declared, so that there are few of them."""
    found = getattr(scope.get("route"), "path", "")
    return found or ("/static" if scope["path"].startswith("/static/") else "none")


def _mark_span(request_id: str) -> None:
    """Let the span that FastAPI makes of a request, where OpenTelemetry is there, name its id."""
    if trace is not None:
        trace.get_current_span().set_attribute("qsplit.request_id", request_id)
