"""What training sees: batches of equal pictures with what is known of them and questions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qsplit.mini import download, photographs, scenes
from qsplit.mini import questions as phrases
from qsplit.mini.build import PIXELS
from qsplit.mini.questions import CANNOT_TELL, LANGUAGES, Asker, Question
from qsplit.mini.scenes import COLOURS, SHAPES, Scene, pick

__all__ = ["Batch", "Data", "make_batch", "patches"]

TOKEN = 28  # pixels of a token's side: a patch is 14, and 2 x 2 patches make a token
MEAN, STD = (np.array(PIXELS[name], np.float32) * 255 for name in ("image_mean", "image_std"))

UNKNOWN = -100  # a label that is not certain
BINS = 8  # of a picture's side, for labels of place
# What is known of a thing that a question names, and how many values each can have; a number is at most five.
TRAITS = {"number": 6, "shape": len(SHAPES), "colour": len(COLOURS), "column": BINS, "row": BINS}

# Widths and heights in tokens.
SCENE_GRIDS = ((6, 6), (6, 6), (6, 6), (7, 5), (5, 7), (8, 6), (6, 8), (5, 5), (8, 8))
PHOTO_GRIDS = ((6, 5), (5, 6), (7, 5), (5, 7), (5, 5), (8, 5), (9, 6), (6, 9), (8, 8), (10, 6))
SMALL_GRIDS = ((4, 4), (5, 4), (4, 5), (5, 5))
GARMENT_GRIDS = ((3, 3), (3, 3), (4, 4))

SCENE_KINDS = {
    "colour": 1, "background": 0.3, "shape": 1.6, "count": 6, "presence": 2.2, "beside": 2, "over": 2, "where": 1.4,
    "shapes": 0.6, "colours": 0.4, "kind": 0.1, "caption": 0.3, CANNOT_TELL: 1.2,
}  # fmt: skip
SLIPS = 0.25  # the share of questions with a few words lost or wrong
KEPT_COUNTS = (1.0, 0.3, 0.6, 1.0, 1.0, 1.0)  # the share of such questions that is asked, by the answer
PHOTO_KINDS = {
    "main colour": 1.2, "brightness": 1, "sharpness": 1, "greyness": 0.7, "turned": 2, "kind": 0.2, "caption": 0.3,
    CANNOT_TELL: 0.6,
}  # fmt: skip
GARMENT_KINDS = {"garment": 1.5, "is garment": 2, "greyness": 0.2, "kind": 0.1, "caption": 0.3, CANNOT_TELL: 0.3}


def patches(images: Sequence[Image.Image]) -> torch.Tensor:
    """Equal pictures as ``(batch, patches, 588)``, normalised, in the order of the processor."""
    pixels = (np.stack([np.asarray(image) for image in images]) - MEAN) / STD
    batch, height, width, _ = pixels.shape
    rows, columns = height // TOKEN, width // TOKEN
    cut = pixels.reshape(batch, rows, 2, 14, columns, 2, 14, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return torch.from_numpy(np.ascontiguousarray(cut).reshape(batch, rows * columns * 4, 588))


@dataclass(slots=True)
class Batch:
    """Equal pictures with what is known of them: labels for the heads, and questions for each picture."""

    images: list[Image.Image]
    grid: tuple[int, int]
    labels: dict[str, torch.Tensor]
    questions: list[list[Question]]
    scenes: list[Scene]
    pairs: int = 0  # so many first pictures have their copies behind them
    seed: int = 0  # of what is drawn while the batch is learnt


def ask_some(
    rng: np.random.Generator, kinds: dict[str, float], number: int, about: Callable[[Asker, str], Question | None]
) -> list[Question]:
    found: list[Question] = []
    while len(found) < number:
        ask = Asker(rng, pick(rng, LANGUAGES), slips=SLIPS)
        if question := about(ask, pick(rng, list(kinds), list(kinds.values()))):
            found.append(question)
    return found


def ask_about_scene(scene: Scene, ask: Asker, kind: str) -> Question | None:
    """As evaluation asks, but for many counts of one or two: described things are seldom more, and those are hard."""
    question = phrases.about_scene(scene, ask, kind)
    if question and kind == "count" and ask.rng.random() > KEPT_COUNTS[scene.count(question.about[0])]:
        return None
    return question


def bin_of(value: float) -> int:
    """Which of `BINS` equal parts of the side a coordinate from 0 to 1 falls into."""
    return min(int(value * BINS), BINS - 1)


def token_labels(scene: Scene, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What each token covers, ``(tokens,)`` each: the thing's shape, colour and place, `UNKNOWN` where there is none.

    ``centre`` is 1 for one token of each thing, so that things can be counted, and else 0.
    """
    columns, rows = grid
    shape, colour, column, row = (np.full((rows, columns), UNKNOWN) for _ in range(4))
    centre = np.zeros((rows, columns), np.int64)
    ys, xs = np.mgrid[0:rows, 0:columns]
    x, y = (xs + 0.5) * TOKEN, (ys + 0.5) * TOKEN
    for thing in scene.things:
        distance = np.hypot(x - thing.x * scene.width, y - thing.y * scene.height)
        covered = distance < max(thing.radius * min(scene.width, scene.height), 0.72 * TOKEN)
        middle = np.unravel_index(distance.argmin(), distance.shape)
        centre[middle] = 1
        covered[middle] = True
        shape[covered] = SHAPES.index(thing.shape)
        colour[covered] = COLOURS.index(thing.colour)
        column[covered] = bin_of(thing.x)
        row[covered] = bin_of(thing.y)
    labels = {"shape": shape, "colour": colour, "column": column, "row": row, "centre": centre}
    return {name: label.ravel() for name, label in labels.items()}


