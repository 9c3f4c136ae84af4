"""Questions as token sequences that share one prefix, the picture, behind a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qsplit.mini.network import rotation
from qsplit.mini.phrases import Question

__all__ = ["IMAGE_PROMPT", "TEXT_PROMPT", "Packed", "Packer", "Positions", "pack"]

# What makes the state before the last layer a vector to search by.
IMAGE_PROMPT = "Summary above image in one word:"
TEXT_PROMPT = "\nSummary above sentence in one word:"


class Positions:
    """Angles of the rotary embeddings of both halves."""

    def __init__(self, model: Any) -> None:
        self.vision = model.model.visual.rotary_pos_emb.inv_freq
        self.language = model.model.language_model.rotary_emb.inv_freq
        self.sections = model.config.text_config.rope_parameters["mrope_section"]

    def of_patches(self, columns: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        y, x = torch.meshgrid(torch.arange(2 * rows), torch.arange(2 * columns), indexing="ij")
        order = [axis.reshape(rows, 2, columns, 2).permute(0, 2, 1, 3).reshape(-1, 1) * self.vision for axis in (y, x)]
        return rotation(torch.cat(order, dim=-1))

    def of_tokens(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From ``(3, batch, length)`` positions in time, height and width."""
        angles = positions[..., None] * self.language
        parts = angles.split(self.sections, dim=-1)
        cos, sin = rotation(torch.cat([part[i] for i, part in enumerate(parts)], dim=-1))
        return cos[:, None], sin[:, None]


class Packer:
    """Turns questions into token sequences that share a prefix behind a mask."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer = tokenizer
        encode = self.encode
        self.head = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
        self.tail = encode("<|im_end|>\n<|im_start|>assistant\n")
        self.vision = (encode("<|vision_start|>")[0], encode("<|vision_end|>")[0])
        self.end = encode("<|im_end|>")[0]
        self.pad = model.config.image_token_id
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def words(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.encode(text)
        return self.cache[text]

    def question(self, question: Question) -> tuple[list[int], int]:
        """The tokens of question and answer, and how many of the last are to be learnt."""
        answer = [*self.words(question.answer), self.end]
        return [*self.words(question.text), *self.tail, *answer], len(answer)


@dataclass(slots=True)
class Packed:
    ids: torch.Tensor  # (batch, length) after the prefix
    positions: torch.Tensor  # (3, batch, prefix + length)
    mask: torch.Tensor  # (batch, 1, prefix + length, prefix + length)
    where: torch.Tensor  # (targets, 2): row and position in the whole sequence from which a token is foretold
    targets: torch.Tensor  # (targets,)
    owner: torch.Tensor  # (targets,): which question, counted through the batch
    ends: torch.Tensor  # (segments, 2): row and position of each segment's last token


def pack(rows: Sequence[Sequence[tuple[list[int], int]]], prefix: np.ndarray, filler: int) -> Packed:
    """Lay segments ``(tokens, how many to learn)`` behind a common prefix with positions ``(3, n)``."""
    n = prefix.shape[1]
    start = int(prefix.max()) + 1
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids = np.full((len(rows), length), filler, np.int64)
    positions = np.zeros((3, len(rows), n + length), np.int64)
    positions[:, :, :n] = prefix[:, None]
    segment = np.full((len(rows), n + length), -1)
    segment[:, :n] = 0
    where, targets, owner, ends = [], [], [], []
    question = 0
    for r, row in enumerate(rows):
        at = 0
        for s, (tokens, learnt) in enumerate(row, 1):
            size = len(tokens)
            ids[r, at : at + size] = tokens
            positions[:, r, n + at : n + at + size] = start + np.arange(size)
            segment[r, n + at : n + at + size] = s
            for k in range(size - learnt, size):
                where.append((r, n + at + k - 1))
                targets.append(tokens[k])
                owner.append(question)
            ends.append((r, n + at + size - 1))
            question += 1
            at += size
    own = torch.from_numpy(segment)
    causal = torch.ones(n + length, n + length, dtype=torch.bool).tril()
    mask = causal & ((own[:, None, :] == own[:, :, None]) | (own[:, None, :] == 0))
    mask |= torch.eye(n + length, dtype=torch.bool)  # padding sees itself, so that no row is empty
    return Packed(
        torch.from_numpy(ids), torch.from_numpy(positions), mask[:, None], torch.tensor(where).reshape(-1, 2),
        torch.tensor(targets, dtype=torch.long), torch.tensor(owner, dtype=torch.long), torch.tensor(ends),
    )  # fmt: skip
