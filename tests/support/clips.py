"""Small videos, made here: a square that moves over noise."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

_CLOCKWISE = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # of a file's display matrix


def frame(number: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture with a white corner and a square whose place tells its number."""
    image = Image.fromarray(np.random.default_rng(7).integers(0, 120, (size[1], size[0], 3), np.uint8))
    image.paste((255, 255, 255), (0, 0, 12, 12))
    left = 3 * number % (size[0] - 16)
    image.paste((220, 40, 40), (left, 30, left + 16, 46))
    return image


def video(
    n: int = 25,
    *,
    fps: Fraction | int = 10,
    size: tuple[int, int] = (96, 64),
    kind: str = "mp4",
    codec: str = "libx264",
    made: str = "",
) -> bytes:
    """The bytes of a video file of ``n`` frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        if made:
            container.metadata["creation_time"] = made
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(i, size))))
        container.mux(stream.encode())
    return file.getvalue()


def turned(data: bytes) -> bytes:
    """The same video with the note that it is to be turned clockwise to be seen."""
    changed = bytearray(data)
    struct.pack_into(">9i", changed, changed.index(b"tkhd") + 44, *_CLOCKWISE)
    return bytes(changed)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
