"""Drawn scenes keep their distances, and the pixels are what the scene says."""

from __future__ import annotations

import colorsys
import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.mini.photographs import name_pixels
from qsplit.mini.scenes import (
    _OUTLINES,
    BACKGROUNDS,
    COLOURS,
    NEAR,
    OFF_LINE,
    PLACES,
    RANGES,
    SHAPES,
    TILT,
    Scene,
    Thing,
    _tilted,
    draw,
    in_reading_order,
    invent,
    sample_colour,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([(168, 168), (196, 140), (140, 196), (84, 84), (224, 168)])


def within(rgb: tuple[float, ...], name: str, levels: float) -> bool:
    """Whether a colour lies in the ranges of a name, give or take so many levels of 255 in a channel."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    (h_low, h_high), (s_low, s_high), (v_low, v_high) = RANGES[name]
    slack = levels / 255
    s_slack = slack / max(value, slack)
    h_slack = 60 * slack / max(value * saturation, slack)
    hue = (hue * 360 - h_low + h_slack) % 360 - h_slack + h_low  # red lies on both sides of 0
    return (
        h_low - h_slack <= hue <= h_high + h_slack
        and s_low - s_slack <= saturation <= s_high + s_slack
        and v_low - slack <= value <= v_high + slack
    )


# Invented scenes


@given(SEEDS, SIZES, st.integers(0, 5))
def test_a_scene_keeps_its_distances(seed: int, size: tuple[int, int], count: int) -> None:
    width, height = size
    scene = invent(np.random.default_rng(seed), width, height, count=count)
    assert (scene.width, scene.height) == size
    assert len(scene.things) == count or (not count and 1 <= len(scene.things) <= 5)
    short = min(size)
    for thing in scene.things:
        x, y, reach = thing.x * width, thing.y * height, 1.08 * thing.radius * short
        assert reach <= x + 1e-6
        assert reach <= y + 1e-6
        assert x + reach <= width + 1e-6
        assert y + reach <= height + 1e-6
        assert all(abs(at - line) >= OFF_LINE for at, line in product((thing.x, thing.y), (1 / 3, 2 / 3)))
    for a, b in combinations(scene.things, 2):
        distance = math.hypot((a.x - b.x) * width, (a.y - b.y) * height)
        assert distance >= 1.1 * (a.radius + b.radius) * short + 2


@given(SEEDS)
def test_the_names_of_a_scene_can_be_told_apart(seed: int) -> None:
    scene = invent(np.random.default_rng(seed), 168, 168)
    assert scene.background in BACKGROUNDS
    assert scene.shapes <= set(SHAPES)
    assert scene.colours <= set(COLOURS) - {scene.background}
    assert not [colour for colour in scene.colours if frozenset((colour, scene.background)) in NEAR]


@given(SEEDS)
def test_things_are_in_reading_order(seed: int) -> None:
    scene = invent(np.random.default_rng(seed), 168, 168)
    places = [place for row in PLACES for place in row]
    read = [(places.index(thing.place), thing.x) for thing in scene.things]
    assert read == sorted(read)
    assert in_reading_order(reversed(scene.things)) == scene.things


def test_scenes_come_with_every_count_colour_shape_and_background() -> None:
    made = [invent(np.random.default_rng(seed), 168, 168) for seed in range(200)]
    assert {len(scene.things) for scene in made} == {1, 2, 3, 4, 5}
    assert {scene.background for scene in made} == set(BACKGROUNDS)
    assert {thing.shape for scene in made for thing in scene.things} == set(SHAPES)
    assert {thing.colour for scene in made for thing in scene.things} == set(COLOURS)


@given(SEEDS)
def test_a_description_is_named_just_where_it_fits_one(seed: int) -> None:
    scene = invent(np.random.default_rng(seed), 168, 168)
    for colour, shape in product(("", *COLOURS), ("", *SHAPES)):
        if not colour and not shape:
            continue
        fitting = [t for t in scene.things if colour in ("", t.colour) and shape in ("", t.shape)]
        assert scene.count((colour, shape)) == len(fitting)
        named = [thing for thing, described in scene.named() if described == (colour, shape)]
        assert named == (fitting if len(fitting) == 1 else [])


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [(0.1, 0.1, "top left"), (0.5, 0.5, "middle"), (0.9, 0.5, "right"), (0.34, 0.67, "bottom"), (0.33, 0.34, "left")],
)
def test_places_are_the_thirds(x: float, y: float, place: str) -> None:
    assert Thing("star", "red", x, y, 0.1).place == place


# Colours and outlines


@pytest.mark.parametrize("name", COLOURS)
def test_a_shade_goes_by_its_name(name: str) -> None:
    rng = np.random.default_rng(0)
    shades = [sample_colour(name, rng) for _ in range(300)]
    assert all(within(shade, name, 1) for shade in shades)
    assert not [shade for shade in shades for other in COLOURS if other != name and within(shade, other, 1)]
    named = [COLOURS[i] for i in name_pixels(np.array(shades, np.uint8))]
    # A photograph's dark red counts as brown below a value of 0.72, a scene's is red from 0.7.
    wrong = [s for s, called in zip(shades, named, strict=True) if called != name]
    assert not [shade for shade in wrong if name != "red" or max(shade) >= 0.72 * 255]


@pytest.mark.parametrize("shape", _OUTLINES)
def test_an_outline_stays_within_the_room_kept_for_it(shape: str) -> None:
    for tilt in np.linspace(-TILT, TILT, 21):
        corners = _tilted(_OUTLINES[shape], float(tilt))
        assert max(math.hypot(x, y) for x, y in corners) <= 1.1 + 1e-9
        assert max(abs(at) for corner in corners for at in corner) <= 1.08 + 1e-9


def test_every_shape_can_be_painted() -> None:
    assert {*SHAPES} == {*_OUTLINES, "circle", "ring"}


# Drawn pictures


def pixels_of(scene: Scene, seed: int) -> np.ndarray:
    return np.asarray(draw(scene, np.random.default_rng(seed)))  # (height, width, 3)


def disc(scene: Scene, thing: Thing, radius: float) -> np.ndarray:
    """Where the picture is nearer to a thing's centre than so many of its radii."""
    y, x = np.mgrid[: scene.height, : scene.width] + 0.5
    distance = np.hypot(x - thing.x * scene.width, y - thing.y * scene.height)
    return np.asarray(distance < radius * thing.radius * min(scene.width, scene.height))


def middle_colour(pixels: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.median(pixels.reshape(-1, 3), axis=0))


@given(SEEDS)
def test_a_thing_is_painted_in_its_colour(seed: int) -> None:
    scene = invent(np.random.default_rng(seed), 168, 168)
    pixels = pixels_of(scene, seed)
    for thing in scene.things:
        if thing.shape == "ring":  # its middle shows the background; its band reaches in to 0.7 radii at least
            where = disc(scene, thing, 0.92) & ~disc(scene, thing, 0.78)
        else:
            where = disc(scene, thing, 0.22)
        assert within(middle_colour(pixels[where]), thing.colour, 7), thing


@given(SEEDS)
def test_the_background_goes_by_its_name(seed: int) -> None:
    scene = invent(np.random.default_rng(seed), 168, 168)
    free = ~np.any([disc(scene, thing, 1.25) for thing in scene.things], axis=0)
    median = np.array(middle_colour(pixels_of(scene, seed)[free]), np.uint8)
    assert COLOURS[int(name_pixels(median))] == scene.background


def test_a_ring_is_hollow() -> None:
    scene = Scene((Thing("ring", "red", 0.5, 0.5, 0.3),), "white", 168, 168)
    for seed in range(5):
        inside = middle_colour(pixels_of(scene, seed)[disc(scene, scene.things[0], 0.4)])
        assert COLOURS[int(name_pixels(np.array(inside, np.uint8)))] == "white"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_part_of_the_picture(shape: str) -> None:
    thing = Thing(shape, "black", 0.5, 0.5, 0.3)
    scene = Scene((thing,), "white", 168, 168)
    area = {  # in squared radii
        "circle": math.pi, "square": 2 * 1.1**2, "triangle": 0.75 * math.sqrt(3) * 1.08**2, "cross": 4 * 0.34 * 1.66,
        "star": 10 * 0.5 * 1.08 * 0.43 * math.sin(math.pi / 5), "diamond": 2 * 1.08 * 0.72,
    }.get(shape)  # fmt: skip
    for seed in range(4):
        dark = (pixels_of(scene, seed).mean(-1) < 128).sum() / (0.3 * 168) ** 2
        if area is None:  # the ring's band is from 0.3 to 0.42 wide
            assert math.pi * (1 - 0.72**2) < dark < math.pi * (1 - 0.56**2)
        else:
            assert dark == pytest.approx(area, rel=0.04)


def test_a_picture_has_the_size_of_its_scene() -> None:
    scene = invent(np.random.default_rng(0), 196, 140)
    image = draw(scene, np.random.default_rng(0))
    assert image.size == (196, 140)
    assert image.mode == "RGB"


def test_the_same_seed_draws_the_same_bytes() -> None:
    drawn = []
    for seed in (5, 5, 6):
        rng = np.random.default_rng(seed)
        drawn.append(draw(invent(rng, 168, 168), rng).tobytes())
    assert drawn[0] == drawn[1] != drawn[2]
