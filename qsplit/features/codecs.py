"""How the tensors of a picture lie in a payload: as they are, smaller without loss, or as eight-bit numbers.

    ``raw``          tokens, then each level, row-major, little-endian
    ``planes-zstd``  the same bytes sorted into planes, of which zstd shrinks those that repeat themselves
    ``int8``         of each row the scale (float32), then its values as eight-bit numbers: lossy

A row names its codec, so a store may hold all of them.
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
import torch

from qsplit.errors import InvalidFeatures

__all__ = ["CODECS", "DTYPES", "as_bytes", "decode", "encode", "is_finite", "is_lossless"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_INTEGERS = {2: (torch.int16, np.dtype("<u2")), 4: (torch.int32, np.dtype("<u4"))}
_INFINITY = {  # its bits as a signed integer
    dtype: int(torch.tensor(float("inf"), dtype=dtype).view(_INTEGERS[dtype.itemsize][0])) for dtype in DTYPES.values()
}
_ZSTD = pa.Codec("zstd", compression_level=1)  # higher levels gain a hundredth and cost several times the time
_LENGTH = np.dtype("<u8")
_SCALE = np.dtype("<f4")

Shape = tuple[int, int, int]  # tensors, tokens, width
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """``encode`` takes the rows of all tensors ``(tensors x tokens, width)``; ``decode`` gives ``shape`` back."""

    lossless: bool
    encode: Callable[[torch.Tensor], bytes | pa.Buffer]
    decode: Callable[[pa.Buffer, Shape, torch.dtype], torch.Tensor]


def encode(codec: str, tensors: Sequence[torch.Tensor]) -> bytes | pa.Buffer:
    """The payload of equal tensors ``(tokens, width)``, that of a ``raw`` one over its own memory."""
    rows = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
    return _named(codec).encode(rows.contiguous())


def decode(codec: str, payload: pa.Buffer, shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The tensors ``(tokens, width)`` of a payload, ``raw`` ones over its own memory.

    Raises `InvalidFeatures` for an unknown codec, and for bytes that are not such tensors.
    """
    return tuple(_named(codec).decode(payload, shape, dtype).view(shape).unbind(0))


