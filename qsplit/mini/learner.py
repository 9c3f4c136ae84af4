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

from qsplit.mini import phrases
from qsplit.mini.batches import Batch, patches
from qsplit.mini.network import see
from qsplit.mini.packing import Reader
from qsplit.mini.phrases import LANGUAGES
from qsplit.mini.scenes import COLOURS, SHAPES, Scene, pick

__all__ = ["Heads", "Learner"]


class Heads(nn.Module):
    """Linear readings of the features, for the first stage's labels; they are no part of the checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {
            "covered": 2, "shape": len(SHAPES), "colour": len(COLOURS), "centre": 2, "place": 2,
            "background": len(COLOURS), "count": 6, "turns": 4, "sharpness": 2, "greyness": 2, "brightness": 2,
            "main colour": len(COLOURS), "garment": 10,
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
            yield "covered", F.cross_entropy(logits, flat), float((logits.argmax(-1) == flat).float().mean())
        for name, label in batch.labels.items():
            if name == "centre":
                error = F.smooth_l1_loss(self.heads(name, first)[covered], label[covered], beta=0.05)
                yield name, 2 * error, float(error.detach())
                continue
            # Labels of tokens, or of whole pictures; what is not certain is negative.
            logits = self.heads(name, first if label.ndim > 1 else mean).flatten(0, -2)
            flat = label.flatten()
            kept = flat >= 0
            if kept.any():
                right = (logits.argmax(-1) == flat)[kept].float()
                yield name, F.cross_entropy(logits[kept], flat[kept]), float(right.mean())
        columns, rows = batch.grid
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        own = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], -1).reshape(1, -1, 2) - 0.5
        read = self.heads("place", first)
        yield "place", 2 * F.smooth_l1_loss(read, own.expand_as(read), beta=0.05), 0.0
        if batch.pairs:
            vectors = F.normalize(features.mean(1).float(), dim=-1)
            logits = vectors @ vectors.T * self.copy_scale.exp().clamp(max=50)
            logits.fill_diagonal_(-1e4)
            partner = torch.arange(len(vectors)).roll(batch.pairs)
            yield "copies", F.cross_entropy(logits, partner), float((logits.argmax(-1) == partner).float().mean())

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
        if batch.scenes:
            pictures = packed.at_ends(early)[torch.tensor([name is None for name in names])]
            yield self.retrieval(batch.scenes, pictures, np.random.default_rng(batch.seed))

    def retrieval(
        self, shown: Sequence[Scene], images: torch.Tensor, rng: np.random.Generator
    ) -> tuple[str, torch.Tensor, float]:
        """Scenes against their descriptions and against descriptions of scenes that differ in one thing."""
        segments = []
        for scene in shown:
            language = pick(rng, LANGUAGES)
            row = []
            for one in (scene, *phrases.near_misses(scene, rng, 2)):
                text = phrases.retrieval_text(one, language, int(rng.integers(2)))
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
        return "retrieval", loss / 2, float((logits.argmax(-1) == label).float().mean())
