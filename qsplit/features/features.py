"""The features of one image, the identity of what made them, and every check that they are sound.

`Features` is the value that travels: from the vision half to the store, and from the store to the language half.
`Encoder` says what made it; two encoders with the same ``id`` make the same bits from the same pixels on the same
software and hardware.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qsplit.errors import CorruptStore, IncompatibleFeatures, InvalidFeatures
from qsplit.features import codecs, layouts
from qsplit.features.codecs import DTYPES, Array

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "COMPUTE",
    "LAYOUT",
    "PACKED",
    "PLAIN",
    "SERVED",
    "SHORTEST_TRUSTED_ID",
    "Encoder",
    "Features",
    "Making",
    "Payload",
    "Provenance",
    "check_compatible",
]

LAYOUT = layouts.PATCHES  # the order of tokens and levels inside a payload; a change of it is another encoder
PLAIN = "plain"  # picture by picture, with the bits of the unsplit model
PACKED = "packed"  # several in one pass: see `qsplit.models.vision.packing`
COMPUTE = (PLAIN, PACKED)
SERVED = "served"  # by a server's own vision half, from the same weights
SHORTEST_TRUSTED_ID = 12  # digits: what `qsplit status` shows
_LOSSLESS = {("bfloat16", "float32"), ("float16", "float32")}  # (stored, wanted): every value is kept


@dataclass(frozen=True)
class Encoder:
    """What features are a function of, besides the pixels.

    ``vision_weights`` and ``processor`` are sha256 digests: of the vision half's tensors, and of every setting that
    changes pixels before the model sees them. ``width`` is the language model's hidden size, ``levels`` the number of
    DeepStack levels (0 for Qwen2-VL and Qwen2.5-VL), ``merge_size`` the patches merged per side into one token,
    ``layout`` how tokens and grid go together (`qsplit.features.layouts`), ``compute`` one of the ways in `COMPUTE`:
    what ``packed`` makes also depends a little on what shared a pass.

    >>> Encoder("a" * 64, "b" * 64, "bfloat16", width=1536, levels=0, merge_size=2).id[:12]
    '8ac248e832f6'
    """

    vision_weights: str
    processor: str
    dtype: str
    width: int
    levels: int
    merge_size: int
    layout: int = LAYOUT
    compute: str = PLAIN

    @cached_property
    def id(self) -> str:
        """sha256 over the canonical JSON of the fields (sorted keys, no spaces), without ``compute`` if it is plain."""
        named = asdict(self)
        if self.compute == PLAIN:
            del named["compute"]
        return hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def n_tokens(self, grid_thw: Sequence[int]) -> int:
        """The number of tokens that a grid stands for; raises `InvalidFeatures` for a layout that is not known."""
        return layouts.n_tokens(self.layout, grid_thw, self.merge_size)


@dataclass(frozen=True, slots=True)
class Making:
    """How features were computed, as far as that decides their bits and is no part of the encoder.

    ``device`` is a class of devices such as ``cpu`` or ``cuda``, ``attention`` transformers' ``attn_implementation``.
    Either is empty where it was not recorded: without a device nothing is known, and without an attention it was the
    model's default.

    >>> Making.recorded("NVIDIA H200", "sdpa")
    Making(device='cuda', attention='sdpa')
    """

    device: str = ""
    attention: str = ""

    @classmethod
    def recorded(cls, device: str, attention: str) -> Making:
        """Read it from the columns of a row, which name a GPU of CUDA by its own name."""
        return cls(_device_class(device), attention)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who made the features, as far as it is no part of their identity: names as the user gave them, and versions."""

    model_id: str = ""
    model_revision: str = ""
    torch: str = ""
    transformers: str = ""
    torchvision: str = ""
    pillow: str = ""
    device: str = ""
    attention: str = ""

    @property
    def making(self) -> Making:
        return Making.recorded(self.device, self.attention)


@dataclass(frozen=True, slots=True)
class Payload:
    """Features as bytes: what a row holds, and the sha256 that a reader checks."""

    data: bytes | pa.Buffer
    sha256: str
    codec: str = "raw"


