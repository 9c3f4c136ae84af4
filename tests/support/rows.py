"""Rows made by hand, for tests of what the store does with them: no model and no file is read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qsplit.features.codecs import DTYPES, Array
from qsplit.features.features import Encoder, Features, Provenance
from qsplit.media.images import Picture
from qsplit.store.records import CheckRow, FeatureRow, ImageRow, VectorRow


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def flipped(path: Path, offset: int, bits: int = 0xFF) -> None:
    """Spoil one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.write_bytes(data)


def encoder(*, weights: str = "weights", dtype: str = "bfloat16", width: int = 8, levels: int = 0) -> Encoder:
    return Encoder(digest(weights), digest("processor"), dtype, width=width, levels=levels, merge_size=2)


def array_of(tensor: torch.Tensor) -> Array:
    """The elements of a tensor as `Features` holds them: numpy has no bfloat16, whose bits are taken."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.contiguous().view(torch.int16).numpy().view("<u2")
        return bits
    return tensor.contiguous().numpy()


def random_bits(seed: int, shape: Sequence[int], dtype: str) -> Array:
    """Every finite value of a dtype is as likely as another: subnormals, both zeros and the largest among them."""
    integers = {2: torch.int16, 4: torch.int32}[DTYPES[dtype].itemsize]
    bounds = torch.iinfo(integers)
    bits = torch.randint(bounds.min, bounds.max, tuple(shape), generator=torch.Generator().manual_seed(seed))
    values = bits.to(integers).view(getattr(torch, dtype))
    return array_of(torch.where(torch.isfinite(values), values, torch.ones_like(values)))


def features(seed: int, made_by: Encoder | None = None, grid: tuple[int, int, int] = (1, 4, 4)) -> Features:
    made_by = made_by or encoder()
    shape = (made_by.n_tokens(grid), made_by.width)
    tensors = [random_bits(1000 * seed + i, shape, made_by.dtype) for i in range(1 + made_by.levels)]
    return Features(tensors[0], grid, made_by, tuple(tensors[1:]))


def feature_row(seed: int, made_by: Encoder | None = None, **options: Any) -> FeatureRow:
    provenance = Provenance("some/model", "main", *("1.0",) * 4, device="cpu", attention="sdpa")
    return FeatureRow(digest(f"pixels {seed}"), features(seed, made_by, **options), provenance)


def picture(seed: int, **changes: Any) -> Picture:
    facts: dict[str, Any] = {
        "image_id": digest(f"image {seed}"),
        "pixels_digest": digest(f"pixels {seed}"),
        "width": 640,
        "height": 480,
        "format": "JPEG",
        "taken_at": None,
        "camera": None,
        "latitude": None,
        "longitude": None,
        "phash": int(digest(seed)[:16], 16),
        "detail": 50.0,
        "thumbnail": thumbnail(seed),
        "rgb": Image.new("RGB", (1, 1)),
    }
    return Picture(**(facts | changes))


def thumbnail(seed: int) -> bytes:
    """A WebP of one pixel; none of the next 16 million is the same."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (seed >> 16 & 255, seed >> 8 & 255, seed & 255)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def image_row(seed: int, **changes: Any) -> ImageRow:
    made = picture(seed, **changes)
    return ImageRow(**{name: getattr(made, name) for name in ImageRow.__slots__})


def check_row(seed: int, **changes: Any) -> CheckRow:
    row = CheckRow(
        digest(f"pixels {seed}"), digest("asked"), "Is it?", ("yes", "no"), (0.75, 0.25), 0.9, True,
        encoder_id=encoder().id, model_id="some/model", model_revision="main",
    )  # fmt: skip
    return replace(row, **changes)


def unit(seed: int, width: int = 8) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def vector_row(seed: int, width: int = 8) -> VectorRow:
    return VectorRow(image_row(seed), unit(seed, width))


def same_bits(a: Features, b: Features) -> bool:
    """Equal to the last bit, where ``==`` would take -0.0 for 0.0."""
    pairs = zip((a.tokens, *a.levels), (b.tokens, *b.levels), strict=True)
    return (a.grid_thw, a.encoder) == (b.grid_thw, b.encoder) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs
    )
