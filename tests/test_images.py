"""Pictures: real files of every format, hostile bytes, and what identifies a picture."""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile
from PIL.ExifTags import GPS, IFD, Base

from qsplit import images
from qsplit.config import Settings
from qsplit.errors import ImageError, ImageTooLarge, UnreadableImage
from qsplit.images import Limits, Picture, decode, formats, hamming, open_picture, perceptual_hash, read_bytes

pytestmark = pytest.mark.filterwarnings("error")

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
LIMITS = Limits()
PHOTOS = Path(skimage.__file__).parent / "data"
NOBODY = 65534
pillow_heif.register_heif_opener()  # the tests write HEIC; images.py itself registers nothing


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def seen(data: bytes, name: str = "picture", limits: Limits = LIMITS) -> Picture:
    return decode(data, name=name, limits=limits)


def pixels(picture: Picture) -> Pixels:
    return np.asarray(picture.rgb)


def photograph(name: str) -> Image.Image:
    with Image.open(PHOTOS / name) as image:
        return image.convert("RGB")


def mosaic(width: int = 48, height: int = 32) -> Image.Image:
    """Four unequal colours, so that no turn or mirroring leaves it as it was; smooth enough for lossy formats."""
    values = np.zeros((height, width, 3), np.uint8)
    values[: height // 2, : width // 2] = (250, 20, 30)
    values[: height // 2, width // 2 :] = (20, 240, 40)
    values[height // 2 :, : width // 2] = (10, 30, 230)
    values[height // 2 :, width // 2 :] = (240, 230, 220)
    return Image.fromarray(values)


def exif(orientation: int | None = None, **tags: Any) -> Image.Exif:
    """Tags by their names in ExifTags.Base or GPS, each put where cameras put it."""
    block = Image.Exif()
    inner: dict[int, Any] = {}
    where: dict[int, Any] = {}
    for name, value in tags.items():
        if name.startswith("GPS"):
            where[GPS[name]] = value
        elif name in ("Make", "Model"):
            block[Base[name]] = value
        else:
            inner[Base[name]] = value
    if orientation is not None:
        block[Base.Orientation] = orientation
    block.update({ifd: values for ifd, values in ((IFD.Exif, inner), (IFD.GPSInfo, where)) if values})
    whole = Image.Exif()
    whole.load(block.tobytes())  # Pillow's TIFF writer takes inner directories only from EXIF that was read
    return whole


def tagged(**tags: Any) -> Picture:
    return seen(encoded(mosaic(), "JPEG", exif=exif(**tags)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Values


def test_what_is_public() -> None:
    assert set(images.__all__) == {
        "SUFFIXES", "FileContent", "Limits", "Picture", "decode", "formats", "hamming", "open_picture",
        "perceptual_hash", "pixels_digest", "read_bytes",
    }  # fmt: skip


def test_importing_loads_no_torch_and_no_heif() -> None:
    code = "import sys, qsplit.images; assert not {'torch', 'lancedb', 'pillow_heif'} & set(sys.modules)"
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


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; so the file is read with the rights of nobody, as the system checks them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


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


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}), "MPO": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    "PNG": ("PNG", {}), "WEBP": ("WEBP", {"lossless": True}), "GIF": ("GIF", {}), "TIFF": ("TIFF", {}),
    "BMP": ("BMP", {}), "AVIF": ("AVIF", {}), "HEIF": ("HEIF", {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_known_by_content(tmp_path: Path, form: str) -> None:
    writer, options = FORMATS[form]
    path = tmp_path / "wrong.txt"
    path.write_bytes(encoded(mosaic(), writer, **options))
    picture = open_picture(path, LIMITS)
    assert (picture.format, picture.width, picture.height, picture.rgb.mode) == (form, 48, 32, "RGB")
    assert type(picture.rgb) is Image.Image
    assert np.abs(pixels(picture)[4:-4:8, 4:-4:8].astype(int) - np.asarray(mosaic())[4:-4:8, 4:-4:8]).max() < 25


def test_the_formats_and_suffixes() -> None:
    assert formats() == ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
    assert {".jpg", ".jfif", ".apng", ".tif", ".avif", ".heic", ".hif"} < images.SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in images.SUFFIXES)


@pytest.mark.parametrize("form", ["PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"])
def test_other_formats_of_pillow_are_not_opened(form: str) -> None:
    with pytest.raises(UnreadableImage, match="no picture in a known format: JPEG, PNG"):
        seen(encoded(mosaic(), form))


def test_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("This is no picture.")
    with pytest.raises(UnreadableImage, match=r"a\.jpg is no picture"):
        open_picture(tmp_path / "a.jpg", LIMITS)


def test_heic_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(mosaic(), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # what makes an import fail
    assert "HEIF" not in formats()
    with pytest.raises(UnreadableImage, match=r"a\.heic is HEIC.*pip install 'qsplit\[heif\]'"):
        seen(data, "a.heic")
    assert seen(encoded(mosaic(), "AVIF")).format == "AVIF"


def test_the_brand_that_avif_and_heic_share() -> None:
    data = bytearray(encoded(mosaic(), "HEIF"))
    data[8:12] = b"mif1"
    assert seen(bytes(data)).format == "HEIF"


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
    tag = exif(orientation)  # pillow-heif turns its container only by EXIF given in bytes
    picture = seen(encoded(image, form, exif=tag.tobytes() if form == "HEIF" else tag, **options))
    expected = TURNED[orientation](stored)
    assert (picture.height, picture.width) == expected.shape[:2] == picture.rgb.size[::-1]
    assert np.abs(pixels(picture).astype(int) - expected).max() <= (16 if form == "HEIF" else 0)
    assert not picture.rgb.getexif()


def test_heic_is_turned_by_its_container_and_not_by_its_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(mosaic(), "HEIF", exif=exif(6))
    picture = seen(data)
    assert (picture.width, picture.height) == (48, 32)
    monkeypatch.setattr("pillow_heif.as_plugin.set_orientation", lambda _: None)  # it leaves the tag as it was
    assert seen(data) == picture


def test_a_turned_copy_is_the_same_picture() -> None:
    image = photograph("rocket.jpg")
    upright = seen(encoded(image, "PNG"))
    turned = seen(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)))
    assert turned.image_id != upright.image_id
    assert (turned.pixels_digest, turned.phash, turned.thumbnail) == (
        upright.pixels_digest,
        upright.phash,
        upright.thumbnail,
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    picture = seen(encoded(mosaic(), "PNG", exif=exif(orientation)))
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


# EXIF


def test_when_where_and_with_what() -> None:
    picture = tagged(
        Make="Canon", Model="Canon EOS R6", DateTimeOriginal="2024:05:06 07:08:09", OffsetTimeOriginal="+02:00",
        GPSLatitudeRef="N", GPSLatitude=(48.0, 51.0, 29.6), GPSLongitudeRef="W", GPSLongitude=(2.0, 17.0, 40.2),
    )  # fmt: skip
    assert picture.taken_at == datetime(2024, 5, 6, 5, 8, 9, tzinfo=UTC)
    assert picture.taken_at.tzinfo is UTC
    assert picture.camera == "Canon EOS R6"
    assert picture.latitude == pytest.approx(48.858222, abs=1e-6)
    assert picture.longitude == pytest.approx(-2.294500, abs=1e-6)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_exif_of_other_formats(form: str) -> None:
    block = exif(Make="Sony", Model="A7", DateTimeOriginal="2024:05:06 07:08:09", GPSLatitudeRef="S",
                 GPSLatitude=(1.0, 30.0, 0.0), GPSLongitudeRef="E", GPSLongitude=(2.0, 0.0, 0.0))  # fmt: skip
    picture = seen(encoded(mosaic(), form, exif=block))
    assert (picture.camera, picture.taken_at) == ("Sony A7", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))
    assert (picture.latitude, picture.longitude) == (-1.5, 2.0)


def test_no_exif() -> None:
    picture = seen(encoded(mosaic(), "PNG"))
    assert (picture.taken_at, picture.camera, picture.latitude, picture.longitude) == (None, None, None, None)


@pytest.mark.parametrize(
    ("stamp", "offset", "expected"),
    [
        ("2024:05:06 07:08:09", "", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024:05:06 07:08:09", "-05:30", datetime(2024, 5, 6, 12, 38, 9, tzinfo=UTC)),
        ("2024:05:06 07:08:09\0\0", "   :  ", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024:05:06 07:08:09", "+99:99", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("0000:00:00 00:00:00", "", None),
        ("    :  :     :  :  ", "", None),
        ("2024:02:30 00:00:00", "", None),
        ("yesterday", "", None),
    ],
)
def test_the_time(stamp: str, offset: str, expected: datetime | None) -> None:
    assert tagged(DateTimeOriginal=stamp, OffsetTimeOriginal=offset).taken_at == expected


@pytest.mark.parametrize(
    ("make", "model", "expected"),
    [
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("  Panasonic \0junk", "DMC-GF1   ", "Panasonic DMC-GF1"),
        ("Apple", "", "Apple"),
        ("", "X100", "X100"),
        (" ", "\0", None),
        ("a\nb\x1b[31m", "m" * 500, "a b [31m " + "m" * 128),
    ],
)
def test_the_camera(make: str, model: str, expected: str | None) -> None:
    assert tagged(Make=make, Model=model).camera == expected


@pytest.mark.parametrize(
    "broken",
    [
        {"GPSLatitudeRef": "X"},
        {"GPSLatitudeRef": ""},
        {"GPSLatitude": (91.0, 0.0, 0.0)},
        {"GPSLatitude": (1.0, 60.0, 0.0)},
        {"GPSLatitude": (1.0, 2.0)},
        {"GPSLongitude": (180.0, 0.0, 1.0)},
        {"GPSLongitudeRef": "EW"},
    ],
)
def test_a_malformed_position_is_none(broken: dict[str, Any]) -> None:
    whole = {
        "GPSLatitudeRef": "N",
        "GPSLatitude": (1.0, 2.0, 3.0),
        "GPSLongitudeRef": "E",
        "GPSLongitude": (1.0, 2.0, 3.0),
    }
    assert tagged(**whole).latitude is not None
    picture = tagged(**(whole | broken))
    assert (picture.latitude, picture.longitude) == (None, None)


def test_a_position_of_zero_by_zero_is_none() -> None:
    """What some phones write before they know where they are."""
    block = exif(GPSLatitudeRef="N", GPSLatitude=(7919.0, 0.0, 0.0), GPSLongitudeRef="E", GPSLongitude=(1.0, 2.0, 3.0))
    unknown = block.tobytes().replace(struct.pack(">LL", 7919, 1), bytes(8))
    assert unknown != block.tobytes()
    picture = seen(encoded(mosaic(), "JPEG", exif=unknown))
    assert (picture.latitude, picture.longitude) == (None, None)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + bytes(64), b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 90]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_costs_nothing_but_itself(form: str, block: bytes) -> None:
    broken, whole = (seen(encoded(mosaic(), form, **options)) for options in ({"exif": block}, {}))
    assert broken.pixels_digest == whole.pixels_digest
    assert broken.camera is None


@given(st.binary(max_size=200), st.data())
def test_mutated_exif_costs_nothing_but_itself(tail: bytes, data: st.DataObject) -> None:
    block = bytearray(
        exif(6, Make="Sony", DateTimeOriginal="2024:05:06 07:08:09", GPSLatitude=(1.0, 2.0, 3.0)).tobytes()
    )
    for position in data.draw(st.lists(st.integers(6, len(block) - 1), max_size=5)):
        block[position] = data.draw(st.integers(0, 255))
    assert seen(encoded(mosaic(), "JPEG", exif=bytes(block) + tail)).rgb.mode == "RGB"


# Hostile bytes


def test_a_bomb_is_refused_before_any_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", pytest.fail)
    bomb = png(30_000, 30_000, 8, 2, bytes(1 << 22))
    with pytest.raises(ImageTooLarge, match=r"a\.png is 30000x30000 pixels; the bound is 200,000,000\. Set QSPLIT_MAX"):
        seen(bomb, "a.png")
    for form, (writer, options) in FORMATS.items():
        with pytest.raises(ImageTooLarge, match="48x32"):
            seen(encoded(mosaic(), writer, **options), form, Limits(max_pixels=48 * 32 - 1))


def test_a_header_that_lied_about_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: setattr(image, "_size", (10**5, 10**5)))
    with pytest.raises(ImageTooLarge, match="100000x100000"):
        seen(encoded(mosaic(), "PNG"))


def test_the_bound_is_ours_and_pillows_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 48 x 32: Pillow alone would warn
    assert seen(encoded(mosaic(), "PNG"), limits=Limits(max_pixels=48 * 32)).width == 48
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow alone would refuse
    assert seen(encoded(mosaic(), "JPEG")).width == 48
    with pytest.raises(ImageTooLarge, match="too large for Pillow"):  # its WebP plugin asks by itself
        seen(encoded(mosaic(), "WEBP"))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_tile_bomb() -> None:
    entries = [(256, 4, 100), (257, 4, 100), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, 1 << 15),
               (323, 4, 1 << 15), (324, 4, 8), (325, 4, 20)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)
    data = b"II*\0" + struct.pack("<I", 40) + zlib.compress(bytes(100)).ljust(32, b"\0") + struct.pack("<H", 10) + table
    with pytest.raises(ImageTooLarge, match="tiles of 32768x32768 pixels"):
        seen(data)


def test_a_text_bomb() -> None:
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 26)))
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be decoded \(ValueError: Decompressed data too large"):
        seen(png(1, 1, 8, 2, bytes(4), text), "a.png")


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files(form: str) -> None:
    writer, options = FORMATS[form]
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, writer, **options)
    end = data.rindex(b"\xff\xd8") if form == "MPO" else len(data)  # the first of its two frames
    for length in (12, 40, end // 2, end * 3 // 4):
        with pytest.raises(UnreadableImage, match=rf"a\.{form} "):
            seen(data[:length], f"a.{form}")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage):
        seen(png(*size, 8, 2, b""))
    with pytest.raises(UnreadableImage):
        seen(b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b";")


