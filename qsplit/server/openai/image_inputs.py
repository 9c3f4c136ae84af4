"""The pictures that a request shows -> those of the album, each looked at once in its life."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from qsplit.errors import Forbidden, UsageError
from qsplit.features.features import Features
from qsplit.qa.ask import fetch
from qsplit.server.openai.messages import Shown, bytes_of
from qsplit.server.openai.remote_images import Remote
from qsplit.server.service import Service
from qsplit.store.lookup import StoredPicture

__all__ = ["Looked", "look", "on_a_thread"]

_MOST = 64  # pictures of one request
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Looked:
    """Features of the pictures that a request shows, in its order; ``known`` is how many took no encoding now."""

    features: list[Features]
    known: int


def look(service: Service, shown: Sequence[Shown], *, may_write: bool) -> Looked:
    """Find the pictures of a request, or take them into the album; blocks while a new one is encoded.

    Raises `NotFound`, `ImageError`, `IncompatibleFeatures`, `Forbidden` for a new picture that a read-only key brings,
    and `UsageError` for one that this service cannot look at.
    """
    if len(shown) > _MOST:
        raise UsageError(f"The request shows {len(shown)} pictures; {_MOST} are taken.")
    brought = [None if one.id else _bytes(service, one.url) for one in shown]
    names = [one.id if data is None else _digest(data) for one, data in zip(shown, brought, strict=True)]
    state, held = service.recent.get(service.album.store, names)
    new: dict[str, StoredPicture] = {}
    encoded = 0
    for name, data in zip(names, brought, strict=True):
        if name not in held and name not in new:
            new[name], is_known = (
                (service.picture(name), True) if data is None else _taken_in(service, name, data, may_write)
            )
            encoded += not is_known
    read = fetch(service.album.store, service.engine.answerer, list(new.values())) if new else []
    found = dict(zip(new, read, strict=True))
    service.recent.put(state, found)
    held |= found
    return Looked([held[name] for name in names], len(shown) - encoded)


async def on_a_thread(service: Service, shown: Sequence[Shown], limiter: CapacityLimiter, work: Callable[[], T]) -> T:
    """The outcome of work that looks at pictures; where some are new, it waits with its like for threads of theirs."""
    if any(one.url for one in shown) and await to_thread.run_sync(_brings_new, service, shown, limiter=limiter):
        limiter = service.look_threads
    return await to_thread.run_sync(work, limiter=limiter)


def _brings_new(service: Service, shown: Sequence[Shown]) -> bool:
    """Whether pictures of a request may have to be fetched or encoded."""
    urls = [one.url for one in shown[:_MOST] if one.url]
    if any(url[:5].lower() != "data:" for url in urls):
        return True
    return not all(service.album.known(_digest(bytes_of(url))) for url in urls)


def _taken_in(service: Service, image_id: str, data: bytes, may_write: bool) -> tuple[StoredPicture, bool]:
    """The picture that some bytes are, whose sha256 is an image's id, and whether the album had it already."""
    if service.album.known(image_id):
        return service.picture(image_id), True
    if not may_write:
        raise Forbidden(
            "A picture is new to the album, and this key is read-only.", fix="Use a key that may write, or send it in."
        )
    upload = service.uploads.add(data)
    return service.picture(upload.id), not upload.encoded


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(service: Service, url: str) -> bytes:
    if url[:5].lower() == "data:":
        return bytes_of(url)
    if not service.options.remote_images:
        raise UsageError(
            "Pictures of other sites are not fetched here.", fix="Send a data URL, or serve with --remote-images."
        )
    return Remote(service.options.max_upload_bytes).fetch(url)
