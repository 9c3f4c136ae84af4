"""When, with what and where: as cameras write it, malformed, and hostile."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, exif_block, mosaic, seen

from qsplit.media import exif
from qsplit.media.images import Picture

pytestmark = pytest.mark.filterwarnings("error")


def test_what_is_public() -> None:
    assert exif.__all__ == ["camera", "position", "tag", "tags", "taken_at"]


def tagged(**tags: Any) -> Picture:
    return seen(encoded(mosaic(), "JPEG", exif=exif_block(**tags)))


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
    block = exif_block(Make="Sony", Model="A7", DateTimeOriginal="2024:05:06 07:08:09", GPSLatitudeRef="S",
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
    block = exif_block(
        GPSLatitudeRef="N", GPSLatitude=(7919.0, 0.0, 0.0), GPSLongitudeRef="E", GPSLongitude=(1.0, 2.0, 3.0)
    )
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
        exif_block(6, Make="Sony", DateTimeOriginal="2024:05:06 07:08:09", GPSLatitude=(1.0, 2.0, 3.0)).tobytes()
    )
    for position in data.draw(st.lists(st.integers(6, len(block) - 1), max_size=5)):
        block[position] = data.draw(st.integers(0, 255))
    assert seen(encoded(mosaic(), "JPEG", exif=bytes(block) + tail)).rgb.mode == "RGB"
