"""A key -> the cookie by which a page's own pictures and links name it."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, SecretStr

from qsplit.server.middleware.auth import COOKIE, Keys, session_of
from qsplit.server.service import Held

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/session", tags=["session"])


class Key(BaseModel):
    """The key that a person typed."""

    key: SecretStr


class Session(BaseModel):
    """What the key allows; a service without keys allows everything."""

    read_only: bool


@router.post("")
def begin(given: Key, service: Held, response: Response) -> Session:
    """Exchange a key for a cookie, which scripts cannot read and other sites cannot send."""
    key, options = given.key.get_secret_value(), service.options
    if not options.has_keys:
        return Session(read_only=False)
    writes = Keys(options.keys, options.read_only_keys).may_write(key)
    response.set_cookie(COOKIE, session_of(key), httponly=True, samesite="strict", path="/")
    return Session(read_only=not writes)


@router.delete("", status_code=204)
def end(response: Response) -> None:
    """Forget the cookie."""
    response.delete_cookie(COOKIE, path="/")