def trait_labels(scene: Scene, question: Question) -> list[list[int]]:
    """For both things that a question may name, the `TRAITS`; `UNKNOWN` for those of no thing, or of several."""
    found = []
    for described in (*question.about, None, None)[:2]:
        fitting = [thing for thing in scene.things if described and thing.fits(described)]
        traits = [UNKNOWN] * (len(TRAITS) - 1)
        if len(fitting) == 1:
            (thing,) = fitting
            traits = [SHAPES.index(thing.shape), COLOURS.index(thing.colour), bin_of(thing.x), bin_of(thing.y)]
        found.append([len(fitting) if described else UNKNOWN, *traits])
    return found


class Data:
    """The pictures of training, and batches of them.

    ``photographs`` are ``(picture, whether it has a clear up, source)``; ``garments`` are ``(n, 28, 28)`` bytes;
    ``cutouts`` are things with a clear up, in RGBA.
    """

    def __init__(
        self,
        photographs: Sequence[tuple[Image.Image, bool, str]],
        garments: np.ndarray,
        garment_labels: np.ndarray,
        cutouts: Sequence[Image.Image] = (),
    ) -> None:
        self.photos = [(image, up) for image, up, _ in photographs]
        self.upright = [one for one in self.photos if one[1]]
        sizes = Counter(source for _, _, source in photographs)
        # A source of many like pictures counts by the square root of their number, and one without an up by half.
        chances = np.array([(1.0 if up else 0.5) * min(1.0, (80 / sizes[s]) ** 0.5) for _, up, s in photographs])
        self.chances = chances / chances.sum()
        self.garments = garments
        self.garment_labels = garment_labels
        self.cutouts = cutouts

    @classmethod
    def load(cls, cache: Path) -> Data:
        """Read what `qsplit.mini.download.fetch` put into ``cache``."""
        listed = download.load_photographs(cache, "train")
        photographs = [(Image.fromarray(one.image), one.up, one.package) for one in listed]
        things = [Image.fromarray(one.image) for one in download.load_cutouts(cache) if one.up]
        return cls(photographs, *download.load_garments(cache, "train"), things)

    def scenes(self, rng: np.random.Generator, number: int, asked: int) -> Batch:
        grid = pick(rng, SCENE_GRIDS)
        number = max(4, number * 36 // (grid[0] * grid[1]))
        made = [scenes.invent(rng, grid[0] * TOKEN, grid[1] * TOKEN) for _ in range(number)]
        return self.drawn(rng, made, grid, asked)

    def single(self, rng: np.random.Generator, number: int) -> Batch:
        """Small pictures of one large shape each: the quickest way to learn what the shapes are."""
        grid = (3, 3)
        side = grid[0] * TOKEN
        made = []
        for _ in range(number):
            radius = rng.uniform(0.2, 0.44)
            x, y = rng.uniform(1.1 * radius, 1 - 1.1 * radius, 2)
            plain = scenes.invent(rng, side, side, count=1)
            made.append(replace(plain, things=(replace(plain.things[0], x=x, y=y, radius=radius),)))
        return self.drawn(rng, made, grid, 0)

    def drawn(self, rng: np.random.Generator, made: list[Scene], grid: tuple[int, int], asked: int) -> Batch:
        tokens = [token_labels(scene, grid) for scene in made]
        labels = {name: torch.from_numpy(np.stack([one[name] for one in tokens])) for name in tokens[0]}
        labels["background"] = torch.tensor([COLOURS.index(scene.background) for scene in made])
        labels["count"] = torch.tensor([len(scene.things) for scene in made])
        questions = [ask_some(rng, SCENE_KINDS, asked, partial(ask_about_scene, scene)) for scene in made]
        images = [scenes.draw(scene, rng) for scene in made]
        return Batch(images, grid, labels, questions, made, seed=int(rng.integers(2**31)))

    def photographs(self, rng: np.random.Generator, number: int, asked: int, largest: int) -> Batch:
        """Photographs, and a copy of each."""
        grid = pick(rng, [g for g in PHOTO_GRIDS if g[0] * g[1] <= largest])
        number = max(4, number * 30 // (grid[0] * grid[1]))
        chosen = [self.photos[int(i)] for i in rng.choice(len(self.photos), number, replace=False, p=self.chances)]
        batch = self.edited(rng, chosen, grid, asked)
        size = batch.images[0].size
        batch.images += [photographs.copy_of(picture, size, rng) for picture in batch.images]
        batch.pairs = number
        return batch

    def small(self, rng: np.random.Generator, number: int, asked: int) -> Batch:
        """Small photographs and cut-outs that all have a clear up: what is upright takes the most looking to learn."""
        grid = pick(rng, SMALL_GRIDS)
        number = number * 16 // (grid[0] * grid[1])
        chosen = [self.upright[int(i)] for i in rng.integers(len(self.upright), size=number)]
        if self.cutouts:
            for i in range(0, len(chosen), 4):
                cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
                chosen[i] = photographs.lay(cutout, chosen[i][0], rng), True
        return self.edited(rng, chosen, grid, asked)

    def edited(
        self, rng: np.random.Generator, chosen: Sequence[tuple[Image.Image, bool]], grid: tuple[int, int], asked: int
    ) -> Batch:
        size = grid[0] * TOKEN, grid[1] * TOKEN
        edited = [photographs.edit(image, up, size, rng) for image, up in chosen]
        turns = [turned if up else UNKNOWN for (_, up), (_, _, turned) in zip(chosen, edited, strict=True)]
        labels = {"turns": torch.tensor(turns)}
        for name, values in (
            ("sharpness", ("sharp", "blurred")), ("greyness", ("colour", "grey")), ("brightness", ("bright", "dark")),
            ("main colour", COLOURS),
        ):  # fmt: skip
            labels[name] = torch.tensor([values.index(one[name]) if name in one else UNKNOWN for _, one, _ in edited])
        questions = [ask_some(rng, PHOTO_KINDS, asked, partial(phrases.about_photograph, one)) for _, one, _ in edited]
        return Batch([picture for picture, _, _ in edited], grid, labels, questions, [])

    def clothes(self, rng: np.random.Generator, number: int, asked: int) -> Batch:
        grid = pick(rng, GARMENT_GRIDS)
        number = number * 9 // (grid[0] * grid[1])
        chosen = rng.integers(0, len(self.garments), number)
        images = []
        for i in chosen:
            image = Image.fromarray(self.garments[i])
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            dx, dy = rng.uniform(-1.5, 1.5, 2)
            side = 28 * rng.uniform(0.93, 1.05)
            left, top = 14 - side / 2 + dx, 14 - side / 2 + dy
            size = grid[0] * TOKEN, grid[1] * TOKEN
            image = image.transform(
                size, Image.Transform.EXTENT, (left, top, left + side, top + side), Image.Resampling.BICUBIC
            )
            images.append(image.convert("RGB"))
        labels = self.garment_labels[chosen]
        questions = [
            ask_some(rng, GARMENT_KINDS, asked, partial(phrases.about_garment, int(label))) for label in labels
        ]
        return Batch(images, grid, {"garment": torch.from_numpy(labels.astype(np.int64))}, questions, [])


def make_batch(data: Data, rng: np.random.Generator, turn: int, *, joint: bool, late: bool) -> Batch:
    """The batch of this turn: scenes, photographs and garments by turns, with questions once both halves learn."""
    makers = joint_makers(data, late) if joint else vision_makers(data)
    return makers[turn % len(makers)](rng)


def vision_makers(data: Data) -> list[Callable[[np.random.Generator], Batch]]:
    scenes, single = partial(data.scenes, number=20, asked=0), partial(data.single, number=72)
    paired = partial(data.photographs, number=16, asked=0, largest=40)
    clothes, small = partial(data.clothes, number=96, asked=0), partial(data.small, number=48, asked=0)
    return [scenes, single, paired, small, scenes, single, clothes, small]


def joint_makers(data: Data, late: bool) -> list[Callable[[np.random.Generator], Batch]]:
    scenes = partial(data.scenes, number=10, asked=10)
    paired = partial(data.photographs, number=12, asked=5, largest=64 if late else 40)
    clothes, small = partial(data.clothes, number=48, asked=4), partial(data.small, number=48, asked=2)
    return [scenes, paired, scenes, clothes, scenes, scenes, scenes, small]
