"""Path or bytes -> one decoded, upright, bounded RGB picture, and what identifies it.

    read_bytes    file -> its bytes, whole and unchanged while read, and their sha256
    decode        bytes -> Picture; what the bytes are is decided by their content, never by a suffix
    open_picture  both

Only the first frame of an animation is read. Colour follows qwen-vl-utils, so that features equal the reference's:
RGBA is laid on white, and colour profiles are not applied. Every other kind of transparency is laid on white as well,
where the reference shows whatever colour hides beneath it. Grey of 16 bits keeps its high byte, as Pillow does for
16-bit colour; the reference would clip it to white.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.ExifTags import GPS, IFD, Base
from PIL.Image import Resampling, Transpose
from PIL.TiffImagePlugin import TiffImageFile

from qsplit.config import Settings
from qsplit.errors import ImageTooLarge, QsplitError, UnreadableImage

__all__ = [
    "SUFFIXES",
    "FileContent",
    "Limits",
    "Picture",
    "decode",
    "formats",
    "hamming",
    "open_picture",
    "perceptual_hash",
    "pixels_digest",
    "read_bytes",
]

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .tif .tiff .bmp .avif .heic .heif .hif"
SUFFIXES = frozenset(_SUFFIXES.split())  # lower case; what a folder walk considers

SMALL_EDGE = 256  # pixels
HASH_PLANE = 32  # pixels a side
DIGEST_STRIP = 1 << 18  # pixels copied at a time

_DEFAULTS = Settings()
# Of Pillow's forty formats only these are given a file. Its JPEG plugin also opens MPO, as phones write.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
_HEIF_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
_REPLACE = "Replace it with a good copy, or leave it out."
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright

Opener = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]
Plane = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of what is read (``max_bytes``) and decoded (``max_pixels``, width x height)."""

    max_bytes: int = _DEFAULTS.max_image_bytes
    max_pixels: int = _DEFAULTS.max_image_pixels

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The bounds that the settings name.

        >>> Limits.from_settings(Settings(max_image_pixels=50_000_000)).max_pixels
        50000000
        """
        return cls(settings.max_image_bytes, settings.max_image_pixels)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file's bytes with what its folder entry said at that moment; ``image_id`` is their sha256 in hex."""

    data: bytes = field(repr=False)
    size: int
    mtime_ns: int
    image_id: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture. ``width`` and ``height`` are of the upright picture; two are equal if their facts are."""

    image_id: str  # sha256 hex of the file's bytes
    pixels_digest: str  # see `pixels_digest`
    width: int
    height: int
    format: str  # Pillow's name: "JPEG", "MPO", "PNG", "HEIF", ...
    taken_at: datetime | None  # aware, UTC; a time without an offset is taken as UTC
    camera: str | None
    latitude: float | None  # degrees, WGS84, north positive; both or neither
    longitude: float | None  # degrees, WGS84, east positive
    phash: int  # see `perceptual_hash`
    detail: float  # standard deviation of the 32 x 32 grey plane that phash saw, 0..127.5; near 0: phash says nothing
    thumbnail: bytes = field(repr=False)  # WebP, long edge <= 256 px, no metadata
    rgb: Image.Image = field(repr=False, compare=False)  # mode RGB, upright, without metadata


def open_picture(path: str | os.PathLike[str], limits: Limits) -> Picture:
    """Read and decode one file; raises what `read_bytes` and `decode` raise."""
    content = read_bytes(path, limits)
    return _picture(content.data, content.image_id, os.fspath(path), limits)


def decode(data: bytes, *, name: str, limits: Limits) -> Picture:
    """Decode the bytes of a file; ``name`` is what messages call it.

    Raises `ImageTooLarge` beyond ``limits``, before any pixel is decoded, and `UnreadableImage` for whatever else keeps
    the bytes from being a picture.

    >>> data = io.BytesIO()
    >>> Image.new("RGB", (3, 2), "red").save(data, "PNG")
    >>> picture = decode(data.getvalue(), name="red.png", limits=Limits())
    >>> picture.width, picture.height, picture.format, picture.detail
    (3, 2, 'PNG', 0.0)
    """
    _check_bytes(len(data), name, limits)
    return _picture(data, hashlib.sha256(data).hexdigest(), name, limits)


def read_bytes(path: str | os.PathLike[str], limits: Limits) -> FileContent:
    """Read a file whole, and once more if it changed meanwhile.

    Raises `UnreadableImage` for a file that is missing, forbidden, empty, no file, or changed twice while it was read,
    and `ImageTooLarge` beyond ``limits.max_bytes``, before reading it.
    """
    name = os.fspath(path)
    try:
        content = _read_unchanged(name, limits) or _read_unchanged(name, limits)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{name} does not exist.", fix="Check the path, or mount its drive.") from error
    except PermissionError as error:
        raise UnreadableImage(f"{name} may not be read.", fix="Grant this user read permission.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UnreadableImage(f"{name} cannot be read: {error}.", fix="Check the path and its drive.") from error
    if content is None:
        raise UnreadableImage(f"{name} changed while it was read.", fix="Index it again when it is fully written.")
    return content


def _read_unchanged(name: str, limits: Limits) -> FileContent | None:
    """The file's content, or None if its folder entry or length was another afterwards."""
    path = Path(name)
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):  # a pipe would block, a device might never end
        raise UnreadableImage(f"{name} is a folder or a device, not a file.", fix="Name a file, or index the folder.")
    _check_bytes(before.st_size, name, limits)
    with path.open("rb") as file:
        data = file.read(before.st_size + 1)
    if len(data) != before.st_size or _version(path.stat()) != _version(before):
        return None
    return FileContent(data, before.st_size, before.st_mtime_ns, hashlib.sha256(data).hexdigest())


