"""Landmarks are found again in copies, in a mirror, and after being kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import photograph
from PIL import Image, ImageOps

from qsplit.duplicates.matching.comparison import _paired
from qsplit.duplicates.matching.keypoints import MOST, Landmarks, find_landmarks
from qsplit.duplicates.matching.transforms import fit_oriented, scale_of, turn_of
from qsplit.errors import CorruptStore
from qsplit.media.gray_planes import grey_plane
from qsplit.media.phash import reduced


def plane(image: Image.Image) -> np.ndarray:
    return np.asarray(reduced(image).convert("L"), np.float32)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((image.width // 4, image.height // 4, image.width, image.height))


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "the same": (lambda image: image, 100),
    "smaller": (lambda image: image.resize((image.width // 2, image.height // 2)), 50),
    "a quarter turn": (lambda image: image.transpose(Image.Transpose.ROTATE_90), 50),
    "turned": (lambda image: image.rotate(33, Image.Resampling.BICUBIC, expand=True), 20),
    "cropped": (cropped, 20),
    "grey": (lambda image: ImageOps.grayscale(image).convert("RGB"), 50),
}


@pytest.mark.parametrize("change", CHANGES)
def test_they_are_found_again(change: str) -> None:
    image = photograph("astronaut.jpg")
    act, least = CHANGES[change]
    one, other = find_landmarks(plane(image)), find_landmarks(plane(act(image)))
    pairs = _paired(one, other)
    fit = fit_oriented(one.points[pairs[:, 0]], other.points[pairs[:, 1]], 4.0)
    assert fit is not None
    assert fit.n >= least
    turns = {"a quarter turn": -90.0, "turned": -33.0}
    assert turn_of(fit.map) == pytest.approx(turns.get(change, 0.0), abs=1.5)
    if change in ("the same", "grey"):
        assert scale_of(fit.map) == pytest.approx(1, abs=0.01)


def test_a_mirror_shows_the_landmarks_of_the_mirrored_picture() -> None:
    image = photograph("astronaut.jpg")
    turned, found = find_landmarks(plane(image)).mirrored(), find_landmarks(plane(ImageOps.mirror(image)))
    pairs = _paired(turned, found)
    assert len(pairs) > 0.5 * len(found)
    near = turned.points[pairs[:, 0]] - found.points[pairs[:, 1]]
    assert np.median(np.abs(near[:, :2])) < 0.5
    assert np.median(np.abs(np.angle(np.exp(1j * near[:, 3])))) < 0.1
    again = turned.mirrored()
    assert np.array_equal(again.bits, find_landmarks(plane(image)).bits)


def test_other_photographs_have_others(photos: list[Path]) -> None:
    found = [find_landmarks(plane(photograph(path.name))) for path in photos[:6]]
    for i, one in enumerate(found):
        for other in found[:i]:
            pairs = _paired(one, other)
            fit = fit_oriented(one.points[pairs[:, 0]], other.points[pairs[:, 1]], 4.0)
            assert fit is None or fit.n <= 4


def test_kept_and_read_again() -> None:
    found = find_landmarks(plane(photograph("astronaut.jpg")))
    assert 50 < len(found) < 2 * MOST
    data = found.to_bytes()
    assert len(data) == 24 * len(found)
    again = Landmarks.from_bytes(data, found.width, found.height)
    assert np.array_equal(again.bits, found.bits)
    assert np.abs(again.points[:, :2] - found.points[:, :2]).max() <= 0.5 / 128 + 1e-6
    assert np.abs(again.points[:, 2:] - found.points[:, 2:]).max() < 0.02
    assert again.to_bytes() == data


def test_bytes_that_are_no_landmarks() -> None:
    with pytest.raises(CorruptStore, match="23 bytes are no landmarks"):
        Landmarks.from_bytes(bytes(23), 256, 192)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (256, 8), (40, 40)])
def test_small_and_plain_pictures(size: tuple[int, int]) -> None:
    assert len(find_landmarks(np.full(size, 128, np.float32))) == 0
    noise = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)
    for x, y, _, _ in find_landmarks(noise).points:
        assert -1 <= x <= size[1]
        assert -1 <= y <= size[0]


def test_a_thumbnail_that_is_none() -> None:
    with pytest.raises(CorruptStore, match="cannot be decoded"):
        grey_plane(b"RIFF no WEBP")
