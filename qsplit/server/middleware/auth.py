"""Who may come in: the name a service is called by, the site a page is of, and the key.

    Host       localhost, a numeric address or a name that was configured: no other site's name can be bound to it
    Origin     the service's own pages, and sites that were configured
    key        ``Authorization: Bearer KEY``, or the cookie that ``POST /api/v1/session`` gives a page for a key
    writes     need a key that is not read-only: every POST, PUT, PATCH and DELETE but those that only ask

Open to all are ``/healthz``, ``/readyz``, the session, and the page and ``/static/``, which hold nothing of the album.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qsplit.errors import Forbidden, QsplitError, Unauthorized
from qsplit.server.config import LOCAL, ServeOptions
from qsplit.server.middleware import problems

__all__ = ["ASKING", "COOKIE", "Access", "Keys", "is_open"]

COOKIE = "qsplit_session"
SESSION = "/api/v1/session"
ASKING = ("/v1/chat/completions", "/v1/embeddings", "/api/v1/search", "/api/v1/search/picture")  # POST, write nothing
_OPEN = ("/", "/healthz", "/readyz", SESSION)
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_SECURITY = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Keys:
    """The keys of a service, compared in constant time."""

    def __init__(self, keys: Iterable[str], read_only: Iterable[str]) -> None:
        self._writes = {_digest(key): True for key in keys} | {_digest(key): False for key in read_only}
        self._sessions = {_digest(session_of(key)): _digest(key) for key in (*keys, *read_only)}

    def __len__(self) -> int:
        return len(self._writes)

    def may_write(self, key: str = "", session: str = "") -> bool:
        """Whether whoever names a key, or the session of one, may change things; raises `Unauthorized` for neither."""
        found = None
        for digest, writes in self._writes.items():
            if hmac.compare_digest(digest, _digest(key)):
                found = writes
        for digest, of in self._sessions.items():
            if found is None and hmac.compare_digest(digest, _digest(session)):
                found = self._writes[of]
        if found is None:
            raise Unauthorized("This service needs a key.", fix="Send `Authorization: Bearer KEY`.")
        return found


def session_of(key: str) -> str:
    """What a page's cookie holds in place of a key: it ends with the key, and does not tell it."""
    return hmac.new(key.encode(), b"qsplit session", hashlib.sha256).hexdigest()


def is_open(path: str) -> bool:
    """Whether a path needs no key: it says nothing of the album."""
    return path in _OPEN or path.startswith("/static/")


class Access:
    """ASGI middleware: what may not come in is answered here, and every answer gets its security headers."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._options = app, options
        self._keys = Keys(options.keys, options.read_only_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                if not is_open(scope["path"]):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
        except QsplitError as error:
            await problems.answer(scope["path"], error)(scope, receive, send_secured)
            return
        await self._app(scope, receive, send_secured)

    def _check(self, scope: Scope) -> None:
        headers, method = Headers(scope=scope), scope["method"]
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        writes = True
        if len(self._keys) and not is_open(scope["path"]):
            writes = self._keys.may_write(_bearer(headers), _session(headers))
        scope.setdefault("state", {})["may_write"] = writes
        if not writes and method not in _SAFE and scope["path"] not in ASKING:
            raise Forbidden("This key is read-only.", fix="Use a key that may write.")

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name != LOCAL and name not in self._options.hosts and not _is_numeric(name):
            raise Forbidden(f"This service is not called {name!r}.", fix="Name it with `--allow-host`.")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._options.origins:
            return
        if urlsplit(origin).netloc != headers.get("host", ""):
            raise Forbidden(f"Pages of {origin} may not call this service.", fix="Name it with `--allow-origin`.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _session(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _host_name(host: str) -> str:
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").rstrip(".").lower() if found else ""


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
