"""Questions as token sequences that share one prefix, the picture, behind a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from qsplit.mini.forward import language_forward, rotation
from qsplit.mini.questions import Question

__all__ = ["IMAGE_PROMPT", "TEXT_PROMPT", "Angles", "Packed", "Packer", "Reader", "Segment", "pack"]

Segment = tuple[list[int], int]  # tokens, and how many of the last are to be learnt

# What makes the state before the last layer a vector to search by.
IMAGE_PROMPT = "Summary above image in one word:"
TEXT_PROMPT = "\nSummary above sentence in one word:"


class Angles:
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
    """Turns questions into segments, and the picture before them into the prefix that they share."""

    def __init__(self, tokenizer: Tokenizer, model: Any) -> None:
        self.tokenizer = tokenizer
        self.words = lru_cache(maxsize=200_000)(self.encode)  # of what comes again and again
        encode = self.encode
        self.head = encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
        self.tail = encode("<|im_end|>\n<|im_start|>assistant\n")
        self.vision = (encode("<|vision_start|>")[0], encode("<|vision_end|>")[0])
        self.end = encode("<|im_end|>")[0]
        self.pad = model.config.image_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def question(self, question: Question) -> Segment:
        """The tokens of question and answer, and how many of the last are to be learnt."""
        answer = [*self.words(question.answer), self.end]
        return [*self.words(question.text), *self.tail, *answer], len(answer)

    def picture_to_find(self) -> Segment:
        """The retrieval prompt behind a picture."""
        return [*self.words(IMAGE_PROMPT), *self.tail], 0

    def text_to_find_by(self, text: str) -> Segment:
        """A text with its retrieval prompt."""
        return [*self.encode(text), *self.words(TEXT_PROMPT), *self.tail], 0

    def positions(self, grid: tuple[int, int] | None) -> np.ndarray:
        """Those of the prefix in time, height and width, ``(3, n)``: the head, and a picture of ``grid`` tokens."""
        if grid is None:
            return np.arange(len(self.head))[None].repeat(3, 0)
        columns, rows = grid
        n = len(self.head) + 1  # the start of the picture is a token of its own, as is its end
        y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) + n
        picture = np.stack([np.full_like(x, n), y, x])
        return np.concatenate([np.arange(n)[None].repeat(3, 0), picture, np.full((3, 1), picture.max() + 1)], 1)


@dataclass(slots=True)
class Packed:
    """Rows of segments behind a prefix, with what is to be read off the states over them."""

    ids: torch.Tensor  # (batch, length) after the prefix
    positions: torch.Tensor  # (3, batch, prefix + length)
    mask: torch.Tensor  # (batch, 1, prefix + length, prefix + length)
    where: torch.Tensor  # (targets, 2): row and position in the whole sequence from which a token is foretold
    targets: torch.Tensor  # (targets,)
    owner: torch.Tensor  # (targets,): which question, counted through the batch
    ends: torch.Tensor  # (segments, 2): row and position of each segment's last token

    def before_targets(self, states: torch.Tensor) -> torch.Tensor:
        """From ``(batch, prefix + length, width)``, the states from which the targets are foretold."""
        return states[self.where[:, 0], self.where[:, 1]]

    def at_ends(self, states: torch.Tensor) -> torch.Tensor:
        """The states of the segments' last tokens, ``(segments, width)``."""
        return states[self.ends[:, 0], self.ends[:, 1]]

    def wholly(self, right: torch.Tensor) -> torch.Tensor:
        """From 1 or 0 for each target, 1 for each segment whose targets are all right, ``(segments,)``."""
        return torch.ones(len(self.ends)).scatter_reduce(0, self.owner, right, "amin")


def pack(rows: Sequence[Sequence[Segment]], prefix: np.ndarray, filler: int) -> Packed:
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


class Reader:
    """The language half of a model over packed segments."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.language = model.model.language_model
        self.packer = Packer(tokenizer, model)
        self.angles = Angles(model)

    def read(
        self,
        rows: Sequence[Sequence[Segment]],
        features: torch.Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Packed, torch.Tensor, torch.Tensor]:
        """Read each row's segments behind its picture, or behind none.

        ``features`` are ``(rows, tokens, width)`` of pictures of ``grid`` columns and rows of tokens. Returns the
        packed rows, the normed last state over them, and the state before the last layer.
        """
        packer, embed = self.packer, self.language.embed_tokens
        packed = pack(rows, packer.positions(grid), packer.pad)

        def same(*ids: int) -> torch.Tensor:
            return embed(torch.tensor(ids)).expand(len(rows), -1, -1)  # type: ignore[no-any-return]

        prefix = [same(*packer.head)]
        if features is not None:
            start, end = packer.vision
            prefix = [same(*packer.head, start), features, same(end)]
        cos, sin = self.angles.of_tokens(packed.positions)
        mask = torch.zeros(packed.mask.shape, dtype=torch.bfloat16).masked_fill_(~packed.mask, -1e4)
        embeds = torch.cat([*prefix, embed(packed.ids)], 1)
        return packed, *language_forward(self.language, embeds, cos, sin, mask)