FOREIGN = [SyntaxError, struct.error, OverflowError, MemoryError, ValueError, EOFError, OSError, IndexError, KeyError,
           TypeError, AttributeError, RecursionError, ZeroDivisionError, RuntimeError, zlib.error]  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("stage", ["_open", "load"])
def test_every_foreign_error_is_translated(
    monkeypatch: pytest.MonkeyPatch, stage: str, foreign: type[Exception]
) -> None:
    def broken(*_: object) -> None:
        raise foreign("what Pillow said")

    opener, _ = Image.OPEN["PNG"]
    monkeypatch.setattr(opener, stage, broken)
    with pytest.raises(
        UnreadableImage, match=r"a\.png cannot be decoded \(\w+: .*what Pillow said.*Replace it"
    ) as caught:
        seen(encoded(mosaic(), "PNG"), "a.png")
    assert isinstance(caught.value.__cause__, (foreign, SyntaxError))  # Pillow itself makes some a SyntaxError


def test_pillow_without_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.WebPImagePlugin.SUPPORTED", False)
    with pytest.raises(UnreadableImage, match=r"WEBP support not installed"):
        seen(encoded(mosaic(), "WEBP"))


@given(st.binary(max_size=300), st.sampled_from([b"", *(encoded(mosaic(), w, **o)[:24] for w, o in FORMATS.values())]))
def test_random_bytes_give_a_picture_or_an_image_error(tail: bytes, head: bytes) -> None:
    with suppress(ImageError):
        assert seen(head + tail).rgb.mode == "RGB"


