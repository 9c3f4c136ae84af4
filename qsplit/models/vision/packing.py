"""Pictures of different sizes in one pass of the vision half, and the attention that is fastest for it on each device.

That is the way of computing called ``packed``. Sums run in another order than picture by picture, and one that depends
on which pictures share a pass: another encoder, whose answers are not exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.import_utils import is_flash_attn_2_available

from qsplit.models.vision.preprocessing import Prepared

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    _HAS_VARLEN = False
else:
    _HAS_VARLEN = True

__all__ = ["BY_HEADS", "TOGETHER", "attend", "attention_of", "budget_of", "packs"]

BY_HEADS = "qsplit_by_heads"  # what transformers knows the attentions below by
TOGETHER = "qsplit_flash_together"  # with "flash" in its name, it is given all pictures of a pass at once
_BUDGET = {"cpu": 2048, "cuda": 32_768}  # patches a pass: what lies in the cache, and what fills the device
_SCORES = 2**20  # at a time: two megabytes, which stay in the cache
_CAPABILITY = (8, 0)  # that torch's flash attention needs
_ROUNDING = 1e-6
_LEAST = 256  # patches: for fewer, torch's own kernel takes less time


def budget_of(device: torch.device) -> int:
    """The number of patches that share a pass."""
    return _BUDGET.get(device.type, _BUDGET["cpu"])


def packs(prepared: Iterable[Prepared], budget: int) -> Iterator[list[Prepared]]:
    """Neighbours of together at most ``budget`` patches; what has more goes alone, and with 0 everything does."""
    pack: list[Prepared] = []
    for one in prepared:
        if pack and sum(map(len, pack)) + len(one) > budget:
            yield pack
            pack = []
        pack.append(one)
        if sum(map(len, pack)) >= budget:  # no waiting for the next to be prepared
            yield pack
            pack = []
    if pack:
        yield pack


def attention_of(device: torch.device, dtype: torch.dtype) -> str | None:
    """The name by which transformers knows the attention that packed passes use; None is its own choice."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        return BY_HEADS
    if device.type == "cuda" and dtype != torch.float32:  # all pictures of a pass in one call
        if is_flash_attn_2_available():
            return "flash_attention_2"
        if _HAS_VARLEN and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _CAPABILITY:
            return TOGETHER
    return None


def attend(model: Any, attention: str) -> None:
    """Have a loaded model use one of the attentions below."""
    model.config._attn_implementation = attention  # noqa: SLF001  # by a public way it looks for a package of that name


def by_heads(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of ``(1, heads, n, width)`` each to ``(1, n, heads, width)``, as two matrix products a head.

    torch's kernel for CPUs reaches a third of the rate of such products, above all where heads are 80 wide. Scores are
    rounded to bfloat16 before their softmax, as in transformers' ``eager``.
    """
    _, heads, n, width = query.shape
    if n < _LEAST or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    query = query[0] * scaling
    shared = heads // key.shape[1]
    rows = max(1, _SCORES // n)
    out = query.new_empty(n, heads, width)
    for head in range(heads):
        keys, values = key[0, head // shared].T, value[0, head // shared]
        for at in range(0, n, rows):
            weights = torch.mm(query[head, at : at + rows], keys).softmax(-1)  # (rows, n)
            out[at : at + rows, head] = torch.mm(weights, values)
    return out[None], None


def together(
    module: Any,  # noqa: ARG001  # what an attention is given
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **options: Any,  # noqa: ARG001
) -> tuple[torch.Tensor, None]:
    """Attention of ``(1, heads, n, width)`` each to ``(1, n, heads, width)``, within each of several pictures.

    ``cu_seq_lens_q`` is where each begins and the last ends, ``max_length_q`` the patches of the largest. Without it
    the model asks the device for these numbers in every layer, and takes picture by picture.
    """
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    beside = scaling * sqrt(q.shape[-1])  # the kernel divides scores by the root of the width
    if abs(beside - 1) > _ROUNDING:
        q = q * beside
    out: Any = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return out[None], None


AttentionInterface.register(BY_HEADS, by_heads)
AttentionInterface.register(TOGETHER, together)
