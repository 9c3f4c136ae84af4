"""What a picture is to a vision half: the bytes of its patches, and the digest by which features are found from them.

Who serves a model sees no file and no decoded picture, only patches, sized and cut, normalised or not yet. Their digest
depends on nothing else: two pictures, or two processors, that come to the same patches come to the same features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qsplit.features import codecs

__all__ = ["Scale"]

_OFF = 0.05  # of a byte: further from a whole number, patches were not made of bytes, or lost digits

_AT_ONCE = 1024  # patches: all of a large picture would take as much memory again
_LOOKED_AT = 16  # every so many patches: those of one picture were all made alike


@dataclass(frozen=True, slots=True)
class Scale:
    """How a processor normalises bytes, channel by channel: ``(byte * factor - mean) / std``."""

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Scale:
        """That of an image processor of transformers."""
        return cls(processor.rescale_factor, tuple(processor.image_mean), tuple(processor.image_std))

    def digest(self, patches: torch.Tensor, grid_thw: Sequence[int]) -> str:
        """sha256 over this, the grid ``(t, h, w)`` and the bytes of patches ``(t*h*w, channels * values)``.

        Patches that were normalised are told back to bytes; empty where that cannot be done, as in bfloat16.

        >>> scale = Scale(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> black = torch.zeros(4, 6, dtype=torch.uint8)
        >>> scale.digest(black, (1, 2, 2)) == scale.digest(torch.full((4, 6), -1.0), (1, 2, 2)) != ""
        True
        >>> scale.digest(torch.full((4, 6), 0.123), (1, 2, 2))
        ''
        """
        found = hashlib.sha256(f"{tuple(map(int, grid_thw))}{self}".encode())
        for block in torch.split(patches, _AT_ONCE):
            pixels = self._bytes(block)
            if pixels is None:
                return ""
            found.update(codecs.as_bytes(pixels.numpy()))
        return found.hexdigest()

    def _bytes(self, patches: torch.Tensor) -> torch.Tensor | None:
        if patches.dtype == torch.uint8:
            return patches
        mean, std = (torch.tensor(values)[:, None] / self.factor for values in (self.mean, self.std))
        found = torch.addcmul(mean, patches.float().view(len(patches), len(self.mean), -1), std)
        some = found[::_LOOKED_AT]
        if not bool(((some - some.round()).abs() < _OFF).all()):
            return None
        return found.add_(0.5).to(torch.uint8)