@given(st.sampled_from([encoded(mosaic(), w, **o) for w, o in FORMATS.values()]), st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_files_give_a_picture_or_an_image_error(whole: bytes, data: st.DataObject) -> None:
    mutated = bytearray(whole)
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        mutated[position] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(1, len(whole)))
    with suppress(ImageError):
        assert seen(bytes(mutated[:kept]), limits=Limits(max_pixels=1_000_000)).rgb.mode == "RGB"


# Warnings


BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\0\0\0\xf0\0\0\0\0\0\0\0"  # a Make beyond the end


def test_malformed_metadata_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    data = encoded(mosaic(), "JPEG", exif=BROKEN_EXIF)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(data)) as image:
            image.getexif().get(Base.Make)
        assert heard, "the file no longer makes Pillow warn, and tests nothing"
        heard.clear()
        assert seen(data).camera is None
        assert not heard
    assert not recwarn.list


def test_other_threads_keep_their_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, finished = threading.Event(), threading.Event()

    def waiting(_: object) -> str:
        inside.set()
        finished.wait(10)
        return "digest"

    monkeypatch.setattr(images, "pixels_digest", waiting)
    thread = threading.Thread(target=seen, args=[encoded(mosaic(), "PNG")])
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    finally:
        finished.set()
        thread.join()
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    assert sum(entry[2] is images._Ignored for entry in warnings.filters) == 1


