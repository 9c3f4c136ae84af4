"""Photographs edited so that their attributes are known, and the copies that people make of pictures.

Every label is a stated function of the pixels or of the edit, and is left out where it would be a matter of taste: a
picture between bright and dark has no brightness, one of many colours no main colour.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from qsplit.mini.scenes import COLOURS

__all__ = ["copy_of", "crop_to", "edit", "labels_of", "lay", "main_colour", "name_pixels"]

BRIGHT, DARK = 140.0, 85.0  # mean luma, of 255
MAIN_SHARE = 0.4  # of the pixels, at least, have the main colour
MAIN_LEAD = 1.6  # times as many as the second
COLOURFUL = 22.0  # mean difference between the largest and the smallest channel
BLUR = (0.014, 0.03)  # standard deviations, of the shorter side
DETAIL = 0.03  # at least, of what is sharp; blurring by the least leaves 0.02 at most

TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)  # counter-clockwise
Plane = npt.NDArray[np.float32]
# From this hue in degrees up to the next one's, where nothing pale or dark says otherwise.
HUES = (
    (0, "red"), (15, "orange"), (42, "yellow"), (70, "green"), (170, "blue"), (258, "purple"), (300, "pink"),
    (345, "red"),
)  # fmt: skip


def name_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """The index in `COLOURS` of every pixel of ``(..., 3)`` RGB bytes, by hue, saturation and value.

    >>> [COLOURS[i] for i in name_pixels(np.array([[255, 0, 0], [90, 50, 20], [128, 128, 128]], np.uint8))]
    ['red', 'brown', 'grey']
    """
    hue, saturation, value = _hsv(pixels)
    names = np.full(hue.shape, COLOURS.index("red"))
    for start, name in HUES:
        names[hue >= start] = COLOURS.index(name)
    names[(hue < 50) & (value < 0.72)] = COLOURS.index("brown")
    names[((hue < 15) | (hue >= 345)) & (saturation < 0.5) & (value > 0.75)] = COLOURS.index("pink")
    pale = saturation < 0.14
    names[pale] = COLOURS.index("grey")
    names[pale & (value > 0.86)] = COLOURS.index("white")
    names[value < 0.18] = COLOURS.index("black")
    return names


def _hsv(pixels: npt.NDArray[np.uint8]) -> tuple[Plane, Plane, Plane]:
    """Hue in degrees, saturation and value, 0 to 1."""
    rgb = pixels.astype(np.float32) / 255
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value = rgb.max(-1)
    chroma = value - rgb.min(-1)
    divisor = np.maximum(chroma, 1e-6)  # grey has no hue, and any will do
    by_green_or_blue = np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = 60 * np.where(value == red, (green - blue) / divisor % 6, by_green_or_blue)
    return hue, chroma / np.maximum(value, 1e-6), value


def main_colour(pixels: npt.NDArray[np.uint8]) -> str:
    """The name that most pixels go by, or nothing where none has a clear lead."""
    counts = np.bincount(name_pixels(pixels).ravel(), minlength=len(COLOURS))
    second, first = np.sort(counts)[-2:]
    if first < MAIN_SHARE * counts.sum() or first < MAIN_LEAD * second:
        return ""
    return COLOURS[int(counts.argmax())]


def labels_of(image: Image.Image) -> dict[str, str]:
    """Brightness, main colour and colour or grey, as far as they are certain, from a picture's pixels alone."""
    small = np.asarray(image.convert("RGB").reduce(max(1, min(image.size) // 48)))
    luma = float((small @ np.array([0.299, 0.587, 0.114])).mean())
    spread = float((small.max(-1).astype(int) - small.min(-1)).mean())
    labels = {}
    if luma >= BRIGHT or luma <= DARK:
        labels["brightness"] = "bright" if luma >= BRIGHT else "dark"
    if spread >= COLOURFUL or spread == 0:
        labels["greyness"] = "colour" if spread else "grey"
    if name := main_colour(small):
        labels["main colour"] = name
    return labels


def crop_to(image: Image.Image, size: tuple[int, int], rng: np.random.Generator, least: float = 0.6) -> Image.Image:
    """A window of the aspect of ``size``, at least ``least`` of the largest such window on a side, resized to it."""
    width, height = image.size
    scale = min(width / size[0], height / size[1]) * rng.uniform(least, 1)
    w, h = min(scale * size[0], width), min(scale * size[1], height)  # rounding may have made them larger
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return image.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + w, y + h), reducing_gap=2.0)


def relight(image: Image.Image, target: float) -> Image.Image:
    """Gamma-correct to about this mean luma."""
    mean = np.asarray(image.convert("L").reduce(8)).mean() / 255
    gamma = math.log(target / 255) / math.log(min(max(mean, 0.02), 0.98))
    gamma = min(max(gamma, 0.25), 4.0)
    table = [round(255 * (i / 255) ** gamma) for i in range(256)] * 3
    return image.point(table)


def recolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn the hues and change the saturation, so that main colours come in every name."""
    hue, saturation, value = image.convert("HSV").split()
    shift, factor = int(rng.integers(256)), rng.uniform(0.8, 2.0)
    hue = hue.point([(i + shift) % 256 for i in range(256)])
    saturation = saturation.point([min(255, int(i * factor)) for i in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def edit(
    image: Image.Image, up: bool, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, dict[str, str], int]:
    """A crop of a photograph, perhaps turned, relit, recoloured, blurred or made grey, and its certain attributes.

    ``size`` is the width and height wanted, ``up`` whether the photograph has a clear up. Also returns the quarter
    turns made, counter-clockwise.
    """
    turns = int(rng.integers(4)) if rng.random() < 0.62 else 0
    upright = size if turns % 2 == 0 else size[::-1]
    picture = _recoloured(crop_to(image, upright, rng), rng)
    labels = labels_of(picture)
    if rng.random() < 0.33:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * min(size)))
        labels["sharpness"] = "blurred"
    elif detail(picture) >= DETAIL:
        labels["sharpness"] = "sharp"
    if up and labels.get("sharpness") != "blurred":
        labels["turned"] = "turned" if turns else "upright"
    return (picture.transpose(TURNS[turns - 1]) if turns else picture), labels, turns


def lay(cutout: Image.Image, ground: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A cut-out somewhere on a square of a photograph that is blurred beyond telling which way is up."""
    side = 160
    ground = crop_to(ground, (side, side), rng).filter(ImageFilter.GaussianBlur(0.06 * side))
    ground = ground.transpose(TURNS[int(rng.integers(3))])
    scale = rng.uniform(0.6, 0.95) * side / max(cutout.size)
    thing = cutout.resize((max(1, int(cutout.width * scale)), max(1, int(cutout.height * scale))))
    place = (int(rng.integers(side - thing.width + 1)), int(rng.integers(side - thing.height + 1)))
    ground.paste(thing, place, thing)
    return ground


def detail(image: Image.Image) -> float:
    """Mean difference between a picture and itself blurred by a pixel, in standard deviations of its luma."""
    grey = image.convert("L")
    fine = np.asarray(grey, np.float32) - np.asarray(grey.filter(ImageFilter.GaussianBlur(1)), np.float32)
    return float(np.abs(fine).mean() / max(np.asarray(grey).std(), 1.0))


def _recoloured(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Perhaps in other colours, in another light, in grey, mirrored."""
    if rng.random() < 0.3:
        picture = recolour(picture, rng)
    if rng.random() < 0.6:
        picture = relight(picture, rng.uniform(155, 195) if rng.random() < 0.5 else rng.uniform(38, 75))
    if rng.random() < 0.25:
        picture = ImageOps.grayscale(picture).convert("RGB")
    return ImageOps.mirror(picture) if rng.random() < 0.5 else picture


def copy_of(image: Image.Image, size: tuple[int, int], rng: np.random.Generator, steps: int = 0) -> Image.Image:
    """A copy as people make them, of this size: cropped, recoloured, bordered, written on, shrunk or saved badly.

    ``steps`` of these are done (0: one to three), in any order.
    """
    picture = image
    for i in rng.permutation(len(_CHANGES))[: steps or int(rng.integers(1, 4))]:
        picture = _CHANGES[i](picture, rng)
    return picture.resize(size, Image.Resampling.BICUBIC) if picture.size != size else picture


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    w, h = width * rng.uniform(0.65, 0.95), height * rng.uniform(0.65, 0.95)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return image.crop((int(x), int(y), int(x + w), int(y + h)))


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.6, 1.5))
    return ImageOps.grayscale(image).convert("RGB") if rng.random() < 0.15 else image


def border(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    ink = tuple(int(v) for v in rng.integers(0, 256, 3)) if rng.random() < 0.5 else (255 * int(rng.integers(2)),) * 3
    return ImageOps.expand(image, tuple(int(rng.uniform(0.02, 0.12) * side) for side in image.size), ink)


def write(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    letters = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(4, 16))))
    place = rng.uniform(0, 0.5) * image.width, rng.uniform(0, 0.85) * image.height
    ink = (255, 255, 255) if rng.random() < 0.5 else tuple(int(v) for v in rng.integers(0, 256, 3))
    pen.text(place, letters, fill=ink, font_size=rng.uniform(0.08, 0.2) * image.height)
    return image


def shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.3, 0.8)
    return image.resize((max(28, int(image.width * factor)), max(28, int(image.height * factor))))


def save_badly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(12, 70)))
    return Image.open(file).convert("RGB")


_CHANGES = (crop, jitter, border, write, shrink, save_badly)
