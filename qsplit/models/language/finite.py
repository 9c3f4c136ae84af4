"""Reject NaN and infinity in what a model computed, before anything is decided by it."""

from __future__ import annotations

import torch

from qsplit.errors import InvalidFeatures

__all__ = ["check_finite", "not_finite"]


def check_finite(values: torch.Tensor, what: str = "logits") -> torch.Tensor:
    """Return the values, which must be those of the model itself: its logits processors may well mask with -inf.

    Raises `InvalidFeatures` if one of them is NaN or infinite.

    >>> check_finite(torch.tensor([0.5, -2.0]))
    tensor([ 0.5000, -2.0000])
    """
    if not torch.isfinite(values).all():
        raise not_finite(what)
    return values


def not_finite(what: str = "logits") -> InvalidFeatures:
    """Return the error for NaN or infinity in a model's output."""
    return InvalidFeatures(
        f"The model produced NaN or infinite {what} for these images.",
        fix="Run `qsplit verify`; if it finds no damage, index with another --dtype, or use another --device.",
    )
