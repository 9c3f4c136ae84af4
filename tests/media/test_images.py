"""Pictures: files as they are read, made upright and RGB, and what identifies them."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import (
    FORMATS,
    LIMITS,
    Pixels,
    as_nobody,
    chunk,
    digest_of,
    encoded,
    exif_block,
    mosaic,
    photograph,
    pixels,
    png,
    seen,
)
from PIL import Image

import qsplit
from qsplit import bundled
from qsplit.config import Settings
from qsplit.errors import ImageTooLarge, UnreadableImage
from qsplit.media import images
from qsplit.media.images import Limits, open_picture, read_bytes

pytestmark = pytest.mark.filterwarnings("error")


# Values


def test_what_is_public() -> None:
    assert set(images.__all__) == {
        "NULL_PIXELS", "STRIP", "SUFFIXES", "Facts", "FileContent", "Limits", "Picture", "check_bytes", "decode",
        "describe", "null_picture", "open_picture", "pixels_digest", "read_bytes", "read_still", "strips",
    }  # fmt: skip


def test_importing_loads_no_torch_and_no_heif() -> None:
    code = "import sys, qsplit.media.images; assert not {'torch', 'lancedb', 'pillow_heif'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(images.__file__).parents[1])


def test_limits_are_those_of_the_settings() -> None:
    assert Limits() == Limits.from_settings(Settings())
    assert Limits.from_settings(Settings(max_image_bytes=7, max_image_pixels=9)) == Limits(max_bytes=7, max_pixels=9)


def test_values_are_frozen() -> None:
    picture = seen(encoded(mosaic(), "PNG"))
    for value, name in ((LIMITS, "max_bytes"), (picture, "width")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1)
    assert hash(picture) == hash(seen(encoded(mosaic(), "PNG")))
    assert "rgb" not in repr(picture)
    assert "thumbnail" not in repr(picture)


# Files


def test_a_file_is_read_whole_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(mosaic(), "PNG"))
    path.chmod(0o444)
    before, data = path.stat(), path.read_bytes()
    content = read_bytes(path, LIMITS)
    picture = open_picture(str(path), LIMITS)
    assert (content.data, content.size, content.mtime_ns) == (data, before.st_size, before.st_mtime_ns)
    assert content.image_id == picture.image_id == hashlib.sha256(data).hexdigest()
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_mode) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_mode,
    )
    assert path.read_bytes() == data


def test_decode_and_open_agree(tmp_path: Path) -> None:
    data = encoded(mosaic(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert open_picture(tmp_path / "a.jpg", LIMITS) == seen(data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing.jpg", "does not exist"), (".", "is a folder"), ("empty.jpg", "is empty"), ("a\0b", "null byte"),
     ("empty.jpg/inside.jpg", "Not a directory"), ("pipe.jpg", "is a folder or a device"), ("x" * 300, "too long")],
)  # fmt: skip
def test_a_path_that_cannot_be_read_says_why_and_what_next(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_bytes(f"{tmp_path}/{name}", LIMITS)
    assert str(tmp_path) in caught.value.message
    assert caught.value.fix


def test_a_forbidden_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(mosaic(), "JPEG"))
    path.chmod(0)
    with as_nobody(), pytest.raises(UnreadableImage, match=r"a\.jpg may not be read\. Grant") as caught:
        read_bytes(path, LIMITS)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(1001))
    monkeypatch.setattr(Path, "open", pytest.fail)
    with pytest.raises(ImageTooLarge, match=r"a\.jpg has 1,001 bytes; the bound is 1,000\. Set QSPLIT_MAX_IMAGE_BYTES"):
        read_bytes(path, Limits(max_bytes=1000))
    with pytest.raises(ImageTooLarge):
        seen(bytes(1001), limits=Limits(max_bytes=1000))


def on_open(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], times: int) -> None:
    """Change the file between the moment that it is opened and the moment that it is read."""
    left = iter(range(times))

    class Changing(type(Path())):  # type: ignore[misc]  # PosixPath or WindowsPath
        def open(self, *args: Any, **options: Any) -> Any:
            file = super().open(*args, **options)
            if next(left, None) is not None:
                change()
            return file

    monkeypatch.setattr(images, "Path", Changing)


def growing(path: Path) -> Callable[[], None]:
    def change() -> None:
        path.write_bytes(path.read_bytes() + b"more")

    return change


def rewritten(path: Path) -> Callable[[], None]:
    def change() -> None:
        moment = path.stat().st_mtime_ns + 1_000_000
        path.write_bytes(bytes(reversed(path.read_bytes())))
        os.utime(path, ns=(moment, moment))

    return change


def replaced(path: Path) -> Callable[[], None]:
    def change() -> None:
        new, moment = path.with_suffix(".new"), path.stat().st_mtime_ns
        new.write_bytes(bytes(reversed(path.read_bytes())))
        os.utime(new, ns=(moment, moment))  # only the inode tells
        new.rename(path)

    return change


@pytest.mark.parametrize("change", [growing, rewritten, replaced])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Callable[[], None]]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"the first content")
    on_open(monkeypatch, change(path), times=1)
    content = read_bytes(path, LIMITS)  # the second attempt finds it at rest
    assert content.data == path.read_bytes() != b"the first content"
    assert content.mtime_ns == path.stat().st_mtime_ns
    on_open(monkeypatch, change(path), times=2)
    with pytest.raises(UnreadableImage, match=r"a\.jpg changed while it was read\. Index it again"):
        read_bytes(path, LIMITS)


def test_a_file_that_ends_early_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"six bytes or more")
    monkeypatch.setattr(Path, "open", lambda *_: io.BytesIO(b"less"))  # as a broken network drive
    with pytest.raises(UnreadableImage, match="changed while it was read"):
        read_bytes(tmp_path / "a.jpg", LIMITS)


# Formats


def test_the_suffixes() -> None:
    assert {".jpg", ".jfif", ".apng", ".tif", ".avif", ".heic", ".hif"} < images.SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in images.SUFFIXES)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_known_by_content(tmp_path: Path, form: str) -> None:
    writer, options = FORMATS[form]
    path = tmp_path / "wrong.txt"
    path.write_bytes(encoded(mosaic(), writer, **options))
    picture = open_picture(path, LIMITS)
    assert (picture.format, picture.width, picture.height, picture.rgb.mode) == (form, 48, 32, "RGB")
    assert type(picture.rgb) is Image.Image
    assert np.abs(pixels(picture)[4:-4:8, 4:-4:8].astype(int) - np.asarray(mosaic())[4:-4:8, 4:-4:8]).max() < 25


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_only_the_first_frame_counts(form: str, options: dict[str, Any]) -> None:
    later = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    moving = seen(encoded(mosaic(), form, save_all=True, append_images=later, **options))
    assert np.array_equal(pixels(moving), np.asarray(mosaic()))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (400_000, 1)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, "teal"), "PNG")
    picture = seen(data)
    assert (picture.width, picture.height) == size
    assert picture.phash == 0
    assert picture.pixels_digest == digest_of(pixels(picture))
    with Image.open(io.BytesIO(picture.thumbnail)) as small:
        assert max(small.size) <= 256


# Orientation


TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}  # EXIF orientation -> the stored pixels made upright, as the standard words it


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("MPO", FORMATS["MPO"][1]), ("PNG", {}), ("WEBP", {}), ("TIFF", {}),
     ("TIFF", {"compression": "tiff_lzw"}), ("AVIF", {}), ("HEIF", {})],
)  # fmt: skip
def test_orientation(form: str, options: dict[str, Any], orientation: int) -> None:
    image = mosaic()
    stored = pixels(seen(encoded(image, form, **options)))
    tag = exif_block(orientation)  # pillow-heif turns its container only by EXIF given in bytes
    picture = seen(encoded(image, form, exif=tag.tobytes() if form == "HEIF" else tag, **options))
    expected = TURNED[orientation](stored)
    assert (picture.height, picture.width) == expected.shape[:2] == picture.rgb.size[::-1]
    assert np.abs(pixels(picture).astype(int) - expected).max() <= (16 if form == "HEIF" else 0)
    assert not picture.rgb.getexif()


def test_heic_is_turned_by_its_container_and_not_by_its_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(mosaic(), "HEIF", exif=exif_block(6))
    picture = seen(data)
    assert (picture.width, picture.height) == (48, 32)
    monkeypatch.setattr("pillow_heif.as_plugin.set_orientation", lambda _: None)  # it leaves the tag as it was
    assert seen(data) == picture


def test_a_turned_copy_is_the_same_picture() -> None:
    image = photograph("rocket.jpg")
    upright = seen(encoded(image, "PNG"))
    turned = seen(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_block(6)))
    assert turned.image_id != upright.image_id
    assert (turned.pixels_digest, turned.phash, turned.thumbnail) == (
        upright.pixels_digest,
        upright.phash,
        upright.thumbnail,
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    picture = seen(encoded(mosaic(), "PNG", exif=exif_block(orientation)))
    assert np.array_equal(pixels(picture), np.asarray(mosaic()))


# Colour


def test_alpha_is_laid_on_white_as_the_reference_does() -> None:
    to_rgb = importlib.import_module("qwen_vl_utils.vision_process").to_rgb

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 4), np.uint8), "RGBA")
    assert np.array_equal(pixels(seen(encoded(image, "PNG"))), np.asarray(to_rgb(image)))


def test_every_kind_of_transparency_is_white() -> None:
    grey = Image.fromarray(np.array([[0, 100]], np.uint8))
    both = Image.merge("LA", (grey, Image.fromarray(np.array([[0, 255]], np.uint8))))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 100, 100, 100])
    expected = np.array([[[255] * 3, [100] * 3]], np.uint8)
    for form, image, options in (
        ("PNG", both, {}),
        ("TIFF", both, {}),
        ("PNG", both.convert("RGBA"), {}),
        ("PNG", grey, {"transparency": 0}),
        ("PNG", grey.convert("RGB"), {"transparency": (0, 0, 0)}),
        ("PNG", palette, {"transparency": 0}),
        ("PNG", palette, {"transparency": bytes([0, 255])}),
        ("GIF", palette, {"transparency": 0}),
        ("WEBP", both.convert("RGBA"), {"lossless": True}),
    ):
        assert np.array_equal(pixels(seen(encoded(image, form, **options))), expected), (form, image.mode, options)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert pixels(seen(encoded(half, "PNG"))).tolist() == [[[127, 127, 127]]]


def test_a_palette_with_alpha() -> None:
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), (1, 255))
    image.putpixel((1, 0), (0, 0))
    assert pixels(seen(encoded(image, "TIFF"))).tolist() == [[[40, 50, 60], [255, 255, 255]]]


@pytest.mark.parametrize(("mode", "form"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF")])
def test_other_colour_spaces(mode: str, form: str) -> None:
    data = encoded(mosaic().convert(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
    assert np.abs(pixels(seen(data))[4::8, 4::8].astype(int) - np.asarray(mosaic())[4::8, 4::8]).max() < 20


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_bits(mode: str) -> None:
    image = mosaic().convert(mode)
    assert np.array_equal(pixels(seen(encoded(image, "PNG"))), np.asarray(image.convert("RGB")))


GREYS = np.array([[0, 255, 256, 4095, 32768, 65535]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        png(6, 1, 16, 0, b"\0" + GREYS.astype(">u2").tobytes()),
        encoded(Image.fromarray(GREYS), "TIFF"),
        encoded(Image.frombytes("I;16B", (6, 1), GREYS.astype(">u2").tobytes()), "TIFF"),
        encoded(Image.fromarray(GREYS.astype(np.int32)), "TIFF"),
        png(6, 1, 16, 2, b"\0" + np.repeat(GREYS.astype(">u2"), 3).tobytes()),
    ],
    ids=["png", "tiff-little", "tiff-big", "tiff-32", "png-colour"],
)
def test_sixteen_bits_are_scaled_not_clipped(data: bytes) -> None:
    assert pixels(seen(data))[0, :, 0].tolist() == [0, 0, 1, 15, 128, 255]
    assert (np.ptp(pixels(seen(data)), axis=2) == 0).all()


def test_sixteen_bits_with_a_transparent_grey() -> None:
    data = png(6, 1, 16, 0, b"\0" + GREYS.astype(">u2").tobytes(), chunk(b"tRNS", struct.pack(">H", 255)))
    assert pixels(seen(data))[0, :, 0].tolist() == [0, 255, 1, 15, 128, 255]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.5, 1]], np.float32), "floating-point pixels"),
        (np.array([[-1, 5]], np.int32), "grey values of -1 to 5, not 16 bits"),
        (np.array([[0, 65536]], np.int32), "grey values of 0 to 65536, not 16 bits"),
    ],
)
def test_pixels_without_a_known_white(values: npt.NDArray[Any], reason: str) -> None:
    with pytest.raises(UnreadableImage, match=f"a.tif has {reason}.*Save it with 8 or 16 bits"):
        seen(encoded(Image.fromarray(values), "TIFF"), "a.tif")


# Identity


small_pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(small_pictures, st.data())
def test_the_digest_is_of_the_pixels_alone(values: Pixels, data: st.DataObject) -> None:
    image = Image.fromarray(values)
    for form, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert seen(encoded(image, form, **options)).pixels_digest == digest_of(values)
    changed = values.copy()
    changed.flat[data.draw(st.integers(0, values.size - 1))] ^= data.draw(st.integers(1, 255))
    assert images.pixels_digest(Image.fromarray(changed)) != digest_of(values)


def test_the_digest_knows_the_shape() -> None:
    assert len({images.pixels_digest(Image.new("RGB", size)) for size in ((2, 6), (6, 2), (3, 4), (12, 1))}) == 4


def test_the_digest_is_taken_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).integers(0, 256, (37, 21, 3), np.uint8)
    for strip in (1, 20, 21, 50, 21 * 37, 10_000):
        monkeypatch.setattr(images, "STRIP", strip)
        assert images.pixels_digest(Image.fromarray(values)) == digest_of(values)


def test_the_thumbnail_has_no_metadata() -> None:
    block = exif_block(6, Make="Sony", GPSLatitudeRef="N", GPSLatitude=(1.0, 2.0, 3.0))
    data = encoded(photograph("rocket.jpg"), "JPEG", exif=block, icc_profile=b"profile", xmp=b"<x/>", comment=b"words")
    with Image.open(io.BytesIO(seen(data).thumbnail)) as small:
        assert (small.format, small.size) == ("WEBP", (171, 256))
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(small.info)
        assert not small.getexif()


@pytest.mark.parametrize("size", [(256, 100), (40, 30)])
def test_a_thumbnail_is_never_larger_than_the_picture(size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(seen(encoded(Image.new("RGB", size), "PNG")).thumbnail)) as small:
        assert small.size == size


def test_a_picture_is_loaded_as_it_is_indexed() -> None:
    path = bundled.photos()[0]
    loaded, opened = qsplit.load_image(path), open_picture(path, Limits())
    assert (loaded.image_id, loaded.pixels_digest) == (opened.image_id, opened.pixels_digest)
