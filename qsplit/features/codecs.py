"""How the arrays of a picture lie in a payload: as they are, smaller without loss, or as eight-bit numbers.

    ``raw``          tokens, then each level, row-major, little-endian
    ``planes-zstd``  the same bytes sorted into planes, of which zstd shrinks those that repeat themselves
    ``int8``         of each row the scale (float32), then its values as eight-bit numbers: lossy

A row names its codec, so a store may hold all of them. numpy has no bfloat16: such numbers are held as their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qsplit.errors import InvalidFeatures

__all__ = ["CODECS", "DTYPES", "Array", "as_bytes", "as_float32", "decode", "encode", "is_finite", "is_lossless"]

DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_INFINITY = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}  # its bits
_LARGEST = {"bfloat16": float.fromhex("0x1.fep127"), "float16": 65504.0, "float32": float(np.finfo(np.float32).max)}
_SMALLEST_NORMAL = np.finfo(np.float32).tiny
_ZSTD = pa.Codec("zstd", compression_level=1)  # higher levels gain a hundredth and cost several times the time
_LENGTH = np.dtype("<u8")
_SCALE = np.dtype("<f4")

Shape = tuple[int, int, int]  # arrays, tokens, width
Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """``encode`` takes the rows of all arrays ``(arrays x tokens, width)``; ``decode`` gives ``shape`` back."""

    lossless: bool
    encode: Callable[[Array, str], bytes | pa.Buffer]
    decode: Callable[[pa.Buffer, Shape, str], Array]


def encode(codec: str, arrays: Sequence[Array], dtype: str) -> bytes | pa.Buffer:
    """The payload of equal arrays ``(tokens, width)`` of a dtype in `DTYPES`, that of a ``raw`` one over its memory."""
    rows = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return _named(codec).encode(np.ascontiguousarray(rows), dtype)


def decode(codec: str, payload: pa.Buffer, shape: Shape, dtype: str) -> tuple[Array, ...]:
    """The arrays ``(tokens, width)`` of a payload, ``raw`` ones over its own memory and read-only.

    Raises `InvalidFeatures` for an unknown codec, and for bytes that are not such arrays.
    """
    return tuple(_named(codec).decode(payload, shape, dtype).reshape(shape))


def is_lossless(codec: str) -> bool:
    """Whether what comes back is what was put in; raises `InvalidFeatures` for an unknown codec."""
    return _named(codec).lossless


def as_bytes(array: Array) -> memoryview:
    """An array's elements as they lie, over its own memory if they lie side by side."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def as_float32(array: Array, dtype: str) -> npt.NDArray[np.float32]:
    """The numbers of an array of a dtype in `DTYPES`, of which float32 holds each exactly.

    >>> as_float32(np.array([0x3F80, 0xC000], "<u2"), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def is_finite(array: Array, dtype: str) -> bool:
    """Whether all elements are numbers and not infinite, from their bits.

    Read as integers, numbers of one sign are in the order of their size, and infinity and NaN are above them all; the
    negative ones are on top without a sign, and below zero with one. So neither look needs a copy.
    """
    bits, infinity = np.ascontiguousarray(array).view(f"<i{array.itemsize}"), _INFINITY[dtype]
    negative_infinity = infinity - np.iinfo(bits.dtype).min
    unsigned = bits.view(f"<u{array.itemsize}")
    return bool(bits.max(initial=0) < infinity and unsigned.max(initial=0) < negative_infinity)


def _named(codec: str) -> Codec:
    if codec not in CODECS:
        raise InvalidFeatures(f"The payload's codec is {codec!r}; this qsplit knows {', '.join(CODECS)}.")
    return CODECS[codec]


def _check_size(what: str, found: int, shape: Shape, wanted: int, dtype: str) -> None:
    arrays, tokens, width = shape
    if wanted < 1 or found != wanted:
        raise InvalidFeatures(
            f"{what} has {found} bytes; {arrays} x {tokens} tokens of width {width} in {dtype} take {wanted}."
        )


# --- raw ---


def _encode_raw(rows: Array, dtype: str) -> pa.Buffer:  # noqa: ARG001  # whatever they are
    return pa.py_buffer(as_bytes(rows))


def _decode_raw(payload: pa.Buffer, shape: Shape, dtype: str) -> Array:
    numbers = DTYPES[dtype]
    _check_size("The payload", payload.size, shape, prod(shape) * numbers.itemsize, dtype)
    # A payload may begin at any address; a copy is made only if the elements would lie across their alignment.
    if payload.address % numbers.itemsize:
        payload = pa.py_buffer(payload.to_pybytes())
    return np.frombuffer(payload, numbers)


# --- planes-zstd ---


def _encode_planes(rows: Array, dtype: str) -> bytes:  # noqa: ARG001  # two or four bytes a number
    """Each plane's length, then the planes: highest bytes first, each by zstd or, where that is no shorter, as it is.

    A plane as long as its numbers is read as it is, so one that zstd makes no shorter may not be kept compressed.
    The sign is turned round to the lowest bit first: the exponents, which are much alike, then fill whole bytes.
    """
    size, top = rows.itemsize, 8 * rows.itemsize - 1
    bits = rows.reshape(-1).view(f"<u{size}")
    turned: Bytes = ((bits << 1) | (bits >> top)).astype(bits.dtype).view(np.uint8)
    planes = [np.ascontiguousarray(turned[i::size]) for i in reversed(range(size))]
    packed = [min(plane.tobytes(), _ZSTD.compress(plane, asbytes=True), key=len) for plane in planes]
    return b"".join([np.array([len(one) for one in packed], _LENGTH).tobytes(), *packed])


def _decode_planes(payload: pa.Buffer, shape: Shape, dtype: str) -> Array:
    size, count = DTYPES[dtype].itemsize, int(np.prod(shape))
    header = size * _LENGTH.itemsize
    if count < 1 or payload.size < header:
        raise InvalidFeatures(f"The payload of {payload.size} bytes is not {size} planes of {count} bytes.")
    lengths = np.frombuffer(payload.slice(0, header).to_pybytes(), _LENGTH).tolist()
    if max(lengths) > count or header + sum(lengths) != payload.size:
        raise InvalidFeatures(f"The payload of {payload.size} bytes is not {size} planes of {count} bytes.")
    turned = np.empty((count, size), np.uint8)
    starts = accumulate(lengths, initial=header)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        turned[:, size - 1 - i] = _plane(payload.slice(start, length), count)
    bits = turned.reshape(-1).view(f"<u{size}")
    found: Array = ((bits >> 1) | (bits << (8 * size - 1))).view(DTYPES[dtype])
    return found


def _plane(packed: pa.Buffer, count: int) -> Bytes:
    if packed.size == count:
        return np.frombuffer(packed, np.uint8)
    try:
        found = np.frombuffer(_ZSTD.decompress(packed, decompressed_size=count), np.uint8)
    except (OSError, ValueError) as error:  # how Arrow reports what zstd cannot read
        raise InvalidFeatures(f"A plane of the payload cannot be decompressed: {error}.") from error
    return found


# --- int8 ---


def _encode_int8(rows: Array, dtype: str) -> bytes:
    values = as_float32(rows, dtype)
    scales = np.abs(values).max(1, keepdims=True) / np.float32(127)
    # A row of zeros, or of what is nearly so, has no scale and needs none.
    levels = np.where(scales > 0, values / np.maximum(scales, _SMALLEST_NORMAL), np.float32(0))
    whole = np.rint(levels).clip(-127, 127).astype(np.int8)
    return bytes(scales.astype(_SCALE).tobytes() + whole.tobytes())


def _decode_int8(payload: pa.Buffer, shape: Shape, dtype: str) -> Array:
    rows, width = shape[0] * shape[1], shape[2]
    _check_size("The payload", payload.size, shape, rows * (_SCALE.itemsize + width), "int8")
    head = rows * _SCALE.itemsize
    scales = np.frombuffer(payload.slice(0, head).to_pybytes(), _SCALE).reshape(rows, 1)
    if not np.isfinite(scales).all():
        raise InvalidFeatures("The payload has a scale that is no number.")
    whole = np.frombuffer(payload.slice(head), np.int8).reshape(rows, width)
    with np.errstate(over="ignore"):  # of a scale that was spoilt; the bounds catch what it makes
        scaled = whole * scales
    return _rounded(scaled.clip(-_LARGEST[dtype], _LARGEST[dtype]).astype(np.float32), dtype)


def _rounded(values: npt.NDArray[np.float32], dtype: str) -> Array:
    """Finite numbers in another dtype, each to the nearest and halves to even."""
    if dtype != "bfloat16":
        return values.astype(DTYPES[dtype])
    bits = values.view(np.uint32)
    found: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(DTYPES[dtype])
    return found


CODECS = {
    "raw": Codec(True, _encode_raw, _decode_raw),
    "planes-zstd": Codec(True, _encode_planes, _decode_planes),
    "int8": Codec(False, _encode_int8, _decode_int8),
}
