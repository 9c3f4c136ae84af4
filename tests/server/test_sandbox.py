"""Pictures that mean harm: each ends as an error of ours, in a process of its own, with little memory and no file."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import resource
import signal
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
from qsplit.media import exif
from qsplit.media.images import Limits, decode
from qsplit.media.pillow_backend import errors_translated, opened, warnings_ignored
from qsplit.media.sandbox import confined as confining
from qsplit.media.sandbox import decoder as decoders
from qsplit.media.sandbox.decoder import Decoder

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
PIXELS = 4_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
BOMB = 300_000_000  # bytes
# Answer for each PNG of stdin, and say what came of them and by how many bytes the process grew.
WEIGHING = f"""
import json, resource, sys
from qsplit.media.sandbox import confined, warm_up

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

_, *bombs = sys.stdin.buffer.read().split({SIGNATURE!r})
before = most()
found = [confined.answer("shown", {SIGNATURE!r} + one, int(sys.argv[1]))[0].get("error") for one in bombs]
print(json.dumps([found, most() - before]))
"""


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
    return SIGNATURE + b"".join(body)


def here(data: bytes) -> object:
    """The picture as the process itself decodes it."""
    return decode(data, name="a", limits=Limits(max_pixels=PIXELS))


def tags_here(data: bytes) -> object:
    with warnings_ignored(), errors_translated("a"):
        return exif.tags(opened(data, "a"))


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
        assert outcome(decoder.picture, cut) == outcome(here, cut)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_with_other_bytes_in_it_is_what_it_is_here(
    decoder: Decoder, sound: dict[str, bytes], form: str
) -> None:
    chance = random.Random(form)
    for _ in range(12):
        data = bytearray(sound[form])
        for _ in range(chance.choice((1, 4, 64))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        assert outcome(decoder.picture, bytes(data)) == outcome(here, bytes(data))
        assert outcome(decoder.tags, bytes(data)) == outcome(tags_here, bytes(data))


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


def test_a_bomb_beside_the_pixels_takes_no_memory(decoder: Decoder) -> None:
    """Whoever reads it, confined or not, reads no more of it than of a caption."""
    packing = zlib.compressobj(9)
    packed = b"".join(packing.compress(bytes(BOMB // 100)) for _ in range(100)) + packing.flush()
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 60) for _ in range(60)))
    heads = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}
    bombs = [png(60, 60, (name, head + packed), (b"IDAT", rows)) for name, head in heads.items()]
    assert [outcome(decoder.shown, one) for one in bombs] == [UnreadableImage] * 3
    weighing = [sys.executable, "-c", WEIGHING, str(PIXELS)]
    done = subprocess.run(weighing, input=b"".join(bombs), capture_output=True, check=True)
    found, taken = json.loads(done.stdout)
    assert found == ["UnreadableImage"] * 3
    assert taken < BOMB / 10


def test_a_large_sound_picture_fits_in_what_it_may_take(decoder: Decoder) -> None:
    """The costliest that are sound: progressive and turned, and with an alpha channel of its own."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    noise = Image.effect_noise((2_000, 2_000), 64).convert("RGB")
    turned = encoded(noise, "JPEG", progressive=True, quality=95, subsampling=0, exif=exif)
    clear = encoded(Image.new("RGBA", (2_000, 2_000), (9, 9, 9, 9)), "PNG")
    assert [decoder.picture(data).width for data in (turned, clear)] == [2_000, 2_000]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells the bounds of another process")
def test_the_process_that_decodes_is_confined(decoder: Decoder) -> None:
    """It waits until its pixels are fetched, and so can be looked at."""
    noise, before = Image.effect_noise((1_000, 1_000), 64).convert("RGB"), set(multiprocessing.active_children())
    with decoder._answer("pixels", encoded(noise, "PNG")):
        (child,) = set(multiprocessing.active_children()) - before
        assert child.pid is not None
        bounds = {
            name: resource.prlimit(child.pid, getattr(resource, name))
            for name in ("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_AS")
        }
    room = bounds.pop("RLIMIT_AS")
    assert bounds.pop("RLIMIT_CPU") == (confining._SECONDS,) * 2
    assert set(bounds.values()) == {(0, 0)}
    assert confining._BYTES_A_PIXEL * PIXELS < room[0] == room[1] < 1 << 40


def confined(code: str, before: str = "") -> str:
    """What a confined process comes to, as the last line that it prints; it does what is to be done before."""
    begin = f"import sys; from qsplit.media.sandbox import confined, warm_up\n{before}\nconfined.confine(1_000_000)"
    done = subprocess.run([sys.executable, "-c", f"{begin}\n{code}"], capture_output=True, text=True, check=False)
    return "\n".join([*(done.stdout + done.stderr).strip().splitlines()[-1:], f"ended with {done.returncode}"])


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


def test_a_confined_process_writes_to_no_file_that_is_open_already(tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert "File too large" in confined("file.write(b'x')", f"file = open({str(made)!r}, 'wb', 0)")
    assert made.read_bytes() == b""


def test_a_confined_process_is_ended_by_its_bound_on_processor_time() -> None:
    bound = "import time; bound = confined._SECONDS = 1 + int(time.process_time())"
    said = confined("while time.process_time() < bound + 2: pass\nprint('it goes on')", bound)
    assert said in {f"ended with {-one}" for one in (signal.SIGXCPU, signal.SIGKILL)}


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
    theirs.close()  # whoever believes it waits for pixels that never come
    with ours, pytest.raises(ValueError, match="more pixels"):
        decoder._pixels({"width": size[0], "height": size[1]}, ours)


def test_several_are_decoded_at_once(decoder: Decoder, sound: dict[str, bytes]) -> None:
    several = [data for data in sound.values() for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decoder.picture, several)) == [decode(one, name="a", limits=Limits()) for one in several]


def test_no_bound_of_pillow_is_changed(decoder: Decoder, sound: dict[str, bytes]) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decoder.picture(sound["JPEG"])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
