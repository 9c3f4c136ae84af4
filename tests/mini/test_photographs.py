"""What is said of an edited photograph is true of its pixels, and a copy is a picture of the size asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from qsplit.mini import photographs
from qsplit.mini.photographs import (
    BRIGHT,
    DARK,
    DETAIL,
    copy_of,
    crop_to,
    detail,
    edit,
    labels_of,
    lay,
    main_colour,
    name_pixels,
    recolour,
    relight,
)
from qsplit.mini.scenes import COLOURS

SEEDS = st.integers(0, 2**32 - 1)
SIZE = 168, 140


def even(colour: tuple[int, int, int], size: tuple[int, int] = (96, 96)) -> Image.Image:
    return Image.new("RGB", size, colour)


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Blotches of every colour and brightness, with detail down to a few pixels."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size)
    specks = Image.fromarray(rng.integers(0, 256, (size[1] // 3, size[0] // 3, 3), np.uint8)).resize(size)
    return Image.blend(blotches, specks, 0.3)


def mixed(**shares: int) -> npt.NDArray[np.uint8]:
    """So many pixels of each colour."""
    inks = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 160, 0), "white": (255, 255, 255)}
    return np.array([inks[name] for name, number in shares.items() for _ in range(number)], np.uint8)


def luma(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L"), np.float64).mean())


def seeds_where(wanted: Callable[[dict[str, str], int], bool], image: Image.Image, number: int) -> list[int]:
    """The first seeds whose edit has the labels and turns that are wanted."""
    found: list[int] = []
    seed = 0
    while len(found) < number:
        _, labels, turns = edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))
        found += [seed] if wanted(labels, turns) else []
        seed += 1
    return found


# Colours


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"), ((230, 10, 30), "red"), ((255, 128, 0), "orange"), ((255, 255, 0), "yellow"),
        ((0, 255, 0), "green"), ((0, 80, 0), "green"), ((0, 255, 255), "blue"), ((0, 0, 255), "blue"),
        ((128, 0, 255), "purple"), ((255, 0, 200), "pink"), ((255, 180, 180), "pink"), ((120, 70, 20), "brown"),
        ((0, 0, 0), "black"), ((40, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "grey"),
    ],
)  # fmt: skip
def test_pure_colours_go_by_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert COLOURS[int(name_pixels(np.array(rgb, np.uint8)))] == name


def test_names_have_the_shape_of_the_picture() -> None:
    assert name_pixels(np.zeros((4, 5, 3), np.uint8)).shape == (4, 5)


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ({"red": 100}, "red"),
        ({"red": 40, "blue": 25, "green": 20, "white": 15}, "red"),
        ({"red": 39, "blue": 21, "green": 20, "white": 20}, ""),  # too small a share
        ({"red": 48, "blue": 30, "green": 22}, "red"),  # 1.6 times as many
        ({"red": 48, "blue": 31, "green": 21}, ""),
        ({"red": 50, "blue": 50}, ""),
    ],
)
def test_a_main_colour_has_its_share_and_its_lead(shares: dict[str, int], name: str) -> None:
    assert main_colour(mixed(**shares)) == name


# Labels


@pytest.mark.parametrize(
    ("colour", "labels"),
    [
        ((240, 240, 240), {"brightness": "bright", "greyness": "grey", "main colour": "white"}),
        ((150, 150, 150), {"brightness": "bright", "greyness": "grey", "main colour": "grey"}),
        ((110, 110, 110), {"greyness": "grey", "main colour": "grey"}),
        ((20, 20, 20), {"brightness": "dark", "greyness": "grey", "main colour": "black"}),
        ((0, 0, 200), {"brightness": "dark", "greyness": "colour", "main colour": "blue"}),
        ((255, 240, 60), {"brightness": "bright", "greyness": "colour", "main colour": "yellow"}),
        ((110, 110, 120), {"main colour": "grey"}),  # a tint is neither grey nor in colour
    ],
)
def test_labels_of_even_pictures(colour: tuple[int, int, int], labels: dict[str, str]) -> None:
    assert labels_of(even(colour)) == labels


def test_what_lies_between_has_no_brightness() -> None:
    for value, brightness in ((DARK, "dark"), (DARK + 1, None), (BRIGHT - 1, None), (BRIGHT, "bright")):
        assert labels_of(even((int(value),) * 3)).get("brightness") == brightness


# Edits


@given(SEEDS)
def test_the_turns_are_the_ones_made(seed: int) -> None:
    slope = np.linspace(230, 20, 240)[:, None] * np.ones(320)  # light above, dark below
    image = Image.fromarray(slope.astype(np.uint8)).convert("RGB")
    picture, labels, turns = edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))
    assert picture.size == SIZE
    back = np.rot90(np.asarray(picture.convert("L"), np.float64), -turns)  # turned clockwise
    third = len(back) // 3
    assert back[:third].mean() > back[-third:].mean()
    if labels.get("sharpness") == "blurred":
        assert "turned" not in labels
    else:
        assert labels["turned"] == ("turned" if turns else "upright")


def test_all_turns_are_made() -> None:
    image = photo(1, (200, 160))
    turns = [edit(image, up=True, size=(84, 56), rng=np.random.default_rng(seed))[2] for seed in range(60)]
    assert set(turns) == {0, 1, 2, 3}


@given(SEEDS)
def test_without_an_up_nothing_is_turned(seed: int) -> None:
    _, labels, _ = edit(photo(1, (320, 240)), up=False, size=SIZE, rng=np.random.default_rng(seed))
    assert "turned" not in labels


@given(SEEDS)
def test_the_labels_are_true_of_the_pixels_that_come_out(seed: int) -> None:
    picture, labels, _ = edit(photo(seed % 50, (320, 240)), up=True, size=SIZE, rng=np.random.default_rng(seed))
    pixels = np.asarray(picture).astype(int)
    if "brightness" in labels:
        assert luma(picture) >= BRIGHT - 3 if labels["brightness"] == "bright" else luma(picture) <= DARK + 3
    if "greyness" in labels:
        assert bool((pixels == pixels[..., :1]).all()) == (labels["greyness"] == "grey")


def test_a_blurred_edit_has_less_detail_than_its_source_and_than_what_is_sharp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = photo(3, (320, 240))
    seeds = seeds_where(lambda labels, _: labels.get("sharpness") == "blurred", image, 5)
    blurred = [edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))[0] for seed in seeds]
    monkeypatch.setattr(photographs, "BLUR", (0.0, 0.0))
    for seed, picture in zip(seeds, blurred, strict=True):
        source, _, _ = edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))
        assert detail(picture) < min(0.4 * detail(source), DETAIL)


@given(SEEDS)
def test_what_is_called_sharp_has_detail(seed: int) -> None:
    image = photo(seed % 50, (320, 240)).filter(ImageFilter.GaussianBlur(seed % 5))
    picture, labels, _ = edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))
    if labels.get("sharpness") == "sharp":
        assert detail(picture) >= DETAIL


def test_a_picture_out_of_focus_is_never_called_sharp() -> None:
    image = photo(2, (320, 240)).filter(ImageFilter.GaussianBlur(6))
    for seed in range(20):
        _, labels, _ = edit(image, up=True, size=SIZE, rng=np.random.default_rng(seed))
        assert labels.get("sharpness") != "sharp"


def test_a_cutout_lies_whole_on_a_ground_without_detail() -> None:
    cutout = Image.new("RGBA", (60, 120), (255, 0, 0, 255))
    for seed in range(10):
        laid = lay(cutout, photo(1, (320, 240)), np.random.default_rng(seed))
        red = np.asarray(laid) == (255, 0, 0)
        ys, xs = np.nonzero(red.all(-1))
        assert 2 * (np.ptp(xs) + 1) == pytest.approx(np.ptp(ys) + 1, abs=2)
        assert np.ptp(ys) >= 0.6 * laid.height - 2
        ground = np.asarray(laid.convert("L"), np.float32)[:, : xs.min()]
        if ground.shape[1] > 1:
            assert np.abs(np.diff(ground, axis=1)).max() < 8


def test_the_same_seed_edits_the_same() -> None:
    made = [edit(photo(1, (320, 240)), up=True, size=SIZE, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize("target", [50, 120, 180])
def test_relighting_comes_near_the_brightness_wanted(target: float) -> None:
    assert luma(relight(even((128, 128, 128)), target)) == pytest.approx(target, abs=2)


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_can_be_relit(value: int) -> None:
    assert luma(relight(even((value,) * 3), 120)) == pytest.approx(value, abs=1)


def test_recolouring_reaches_every_hue() -> None:
    image = even((230, 30, 30))
    names = {main_colour(np.asarray(recolour(image, np.random.default_rng(seed)))) for seed in range(150)}
    assert {"red", "orange", "yellow", "green", "blue", "purple", "pink"} <= names


# Crops and copies


@given(st.integers(30, 400), st.integers(30, 400), st.sampled_from([(84, 84), (196, 140), (140, 280)]), SEEDS)
def test_a_crop_has_the_size_wanted(width: int, height: int, size: tuple[int, int], seed: int) -> None:
    image = even((9, 9, 9), (width, height))
    assert crop_to(image, size, np.random.default_rng(seed)).size == size
    assert crop_to(image, size, np.random.default_rng(seed), least=1).size == size


def test_a_crop_of_all_that_there_is_survives_rounding() -> None:
    assert 106 / 196 * 196 > 106
    assert crop_to(even((9, 9, 9), (106, 200)), (196, 140), np.random.default_rng(0), least=1).size == (196, 140)


def test_a_crop_is_not_stretched() -> None:
    checks = np.indices((300, 400)).sum(0) // 20 % 2  # squares on their corners: equal steps both ways
    image = Image.fromarray((255 * checks).astype(np.uint8)).convert("RGB")
    grey = np.asarray(crop_to(image, (140, 140), np.random.default_rng(0)).convert("L"), np.float64)
    across, down = np.abs(np.diff(grey, axis=1)).mean(), np.abs(np.diff(grey, axis=0)).mean()
    assert across == pytest.approx(down, rel=0.05)


@given(SEEDS, st.sampled_from([(84, 84), (168, 140), (56, 196)]), st.integers(0, 6))
def test_a_copy_has_the_size_wanted(seed: int, size: tuple[int, int], steps: int) -> None:
    copy = copy_of(photo(1, (168, 140)), size, np.random.default_rng(seed), steps)
    assert copy.size == size
    assert copy.mode == "RGB"


@pytest.mark.parametrize("change", photographs._CHANGES, ids=lambda change: change.__name__)
def test_a_change_changes_a_picture_and_leaves_the_original(
    change: Callable[[Image.Image, np.random.Generator], Image.Image],
) -> None:
    image = photo(1, SIZE)
    before = image.tobytes()
    changed = change(image, np.random.default_rng(0))
    assert changed.mode == "RGB"
    assert (changed.size, changed.tobytes()) != (image.size, before)
    assert image.tobytes() == before


def test_the_same_seed_copies_the_same() -> None:
    image = photo(1, SIZE)
    made = [copy_of(image, SIZE, np.random.default_rng(seed)).tobytes() for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
