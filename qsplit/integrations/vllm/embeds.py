"""Features as parts of a chat that a vLLM server takes in place of pictures.

A part holds two arrays as base64 of NumPy's ``.npy``, which cannot carry code as a pickle can: the tokens in float32
(``.npy`` has no bfloat16, of which float32 keeps every value), DeepStack levels behind the main ones across the width,
and the grid ``[t, h, w]`` in int64.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from qsplit.errors import UsageError
from qsplit.features.features import Features

__all__ = ["TAKEN", "embeddings", "image_part"]

TAKEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # families whose features vLLM was seen to answer rightly from


def embeddings(features: Features) -> npt.NDArray[np.float32]:
    """Features as vLLM lays them out, ``(n, (1 + levels) * width)``: DeepStack levels behind the main tokens."""
    return np.concatenate(features.float32, axis=1)


def image_part(features: Features) -> dict[str, Any]:
    """The part that stands for one picture; raises `UsageError` for a video."""
    if features.is_clip:
        raise UsageError("A vLLM server takes features of pictures, not of videos.", fix="Ask with the language half.")
    embedded = embeddings(features)
    grid = np.array(features.grid_thw, np.int64)
    return {
        "type": "image_embeds",
        "image_embeds": {"image_embeds": _npy(embedded), "image_grid_thw": _npy(grid)},
    }


def _npy(array: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")
