"""Drawn scenes: one to five plain shapes on a background, with the truth about every one of them.

Everything a question may ask is decided here, with room to spare: shapes are larger than a patch, colours keep their
distance, no centre lies near the line between two thirds of the picture.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "APART", "COLOURS", "PLACES", "SHAPES", "Description", "Scene", "Thing", "draw", "in_reading_order", "invent",
    "pick", "sample_colour",
]  # fmt: skip

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
# The thirds of a picture, row by row.
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Hue in degrees, saturation and value of what goes by each name, with gaps between neighbours.
RANGES = {
    "red": ((-8, 6), (0.8, 1.0), (0.7, 1.0)),
    "orange": ((23, 34), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 61), (0.7, 1.0), (0.88, 1.0)),
    "green": ((95, 145), (0.6, 1.0), (0.4, 0.85)),
    "blue": ((205, 238), (0.7, 1.0), (0.6, 1.0)),
    "purple": ((268, 288), (0.6, 1.0), (0.45, 0.8)),
    "pink": ((318, 342), (0.3, 0.55), (0.93, 1.0)),
    "brown": ((18, 30), (0.6, 0.85), (0.32, 0.5)),
    "black": ((0, 360), (0.0, 0.2), (0.0, 0.1)),
    "white": ((0, 360), (0.0, 0.04), (0.96, 1.0)),
    "grey": ((0, 360), (0.0, 0.06), (0.42, 0.62)),
}
BACKGROUNDS = ("white", "black", "grey", "green", "blue", "yellow", "pink", "brown")
# Names too near each other for a shape to stand out from the background.
NEAR = {frozenset(pair) for pair in (("white", "yellow"), ("white", "pink"), ("black", "brown"), ("brown", "grey"))}

SMALLEST_RADIUS = 0.09  # of the shorter side
LARGEST_RADIUS = 0.2
APART = 0.16  # between two centres on an axis, of its side, for left/right and above/below to be asked
OFF_LINE = 0.04  # of the side, between a centre and the lines at one and two thirds
SUPERSAMPLE = 2
TILT = 0.2  # radians at most, either way: a square is no diamond

# (colour, shape); either may be empty, for whatever it is.
Description = tuple[str, str]
Corners = Sequence[tuple[float, float]]
Shade = npt.NDArray[np.float32]  # three channels, 0 to 255
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape: its centre in units of the picture's width and height, its radius in units of the shorter side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def column(self) -> int:
        return int(self.x * 3)

    @property
    def row(self) -> int:
        return int(self.y * 3)

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]

    @property
    def descriptions(self) -> tuple[Description, Description, Description]:
        """By colour and shape, by shape alone, by colour alone."""
        return (self.colour, self.shape), ("", self.shape), (self.colour, "")

    def fits(self, description: Description) -> bool:
        colour, shape = description
        return colour in ("", self.colour) and shape in ("", self.shape)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; ``things`` are in reading order (row of thirds, then column, then from the left).

    >>> star, ring = Thing("star", "red", 0.2, 0.2, 0.1), Thing("ring", "red", 0.8, 0.2, 0.1)
    >>> scene = Scene((star, ring), "white", 168, 168)
    >>> scene.count(("red", ""))
    2
    >>> [description for thing, description in scene.named() if thing is star]
    [('red', 'star'), ('', 'star')]
    """

    things: tuple[Thing, ...]
    background: str
    width: int
    height: int

    @property
    def shapes(self) -> set[str]:
        return {thing.shape for thing in self.things}

    @property
    def colours(self) -> set[str]:
        """The colours of the things; none of them is the background's."""
        return {thing.colour for thing in self.things}

    def count(self, description: Description) -> int:
        """How many things fit a description."""
        return sum(thing.fits(description) for thing in self.things)

    def named(self) -> list[tuple[Thing, Description]]:
        """Each thing with each of its descriptions that fits it alone."""
        return [(t, described) for t in self.things for described in t.descriptions if self.count(described) == 1]


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] = ()) -> T:
    """One of the options: each as likely as the others, or as its weight among the ``weights``."""
    if weights:
        chances = np.array(weights)
        return options[int(rng.choice(len(options), p=chances / chances.sum()))]
    return options[int(rng.integers(len(options)))]


def in_reading_order(things: Iterable[Thing]) -> tuple[Thing, ...]:
    """Sort things as the scenes keep them."""
    return tuple(sorted(things, key=lambda thing: (thing.row, thing.column, thing.x)))