# Identity


def digest_of(values: Pixels) -> str:
    height, width, _ = values.shape
    return hashlib.sha256(f"{width}x{height}:RGB:".encode() + values.tobytes()).hexdigest()


small_pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(small_pictures, st.data())
@settings(deadline=None)
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
        monkeypatch.setattr(images, "DIGEST_STRIP", strip)
        assert images.pixels_digest(Image.fromarray(values)) == digest_of(values)


def test_the_thumbnail_has_no_metadata() -> None:
    block = exif(6, Make="Sony", GPSLatitudeRef="N", GPSLatitude=(1.0, 2.0, 3.0))
    data = encoded(photograph("rocket.jpg"), "JPEG", exif=block, icc_profile=b"profile", xmp=b"<x/>", comment=b"words")
    with Image.open(io.BytesIO(seen(data).thumbnail)) as small:
        assert (small.format, small.size) == ("WEBP", (171, 256))
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(small.info)
        assert not small.getexif()


@pytest.mark.parametrize("size", [(256, 100), (40, 30)])
def test_a_thumbnail_is_never_larger_than_the_picture(size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(seen(encoded(Image.new("RGB", size), "PNG")).thumbnail)) as small:
        assert small.size == size


# Perceptual hash


SCENES = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
          "camera.png", "motorcycle_left.png", "moon.png", "coins.png", "grass.png"]  # fmt: skip


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
