"""Real files of every format, written as cameras and phones write them, and what is made of them."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from qsplit import bundled
from qsplit.media.images import Limits, Picture, decode

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
LIMITS = Limits()
NOBODY = 65534
pillow_heif.register_heif_opener()  # the tests write HEIC; qsplit itself registers nothing

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}), "MPO": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "PNG": ("PNG", {}), "WEBP": ("WEBP", {"lossless": True}), "GIF": ("GIF", {}), "TIFF": ("TIFF", {}),
    "BMP": ("BMP", {}), "AVIF": ("AVIF", {}), "HEIF": ("HEIF", {}),
}  # fmt: skip


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def seen(data: bytes, name: str = "picture", limits: Limits = LIMITS) -> Picture:
    return decode(data, name=name, limits=limits)


def pixels(picture: Picture) -> Pixels:
    return np.asarray(picture.rgb)


def photograph(name: str) -> Image.Image:
    with Image.open(bundled.photos()[0].parent / name) as image:
        return image.convert("RGB")


def mosaic(width: int = 48, height: int = 32) -> Image.Image:
    """Four unequal colours, so that no turn or mirroring leaves it as it was; smooth enough for lossy formats."""
    values = np.zeros((height, width, 3), np.uint8)
    values[: height // 2, : width // 2] = (250, 20, 30)
    values[: height // 2, width // 2 :] = (20, 240, 40)
    values[height // 2 :, : width // 2] = (10, 30, 230)
    values[height // 2 :, width // 2 :] = (240, 230, 220)
    return Image.fromarray(values)


def exif_block(orientation: int | None = None, **tags: Any) -> Image.Exif:
    """Tags by their names in ExifTags.Base or GPS, each put where cameras put it."""
    block = Image.Exif()
    inner: dict[int, Any] = {}
    where: dict[int, Any] = {}
    for name, value in tags.items():
        if name.startswith("GPS"):
            where[GPS[name]] = value
        elif name in ("Make", "Model"):
            block[Base[name]] = value
        else:
            inner[Base[name]] = value
    if orientation is not None:
        block[Base.Orientation] = orientation
    block.update({ifd: values for ifd, values in ((IFD.Exif, inner), (IFD.GPSInfo, where)) if values})
    whole = Image.Exif()
    whole.load(block.tobytes())  # Pillow's TIFF writer takes inner directories only from EXIF that was read
    return whole


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def digest_of(values: Pixels) -> str:
    height, width, _ = values.shape
    return hashlib.sha256(f"{width}x{height}:RGB:".encode() + values.tobytes()).hexdigest()


def year(number: int) -> int:
    """Its first moment, as the modification time of a file in nanoseconds."""
    return round((datetime(number, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 10**9


def dated(path: Path, mtime_ns: int) -> Path:
    """Change when a file was modified; skips the test where the disk does not take such a time."""
    os.utime(path, ns=(0, mtime_ns))
    if path.stat().st_mtime_ns != mtime_ns:
        pytest.skip(f"{path.parent} does not keep the time {mtime_ns}")
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; so the file is read with the rights of nobody, as the system checks them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
