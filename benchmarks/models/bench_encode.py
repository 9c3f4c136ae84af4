"""Encoding pictures: the two ways of computing against the plain loop, and against what the processor can multiply.

    python -m benchmarks.models.bench_encode [--shape 2b|small] [--pictures 2] [--side 448] [--repeat 3] [--asked 200]
                                      [--photographs 4] [--compiled] [--device cpu] [--checkpoint FOLDER]

A checkpoint of a published shape with random weights in bfloat16 stands in for a real one (2b: 4.4 GB of disk);
``--checkpoint`` takes one that `real_shape.py` made before. Two sets of pictures are encoded: squares of ``--side``
pixels, and as many patches again in pictures of a quarter of that and of another shape. The ways take turns in each
round, each in a process of its own that has loaded its model before, because how a process keeps its freed memory is
set for good:

    loop       transformers: processor and `get_image_features`, picture by picture, as everybody writes it
    plain      `VisionEncoder.encode`: the same bits
    packed     `VisionEncoder.encode`, compute="packed": another encoder
    compiled   with --compiled: the loop, its blocks through `torch.compile` (needs a C++ compiler, and minutes)

Features of "plain" must be those of "loop" bit for bit, or the exit code is 1. The rate of a way is its matrix
products, attention's included, over all its time; it is told as a share of the rate at which
`torch.nn.functional.linear` takes the four shapes of a block, measured in every round by the process of the loop. How
far the others are from "plain" is told over these pictures, and by ``--asked`` answers of the bundled checkpoint. Last,
photographs of 12 megapixels are indexed from JPEG files into a store, beside what each part of that takes by itself. A
missed goal is only printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.common import real_shape
from benchmarks.common.report import at_least, machine, tell, timed
from benchmarks.models.encode_worker import WAYS, Layers, Seen, worker
from qsplit.album import Album
from qsplit.features.sizing import Resize
from qsplit.media.images import Limits, open_picture
from qsplit.mini import questions as phrases
from qsplit.mini import scenes
from qsplit.mini.evaluate import SCENE_KINDS, questions
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder

GOALS = {
    "side, plain, of the loop": at_least(1.25),
    "side, packed, of the loop": at_least(1.25),
    "side, packed, of the matrix rate": at_least(0.7),
    "answers equal, bundled checkpoint": at_least(0.99),
}
PATCH = 14
PHOTOGRAPH = (4000, 3000)


def linears(shape: real_shape.Shape) -> Layers:
    """Those of a block."""
    width = shape.embed_dim
    return [(width, 3 * width), (width, width), (width, shape.mlp_ratio * width), (shape.mlp_ratio * width, width)]


def flop(shape: real_shape.Shape, grid: tuple[int, int, int]) -> float:
    """Floating-point operations of the matrix products of a picture: patches, blocks with attention, merger."""
    n, width = grid[1] * grid[2], shape.embed_dim
    block = sum(2 * n * wide * out for wide, out in linears(shape)) + 4 * n * n * width
    merger = 2 * (n // 4) * (4 * width) * (4 * width + shape.hidden_size)
    return shape.depth * block + merger + 2 * n * 2 * 3 * PATCH**2 * width


def pictures(number: int, side: int) -> dict[str, list[Image.Image]]:
    """``side``: squares; ``mixed``: of other shapes and of a quarter of the area, with as many patches together."""
    half, wide = side // 2, (side * 3 // 2, side * 2 // 3)
    return {
        "side": [noise(side, side, seed) for seed in range(number)],
        "mixed": [
            noise(*size, seed)
            for seed in range(number // 2)
            for size in ((half, half), wide, (half, half), (half, half), (half, half))
        ],
    }


def noise(width: int, height: int, seed: int) -> Image.Image:
    """Coarse noise, so that neighbours differ and a JPEG is not all detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Drift:
    """Of two ways over the same pictures: differences of features, and the lowest cosine of a token."""

    largest: float
    mean: float
    size: float  # mean absolute feature: what the differences are to be seen beside
    cosine: float

    @classmethod
    def between(cls, a: Seen, b: Seen) -> Drift:
        one, other = (torch.cat([tokens for _, tokens in seen]).float() for seen in (a, b))
        apart = (one - other).abs()
        cosine = torch.cosine_similarity(one, other, dim=-1).min()
        return cls(float(apart.max()), float(apart.mean()), float(one.abs().mean()), float(cosine))

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"drift, {name}: largest": self.largest,
            f"drift, {name}: mean": self.mean,
            f"drift, {name}: mean feature": self.size,
            f"drift, {name}: lowest cosine": self.cosine,
        }


