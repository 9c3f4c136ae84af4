"""Detection of RAW files by their content: what a sensor recorded, of which a decoder here shows the preview at best.

Most RAW formats are TIFF files, so their suffix and their first image say nothing. `is_raw` looks for what only a RAW
has: a DNG version, a colour filter array, linear sensor values, or a compression that only cameras write (TIFF/EP,
ISO 12234-2; DNG 1.7, chapter 4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["is_raw"]

_SIGNATURES = (
    b"FUJIFILMCCD-RAW",  # RAF
    b"IIRO", b"IIRS", b"MMOR",  # ORF
    b"IIU\0",  # RW2
    b"FOVb",  # X3F
    b"\0MRM",  # MRW
    b"\0\0\0\x18ftypcrx ",  # CR3
    b"HEAPCCDR",  # CRW, behind its byte order and length
)  # fmt: skip
_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # the latter two with offsets of 8 bytes
_BIG = (b"II+\0", b"MM\0+")
_CR2 = b"CR"  # at offset 8

_SUB_IFDS, _COMPRESSION, _PHOTOMETRIC, _MAKE, _KIND = 330, 259, 262, 271, 254
_ONLY_IN_RAW = frozenset([33421, 33422, 50706, 50740, 50778, 50781])  # CFA pattern, DNG version, private data, ...
_SENSOR = frozenset([32803, 34892])  # photometric interpretation: colour filter array, linear raw
_BY_CAMERAS = frozenset([32767, 32769, 32770, 34713, 65000, 65535])  # Sony, packed, Samsung, Nikon, Kodak, Pentax
_REDUCED = 1  # NewSubfileType: a smaller version of another image of the file
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 18: 8}  # bytes a value, of the types read here
_MOST_IFDS, _MOST_TAGS, _MOST_VALUES = 64, 4096, 32
_FURTHEST = 2**62  # bytes: no file system reaches further, and seek takes no more


def is_raw(path: str) -> bool:
    """Return whether a file is a RAW, whatever its suffix. Raises `OSError` if it cannot be read."""
    with Path(path).open("rb") as file:
        head = file.read(32)
        if head.startswith(_SIGNATURES[:-1]) or head[6:14] == _SIGNATURES[-1]:
            return True
        order = _TIFF.get(head[:4])
        if order is None:
            return False
        return head[8:10] == _CR2 or any(map(_is_of_raw, _directories(file, order, is_big=head[:4] in _BIG)))


def _is_of_raw(tags: dict[int, tuple[int, ...]]) -> bool:
    if _ONLY_IN_RAW & tags.keys() or _SENSOR & set(tags.get(_PHOTOMETRIC, ())):
        return True
    preview = bool(tags.get(_KIND, (0,))[0] & _REDUCED) and _MAKE in tags and _SUB_IFDS in tags
    return preview or bool(_BY_CAMERAS & set(tags.get(_COMPRESSION, ())))


def _directories(file: IO[bytes], order: str, *, is_big: bool) -> Iterator[dict[int, tuple[int, ...]]]:
    """Tag -> first values, of each image file directory, in the chain and below it; damaged ones end early."""
    counter, offsets, entry = ("Q", "Q", "HHQ8s") if is_big else ("H", "I", "HHI4s")
    entry_size = struct.calcsize(order + entry)
    file.seek(8 if is_big else 4)
    waiting, seen = list(_read(file, order, offsets)), set[int]()
    while waiting and len(seen) < _MOST_IFDS:
        offset = waiting.pop()
        if not 0 < offset < _FURTHEST or offset in seen:
            continue
        seen.add(offset)
        file.seek(offset)
        (count,) = _read(file, order, counter) or (0,)
        if count > _MOST_TAGS:
            continue
        entries = file.read(entry_size * count)
        waiting += _read(file, order, offsets)
        tags = {}
        for start in range(0, len(entries) - entry_size + 1, entry_size):
            tag, kind, n, inline = struct.unpack_from(order + entry, entries, start)
            tags[tag] = _values(file, order, kind, n, inline)
        waiting += tags.get(_SUB_IFDS, ())
        yield tags


def _values(file: IO[bytes], order: str, kind: int, n: int, inline: bytes) -> tuple[int, ...]:
    """The first values of a tag, which stand in its entry if there is room, or elsewhere in the file."""
    size, n = _SIZES.get(kind, 0), min(n, _MOST_VALUES)
    if not size or not n:
        return ()
    data = inline
    if size * n > len(inline):
        (place,) = struct.unpack(order + ("Q" if len(inline) == 8 else "I"), inline)
        if place >= _FURTHEST:
            return ()
        file.seek(place)
        data = file.read(size * n)
    letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    return struct.unpack_from(f"{order}{min(n, len(data) // size)}{letter}", data)


def _read(file: IO[bytes], order: str, letter: str) -> tuple[int, ...]:
    """The one number that comes next in a file, or nothing where the file ends."""
    data = file.read(struct.calcsize(order + letter))
    return struct.unpack(order + letter, data) if len(data) == struct.calcsize(order + letter) else ()
