"""When, with what and where a picture was taken, as its EXIF says.

What cannot be read is absent; it never keeps a picture from being read. The functions take a picture as its plugin
opened it: one that was converted or copied has no EXIF.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, SupportsFloat

from PIL import Image
from PIL.ExifTags import GPS, IFD, TAGS, Base

__all__ = ["camera", "position", "tag", "tags", "taken_at"]

_UNTOLD = frozenset(["MakerNote", "UserComment", "ExifOffset", "GPSInfo", "ComponentsConfiguration"])  # no text


def tag(image: Image.Image, number: int, ifd: int | None = None) -> Any:
    """One tag's value, of the main directory or of ``ifd``; None where there is none, or it cannot be read.

    >>> tag(Image.new("RGB", (1, 1)), Base.Orientation) is None
    True
    """
    try:
        block = image.getexif()
        return (block if ifd is None else block.get_ifd(ifd)).get(number)
    except Exception:  # noqa: BLE001  # as many kinds as for the pixels, and less is at stake
        return None


def camera(image: Image.Image) -> str | None:
    """Its make and model as one name: the model alone where that begins with the make.

    >>> image = Image.new("RGB", (1, 1))
    >>> image.getexif().update({Base.Make: "Apple", Base.Model: "iPhone 15"})
    >>> camera(image)
    'Apple iPhone 15'
    """
    make, model = _text(tag(image, Base.Make)), _text(tag(image, Base.Model))
    if make and model and not model.casefold().startswith(make.split()[0].casefold()):
        return f"{make} {model}"
    return model or make or None


def taken_at(image: Image.Image) -> datetime | None:
    """When the shutter opened, aware and in UTC; a time without an offset that means something is taken as UTC.

    >>> image = Image.new("RGB", (1, 1))
    >>> image.getexif().get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    >>> taken_at(image).isoformat()
    '2024-05-06T07:08:09+00:00'
    """
    text = _text(tag(image, Base.DateTimeOriginal, IFD.Exif))
    offset = _text(tag(image, Base.OffsetTimeOriginal, IFD.Exif)) or "Z"
    for zone in (offset, "Z"):  # an offset that means nothing counts as none
        try:
            return datetime.strptime(text + zone, "%Y:%m:%d %H:%M:%S%z").astimezone(UTC)
        except (ValueError, OverflowError):
            continue
    return None


def position(image: Image.Image) -> tuple[float, float] | tuple[None, None]:
    """Latitude and longitude in degrees (WGS84), north and east positive; both or neither.

    >>> position(Image.new("RGB", (1, 1)))
    (None, None)
    """
    latitude = _degrees(image, GPS.GPSLatitude, {"N": 1, "S": -1}, 90)
    longitude = _degrees(image, GPS.GPSLongitude, {"E": 1, "W": -1}, 180)
    return (None, None) if latitude is None or longitude is None else (latitude, longitude)


def tags(image: Image.Image) -> dict[str, str]:
    """Name -> text of every tag that has one, of the main directory and of the camera's own.

    >>> image = Image.new("RGB", (1, 1))
    >>> image.getexif().update({Base.Make: "Apple", Base.XResolution: 72.0})
    >>> tags(image)
    {'Make': 'Apple', 'XResolution': '72.0'}
    """
    try:
        block = image.getexif()
        found = {**block, **block.get_ifd(IFD.Exif)}
    except Exception:  # noqa: BLE001  # as for one tag
        return {}
    named = {TAGS[number]: _said(value) for number, value in found.items() if number in TAGS}
    return {name: text for name, text in sorted(named.items()) if text and name not in _UNTOLD}


def _said(value: object) -> str:
    """The text of a text, a number or a few of them."""
    if isinstance(value, tuple):
        return " ".join(map(_said, value[:8]))
    return _text(str(value) if isinstance(value, SupportsFloat) else value)


def _degrees(image: Image.Image, number: int, signs: Mapping[str, int], bound: int) -> float | None:
    side = _text(tag(image, number - 1, IFD.GPSInfo)).upper()  # the reference's tag precedes the value's
    try:
        degrees, minutes, seconds = (float(part) for part in tag(image, number, IFD.GPSInfo))
        total = signs[side] * (degrees + minutes / 60 + seconds / 3600)
    except (TypeError, ValueError, KeyError, ArithmeticError):
        return None
    whole = degrees >= 0 and 0 <= minutes < 60 and 0 <= seconds < 60 and abs(total) <= bound  # False for a NaN
    return total if whole else None


def _text(value: object) -> str:
    """Printable text up to a NUL, single-spaced, at most 128 characters; empty for anything else."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    printable = "".join(character if character.isprintable() else " " for character in text.split("\0")[0])
    return " ".join(printable.split())[:128]