@dataclass(frozen=True, eq=False)
class Features:
    """The language-model-width token embeddings of one image.

    ``tokens`` is ``(n, width)`` in the encoder's dtype, where bfloat16 is held as its bits in uint16; ``grid_thw`` the
    patch grid ``(t, h, w)`` before merging, or the three numbers that another layout has in its place
    (`qsplit.features.layouts`), ``levels`` one more ``(n, width)`` per DeepStack level. Built only if sound: raises
    `InvalidFeatures` for a wrong shape, dtype or number of levels, for a grid that does not give ``n``, and for NaN or
    infinity. Treat the arrays as read-only: they may lie in the store's own buffer. ``exact`` is false for what was
    kept by a codec that loses digits; ``making`` is how they were computed. Features of a video tell when each of its
    frames was, in seconds, and how many were taken of a second.
    """

    tokens: Array
    grid_thw: tuple[int, int, int]
    encoder: Encoder
    levels: tuple[Array, ...] = field(default=())
    exact: bool = True
    timestamps: tuple[float, ...] = ()
    sample_fps: float = 0.0
    making: Making = Making()

    def __post_init__(self) -> None:
        _check_grid(self.grid_thw, self.tokens, self.encoder)
        _check_times(self.timestamps, self.sample_fps, self.grid_thw[0])
        _check_levels(self.levels, self.encoder)
        for name, array in self.arrays.items():
            _check_array(name, array, self.encoder, len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the raw payload."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def is_clip(self) -> bool:
        """Whether these are of a video."""
        return bool(self.timestamps)

    @property
    def arrays(self) -> dict[str, Array]:
        """``tokens``, then ``level 0`` and on."""
        return {"tokens": self.tokens, **{f"level {i}": one for i, one in enumerate(self.levels)}}

    @property
    def float32(self) -> tuple[NDArray[np.float32], ...]:
        """Tokens, then each level, in float32, which holds every number exactly."""
        return tuple(codecs.as_float32(one, self.encoder.dtype) for one in self.arrays.values())

    @classmethod
    def from_torch(
        cls,
        tensors: Sequence[torch.Tensor],
        grid_thw: Sequence[int],
        encoder: Encoder,
        *,
        timestamps: Sequence[float] = (),
        sample_fps: float = 0.0,
        making: Making = Making(),
    ) -> Features:
        """Take tokens, then each level, from tensors ``(n, width)`` on the CPU, over their memory where they lie whole.

        Raises `InvalidFeatures` as the class does, and for tensors of another dtype or on another device.
        """
        for tensor in tensors:
            if tensor.device.type != "cpu":
                raise InvalidFeatures(f"A tensor lies on {tensor.device}; features are kept on the CPU.")
            if str(tensor.dtype).removeprefix("torch.") != encoder.dtype:
                raise InvalidFeatures(f"A tensor has dtype {tensor.dtype}, but the encoder's dtype is {encoder.dtype}.")
        tokens, *levels = (_array(tensor, encoder.dtype) for tensor in tensors)
        t, h, w = grid_thw
        return cls(
            tokens,
            (t, h, w),
            encoder,
            tuple(levels),
            timestamps=tuple(timestamps),
            sample_fps=sample_fps,
            making=making,
        )

    def to_torch(self) -> tuple[torch.Tensor, ...]:
        """Return tokens, then each level, as tensors ``(n, width)`` in the encoder's dtype, over the arrays' memory."""
        return tuple(_tensor(array, self.encoder.dtype) for array in self.arrays.values())

    def pooled(self) -> NDArray[np.float32]:
        """The mean token as a unit vector ``(width,)``; raises `InvalidFeatures` if the mean is zero."""
        mean = codecs.as_float32(self.tokens, self.encoder.dtype).mean(axis=0, dtype=np.float64)
        norm = np.linalg.norm(mean)
        if not norm > 0:
            raise InvalidFeatures("The mean of the tokens is the zero vector, which no cosine search can find.")
        pooled: NDArray[np.float32] = (mean / norm).astype(np.float32)
        return pooled

    def digest(self) -> str:
        """sha256 over the grid, the times and the bytes of every array, whatever they were kept by.

        The grid is part of it, because the tokens of a plain picture may be those of the same picture on its side.
        """
        times = (self.timestamps, self.sample_fps) if self.is_clip else ""
        found = hashlib.sha256(f"{self.grid_thw}{times}".encode())
        for array in self.arrays.values():
            found.update(codecs.as_bytes(array))
        return found.hexdigest()

    def to_payload(self, codec: str = "raw") -> Payload:
        """Tokens, then each level, by a codec of `qsplit.features.codecs`.

        Raises `InvalidFeatures` for an unknown codec, and where digits that are lost would be passed off as kept.
        """
        if codecs.is_lossless(codec) and not self.exact:
            raise InvalidFeatures(
                f"These features were kept with loss, which {codec!r} would hide.", fix="Encode the picture again."
            )
        data = codecs.encode(codec, (self.tokens, *self.levels), self.encoder.dtype)
        return Payload(data=data, sha256=hashlib.sha256(data).hexdigest(), codec=codec)

    @classmethod
    def from_payload(
        cls,
        payload: Payload,
        grid_thw: Sequence[int],
        encoder: Encoder,
        *,
        timestamps: Sequence[float] = (),
        sample_fps: float = 0.0,
        making: Making = Making(),
    ) -> Features:
        """The features in a payload, over the payload's own memory if it is ``raw``.

        Raises `CorruptStore` if the bytes are not those that were hashed, `InvalidFeatures` if they are but do not
        fit the grid and the encoder.
        """
        buffer = pa.py_buffer(payload.data)
        found = hashlib.sha256(buffer).hexdigest()
        if found != payload.sha256:
            raise CorruptStore(
                f"A features payload has sha256 {found[:12]}…, but {payload.sha256[:12]}… was written.",
                fix="Run `qsplit verify` to list such rows; `qsplit index` encodes them again once they are forgotten.",
            )
        if encoder.dtype not in DTYPES:
            raise InvalidFeatures(
                f"The encoder's dtype is {encoder.dtype!r}; features are kept in {', '.join(DTYPES)}."
            )
        shape = (1 + encoder.levels, encoder.n_tokens(grid_thw), encoder.width)
        tokens, *levels = codecs.decode(payload.codec, buffer, shape, encoder.dtype)
        t, h, w = grid_thw
        exact = codecs.is_lossless(payload.codec)
        return cls(tokens, (t, h, w), encoder, tuple(levels), exact, tuple(timestamps), sample_fps, making)


def check_compatible(found: Encoder, wanted: Encoder, *, trusted: str = "") -> bool:
    """Refuse features that ``wanted``'s language half was not made for; True if the answers are exact.

    ``trusted`` is an encoder id (or a prefix of at least 12 digits) that the user vouches for: weights and processor
    are then not compared, and nothing is exact. A stored dtype that widens without loss is allowed, and not exact,
    and so is another way of computing, which rounds otherwise.
    Raises `IncompatibleFeatures` listing every difference.
    """
    vouched = len(trusted) >= SHORTEST_TRUSTED_ID and found.id.startswith(trusted)
    dtypes = _dtype_difference(found.dtype, wanted.dtype)
    reasons = [*_shape_differences(found, wanted), *dtypes]
    if not vouched:
        reasons += _identity_differences(found, wanted)
    if reasons:
        fix = "Run `qsplit index` on the pictures with this model, or ask with the model that made the features."
        if reasons == dtypes:
            fix = (
                f"Add `--dtype {found.dtype}`, or run `qsplit index` on the pictures to encode them in {wanted.dtype}."
            )
        raise IncompatibleFeatures(reasons, fix=fix)
    return (found.dtype, found.compute) == (wanted.dtype, wanted.compute) and not vouched


@cache
def _device_class(name: str) -> str:
    """Return the class of a recorded device: its type, or for a GPU of CUDA its name, such as ``NVIDIA H200``."""
    device, _, number = name.partition(":")
    is_type = device.isalpha() and device.islower() and (not number or number.isdigit())
    return device if is_type or not name else "cuda"


def _identity_differences(found: Encoder, wanted: Encoder) -> list[str]:
    names = {"vision_weights": "vision weights", "processor": "processor settings"}
    return [
        f"other {name} ({a[:12]}…, the language model belongs to {b[:12]}…)"
        for key, name in names.items()
        if (a := getattr(found, key)) != (b := getattr(wanted, key))
    ]


def _shape_differences(found: Encoder, wanted: Encoder) -> list[str]:
    names = {"width": "width", "levels": "number of DeepStack levels", "merge_size": "merge size", "layout": "layout"}
    return [
        f"other {name} ({a}, the language model takes {b})"
        for key, name in names.items()
        if (a := getattr(found, key)) != (b := getattr(wanted, key))
    ]


def _dtype_difference(found: str, wanted: str) -> list[str]:
    if found == wanted or (found, wanted) in _LOSSLESS:
        return []
    return [f"other dtype ({found}, the language model runs in {wanted}, and the cast would lose digits)"]


def _check_grid(grid_thw: Sequence[int], tokens: Array, encoder: Encoder) -> None:
    wanted = layouts.wanted(encoder.layout)
    if not layouts.is_sound(encoder.layout, grid_thw, encoder.merge_size):
        merged = f", h and w multiples of {encoder.merge_size}" if encoder.layout == layouts.PATCHES else ""
        raise InvalidFeatures(f"grid_thw is {tuple(grid_thw)}; three positive numbers are wanted, {wanted}{merged}.")
    if tokens.ndim != 2 or len(tokens) != encoder.n_tokens(grid_thw):
        raise InvalidFeatures(
            f"grid_thw {tuple(grid_thw)} gives {encoder.n_tokens(grid_thw)} tokens, but the tokens have "
            f"shape {tuple(tokens.shape)}."
        )


def _check_times(timestamps: Sequence[float], sample_fps: float, t: int) -> None:
    known = all(map(math.isfinite, (*timestamps, sample_fps)))
    if not known or len(timestamps) % t or (sample_fps > 0) != bool(timestamps):
        raise InvalidFeatures(
            f"{len(timestamps)} timestamps at {sample_fps} frames a second do not go with {t} steps in time."
        )


def _check_levels(levels: Sequence[Array], encoder: Encoder) -> None:
    if len(levels) != encoder.levels:
        raise InvalidFeatures(f"{len(levels)} DeepStack levels were given, but the encoder makes {encoder.levels}.")


def _check_array(name: str, array: Array, encoder: Encoder, n: int) -> None:
    if array.shape != (n, encoder.width):
        raise InvalidFeatures(f"{name} has shape {array.shape}, but ({n}, {encoder.width}) is wanted.")
    if array.dtype != DTYPES.get(encoder.dtype):
        raise InvalidFeatures(f"{name} has dtype {array.dtype}, but the encoder's dtype is {encoder.dtype}.")
    if not codecs.is_finite(array, encoder.dtype):
        raise InvalidFeatures(f"{name} holds NaN or infinity.")


def _array(tensor: torch.Tensor, dtype: str) -> Array:
    """A tensor's elements, over its own memory if they lie side by side."""
    numbers = DTYPES[dtype]
    if dtype != "bfloat16":
        return tensor.contiguous().numpy()
    import torch  # noqa: PLC0415  # whoever has a tensor has loaded it

    bits: Any = tensor.contiguous().view(torch.int16).numpy()
    return bits.view(numbers)  # type: ignore[no-any-return]


def _tensor(array: Array, dtype: str) -> torch.Tensor:
    """An array's elements, over its own memory if they lie side by side."""
    import torch  # noqa: PLC0415  # a store is read without it

    # DLPack by way of Arrow shares memory that may be read-only; torch.from_numpy would warn of it.
    integers = {2: pa.int16(), 4: pa.int32()}[array.itemsize]
    shared = pa.Array.from_buffers(integers, array.size, [None, pa.py_buffer(np.ascontiguousarray(array))])
    return torch.utils.dlpack.from_dlpack(shared).view(getattr(torch, dtype)).view(array.shape)
