"""A drawn picture that no codec makes small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["picture"]


def picture(side: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient: the same pixels in every process."""
    import numpy as np  # noqa: PLC0415  # `memory_worker` measures what an import takes
    from PIL import Image  # noqa: PLC0415

    ramp = np.linspace(0, 127, side)[:, None, None]
    noise = np.random.default_rng(seed).integers(0, 128, (side, side, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))
