"""What is learnt from a batch: readings of the features, answers, and the vectors of pictures and texts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from PIL import Image
from tokenizers import Tokenizer
from torch import nn

from qsplit.mini import questions as phrases
from qsplit.mini.dataset import BINS, TRAITS, UNKNOWN, Batch, patches, trait_labels
from qsplit.mini.forward import see
from qsplit.mini.packing import Packed, Reader
from qsplit.mini.questions import LANGUAGES, Question
from qsplit.mini.scenes import COLOURS, SHAPES, Scene, pick

__all__ = ["Heads", "Learner"]


def share_right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(-1) == labels).float().mean())


class Heads(nn.Module):
    """Linear readings of the features, and of what was understood of a question; they are no part of the checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {
            "covered": 2, "shape": len(SHAPES), "colour": len(COLOURS), "column": BINS, "row": BINS, "centre": 2,
            "own column": BINS, "own row": BINS, "background": len(COLOURS), "count": 6, "turns": 4, "sharpness": 2,
            "greyness": 2, "brightness": 2, "main colour": len(COLOURS), "garment": 10, "understood garment": 10,
            "understood": 2 * sum(TRAITS.values()),
        }  # fmt: skip
        self.readings = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.readings[name](x).float()  # type: ignore[no-any-return]


class Learner(nn.Module):
    """The model, its heads, and the losses of a batch: ``(name, loss, share that is right)`` each."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.heads = Heads(model.config.vision_config.hidden_size)
        self.reader = Reader(model, tokenizer)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.copy_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def see(self, images: Sequence[Image.Image], grid: tuple[int, int]) -> torch.Tensor:
        return see(self.model.model.visual, patches(images), *self.reader.angles.of_patches(*grid))

    def readings(self, batch: Batch, features: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, float]]:
        """Losses of the heads, with the share of labels that they read right."""
        first = features[: batch.pairs or None]
        mean = first.mean(1)
        covered = batch.labels["shape"] >= 0 if "shape" in batch.labels else None
        if covered is not None:
            logits = self.heads("covered", first).flatten(0, 1)
            flat = covered.flatten().long()
            yield "covered", F.cross_entropy(logits, flat), share_right(logits, flat)
        columns, rows = batch.grid
        y, x = torch.meshgrid(torch.arange(rows) * BINS // rows, torch.arange(columns) * BINS // columns, indexing="ij")
        own = {"own column": x.flatten().expand(len(first), -1), "own row": y.flatten().expand(len(first), -1)}
        for name, label in (batch.labels | own).items():
            # Labels of tokens, or of whole pictures; what is not certain is negative.
            logits = self.heads(name, first if label.ndim > 1 else mean).flatten(0, -2)
            flat = label.flatten()
            kept = flat >= 0
            if kept.any():
                yield name, F.cross_entropy(logits[kept], flat[kept]), share_right(logits[kept], flat[kept])
        if batch.pairs:
            vectors = F.normalize(features.mean(1).float(), dim=-1)
            logits = vectors @ vectors.T * self.copy_scale.exp().clamp(max=50)
            logits.fill_diagonal_(-1e4)
            partner = torch.arange(len(vectors)).roll(batch.pairs)
            yield "copies", F.cross_entropy(logits, partner), share_right(logits, partner)

    def answers(self, batch: Batch, features: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, float]]:
        """Losses of the answers, and of the retrieval prompt where the pictures are scenes."""
        packer = self.reader.packer
        to_find = [packer.picture_to_find()] if batch.scenes else []
        segments = [[*map(packer.question, questions), *to_find] for questions in batch.questions]
        packed, states, early = self.reader.read(segments, features[: batch.pairs or None], batch.grid)
        logits = F.linear(packed.before_targets(states), self.model.lm_head.weight).float()
        losses = F.cross_entropy(logits, packed.targets, reduction="none")
        right = (logits.argmax(-1) == packed.targets).float()
        flat = [q for row in batch.questions for q in row]
        # Segments are counted with the retrieval prompts among them.
        names = [name for row in batch.questions for name in (*row, *([None] if batch.scenes else []))]
        count = torch.bincount(packed.owner, minlength=len(names)).clamp(min=1)
        # A question weighs as the square root of its answer's length: captions are long, and worth more than a word.
        weight = count[packed.owner].float().rsqrt()
        yield "answers", (losses * weight).sum() / len(flat), float(right.mean())
        by_skill: dict[str, list[float]] = defaultdict(list)
        for name, value in zip(names, packed.wholly(right).tolist(), strict=True):
            if name is not None:
                by_skill[name.skill].append(value)
        for skill, values in by_skill.items():
            yield f"? {skill}", torch.zeros(()), sum(values) / len(values)
        yield from self.understanding(batch, names, packed, early)
        if batch.scenes:
            pictures = packed.at_ends(early)[torch.tensor([name is None for name in names])]
            yield self.retrieval(batch.scenes, pictures, np.random.default_rng(batch.seed))

    def understanding(
        self, batch: Batch, names: Sequence[Question | None], packed: Packed, early: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor, float]]:
        """What the state before the last layer holds where an answer begins: of which things it is, and where they are.

        Comparing two things takes finding both; that is learnt from what was found far sooner than from the answer.
        """
        owners, starts = np.unique(packed.owner.numpy(), return_index=True)
        where = packed.where[torch.from_numpy(starts)]
        states = early[where[:, 0], where[:, 1]]
        if "garment" in batch.labels:
            label = batch.labels["garment"][where[:, 0]]
            logits = self.heads("understood garment", states)
            yield "understood garment", F.cross_entropy(logits, label), share_right(logits, label)
        if not batch.scenes:
            return
        asked = [names[owner] for owner in owners]
        labels = torch.tensor(
            [trait_labels(batch.scenes[int(r)], q) for r, q in zip(where[:, 0], asked, strict=True) if q is not None]
        )
        parts = self.heads("understood", states).split(2 * [*TRAITS.values()], dim=-1)
        for i, (trait, logits) in enumerate(zip(2 * [*TRAITS], parts, strict=True)):
            label = labels.flatten(1)[:, i]
            kept = label != UNKNOWN
            loss = F.cross_entropy(logits[kept], label[kept]) if kept.any() else torch.zeros(())
            which = "first" if i < len(TRAITS) else "second"
            yield f"understood {which} {trait}", 0.5 * loss, share_right(logits[kept], label[kept])

    def retrieval(
        self, shown: Sequence[Scene], images: torch.Tensor, rng: np.random.Generator
    ) -> tuple[str, torch.Tensor, float]:
        """Scenes against their descriptions and against descriptions of scenes that differ in one thing."""
        segments = []
        for scene in shown:
            language = pick(rng, LANGUAGES)
            row = []
            for one in (scene, *phrases.near_misses(scene, rng, 2)):
                text = phrases.retrieval_text(one, language, int(rng.integers(phrases.RETRIEVAL_FORMS)))
                row.append(self.reader.packer.text_to_find_by(text))
            segments.append(row)
        packed, _, early = self.reader.read(segments)
        texts = packed.at_ends(early)
        images = F.normalize(images.float(), dim=-1)
        texts = F.normalize(texts.float(), dim=-1)
        scale = self.scale.exp().clamp(max=100)
        logits = images @ texts.T * scale
        label = torch.arange(len(shown)) * 3
        back = logits[:, label].T
        loss = F.cross_entropy(logits, label) + F.cross_entropy(back, torch.arange(len(shown)))
        return "retrieval", loss / 2, share_right(logits, label)