def is_lossless(codec: str) -> bool:
    """Whether what comes back is what was put in; raises `InvalidFeatures` for an unknown codec."""
    return _named(codec).lossless


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements as they lie, over its own memory if they lie side by side; numpy has no bfloat16."""
    flat: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(flat)


def is_finite(tensor: torch.Tensor) -> bool:
    """As `torch.isfinite` over all elements, from their bits: numpy starts no threads, which might have to wait.

    Read as integers, numbers of one sign are in the order of their size, and infinity and NaN are above them all; the
    negative ones are on top without a sign, and below zero with one. So neither look needs a copy.
    """
    signed, unsigned = _INTEGERS[tensor.element_size()]
    infinity = _INFINITY[tensor.dtype]
    bits: Any = tensor.contiguous().view(signed).numpy()
    negative_infinity = infinity - torch.iinfo(signed).min
    return bool(bits.max(initial=0) < infinity and bits.view(unsigned).max(initial=0) < negative_infinity)


def _named(codec: str) -> Codec:
    if codec not in CODECS:
        raise InvalidFeatures(f"The payload's codec is {codec!r}; this qsplit knows {', '.join(CODECS)}.")
    return CODECS[codec]


def _check_size(what: str, found: int, shape: Shape, wanted: int, dtype: torch.dtype) -> None:
    tensors, tokens, width = shape
    if wanted < 1 or found != wanted:
        raise InvalidFeatures(
            f"{what} has {found} bytes; {tensors} x {tokens} tokens of width {width} in "
            f"{str(dtype).removeprefix('torch.')} take {wanted}."
        )


def _nbytes(shape: Shape, dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize


# --- raw ---


def _encode_raw(rows: torch.Tensor) -> pa.Buffer:
    return pa.py_buffer(as_bytes(rows))


def _decode_raw(payload: pa.Buffer, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    _check_size("The payload", payload.size, shape, _nbytes(shape, dtype), dtype)
    # DLPack shares the buffer and keeps it alive; torch.frombuffer would warn that Arrow's memory is read-only.
    # A payload may begin at any address; a copy is made only if the elements would lie across their alignment.
    if payload.address % dtype.itemsize:
        payload = pa.py_buffer(payload.to_pybytes())
    integers = {2: pa.int16(), 4: pa.int32()}[dtype.itemsize]
    array = pa.Array.from_buffers(integers, payload.size // dtype.itemsize, [None, payload])
    return torch.utils.dlpack.from_dlpack(array).view(dtype)


# --- planes-zstd ---


def _encode_planes(rows: torch.Tensor) -> bytes:
    """Each plane's length, then the planes: highest bytes first, each by zstd or, where that is no shorter, as it is.

    A plane as long as its numbers is read as it is, so one that zstd makes no shorter may not be kept compressed.
    The sign is turned round to the lowest bit first: the exponents, which are much alike, then fill whole bytes.
    """
    signed, unsigned = _INTEGERS[rows.element_size()]
    bits: Any = rows.flatten().view(signed).numpy()
    bits = bits.view(unsigned)
    size, top = bits.itemsize, 8 * bits.itemsize - 1
    turned: Bytes = ((bits << 1) | (bits >> top)).astype(unsigned).view(np.uint8)
    planes = [np.ascontiguousarray(turned[i::size]) for i in reversed(range(size))]
    packed = [min(plane.tobytes(), _ZSTD.compress(plane, asbytes=True), key=len) for plane in planes]
    return b"".join([np.array([len(one) for one in packed], _LENGTH).tobytes(), *packed])


def _decode_planes(payload: pa.Buffer, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    size, count = dtype.itemsize, int(np.prod(shape))
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
    bits: Any = turned.reshape(-1).view(_INTEGERS[size][1])
    bits = (bits >> 1) | (bits << (8 * size - 1))
    return torch.from_numpy(bits.view(np.dtype(f"<i{size}"))).view(dtype)


def _plane(packed: pa.Buffer, count: int) -> Bytes:
    if packed.size == count:
        return np.frombuffer(packed, np.uint8)
    try:
        found = np.frombuffer(_ZSTD.decompress(packed, decompressed_size=count), np.uint8)
    except (OSError, ValueError) as error:  # how Arrow reports what zstd cannot read
        raise InvalidFeatures(f"A plane of the payload cannot be decompressed: {error}.") from error
    return found


# --- int8 ---


def _encode_int8(rows: torch.Tensor) -> bytes:
    values = rows.float()
    scales = values.abs().amax(1, keepdim=True) / 127
    # A row of zeros, or of what is nearly so, has no scale and needs none.
    levels = torch.where(scales > 0, values / scales.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    whole = levels.round().clamp(-127, 127).to(torch.int8)
    return scales.numpy().astype(_SCALE).tobytes() + whole.numpy().tobytes()


def _decode_int8(payload: pa.Buffer, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    rows, width = shape[0] * shape[1], shape[2]
    _check_size("The payload", payload.size, shape, rows * (_SCALE.itemsize + width), torch.int8)
    head = rows * _SCALE.itemsize
    scales = np.frombuffer(payload.slice(0, head).to_pybytes(), _SCALE).reshape(rows, 1)
    if not np.isfinite(scales).all():
        raise InvalidFeatures("The payload has a scale that is no number.")
    whole = np.frombuffer(payload.slice(head), np.int8).reshape(rows, width)
    bounds = torch.finfo(dtype)
    with np.errstate(over="ignore"):  # of a scale that was spoilt; the bounds catch what it makes
        scaled = whole * scales
    return torch.from_numpy(scaled).clamp(bounds.min, bounds.max).to(dtype)


CODECS = {
    "raw": Codec(True, _encode_raw, _decode_raw),
    "planes-zstd": Codec(True, _encode_planes, _decode_planes),
    "int8": Codec(False, _encode_int8, _decode_int8),
}
