"""What a picture looks like in 64 bits, by which copies of it are found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

__all__ = ["detail", "hamming", "perceptual_hash", "reduced"]

SMALL_EDGE = 256  # pixels
HASH_PLANE = 32  # pixels a side

Plane = npt.NDArray[np.float64]


def perceptual_hash(rgb: Image.Image) -> int:
    """The 64-bit pHash of an RGB picture (Zauner 2010): which low frequencies exceed their median.

    The picture is averaged to 32 x 32 grey (ITU-R 601 luma); of its two-dimensional DCT-II the 8 x 8 lowest
    frequencies are compared with the median of all but the mean, whose bit, the highest, is always 0. Re-saving and
    resizing change few bits. A nearly blank picture gives bits of its noise, a blank one 0: see `detail`.

    >>> perceptual_hash(Image.new("RGB", (100, 80), "white"))
    0
    """
    # Rounded, because what is exactly 0 must not depend on the order in which a processor adds.
    frequencies = np.round(_DCT @ _plane(rgb) @ _DCT.T, 3).ravel()[1:]  # (63,)
    bits = np.concatenate(([False], frequencies > np.median(frequencies)))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def detail(rgb: Image.Image) -> float:
    """The standard deviation of the 32 x 32 grey plane that the hash sees, 0..127.5; near 0 the hash says nothing.

    >>> detail(Image.new("RGB", (100, 80), "white"))
    0.0
    """
    return float(_plane(rgb).std())


def hamming(a: int, b: int) -> int:
    """The number of bits in which two hashes differ, 0..64.

    >>> hamming(0b1011, 0b0010)
    2
    """
    return (a ^ b).bit_count()


def reduced(rgb: Image.Image) -> Image.Image:
    """A copy whose long edge is at most 256 pixels. It is reduced no further, so its hash is the whole picture's.

    >>> reduced(Image.new("RGB", (1024, 768))).size
    (256, 192)
    """
    scale = min(1.0, SMALL_EDGE / max(rgb.size))
    width, height = (max(1, round(edge * scale)) for edge in rgb.size)
    # The reducing gap saves most of the time, and no detail of a hash.
    return rgb.resize((width, height), Resampling.LANCZOS, reducing_gap=2.0)


def _plane(rgb: Image.Image) -> Plane:  # (32, 32), 0..255
    grey = reduced(rgb).convert("L").resize((HASH_PLANE, HASH_PLANE), Resampling.BOX)
    return np.asarray(grey, dtype=np.float64)


def _dct(count: int, size: int) -> Plane:
    """The ``count`` lowest rows of the orthonormal DCT-II, (count, size)."""
    k, n = np.ogrid[:count, :size]
    rows: Plane = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct(8, HASH_PLANE)
