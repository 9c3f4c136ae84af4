"""What a picture file carries beyond the picture that a viewer shows: data that a copy of the pixels does not hold.

Motion photos put a film behind the JPEG, Ultra HDR a gain map, MPO the other views, some cameras a RAW; depth maps lie
in extended XMP, layers in a TIFF tag, auxiliary images in HEIF items.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["appended"]

_NOTHING = b""
_PNG_START, _GIF_END = 8, 0x3B
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker behind entropy-coded data that is no restart
_LENGTHLESS = frozenset([0x01, *range(0xD0, 0xD8)])
_SOI, _EOI, _SOS, _APP1, _APP2, _APP11 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEB
_XMP, _MORE_XMP, _VIEWS = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0", b"MPF\0"
_PICTURE_BOXES = (b"ftyp", b"meta", b"mdat", b"free", b"skip", b"moov")
_METADATA_ITEMS = (b"Exif", b"mime", b"uri ")
_LAYERS, _SUB_IFDS = 37724, 330


def appended(data: bytes, image: Image.Image) -> str:
    """Return a digest of what a file of these bytes carries beyond its picture, empty if that is nothing.

    Args:
        data: the whole file.
        image: the same file as Pillow opened it.
    """
    kind = image.format or ""
    if kind in ("JPEG", "MPO"):
        extra = _of_jpeg(data)
    elif kind == "PNG":
        extra = _behind_png(data)
    elif kind == "GIF":
        extra = _behind_gif(data)
    elif kind == "WEBP":
        extra = data[_even(8 + _number(data, 4, "<I")) :]
    elif kind == "BMP":
        extra = data[max(_number(data, 2, "<I"), 54) :]
    elif isinstance(image, TiffImageFile):
        extra = _of_tiff(data, image)
    else:
        extra = _of_boxes(data)
    return hashlib.sha256(extra).hexdigest() if extra.strip(b"\0") else ""


def _of_jpeg(data: bytes) -> bytes:
    """What is behind the end of the image with the XMP and index that lead to it, depth maps, and residual images."""
    place, extra, leads = 2, list[bytes](), list[bytes]()
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _EOI:
            behind = data[place + 2 :]
            return b"".join([*extra, *(leads if behind.strip(b"\0") else ()), behind])
        if marker in _LENGTHLESS or marker == _SOI:
            place += 2
            continue
        end = place + 2 + max(2, _number(data, place + 2, ">H"))
        segment = data[place + 4 : end]
        if (marker == _APP1 and segment.startswith(_MORE_XMP)) or marker == _APP11:
            extra.append(segment)
        elif (marker == _APP1 and segment.startswith(_XMP)) or (marker == _APP2 and segment.startswith(_VIEWS)):
            leads.append(segment)
        if marker == _SOS:
            found = _SCAN_END.search(data, end)
            end = found.start() if found else len(data)
        place = end
    return b"".join(extra)  # cut short, or damaged: Pillow saw as much


def _behind_png(data: bytes) -> bytes:
    place = _PNG_START
    while place + 12 <= len(data):
        end = place + 12 + _number(data, place, ">I")
        if data[place + 4 : place + 8] == b"IEND":
            return data[end:]
        place = end
    return _NOTHING


def _behind_gif(data: bytes) -> bytes:
    flags = data[10] if len(data) > 13 else 0
    place = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while place < len(data) and data[place] != _GIF_END:
        if data[place] == 0x21:  # an extension
            place = _after_blocks(data, place + 2)
        elif data[place] == 0x2C and place + 10 < len(data):  # an image
            local = data[place + 9]
            place = _after_blocks(data, place + 11 + (3 << ((local & 7) + 1) if local & 0x80 else 0))
        else:
            return data[place:]
    return data[place + 1 :]


def _after_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1


def _of_tiff(data: bytes, image: TiffImageFile) -> bytes:
    """Layers, and all of a file that has images beside its pages."""
    if _SUB_IFDS in image.tag_v2:
        return data
    layers = image.tag_v2.get(_LAYERS, _NOTHING)
    return layers if isinstance(layers, bytes) else repr(layers).encode()


def _of_boxes(data: bytes) -> bytes:
    """Boxes beside the picture's own, and the kinds of the items: gain maps, depth maps and tiles are items."""
    extra, meta = [], _NOTHING
    for kind, box in _boxes(data):
        if kind == b"meta":
            meta = box
        elif kind not in _PICTURE_BOXES:
            extra.append(box)
    items = sorted(kind for kind in _items(meta) if kind not in _METADATA_ITEMS)
    described = sorted(set(re.findall(rb"urn:[\x21-\x7e]+", meta)))
    return b"".join([*extra, *(items if len(items) > 1 else ()), *described])


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        size, kind = _number(data, place, ">I"), data[place + 4 : place + 8]
        if size == 1:
            size = _number(data, place + 8, ">Q")
        end = place + size if size >= 8 else len(data)
        yield kind, data[place:end]
        place = end
    if place < len(data):
        yield _NOTHING, data[place:]


def _items(meta: bytes) -> Iterator[bytes]:
    """The type of each item that a ``meta`` box declares (ISO 14496-12, ``infe`` of version 2 and 3)."""
    for found in re.finditer(rb"infe([\x02\x03])...", meta, re.DOTALL):
        place = found.end() + (2 if found[1] == b"\x02" else 4) + 2
        yield meta[place : place + 4]


def _number(data: bytes, place: int, form: str) -> int:
    size = struct.calcsize(form)
    return int(struct.unpack_from(form, data, place)[0]) if len(data) >= place + size else 0


def _even(size: int) -> int:
    return size + size % 2