def measure(checkpoint: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """Seconds and rates of each way, how far they are apart, and what was wrong."""
    shape, sets = real_shape.SHAPES[options.shape], pictures(options.pictures, options.side)
    ways = [way for way in WAYS if way != "compiled" or options.compiled]
    taken: dict[tuple[str, str], list[float]] = {(name, way): [] for name in sets for way in ways}
    seen: dict[tuple[str, str], Seen] = {}
    rates = []
    with ExitStack() as stack:
        asks = {way: stack.enter_context(worker(way, checkpoint, options.device)) for way in ways}
        for way in ways:
            for images in sets.values():
                asks[way](images if way == "compiled" else images[:1])  # once, for what is done once
        for _ in range(options.repeat):
            rates.append(asks["loop"]((linears(shape), (options.side // PATCH) ** 2)))
            for (name, way), each in taken.items():
                took, seen[name, way] = asks[way](sets[name])
                each.append(took)
    figures = {"matrix rate, GFLOP/s": median(rates) / 1e9}
    for (name, way), each in taken.items():
        figures[f"{name}, {way}, s a picture"] = median(each) / len(sets[name])
        figures[f"{name}, {way}, GFLOP/s"] = sum(flop(shape, grid) for grid, _ in seen[name, way]) / median(each) / 1e9
    wrong = [
        f"{name}: the plain way's features are not the loop's"
        for name in sets
        if not same(seen[name, "loop"], seen[name, "plain"])
    ]
    for name in sets:
        for way in ways[2:]:
            figures |= Drift.between(seen[name, "plain"], seen[name, way]).figures(f"{name}, {way}")
    return figures, wrong


def same(a: Seen, b: Seen) -> bool:
    """Whether two ways saw the same bits."""
    pairs = list(zip(a, b, strict=True))
    return all(x[0] == y[0] and torch.equal(x[1].view(torch.int16), y[1].view(torch.int16)) for x, y in pairs)


def equal_answers(number: int) -> float:
    """The share of the bundled checkpoint's answers that packed features leave as plain ones have them."""
    rng = np.random.default_rng(0)
    plain, packed = (VisionEncoder.from_pretrained(device="cpu", compute=way) for way in ("plain", "packed"))
    language, sampling = LanguageModel.from_pretrained(device="cpu"), Sampling(max_new_tokens=64)
    equal: list[bool] = []
    while len(equal) < number:
        drawn = [scenes.invent(rng, 224, 224) for _ in range(8)]
        images = [scenes.draw(scene, rng) for scene in drawn]
        for scene, a, b in zip(drawn, plain.encode(images), packed.encode(images), strict=True):
            asked = [one.text for _, one, _ in questions(0, rng, SCENE_KINDS, partial(phrases.about_scene, scene))]
            said = [language.answers([one], asked, sampling=sampling) for one in (a, b)]
            equal += [x.tokens == y.tokens for x, y in zip(*said, strict=True)]
    return sum(equal[:number]) / number


def from_files(checkpoint: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a picture from JPEG files to a store, and of each part of that when it is done by itself."""
    number = options.photographs
    (folder / "photographs").mkdir()
    paths = [folder / "photographs" / f"{seed}.jpg" for seed in range(number)]
    for seed, path in enumerate(paths):
        noise(*PHOTOGRAPH, seed).save(path, quality=90)
    resize = Resize(max_pixels=options.side**2)
    album = Album(folder / "album.qsplit", model=str(checkpoint), device=options.device, resize=resize)
    vision = album.vision
    decode, decoded = timed(lambda: [open_picture(path, Limits()) for path in paths])
    prepare, prepared = timed(lambda: [vision.prepare(picture) for picture in decoded])
    vision.encode_prepared(prepared[:1])
    encode, _ = timed(vision.encode_prepared, prepared)
    report = album.index(folder / "photographs")
    assert report.encoded == number
    parts = {"decode": decode, "prepare": prepare, "encode": encode, "index": report.seconds}
    return {f"from files, {name}, s a picture": seconds / number for name, seconds in parts.items()}


def ratios(figures: dict[str, float]) -> dict[str, float]:
    found = {}
    for name, value in figures.items():
        setting, way, what = (name.split(", ") + [""] * 2)[:3]
        if what == "s a picture" and way in WAYS and way != "loop":
            found[f"{setting}, {way}, of the loop"] = figures[f"{setting}, loop, {what}"] / value
        if what == "GFLOP/s" and way in WAYS:
            found[f"{setting}, {way}, of the matrix rate"] = value / figures["matrix rate, GFLOP/s"]
    whole, alone = figures["from files, index, s a picture"], figures["from files, encode, s a picture"]
    found["from files, index over encode"] = whole / alone
    found["answers equal, bundled checkpoint"] = figures["answers equal, bundled checkpoint"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=real_shape.SHAPES, default="2b")
    parser.add_argument("--pictures", type=int, default=2, help="Of each set; an even number.")
    parser.add_argument("--side", type=int, default=448, help="In pixels.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--asked", type=int, default=200, help="Questions to the bundled checkpoint [200].")
    parser.add_argument("--photographs", type=int, default=4, help="To be indexed from files [4].")
    parser.add_argument("--compiled", action="store_true", help="Also with torch.compile.")
    parser.add_argument("--device", default="cpu", help="Of every way [cpu].")
    parser.add_argument("--checkpoint", type=Path, help="A folder that real_shape.py made of that shape [a new one].")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("machine:", ", ".join(f"{name} {value}" for name, value in machine().items()))
    print("workload:", ", ".join(f"{name} {value}" for name, value in vars(options).items()))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint = options.checkpoint or real_shape.make(Path(folder) / options.shape, options.shape)
        figures, wrong = measure(checkpoint, options)
        figures |= from_files(checkpoint, Path(folder), options)
    figures["answers equal, bundled checkpoint"] = equal_answers(options.asked)
    tell(figures, ratios(figures), GOALS, options.json)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
