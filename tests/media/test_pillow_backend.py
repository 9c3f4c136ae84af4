"""Pillow at arm's length: which formats are opened, hostile bytes, and warnings kept from the host."""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from pictures import FORMATS, LIMITS, chunk, encoded, mosaic, png, seen
from PIL import Image, ImageFile
from PIL.ExifTags import Base

from qsplit.errors import ImageError, ImageTooLarge, UnreadableImage
from qsplit.media import images, pillow_backend
from qsplit.media.images import Limits, open_picture
from qsplit.media.pillow_backend import formats

pytestmark = pytest.mark.filterwarnings("error")


def test_what_is_public() -> None:
    assert pillow_backend.__all__ == ["REPLACE", "errors_translated", "formats", "load", "opened", "warnings_ignored"]


# Formats


def test_the_formats() -> None:
    assert formats() == ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")


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


def test_mutated_files_give_a_picture_or_an_image_error() -> None:
    """Some of them each: what refused everything would be no decoder, and what took everything no guard."""
    outcomes = set[str]()

    @given(st.sampled_from([encoded(mosaic(), w, **o) for w, o in FORMATS.values()]), st.data())
    @settings(max_examples=300, deadline=None)
    def decode_some(whole: bytes, data: st.DataObject) -> None:
        mutated = bytearray(whole)
        for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
            mutated[position] = data.draw(st.integers(0, 255))
        kept = data.draw(st.integers(1, len(whole)) | st.just(len(whole)))
        try:
            outcomes.add(seen(bytes(mutated[:kept]), limits=Limits(max_pixels=1_000_000)).rgb.mode)
        except ImageError:
            outcomes.add("refused")

    decode_some()
    assert outcomes == {"RGB", "refused"}


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
        finished.wait(PATIENCE)
        return "digest"

    monkeypatch.setattr(images, "pixels_digest", waiting)
    thread = threading.Thread(target=seen, args=[encoded(mosaic(), "PNG")])
    thread.start()
    try:
        assert inside.wait(PATIENCE)
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    finally:
        finished.set()
        thread.join()
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    assert sum(entry[2] is pillow_backend._Ignored for entry in warnings.filters) == 1