def _version(entry: os.stat_result) -> tuple[int, int, int]:
    return entry.st_size, entry.st_mtime_ns, entry.st_ino


def _check_bytes(size: int, name: str, limits: Limits) -> None:
    if size == 0:
        raise UnreadableImage(f"{name} is empty.", fix=_REPLACE)
    if size > limits.max_bytes:
        fix = f"Set QSPLIT_MAX_IMAGE_BYTES={size} to allow it, or leave it out."
        raise ImageTooLarge(f"{name} has {size:,} bytes; the bound is {limits.max_bytes:,}.", fix=fix)


# Decoding


def formats() -> tuple[str, ...]:
    """The formats that can be decoded here, by Pillow's names; HEIF only where pillow-heif is installed.

    >>> formats()[:2]
    ('JPEG', 'PNG')
    """
    return (*_FORMATS, "HEIF") if _heif_opener() else _FORMATS


def _picture(data: bytes, image_id: str, name: str, limits: Limits) -> Picture:
    with _warnings_ignored():
        with _errors_translated(name):
            image = _opened(data, name)
            _check_pixels(image.size, name, limits)
            _check_tile(image, name)
            image.load()
            _check_pixels(image.size, name, limits)  # a HEIF header need not tell the truth
            rgb = _upright(image, _rgb(image, name))
            digest = pixels_digest(rgb)
        small = _small(rgb)
        plane = _plane(small)
        latitude, longitude = _position(image)
        return Picture(
            image_id=image_id,
            pixels_digest=digest,
            width=rgb.width,
            height=rgb.height,
            format=image.format or "",
            taken_at=_taken_at(image),
            camera=_camera(image),
            latitude=latitude,
            longitude=longitude,
            phash=_hash(plane),
            detail=float(plane.std()),
            thumbnail=_webp(small),
            rgb=rgb,
        )


def _opened(data: bytes, name: str) -> ImageFile.ImageFile:
    """The picture with its header read and no pixels.

    Image.open would do the same, and then warn about or refuse sizes by a bound that is global to the host program;
    ours is `_check_pixels`.
    """
    failure: Exception | None = None
    for opener in _openers(data[:16], name):
        try:
            return opener(io.BytesIO(data), "")  # no file name: Pillow would map that file
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failure = error  # the next may know better: AVIF and HEIC share the brand mif1
    if failure:
        raise failure
    raise UnreadableImage(f"{name} is no picture in a known format: {', '.join(formats())}.", fix=_REPLACE)


def _openers(prefix: bytes, name: str) -> Iterator[Opener]:
    Image.init()  # registers the plugins, once
    for known in _FORMATS:
        opener, accept = Image.OPEN[known]
        verdict = accept is None or accept(prefix)
        if isinstance(verdict, str):  # Pillow was built without this format
            raise UnreadableImage(f"{name}: {verdict}.", fix="Install Pillow from its wheels.")
        if verdict:
            yield opener
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS:
        heif = _heif_opener()
        if heif is None:
            raise UnreadableImage(f"{name} is HEIC, which needs pillow-heif.", fix="pip install 'qsplit[heif]'")
        yield heif


