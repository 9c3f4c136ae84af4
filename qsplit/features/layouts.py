"""What the three numbers of a picture's grid say, and how many tokens they stand for, by the encoder's layout.

Pictures are seen whole, as patches of which each square becomes a token, or in pieces: as tiles, row by row, and behind
several of them the whole picture once more as one; or whole first, and then as lines of tokens with a newline behind
each. A layout says in which order the tokens are, and that their number can be told from the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qsplit.errors import InvalidFeatures

__all__ = ["LAYOUTS", "LINES", "PATCHES", "TILES", "is_sound", "n_tokens", "wanted"]

PATCHES, TILES, LINES = 1, 2, 3
LAYOUTS = {
    PATCHES: "(t, h, w): patches in time, height and width; t*h*w / merge_size**2 tokens",
    TILES: "(side, rows, cols): the side of a tile in tokens, rows and columns of tiles; side**2 * tiles tokens, "
    "where tiles is rows*cols, and one more if that is not 1",
    LINES: "(side, rows, cols): the side of the whole picture in tokens, rows and columns of tokens behind it; "
    "side**2 + rows * (cols + 1) tokens",
}


def n_tokens(layout: int, grid: Sequence[int], merge_size: int) -> int:
    """The number of tokens that a grid stands for; raises `InvalidFeatures` for a layout that is not known.

    >>> n_tokens(PATCHES, (1, 8, 8), 2), n_tokens(TILES, (4, 2, 3), 2), n_tokens(LINES, (4, 2, 3), 1)
    (16, 112, 24)
    """
    wanted(layout)
    if layout == PATCHES:
        return prod(grid) // merge_size**2
    side, rows, cols = grid
    if layout == LINES:
        return side**2 + rows * (cols + 1)
    tiles = rows * cols
    return side**2 * (tiles + (tiles > 1))


def is_sound(layout: int, grid: Sequence[int], merge_size: int) -> bool:
    """Whether three numbers can be a grid of this layout at all."""
    merged = layout != PATCHES or not any(number % merge_size for number in grid[1:])
    return len(grid) == 3 and min(grid) >= 1 and merged


def wanted(layout: int) -> str:
    """What a grid of this layout is, for messages; raises `InvalidFeatures` for a layout that is not known."""
    if layout not in LAYOUTS:
        raise InvalidFeatures(
            f"The features are of layout {layout}; this qsplit knows {', '.join(map(str, LAYOUTS))}.",
            fix="Use the version of qsplit that made them, or a later one.",
        )
    return LAYOUTS[layout].partition(";")[0]
