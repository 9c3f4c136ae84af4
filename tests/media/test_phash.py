"""The perceptual hash: what survives in it, what it tells apart, and when it says nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, photograph, seen
from PIL import Image

from qsplit import bundled
from qsplit.media import phash as perceptual
from qsplit.media.phash import hamming, perceptual_hash, reduced

pytestmark = pytest.mark.filterwarnings("error")


def test_what_is_public() -> None:
    assert perceptual.__all__ == ["detail", "hamming", "perceptual_hash", "reduced"]


SCENES = [path.name for path in bundled.photos()]


@pytest.mark.parametrize("scene", SCENES)
def test_the_hash_survives_saving_and_resizing(scene: str) -> None:
    image = photograph(scene)
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    phash = seen(encoded(image, "PNG")).phash
    assert phash == perceptual_hash(image) < 2**63
    for copy in (
        encoded(image, "JPEG", quality=75),
        encoded(image, "JPEG", quality=40),
        encoded(half, "JPEG", quality=75),
    ):
        assert hamming(phash, seen(copy).phash) <= 6


def test_the_hash_tells_photographs_apart() -> None:
    hashes = [perceptual_hash(photograph(scene)) for scene in SCENES]
    assert min(hamming(a, b) for a, b in itertools.combinations(hashes, 2)) > 16


def test_the_hash_is_that_of_the_definition() -> None:
    """Against a DCT-II written out from its sum, on a picture that needs no resizing."""
    values = np.random.default_rng(3).integers(0, 256, (32, 32), np.uint8)
    n = np.arange(32)
    table = np.array(
        [
            [
                (values * np.outer(np.cos((2 * n + 1) * u * np.pi / 64), np.cos((2 * n + 1) * v * np.pi / 64))).sum()
                for v in range(8)
            ]
            for u in range(8)
        ]
    )
    table[0] /= np.sqrt(2)
    table[:, 0] /= np.sqrt(2)
    flat = table.ravel()
    bits = [False, *(flat[1:] > np.median(flat[1:]))]
    grey = Image.fromarray(values).convert("RGB")
    assert perceptual_hash(grey) == int("".join(str(int(bit)) for bit in bits), 2)


def test_blank_pictures_have_no_detail() -> None:
    noise = 250 + np.random.default_rng(4).integers(0, 4, (400, 300, 3), np.uint8)
    for image in (Image.new("RGB", (300, 400), "white"), Image.new("RGB", (64, 64)), Image.fromarray(noise)):
        assert seen(encoded(image, "PNG")).detail < 0.5
    assert perceptual_hash(Image.new("RGB", (300, 400), (17, 99, 201))) == 0
    assert min(seen(encoded(photograph(scene), "PNG")).detail for scene in SCENES) > 8
    black_and_white = np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 64, 0), 32, 1)
    assert seen(encoded(Image.fromarray(black_and_white), "PNG")).detail == pytest.approx(127.5, abs=3)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_counts_differing_bits(a: int, b: int) -> None:
    assert hamming(a, b) == hamming(b, a) == f"{a ^ b:b}".count("1")
    assert hamming(a, a) == 0


@given(st.integers(1, 600), st.integers(1, 600))
def test_a_reduced_picture_is_reduced_no_further(width: int, height: int) -> None:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    small = reduced(Image.fromarray(values))
    assert max(small.size) == min(256, max(width, height))
    assert reduced(small) == small
    assert perceptual_hash(small) == perceptual_hash(Image.fromarray(values))
