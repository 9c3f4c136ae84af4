"""What a store on object storage needs beside what Lance does: its size, and an endpoint that commits can rely on.

Lance commits a version by making an object that must not be there yet, a conditional PUT. Where an endpoint does not
look at the condition, each of two writers believes that the version is its own, and the rows of one are lost without a
word. So whoever is about to write tries it first.

Credentials come from the environment alone, by the names that Lance knows (``AWS_ACCESS_KEY_ID`` and so on).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from qsplit.errors import StoreError, UsageError

__all__ = ["check_address", "check_conditional_put", "hidden", "is_remote", "sizes"]

_LOCAL = ("file", "memory")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_SECRETS = ("SECRET", "TOKEN", "PASSWORD", "KEY", "SAS", "CREDENTIAL")  # parts of names of what is not to be shown
_SCHEMES = ("AWS_", "AZURE_", "GOOGLE_")
_SHORTEST = 6  # characters of a secret: a shorter one may be a part of any word


def is_remote(uri: str) -> bool:
    """Whether a store lies on object storage.

    >>> [is_remote(uri) for uri in ("s3://bucket/album", "album.qsplit", "file:///album", "memory://")]
    [True, False, False, False]
    """
    scheme, found, _ = uri.partition("://")
    return bool(found) and scheme not in _LOCAL


def check_address(uri: str) -> None:
    """Raise `UsageError` for a store whose address carries credentials; they are not repeated."""
    parts = urlsplit(uri)
    if parts.username is not None or parts.password is not None or parts.query:
        raise UsageError(
            f"The address of the store at {parts.scheme}://{parts.hostname or ''} holds more than a bucket and a path.",
            fix="Give credentials in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )


def check_conditional_put(uri: str) -> None:
    """Raise `StoreError` unless the endpoint refuses to make an object that is there; leaves nothing behind."""
    place, name = from_url(uri), f".probe-{uuid4().hex}"
    try:
        for content in (b"one", b"another"):
            obstore.put(place, name, content, mode="create")
    except AlreadyExistsError:
        return
    finally:
        with suppress(BaseError):  # what was just said counts, and an object of a few bytes is in nobody's way
            obstore.delete(place, name)
    raise StoreError(
        f"{_endpoint(uri)} overwrites an object that was to be made only if absent (If-None-Match). Of two writers to "
        f"{uri} one would lose its rows.",
        fix="Use an endpoint with conditional PUT, as AWS S3, GCS, Azure, MinIO or SeaweedFS have it, or a folder.",
    )


def sizes(uri: str) -> dict[str, int]:
    """Path below the store -> bytes, of every object."""
    return {meta["path"]: meta["size"] for page in obstore.list(from_url(uri)) for meta in page}


def hidden(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """A text without what the environment keeps secret of object storage.

    >>> hidden("refused: abcdef123", {"AWS_SECRET_ACCESS_KEY": "abcdef123", "AWS_REGION": "refused"})
    'refused: ***'
    """
    for name, value in environ.items():
        if name.startswith(_SCHEMES) and any(word in name for word in _SECRETS) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return text


def _endpoint(uri: str) -> str:
    """Who answers for a store: the address, without what stands before an @, or the scheme's own service."""
    given = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), uri.partition("://")[0])
    scheme, found, rest = given.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
