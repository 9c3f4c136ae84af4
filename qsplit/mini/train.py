"""Train the bundled checkpoint: ``python -m qsplit.mini.train WORK``, two hours on two cores, with torch 2.9 or later.

Two stages. First the vision half alone learns, from labels that the pictures come with, to say in each token what it
covers and where, and to give copies of one picture near pooled vectors; a language half learns nothing from features
that do not hold the answer. Then both halves learn to answer, with the first stage's labels kept on and with labels of
the things that a question names, and the state after the retrieval prompt learns to be the same for a scene and its
description.

A run can also go on from a checkpoint that an earlier one wrote: ``--start``.

Every step draws its pictures from the seed, the step and the worker, so a run that was cut off goes on as if it had not
been. Workers are single-threaded processes that average their gradients: on few cores that is faster than threads.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import Qwen2VLForConditionalGeneration

from qsplit import bundled
from qsplit.mini import download
from qsplit.mini.build import new_model, write_checkpoint, write_tokenizer
from qsplit.mini.calibrate_search import write_bounds
from qsplit.mini.dataset import Batch, Data, make_batch
from qsplit.mini.evaluate import evaluate
from qsplit.mini.forward import narrow
from qsplit.mini.losses import Learner
from qsplit.mini.model_card import EVALUATION, write_report
from qsplit.models.families import HALVES

SAVED_EVERY = 100  # steps
LAYERED = (".blocks.", ".merger.", ".layers.")  # in the names of the layers' parameters


@dataclass(frozen=True)
class Recipe:
    """What a run follows from, besides the pictures; ``rate`` is the highest learning rate, ``warmup`` in steps.

    ``vision_share`` of the rate is the vision half's in the second stage: at the whole rate it loses what it had learnt
    for a thousand steps, and the language half has nothing steady to learn from.
    """

    seed: int = 0
    vision_steps: int = 2000
    joint_steps: int = 3300
    rate: float = 2e-3
    vision_share: float = 0.25
    weight_decay: float = 0.05
    warmup: int = 200
    workers: int = 2


def rate_at(step: int, recipe: Recipe) -> tuple[float, bool]:
    """The learning rate as a share of the whole, and whether the language half learns."""
    joint = step >= recipe.vision_steps
    start, length = (recipe.vision_steps, recipe.joint_steps) if joint else (0, recipe.vision_steps)
    done = step - start
    floor = 0.02 if joint else 0.3
    share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / max(1, length))))
    return min(1.0, (done + 1) / recipe.warmup) * share, joint


def losses_of(learner: Learner, batch: Batch, joint: bool) -> Iterator[tuple[str, torch.Tensor, float]]:
    with narrow():
        features = learner.see(batch.images, batch.grid)
        weight = 0.5 if joint else 1.0
        for name, loss, value in learner.readings(batch, features):
            yield name, loss * weight, value
        if joint:
            yield from learner.answers(batch, features)


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over the workers, in one message."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    vector_to_parameters(flat, gradients)


def optimizers(learner: Learner, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices of the layers, with steps of AdamW's size, and AdamW for everything else.

    Each group says which half it is of; the heads count as the language half's.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for half in HALVES:
        seeing = half == "vision"
        named = {n: p for n, p in learner.named_parameters() if n.startswith("model.model.visual.") == seeing}
        layered = {n for n, p in named.items() if p.ndim == 2 and any(part in n for part in LAYERED)}
        rest = [p for n, p in named.items() if n not in layered]
        matrices.append({"params": [named[n] for n in sorted(layered)], "half": half})
        others += [
            {"params": [p for p in rest if p.ndim > 1], "half": half},
            # norms, biases and scales
            {"params": [p for p in rest if p.ndim <= 1], "half": half, "weight_decay": 0.0},
        ]
    decay, match = recipe.weight_decay, "match_rms_adamw"
    muon = torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=decay, adjust_lr_fn=match)
    return muon, torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)


class Trainer:
    """One worker's model, optimiser and place in the run; the first worker alone tells and saves."""

    def __init__(self, rank: int, folder: Path, recipe: Recipe, start: Path | None = None) -> None:
        self.rank = rank
        self.recipe = recipe
        self.state = folder / "state.pt"
        torch.manual_seed(recipe.seed)  # of the model, or of the heads alone
        model = new_model(recipe.seed) if start is None else Qwen2VLForConditionalGeneration.from_pretrained(start)
        self.learner = Learner(model.float(), Tokenizer.from_file(str(folder / "tokenizer.json")))
        self.parameters = list(self.learner.parameters())
        self.optimizers = optimizers(self.learner, recipe)
        self.step = 0
        if self.state.exists():
            self.load()

    def load(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        self.learner.load_state_dict(saved["learner"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = int(saved["step"])

    def save(self) -> None:
        saved = {
            "learner": self.learner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        torch.save(saved, self.state.with_suffix(".tmp"))
        self.state.with_suffix(".tmp").replace(self.state)

    def learn(self, data: Data) -> dict[str, float]:
        """Take one step, and return the losses and the shares of right readings and answers in its batch."""
        share, joint = rate_at(self.step, self.recipe)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = (
                self.recipe.rate * share * (self.recipe.vision_share if joint and group["half"] == "vision" else 1.0)
            )
        rng = np.random.default_rng([self.recipe.seed, self.step, self.rank])
        late = self.step - self.recipe.vision_steps > self.recipe.joint_steps / 2
        seen: dict[str, float] = {}
        loss = torch.zeros(())
        for name, part, value in losses_of(
            self.learner, make_batch(data, rng, self.step, joint=joint, late=late), joint
        ):
            loss = loss + part
            seen[name] = value
        loss.backward()  # type: ignore[no-untyped-call]  # torch is typed in part
        average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return seen | {"loss": float(loss.detach())}


def work(rank: int, folder: Path, cache: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Train to the end as one of the workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=recipe.workers)
    trainer = Trainer(rank, folder, recipe, start)
    data = Data.load(cache)
    seen: dict[str, list[float]] = defaultdict(list)
    total = recipe.vision_steps + recipe.joint_steps
    with click.progressbar(length=total, label="Training", hidden=rank > 0) as bar:
        bar.update(trainer.step)
        while trainer.step < total:
            for name, value in trainer.learn(data).items():
                seen[name].append(value)
            bar.update(1)
            if rank == 0 and (trainer.step % SAVED_EVERY == 0 or trainer.step == total):
                trainer.save()
                figures = {name: round(sum(values) / len(values), 4) for name, values in sorted(seen.items())}
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"step": trainer.step, **figures}) + "\n")
                seen.clear()
    dist.destroy_process_group()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Where the pictures are fetched to.")
@click.option("--seed", default=Recipe.seed, show_default=True)
@click.option("--vision-steps", default=Recipe.vision_steps, show_default=True)
@click.option("--joint-steps", default=Recipe.joint_steps, show_default=True)
@click.option("--rate", default=Recipe.rate, show_default=True, help="The highest learning rate.")
@click.option("--vision-share", default=Recipe.vision_share, show_default=True, help="Of it, in the second stage.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A checkpoint of an earlier run to go on from; its vision half needs no first stage.",
)
@click.option("--workers", default=Recipe.workers, show_default=True, help="Single-threaded processes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=bundled.checkpoint(),
    help="The checkpoint's folder.",
)
def main(folder: Path, cache: Path | None, start: Path | None, out: Path, **settings: Any) -> None:
    """Train in FOLDER, going on from what is there, then write the checkpoint and measure it.

    FOLDER holds the state (about 70 MB), log.jsonl, and unless --cache says otherwise the pictures (1.6 GB).
    """
    folder = folder.resolve()
    pictures = (cache or folder / "pictures").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    download.fetch(pictures, lambda package, i, n: click.echo(f"{i}/{n} {package.name}"))
    # Large blocks given back to the system at every step cost more than the step's smaller operations.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "268435456"}
    os.environ["OMP_NUM_THREADS"] = "1"
    write_tokenizer(folder)
    recipe = Recipe(**settings)
    before = [] if start is None else json.loads((start / EVALUATION).read_text(encoding="utf-8"))["training"]
    (folder / "rendezvous").unlink(missing_ok=True)
    spawn(work, (folder, pictures, recipe, start), nprocs=recipe.workers)  # type: ignore[no-untyped-call]  # torch is typed in part
    saved = torch.load(folder / "state.pt", weights_only=True)["learner"]
    write_checkpoint(out, {name.removeprefix("model."): w for name, w in saved.items() if name.startswith("model.")})
    write_bounds(out)
    write_report(out, evaluate(out, pictures) | {"training": [*before, asdict(recipe)]})


if __name__ == "__main__":
    main()
