"""The grid of a picture that a vision half is shown in pieces, from what its processor and its tower made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from qsplit.errors import UnsupportedImage

__all__ = ["grid_of_lines", "grid_of_tiles", "side_of"]

Grid = tuple[int, int, int]


def side_of(config: Any, merge_size: int) -> int:
    """The side of a tile, in tokens."""
    size, patch = (_first(getattr(config.vision_config, name)) for name in ("image_size", "patch_size"))
    return size // patch // merge_size


def grid_of_tiles(made: Mapping[str, Any], processor: Any, height: int, width: int, side: int) -> Grid:
    """``(side, rows, cols)`` of tiles: those that the processor tells of, or that its own rule gives for the size."""
    if "rows" in made:  # none of both for a picture that is not cut
        return side, max(1, made["rows"][0][0]), max(1, made["cols"][0][0])
    tile = (processor.size["height"], processor.size["width"])
    cols, rows = get_optimal_tiled_canvas((height, width), tile, processor.min_patches, processor.max_patches)
    return side, rows, cols


def grid_of_lines(tokens: torch.Tensor, newline: torch.Tensor, side: int) -> Grid:
    """``(side, rows, cols)`` of the lines behind an overview, found by the newline that ends each.

    Raises `UnsupportedImage` for a picture so narrow that no token of its lines is left of it.
    """
    lines = tokens[side**2 :]
    ends = (lines == newline).all(1).nonzero()
    cols = int(ends[0]) if len(ends) else 0
    if not cols:
        raise UnsupportedImage(
            "The picture is too narrow for the model: nothing is left of it in detail.", fix="Crop it."
        )
    return side, len(lines) // (cols + 1), cols


def _first(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)
