"""One way of encoding pictures, in a process of its own, for `bench_encode`.

How a process keeps its freed memory is set for good, so ways that differ in that cannot share one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from benchmarks.common.report import timed
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.vision.encoder import VisionEncoder

__all__ = ["WAYS", "Layers", "Seen", "worker"]

Seen = list[tuple[tuple[int, int, int], torch.Tensor]]  # of each picture its grid and tokens
Layers = list[tuple[int, int]]  # (in, out) of linear layers
Encode = Callable[[Sequence[Image.Image]], Seen]


class Loop:
    """Picture by picture, as everybody writes it."""

    def __init__(self, checkpoint: Path, device: str) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", local_files_only=True)
        self.model.eval().to(device)
        self._processor = Checkpoint(checkpoint, "").image_processor()

    def __call__(self, images: Sequence[Image.Image]) -> Seen:
        return [self._see(image) for image in images]

    def _see(self, image: Image.Image) -> tuple[tuple[int, int, int], torch.Tensor]:
        made = self._processor(images=[image], return_tensors="pt")
        given = {name: made[name].to(self.model.device) for name in ("pixel_values", "image_grid_thw")}
        t, h, w = made["image_grid_thw"][0].tolist()
        return (t, h, w), self.model.get_image_features(**given, return_dict=True).pooler_output[0].cpu()


def _compiled(checkpoint: Path, device: str) -> Encode:
    loop = Loop(checkpoint, device)
    for block in loop.model.model.visual.blocks:
        block.compile()
    return loop


def _qsplit(compute: str, checkpoint: Path, device: str) -> Encode:
    vision = VisionEncoder.from_pretrained(str(checkpoint), device=device, compute=compute)
    return lambda images: [(one.grid_thw, one.to_torch()[0]) for one in vision.encode(images)]


WAYS: Mapping[str, Callable[[Path, str], Encode]] = {
    "loop": Loop,
    "plain": partial(_qsplit, "plain"),
    "packed": partial(_qsplit, "packed"),
    "compiled": _compiled,
}


def _matrix_rate(device: str, layers: Layers, patches: int) -> float:
    """FLOP/s of linear layers in bfloat16, each taken five times and their medians added."""
    flop, seconds = 0.0, 0.0
    for wide, out in layers:
        sizes = ((patches, wide), (out, wide), (out,))
        given = [torch.randn(size, device=device).bfloat16() for size in sizes]
        _linear(*given)
        taken = [timed(_linear, *given)[0] for _ in range(5)]
        flop, seconds = flop + 2 * patches * wide * out, seconds + median(taken)
    return flop / seconds


def _linear(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    torch.nn.functional.linear(given, weight, bias)
    if given.device.type == "cuda":  # until it is done; a call only puts it in line
        torch.cuda.synchronize()


def _serve(way: str, checkpoint: Path, device: str, pipe: Any) -> None:
    """Answer pictures with (seconds, what was seen), and (layers, patches) with the rate."""
    with torch.no_grad():
        encode = WAYS[way](checkpoint, device)
        pipe.send("ready")
        while (asked := pipe.recv()) is not None:
            pipe.send(timed(encode, asked) if isinstance(asked, list) else _matrix_rate(device, *asked))


@contextmanager
def worker(way: str, checkpoint: Path, device: str = "cpu") -> Iterator[Callable[[Any], Any]]:
    """A process that has loaded its model; call it with what `_serve` answers."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(way, checkpoint, device, theirs), daemon=True)
    process.start()
    theirs.close()

    def ask(what: Any) -> Any:
        ours.send(what)
        return ours.recv()

    ours.recv()
    yield ask
    ours.send(None)
    process.join()