def sample_colour(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """A shade that goes by this name, as RGB bytes."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in RANGES[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def invent(rng: np.random.Generator, width: int, height: int, *, count: int = 0) -> Scene:
    """Make up a scene of ``count`` things (0: one to five) that fit the picture without touching."""
    count = count or int(rng.integers(1, 6))
    background = pick(rng, BACKGROUNDS)
    allowed = [c for c in COLOURS if c != background and frozenset((c, background)) not in NEAR]
    shapes, colours = _few(SHAPES, rng), _few(allowed, rng)
    things: list[Thing] = []
    largest = LARGEST_RADIUS
    tries = 0
    while len(things) < count:
        tries += 1
        if tries % 40 == 0:
            largest = max(SMALLEST_RADIUS + 0.01, largest * 0.85)
        if tries > 400:  # what stands already leaves no room
            things, tries, largest = [], 0, LARGEST_RADIUS * 0.7
        room = _room(things, rng.uniform(SMALLEST_RADIUS, largest), rng, width, height)
        if room is not None:
            x, y, radius = room
            things.append(Thing(pick(rng, shapes), pick(rng, colours), x, y, radius))
    return Scene(in_reading_order(things), background, width, height)


def _few(names: Sequence[str], rng: np.random.Generator) -> Sequence[str]:
    """Half the time only one to three: they make the questions hard ("two red circles", "a red circle and a star")."""
    if rng.random() >= 0.5:
        return names
    return [str(name) for name in rng.choice(names, size=int(rng.integers(1, 4)), replace=False)]


def _room(
    things: Iterable[Thing], radius: float, rng: np.random.Generator, width: int, height: int
) -> tuple[float, float, float] | None:
    """A centre for this radius with the radius, or None where the first that comes to mind is no good."""
    short = min(width, height)
    margin_x, margin_y = 1.08 * radius * short / width, 1.08 * radius * short / height
    x, y = rng.uniform(margin_x, 1 - margin_x), rng.uniform(margin_y, 1 - margin_y)
    if any(abs(value - line) < OFF_LINE for value in (x, y) for line in (1 / 3, 2 / 3)):
        return None
    # No corner is further than 1.1 radii from its centre; 2 pixels are left for the antialiasing and the blur.
    free = all(
        math.hypot((x - thing.x) * width, (y - thing.y) * height) > 1.12 * (radius + thing.radius) * short + 2
        for thing in things
    )
    return (x, y, radius) if free else None


def _polygon(corners: int, start: float, radii: Sequence[float]) -> Corners:
    """The corners of a regular polygon, or of a star where there are two ``radii``; ``start`` in radians."""
    angles = [start + 2 * math.pi * i / corners for i in range(corners)]
    lengths = [radii[i % len(radii)] for i in range(corners)]
    return [(length * math.cos(angle), length * math.sin(angle)) for length, angle in zip(lengths, angles, strict=True)]


_ARM = 0.34  # half the width of a cross's arm
# In units of the radius, y pointing down.
_OUTLINES = {
    "square": _polygon(4, math.pi / 4, (1.1,)),
    "triangle": _polygon(3, -math.pi / 2, (1.08,)),
    "star": _polygon(10, -math.pi / 2, (1.08, 0.43)),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "diamond": [(0, -1.08), (0.72, 0), (0, 1.08), (-0.72, 0)],
}  # fmt: skip


def _tilted(corners: Corners, tilt: float) -> Corners:
    cos, sin = math.cos(tilt), math.sin(tilt)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paint a scene, antialiased; tilt, shades, background pattern, blur and noise are drawn from ``rng``."""
    size = scene.width * SUPERSAMPLE, scene.height * SUPERSAMPLE
    base = np.array(sample_colour(scene.background, rng), np.float32)
    image = pick(rng, _BACKDROPS)(base, size, rng)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _paint(thing, pen, size, rng)
    image = image.reduce(SUPERSAMPLE)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    if rng.random() < 0.35:
        noise = rng.standard_normal((scene.height, scene.width, 3), np.float32) * np.float32(rng.uniform(1, 7))
        image = Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))
    return image


def _paint(thing: Thing, pen: ImageDraw.ImageDraw, size: tuple[int, int], rng: np.random.Generator) -> None:
    ink = sample_colour(thing.colour, rng)
    x, y, r = thing.x * size[0], thing.y * size[1], thing.radius * min(size)
    if thing.shape == "circle":
        pen.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    elif thing.shape == "ring":
        pen.ellipse([x - r, y - r, x + r, y + r], outline=ink, width=max(1, round(r * rng.uniform(0.3, 0.42))))
    else:
        corners = _tilted(_OUTLINES[thing.shape], rng.uniform(-TILT, TILT))
        pen.polygon([(x + r * u, y + r * v) for u, v in corners], fill=ink)


def _ink(shade: Shade) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(shade, 0, 255))


def _away(base: Shade, step: float) -> tuple[int, ...]:
    """A little lighter than a dark colour, a little darker than a light one."""
    return _ink(base + (step if base.mean() < 128 else -step))


def _even(base: Shade, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:  # noqa: ARG001  # as the others
    return Image.new("RGB", size, _ink(base))


def _gradient(base: Shade, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-0.5:0.5:16j, -0.5:0.5:16j]
    slope = rng.uniform(5, 22) * (x * math.cos(angle) + y * math.sin(angle))  # (16, 16)
    return Image.fromarray(np.clip(base + slope[..., None], 0, 255).astype(np.uint8)).resize(size)


def _stripes(base: Shade, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    image = _even(base, size, rng)
    pen = ImageDraw.Draw(image)
    period, along, step = rng.uniform(0.05, 0.2) * width, bool(rng.integers(2)), rng.uniform(6, 18)
    ink = _away(base, step)
    for i in range(math.ceil((width if along else height) / period)):
        start, end = i * period, (i + 0.5) * period
        pen.rectangle((start, 0, end, height) if along else (0, start, width, end), fill=ink)
    return image


def _scratches(base: Shade, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Thin lines and specks: clutter that is no shape."""
    width, height = size
    image = _even(base, size, rng)
    pen = ImageDraw.Draw(image)
    ink = _away(base, 18)
    for _ in range(int(rng.integers(4, 14))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            dx, dy = rng.normal(0, 0.12 * width, 2)
            pen.line([(x, y), (x + dx, y + dy)], fill=ink, width=SUPERSAMPLE)
        else:
            r = rng.uniform(0.6, 1.5) * SUPERSAMPLE
            pen.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    return image


_BACKDROPS = (_even, _gradient, _stripes, _scratches)
