"""What is done to the bytes of strangers, in a process of its own that may take little and open nothing.

    confine   bounds on memory, processor time and files, before a byte of the picture is looked at
    answer    bytes -> what was asked for of them: a head in JSON, then bytes

Nothing that comes out of here is unpickled, and whatever identifies a picture is made from its pixels elsewhere.
"""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from qsplit.errors import ImageError, UnreadableImage
from qsplit.media import exif
from qsplit.media.images import read_still, strips
from qsplit.media.pillow_backend import errors_translated, opened, warnings_ignored
from qsplit.media.videos import is_clip

__all__ = ["SHOWN_SIDE", "answer", "confine", "run"]

SHOWN_SIDE = 2048  # pixels, the longer side of what is shown
NAME = "The picture"  # what messages call it
_BYTES_A_PIXEL = 16  # as read, in RGB, and turned upright or laid on white; a progressive JPEG takes no more
_ROOM = 128 * 1024**2  # for everything else
_SECONDS = 20  # of processor time

Answer = tuple[dict[str, Any], Iterator[bytes]]


def run(connection: Connection, asked: str, max_pixels: int) -> None:
    """Receive a picture and answer what is asked of it: its ``pixels``, how it is ``shown``, or its ``tags``."""
    confine(max_pixels)
    head, parts = answer(asked, connection.recv_bytes(), max_pixels)
    connection.send_bytes(json.dumps(head).encode())
    for part in parts:
        connection.send_bytes(part)
    connection.close()


def answer(asked: str, data: bytes, max_pixels: int) -> Answer:
    """The head, and what follows it; what is wrong with a picture is an answer too."""
    try:
        if is_clip(data):
            raise UnreadableImage(f"{NAME} is a video.", fix="Index videos with `qsplit index --videos`.")
        return _ANSWERS[asked](data, max_pixels)
    except ImageError as error:
        return {"error": type(error).__name__, "message": error.message, "fix": error.fix}, iter(())


def confine(max_pixels: int) -> None:
    """Let this process take memory for a picture of so many pixels beside what it has, and open no further file."""
    _bound(resource.RLIMIT_CPU, _SECONDS)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_AS, _address_space() + _ROOM + _BYTES_A_PIXEL * max_pixels)
    _bound(resource.RLIMIT_NOFILE, 0)  # of new ones; those that are open stay


def _bound(what: int, value: int) -> None:
    with suppress(ValueError, OSError):  # not every system has every bound
        resource.setrlimit(what, (value, value))


def _address_space() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # a device of the kernel
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 32


def _pixels(data: bytes, max_pixels: int) -> Answer:
    facts, rgb = read_still(data, name=NAME, max_pixels=max_pixels)
    head = {**asdict(facts), "taken_at": facts.taken_at and facts.taken_at.isoformat()}
    return {"width": rgb.width, "height": rgb.height, "facts": head}, strips(rgb)


def _shown(data: bytes, max_pixels: int) -> Answer:
    _, rgb = read_still(data, name=NAME, max_pixels=max_pixels)
    rgb.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    rgb.save(encoded, "WEBP", quality=85, method=2)
    return {}, iter([encoded.getvalue()])


def _tags(data: bytes, _max_pixels: int) -> Answer:
    with warnings_ignored(), errors_translated(NAME):
        return {"tags": exif.tags(opened(data, NAME))}, iter(())


_ANSWERS: dict[str, Callable[[bytes, int], Answer]] = {"pixels": _pixels, "shown": _shown, "tags": _tags}
