"""The bytes of strangers -> pictures, by way of a process for each that ends with it.

A fork server has read the code that decodes and nothing else, so that another process costs a few milliseconds; it has
neither the model nor the store. What comes back is taken as numbers and pixels: identity, thumbnail and hashes are
made here, of the pixels.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.connection import Connection
from threading import BoundedSemaphore
from typing import Any, Literal

from PIL import Image

from qsplit import errors
from qsplit.errors import ImageError, ImageTooLarge, UnreadableImage
from qsplit.media.images import STRIP, Facts, Picture, describe
from qsplit.media.pillow_backend import REPLACE
from qsplit.media.sandbox import confined

__all__ = ["Decoder"]

_AT_ONCE = 2
_SECONDS = 30.0  # that a picture may take, whatever it waits for
_MOST = 64 * 1024**2  # bytes of one message
_ERRORS = {kind.__name__: kind for kind in (errors.UnreadableImage, errors.ImageTooLarge, errors.UnsupportedImage)}

Asked = Literal["pixels", "shown", "tags"]


class Decoder:
    """Decodes pictures of at most ``max_pixels`` (width x height) and ``max_bytes``, a few at once, on any thread."""

    def __init__(self, max_pixels: int, max_bytes: int) -> None:
        self._max_pixels, self._max_bytes = max_pixels, max_bytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["qsplit.media.sandbox.warm_up"])
        self._turns = BoundedSemaphore(_AT_ONCE)

    def picture(self, data: bytes) -> Picture:
        """The picture that some bytes are; raises `ImageError`, also for what takes more than it may."""
        with self._answer("pixels", data) as (head, connection):
            rgb = self._pixels(head, connection)
        return describe(hashlib.sha256(data).hexdigest(), _facts(head["facts"]), rgb)

    def shown(self, data: bytes) -> bytes:
        """The picture as a WebP for a screen, without metadata; raises `ImageError`."""
        with self._answer("shown", data) as (_, connection):
            return connection.recv_bytes(_MOST)

    def tags(self, data: bytes) -> dict[str, str]:
        """What its EXIF says, by name; raises `ImageError`."""
        with self._answer("tags", data) as (head, _):
            return {str(name): str(text) for name, text in head["tags"].items()}

    @contextmanager
    def _answer(self, asked: Asked, data: bytes) -> Iterator[tuple[dict[str, Any], Connection]]:
        """The head of an answer, and where the rest comes from; the process is gone afterwards."""
        self._check_bytes(data)
        with self._turns:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=confined.run, args=(theirs, asked, self._max_pixels), daemon=True)
            process.start()
            theirs.close()
            try:
                ours.send_bytes(data)
                yield _head(ours), ours
            except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
                fix = "Save a smaller copy, or leave it out."
                raise UnreadableImage(
                    "The picture takes more memory or time to decode than it may.", fix=fix
                ) from error
            finally:
                ours.close()
                process.kill()
                process.join()

    def _check_bytes(self, data: bytes) -> None:
        if not data:
            raise UnreadableImage("The picture is empty.", fix=REPLACE)
        if len(data) > self._max_bytes:
            message = f"The picture has {len(data):,} bytes; this service takes {self._max_bytes:,}."
            raise ImageTooLarge(message, fix="Save a smaller copy.")

    def _pixels(self, head: dict[str, Any], connection: Connection) -> Image.Image:
        """The upright pixels, row by row: never more than once in memory."""
        width, height = int(head["width"]), int(head["height"])
        if width < 1 or height < 1 or width * height > self._max_pixels:
            raise ValueError("more pixels than were asked for")
        rgb = Image.new("RGB", (width, height))
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            size = (width, min(rows, height - top))
            rgb.paste(Image.frombytes("RGB", size, connection.recv_bytes(3 * size[0] * size[1])), (0, top))
        return rgb


def _head(connection: Connection) -> dict[str, Any]:
    if not connection.poll(_SECONDS):
        raise EOFError("no answer in time")
    head: dict[str, Any] = json.loads(connection.recv_bytes(1 << 20))
    if "error" in head:
        raise _ERRORS.get(head["error"], ImageError)(str(head["message"]), fix=str(head["fix"]))
    return head


def _facts(said: dict[str, Any]) -> Facts:
    taken_at = said["taken_at"]
    return Facts(**{**said, "taken_at": datetime.fromisoformat(taken_at) if taken_at else None})
