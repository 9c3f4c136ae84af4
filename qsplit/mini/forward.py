"""The forward pass of both halves for training: whole batches of equal pictures, and questions packed behind a mask.

transformers' vision attention visits pictures one by one, and its language half would see a picture again for each
question. Here all pictures of a batch have one grid and go through together, and a picture is read once for all of its
questions. The weights are the model's own; a test holds the numbers against transformers' forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from qsplit.models.checkpoint import has_bfloat16

__all__ = ["language_forward", "narrow", "rotation", "see"]


def narrow() -> torch.autocast:
    """Products in bfloat16, where the CPU has it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16())


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x (..., length, head)`` by angles whose cosines and sines broadcast against it."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def see(visual: Any, pixels: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Run the vision half over ``pixels (batch, patches, 3 * patch^2)``, patches in the processor's order.

    Returns the features ``(batch, patches / merge^2, width)``.
    A still picture is one frame shown twice, so the two temporal slices of the patch embedding are added first.
    """
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
    x = F.linear(pixels, weight)
    batch, patches, dim = x.shape
    heads = visual.blocks[0].attn.num_heads
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(x)).view(batch, patches, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        q, k, v = turn(qkv[0], cos, sin), turn(qkv[1], cos, sin), qkv[2]
        x = x + block.attn.proj(attend(q, k, v).transpose(1, 2).reshape(x.shape))
        x = x + block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(x))))
    merger = visual.merger
    features: torch.Tensor = merger.mlp(merger.ln_q(x).reshape(batch, -1, merger.hidden_size))
    return features


def language_forward(
    language: Any, embeds: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the language half over ``embeds (batch, length, width)`` with an additive ``mask``.

    Returns the normed last state and the state before the last layer (transformers' ``hidden_states[-2]``).
    """
    x = before = embeds
    for layer in language.layers:
        before = x
        attention = layer.self_attn
        y = norm(x, layer.input_layernorm)
        q, k, v = (
            project(y).view(*y.shape[:2], -1, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        groups = attention.num_key_value_groups
        k, v = turn(k, cos, sin).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = attend(turn(q, cos, sin), k, v, mask)
        x = x + attention.o_proj(mixed.transpose(1, 2).reshape(x.shape))
        y = norm(x, layer.post_attention_layernorm)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return norm(x, language.norm), before


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention spelt out to learn: torch's fused kernel takes twice as long backwards on the CPU at these lengths."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.dtype))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    mixed: torch.Tensor = scores.softmax(-1).to(v.dtype) @ v
    return mixed


def norm(x: torch.Tensor, module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), module.variance_epsilon)


def rotation(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines of ``angles (..., head / 2)``, twice over: ``(..., head)``."""
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()
