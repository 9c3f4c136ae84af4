"""The sample album: real, pairwise different pictures, each credited once under a licence we may ship."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsplit import bundled

LICENCES = {"Public domain", "CC0-1.0"}
ORIENTATION, MAKE, MAKER_NOTE = 0x0112, 0x010F, 0x927C
EXIF_IFD, GPS_IFD, THUMBNAIL_IFD = 0x8769, 0x8825, 1


def credit_rows() -> list[tuple[str, ...]]:
    """The rows of CREDITS.md: file, what it shows, author, licence, source."""
    table = bundled.photos()[0].with_name("CREDITS.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (.+\.jpg \|.*) \|$", table, re.MULTILINE)
    return [tuple(line.split(" | ")) for line in lines]


def exif(path: Path) -> Image.Exif:
    with Image.open(path) as image:
        return image.getexif()


def dhash(path: Path) -> int:
    """64 bits, one for each step to the right that gets brighter on a 9x8 thumbnail."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)  # (8, 9)
    return int.from_bytes(np.packbits(np.diff(grey, axis=1) > 0).tobytes(), "big")


def test_the_album_is_a_handful_of_small_files() -> None:
    assert len(bundled.photos()) >= 24
    assert bundled.photos() == sorted(bundled.photos())
    assert sum(path.stat().st_size for path in bundled.photos()) <= 4_000_000


@pytest.mark.parametrize("path", bundled.photos(), ids=lambda path: path.stem)
def test_each_picture_is_an_upright_jpeg(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        assert max(image.size) <= 640
        assert np.asarray(image).std() > 10, "nearly blank"
    tags = exif(path)
    assert tags.get(ORIENTATION, 1) == 1
    assert MAKER_NOTE not in tags.get_ifd(EXIF_IFD)
    assert not tags.get_ifd(THUMBNAIL_IFD)


def test_some_pictures_keep_their_camera_and_place() -> None:
    tags = [exif(path) for path in bundled.photos()]
    assert sum(MAKE in tag for tag in tags) >= 3
    assert sum(bool(tag.get_ifd(GPS_IFD)) for tag in tags) >= 1


def test_every_picture_is_credited_exactly_once() -> None:
    assert sorted(row[0] for row in credit_rows()) == [path.name for path in bundled.photos()]


@pytest.mark.parametrize("row", credit_rows(), ids=lambda row: row[0])
def test_each_credit_is_complete_and_free(row: tuple[str, ...]) -> None:
    _, shows, author, licence, source = row
    assert shows
    assert author
    assert source
    assert licence in LICENCES


def test_no_two_pictures_are_alike() -> None:
    assert len({path.read_bytes() for path in bundled.photos()}) == len(bundled.photos())
    hashes = {path.name: dhash(path) for path in bundled.photos()}
    near = [(a, b) for a, b in combinations(hashes, 2) if (hashes[a] ^ hashes[b]).bit_count() <= 10]
    assert near == []
