"""An error -> what the client reads: problem+json (RFC 9457), or OpenAI's envelope under ``/v1``."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qsplit import errors
from qsplit.errors import QsplitError

__all__ = ["answer", "body", "install", "responses", "told", "unforeseen"]

_LOG = logging.getLogger(__name__)
RETRY_AFTER_S = 5

# The first that fits; whatever else is ours is the server's fault.
_STATUS: tuple[tuple[type[QsplitError], HTTPStatus], ...] = (
    (errors.Unauthorized, HTTPStatus.UNAUTHORIZED),
    (errors.Forbidden, HTTPStatus.FORBIDDEN),
    (errors.QueueFull, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.NotReady, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.AnswerFailed, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT),
    (errors.RemoteError, HTTPStatus.BAD_GATEWAY),
    (errors.ImageTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.ImageError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (errors.UsageError, HTTPStatus.BAD_REQUEST),
    (errors.IncompatibleFeatures, HTTPStatus.CONFLICT),
    (errors.NotFound, HTTPStatus.NOT_FOUND),
)
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": str(RETRY_AFTER_S)},
}
# What an error says of the server's paths and of its neighbours is for its log.
_HIDDEN = {
    HTTPStatus.INTERNAL_SERVER_ERROR: "The album cannot be used as it is.",
    HTTPStatus.BAD_GATEWAY: "The server that runs the language half does not answer as it should.",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

_TEXT = {"type": "string"}
_PROBLEM_FIELDS = {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT, "fix": _TEXT}
_ERROR_FIELDS = {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT}


def _described(media: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"content": {media: {"schema": {"type": "object", "required": sorted(fields), "properties": fields}}}}


_PROBLEM = _described("application/problem+json", _PROBLEM_FIELDS)
_OPENAI = _described(
    "application/json", {"error": {"type": "object", "required": sorted(_ERROR_FIELDS), "properties": _ERROR_FIELDS}}
)


def responses(prefix: str) -> dict[int | str, dict[str, Any]]:
    """What the routes of a prefix answer when they fail, for their schema."""
    kind = _OPENAI if prefix.startswith("/v1") else _PROBLEM
    return {
        "4XX": {"description": "A failure of the request", **kind},
        "5XX": {"description": "A failure here", **kind},
    }


def install(app: FastAPI) -> None:
    """Have an app answer every error in the form of the path that it came from."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, QsplitError)
        return answer(request.url.path, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _response(request.url.path, HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", _said(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        return _response(
            request.url.path, status, status.phrase.replace(" ", ""), str(error.detail), headers=error.headers
        )

    app.add_exception_handler(QsplitError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def answer(path: str, error: QsplitError) -> JSONResponse:
    """The response to a request of a path that failed so; the server's own troubles are told to its log alone."""
    status, message, fix = told(path, error)
    return _response(path, status, type(error).__name__, message, fix, headers=_HEADERS.get(status))


def told(what: str, error: QsplitError) -> tuple[HTTPStatus, str, str]:
    """The status of what failed so, and the message and fix that clients may read."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    if status not in _HIDDEN:
        return status, error.message, error.fix
    _LOG.error("%s failed: %s", what, error, exc_info=error)
    return status, _HIDDEN[status], "The log of the server says why."


def unforeseen(path: str) -> JSONResponse:
    """The response to a request that met a defect."""
    status, fix = HTTPStatus.INTERNAL_SERVER_ERROR, "The log of the server says more."
    return _response(path, status, "InternalError", "This is a defect of qsplit.", fix)


def body(path: str, status: HTTPStatus, kind: str, message: str, fix: str = "") -> dict[str, Any]:
    """What a client reads of a failure; a stream that has begun sends it as its last event."""
    if path.startswith("/v1/"):
        said = f"{message} {fix}".strip()
        kind_there = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": said, "type": kind_there, "param": None, "code": kind}}
    return {"type": f"urn:qsplit:{kind}", "title": status.phrase, "status": int(status), "detail": message, "fix": fix}


def _response(
    path: str, status: HTTPStatus, kind: str, message: str, fix: str = "", *, headers: Any = None
) -> JSONResponse:
    media = "application/json" if path.startswith("/v1/") else "application/problem+json"
    return JSONResponse(body(path, status, kind, message, fix), status, headers, media)


def _said(error: RequestValidationError) -> str:
    """What is wrong with a request, field by field, without what was sent."""
    return " ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}." for one in error.errors())
