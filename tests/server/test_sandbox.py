"""Pictures that mean harm: each ends as an error of ours, in a process of its own, with little memory and no file."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from PIL.ExifTags import Base

from qsplit.errors import ImageError, ImageTooLarge, UnreadableImage
from qsplit.media.images import Limits, decode
from qsplit.media.sandbox import decoder as decoders
from qsplit.media.sandbox.decoder import Decoder

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
PIXELS = 4_000_000


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(PIXELS, 25_000_000)


@pytest.fixture(scope="module")
def sound(photos: list[Path]) -> dict[str, bytes]:
    """Format -> the bytes of a small photograph in it."""
    with Image.open(photos[0]) as photo:
        small = photo.convert("RGB").resize((96, 64))
    return {form: encoded(small, form) for form in FORMATS}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def outcome(decode_one: Callable[[bytes], object], data: bytes) -> object:
    """The picture, or what kind of error it is."""
    try:
        return decode_one(data)
    except ImageError as error:
        return type(error)


def test_it_decodes_as_the_process_itself_would(decoder: Decoder, sound: dict[str, bytes], photos: list[Path]) -> None:
    for data in [*sound.values(), *(path.read_bytes() for path in photos[:4])]:
        picture = decoder.picture(data)
        assert picture == decode(data, name="a", limits=Limits())
        assert picture.rgb.tobytes() == decode(data, name="a", limits=Limits()).rgb.tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_picture_is_what_it_is_here(decoder: Decoder, sound: dict[str, bytes], form: str) -> None:
    data = sound[form]
    for length in (1, 8, 16, 64, len(data) // 2, len(data) - 1):
        cut = data[:length]
        assert outcome(decoder.picture, cut) == outcome(lambda one: decode(one, name="a", limits=Limits()), cut)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_with_other_bytes_in_it_ends_well(decoder: Decoder, sound: dict[str, bytes], form: str) -> None:
    chance = random.Random(form)
    for _ in range(12):
        data = bytearray(sound[form])
        for _ in range(chance.choice((1, 4, 64))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        outcome(decoder.picture, bytes(data))
        outcome(decoder.tags, bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        png(50_000, 50_000),
        png(2_001, 2_000, (b"IDAT", zlib.compress(bytes(1000)))),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        encoded(Image.new("1", (2_001, 2_000)), "TIFF", compression="group4"),
        encoded(Image.new("L", (2_001, 2_000)), "WEBP"),
    ],
    ids=["png", "png-barely", "gif", "bmp", "tiff", "webp"],
)
def test_a_bomb_is_refused_by_its_header(decoder: Decoder, data: bytes) -> None:
    assert len(data) < 100_000
    assert outcome(decoder.picture, data) in (ImageTooLarge, UnreadableImage)
    assert outcome(decoder.shown, data) in (ImageTooLarge, UnreadableImage)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_bomb_beside_the_pixels_takes_no_memory(decoder: Decoder, name: bytes) -> None:
    bomb = zlib.compress(bytes(300_000_000), 9)
    body = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[name] + bomb
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 60) for _ in range(60)))
    outcome(decoder.picture, png(60, 60, (name, body), (b"IDAT", rows)))


def test_a_large_sound_picture_fits_in_what_it_may_take(decoder: Decoder) -> None:
    """The costliest that are sound: progressive and turned, and with an alpha channel of its own."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    noise = Image.effect_noise((2_000, 2_000), 64).convert("RGB")
    turned = encoded(noise, "JPEG", progressive=True, quality=95, subsampling=0, exif=exif)
    clear = encoded(Image.new("RGBA", (2_000, 2_000), (9, 9, 9, 9)), "PNG")
    assert [decoder.picture(data).width for data in (turned, clear)] == [2_000, 2_000]


def confined(code: str) -> str:
    """What a confined process comes to, as the last line that it prints."""
    begin = "import sys; from qsplit.media.sandbox import confined, warm_up; confined.confine(1_000_000)"
    done = subprocess.run([sys.executable, "-c", f"{begin}\n{code}"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("open('/etc/passwd')", "Too many open files"),
        ("open('/tmp/made', 'w')", "Too many open files"),
        ("import socket; socket.socket()", "Too many open files"),
        ("bytearray(400_000_000)", "MemoryError"),
        ("print(len(bytearray(50_000_000)))", "50000000"),
    ],
)
def test_a_confined_process_can_do_little(code: str, outcome: str) -> None:
    assert outcome in confined(f"import socket\n{code}")


def test_what_takes_too_long_is_ended(sound: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_SECONDS", 0.0)
    with pytest.raises(UnreadableImage, match="more memory or time"):
        Decoder(PIXELS, 1_000_000).picture(sound["PNG"])


def test_a_process_that_dies_is_an_error_of_its_picture(decoder: Decoder, sound: dict[str, bytes]) -> None:
    with pytest.raises(UnreadableImage, match="more memory or time"), decoder._answer("nothing", sound["PNG"]):  # type: ignore[arg-type]
        pass
    assert decoder.picture(sound["PNG"]).width == 96


@pytest.mark.parametrize("size", [(0, 5), (5, -5), (PIXELS, 2), (10**9, 10**9)])
def test_what_a_process_says_of_its_size_is_not_believed(decoder: Decoder, size: tuple[int, int]) -> None:
    ours, theirs = decoder._context.Pipe()
    with ours, theirs, pytest.raises(ValueError, match="more pixels"):
        decoder._pixels({"width": size[0], "height": size[1]}, ours)


def test_several_are_decoded_at_once(decoder: Decoder, sound: dict[str, bytes]) -> None:
    several = [data for data in sound.values() for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decoder.picture, several)) == [decode(one, name="a", limits=Limits()) for one in several]


def test_no_bound_of_pillow_is_changed(decoder: Decoder, sound: dict[str, bytes]) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decoder.picture(sound["JPEG"])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