def _heif_opener() -> Opener | None:
    try:
        return importlib.import_module("pillow_heif").HeifImageFile  # type: ignore[no-any-return]  # an optional extra
    except ImportError:
        return None


def _check_pixels(size: tuple[int, int], name: str, limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage(f"{name} says that it is {width}x{height} pixels.", fix=_REPLACE)
    if width * height > limits.max_pixels:
        fix = f"Set QSPLIT_MAX_IMAGE_PIXELS={width * height} to allow it, or leave it out."
        raise ImageTooLarge(f"{name} is {width}x{height} pixels; the bound is {limits.max_pixels:,}.", fix=fix)


def _check_tile(image: ImageFile.ImageFile, name: str) -> None:
    """Refuse a TIFF whose tiles are far larger than itself: libtiff takes memory for a whole one."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    width, height = tags.get(Base.TileWidth, 0), tags.get(Base.TileLength, 0)
    if width * height > 4 * max(1 << 20, image.width * image.height):
        raise ImageTooLarge(f"{name} has tiles of {width}x{height} pixels, far larger than itself.", fix=_REPLACE)


@contextmanager
def _errors_translated(name: str) -> Iterator[None]:
    try:
        yield
    except QsplitError:
        raise
    except Image.DecompressionBombError as error:  # some plugins ask Pillow's own bound, Image.MAX_IMAGE_PIXELS
        raise ImageTooLarge(f"{name} is too large for Pillow: {error}", fix="Save a smaller copy.") from error
    except Exception as error:  # hostile bytes have brought out every kind
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UnreadableImage(f"{name} cannot be decoded ({reason}).", fix=_REPLACE) from error


class _Decoding(threading.local):
    active = False


_decoding = _Decoding()


class _OnlyWhileDecoding(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _decoding.active


class _Ignored(Warning, metaclass=_OnlyWhileDecoding):
    """Every warning of a thread that is decoding, and none of another thread."""


@contextmanager
def _warnings_ignored() -> Iterator[None]:
    """Keep Pillow's remarks on malformed metadata, and its pixel bound, from the host's stderr and error filters.

    warnings.catch_warnings would swap the filters of every thread, and put them back in the wrong order when two
    threads overlap. This leaves one filter behind, which matches nothing outside of this block.
    """
    if not warnings.filters or warnings.filters[0][2] is not _Ignored:
        warnings.simplefilter("ignore", _Ignored)
    _decoding.active = True
    try:
        yield
    finally:
        _decoding.active = False


# Pixels


def _upright(image: ImageFile.ImageFile, rgb: Image.Image) -> Image.Image:
    """A copy that shares nothing with the file. TIFF and HEIF arrive upright, and say so in their EXIF by now."""
    turn = None if image.format == "HEIF" else _TURNS.get(_tag(image, Base.Orientation))
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = rgb.copy()
    rgb.info = {}
    return rgb


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        fix = "Save it with 8 or 16 bits a channel."
        raise UnreadableImage(f"{name} has floating-point pixels, of which none is known to be white.", fix=fix)
    if image.mode.startswith("I"):
        return _rgb(_eight_bits(image, name), name)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)  # (height, width), 16 or 32 bits, of either byte order
    if values.min() < 0 or values.max() > 0xFFFF:
        fix = "Save it with 8 or 16 bits a channel."
        raise UnreadableImage(f"{name} has grey values of {values.min()} to {values.max()}, not 16 bits.", fix=fix)
    high = (values >> 8).astype(np.uint8)
    key = image.info.get("transparency")  # PNG tRNS: the grey that is transparent
    return Image.fromarray(high if key is None else np.where(values == key, np.uint8(255), high))


def pixels_digest(rgb: Image.Image) -> str:
    """The sha256 in hex of ``"<width>x<height>:RGB:"`` in ASCII and then the RGB bytes, row by row.

    >>> pixels_digest(Image.new("RGB", (2, 1))) == hashlib.sha256(b"2x1:RGB:" + bytes(6)).hexdigest()
    True
    """
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:RGB:".encode("ascii"))
    rows = max(1, DIGEST_STRIP // rgb.width)  # in strips: Pillow keeps 4 bytes a pixel, so the bytes are a copy
    for top in range(0, rgb.height, rows):
        digest.update(rgb.crop((0, top, rgb.width, min(top + rows, rgb.height))).tobytes())
    return digest.hexdigest()


def _small(rgb: Image.Image) -> Image.Image:
    """What the thumbnail and the hash are made of; the reducing gap saves most of the time and no detail of a hash."""
    scale = min(1.0, SMALL_EDGE / max(rgb.size))
    width, height = (max(1, round(edge * scale)) for edge in rgb.size)
    return rgb.resize((width, height), Resampling.LANCZOS, reducing_gap=2.0)


def _webp(rgb: Image.Image) -> bytes:
    encoded = io.BytesIO()
    rgb.save(encoded, "WEBP", quality=80)
    return encoded.getvalue()


# Perceptual hash


def perceptual_hash(rgb: Image.Image) -> int:
    """The 64-bit pHash of an RGB picture (Zauner 2010): which low frequencies exceed their median.

    The picture is averaged to 32 x 32 grey (ITU-R 601 luma); of its two-dimensional DCT-II the 8 x 8 lowest
    frequencies are compared with the median of all but the mean, whose bit, the highest, is always 0. Re-saving and
    resizing change few bits. A nearly blank picture gives bits of its noise, a blank one 0: see `Picture.detail`.

    >>> perceptual_hash(Image.new("RGB", (100, 80), "white"))
    0
    """
    return _hash(_plane(_small(rgb)))


def hamming(a: int, b: int) -> int:
    """The number of bits in which two hashes differ, 0..64.

    >>> hamming(0b1011, 0b0010)
    2
    """
    return (a ^ b).bit_count()


def _plane(small: Image.Image) -> Plane:  # (32, 32), 0..255
    return np.asarray(small.convert("L").resize((HASH_PLANE, HASH_PLANE), Resampling.BOX), dtype=np.float64)


def _hash(plane: Plane) -> int:
    # Rounded, because what is exactly 0 must not depend on the order in which a processor adds.
    frequencies = np.round(_DCT @ plane @ _DCT.T, 3).ravel()[1:]  # (63,)
    bits = np.concatenate(([False], frequencies > np.median(frequencies)))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _dct(count: int, size: int) -> Plane:
    """The ``count`` lowest rows of the orthonormal DCT-II, (count, size)."""
    k, n = np.ogrid[:count, :size]
    rows: Plane = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct(8, HASH_PLANE)


# EXIF. What cannot be read is absent; it never keeps a picture from being read.


def _tag(image: Image.Image, tag: int, ifd: int | None = None) -> Any:
    try:
        exif = image.getexif()
        return (exif if ifd is None else exif.get_ifd(ifd)).get(tag)
    except Exception:  # noqa: BLE001  # as many kinds as for the pixels, and less is at stake
        return None


def _text(value: object) -> str:
    """Printable text up to a NUL, single-spaced, at most 128 characters; empty for anything else."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    printable = "".join(character if character.isprintable() else " " for character in text.split("\0")[0])
    return " ".join(printable.split())[:128]


def _camera(image: Image.Image) -> str | None:
    make, model = _text(_tag(image, Base.Make)), _text(_tag(image, Base.Model))
    if make and model and not model.casefold().startswith(make.split()[0].casefold()):
        return f"{make} {model}"
    return model or make or None


def _taken_at(image: Image.Image) -> datetime | None:
    text = _text(_tag(image, Base.DateTimeOriginal, IFD.Exif))
    offset = _text(_tag(image, Base.OffsetTimeOriginal, IFD.Exif)) or "Z"
    for zone in (offset, "Z"):  # an offset that means nothing counts as none
        try:
            return datetime.strptime(text + zone, "%Y:%m:%d %H:%M:%S%z").astimezone(UTC)
        except (ValueError, OverflowError):
            continue
    return None


def _position(image: Image.Image) -> tuple[float, float] | tuple[None, None]:
    latitude = _degrees(image, GPS.GPSLatitude, {"N": 1, "S": -1}, 90)
    longitude = _degrees(image, GPS.GPSLongitude, {"E": 1, "W": -1}, 180)
    return (None, None) if latitude is None or longitude is None else (latitude, longitude)


def _degrees(image: Image.Image, tag: int, signs: Mapping[str, int], bound: int) -> float | None:
    side = _text(_tag(image, tag - 1, IFD.GPSInfo)).upper()  # the reference's tag precedes the value's
    try:
        degrees, minutes, seconds = (float(part) for part in _tag(image, tag, IFD.GPSInfo))
        total = signs[side] * (degrees + minutes / 60 + seconds / 3600)
    except (TypeError, ValueError, KeyError, ArithmeticError):
        return None
    whole = degrees >= 0 and 0 <= minutes < 60 and 0 <= seconds < 60 and abs(total) <= bound  # False for a NaN
    return total if whole else None
