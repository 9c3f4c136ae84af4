"""Thumbnails as a store holds them: WebP of at most 256 pixels a side, and nothing else is shown or decoded.

A store can be shared: Pillow's other plugins would give a picture's bytes to programs such as Ghostscript, and a header
may promise pixels that no memory holds.
"""

from __future__ import annotations

import io

from PIL import Image

from qsplit.errors import CorruptStore

__all__ = ["check_thumbnail", "decode_thumbnail"]

_SIDE = 256  # pixels
_HEADER = 30  # bytes: as far as the size stands
_REPLACE = "`qsplit forget` the picture and index it again."


def check_thumbnail(data: bytes, what: str) -> bytes:
    """Return the bytes if their header is that of a WebP of at most 256 pixels a side; nothing is decoded.

    Raises `CorruptStore` otherwise; ``what`` is what the message calls the thumbnail.
    """
    size = _size(data[:_HEADER])
    if size is None:
        raise CorruptStore(f"{what} cannot be decoded: it begins with {data[:12]!r}, not as WebP.", fix=_REPLACE)
    if max(size) > _SIDE or min(size) < 1:
        raise CorruptStore(
            f"{what} is {size[0]}x{size[1]} pixels; a thumbnail has at most {_SIDE} a side.", fix=_REPLACE
        )
    return data


def decode_thumbnail(data: bytes, what: str) -> Image.Image:
    """Decode a thumbnail to grey, by Pillow's WebP plugin alone; raises as `check_thumbnail` does, also if broken."""
    check_thumbnail(data, what)
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            return image.convert("L")
    except Exception as error:  # hostile bytes have brought out every kind
        raise CorruptStore(f"{what} cannot be decoded: {error}.", fix=_REPLACE) from error


def _size(header: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP's header gives; None for bytes that are no WebP.

    See https://developers.google.com/speed/webp/docs/riff_container.
    """
    if len(header) < _HEADER or header[:4] != b"RIFF" or header[8:12] != b"WEBP":
        return None
    match header[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(header[24:27], "little"), 1 + int.from_bytes(header[27:30], "little")
        case b"VP8L" if header[20] == 0x2F:
            bits = int.from_bytes(header[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 " if header[23:26] == b"\x9d\x01\x2a":
            return int.from_bytes(header[26:28], "little") & 0x3FFF, int.from_bytes(header[28:30], "little") & 0x3FFF
    return None
