"""Pillow at arm's length: bytes -> an image with its pixels, by the few plugins that are trusted with any file.

    formats            which they are
    load               opens by content, refuses too many pixels before it decodes any
    errors_translated  whatever Pillow raises -> `UnreadableImage` or `ImageTooLarge`
    warnings_ignored   whatever Pillow warns of -> nothing

What Pillow keeps for the whole process, its pixel bound and the filters of warnings, is left to the host program.
"""

from __future__ import annotations

import importlib
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image, ImageFile
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile

from qsplit.errors import ImageTooLarge, QsplitError, UnreadableImage

__all__ = ["REPLACE", "errors_translated", "formats", "load", "opened", "warnings_ignored"]

REPLACE = "Replace it with a good copy, or leave it out."  # what to do about a file that is no picture

# Of Pillow's forty formats only these are given a file. Its JPEG plugin also opens MPO, as phones write.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
_HEIF_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())

Opener = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]


def formats() -> tuple[str, ...]:
    """The formats that can be decoded here, by Pillow's names; HEIF only where pillow-heif is installed.

    >>> formats()[:2]
    ('JPEG', 'PNG')
    """
    return (*_FORMATS, "HEIF") if _heif_opener() else _FORMATS


def load(data: bytes, *, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """The first frame with its pixels and its EXIF, in its file's own mode; ``name`` is what messages call it.

    Raises `ImageTooLarge` beyond ``max_pixels`` (width x height), before any pixel is decoded, `UnreadableImage` where
    no plugin takes the bytes, and whatever a plugin raises, to be called inside of `errors_translated`.

    >>> data = io.BytesIO()
    >>> Image.new("L", (3, 2)).save(data, "PNG")
    >>> image = load(data.getvalue(), name="grey.png", max_pixels=6)
    >>> image.format, image.mode, image.size
    ('PNG', 'L', (3, 2))
    """
    image = opened(data, name)
    _check_pixels(image.size, name, max_pixels)
    _check_tile(image, name)
    image.load()
    _check_pixels(image.size, name, max_pixels)  # a HEIF header need not tell the truth
    return image


def opened(data: bytes, name: str) -> ImageFile.ImageFile:
    """The picture with its header read and no pixels; raises as `load` does.

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
    raise UnreadableImage(f"{name} is no picture in a known format: {', '.join(formats())}.", fix=REPLACE)


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


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage(f"{name} says that it is {width}x{height} pixels.", fix=REPLACE)
    if width * height > max_pixels:
        fix = f"Set QSPLIT_MAX_IMAGE_PIXELS={width * height} to allow it, or leave it out."
        raise ImageTooLarge(f"{name} is {width}x{height} pixels; the bound is {max_pixels:,}.", fix=fix)


def _check_tile(image: ImageFile.ImageFile, name: str) -> None:
    """Refuse a TIFF whose tiles are far larger than itself: libtiff takes memory for a whole one."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    width, height = tags.get(Base.TileWidth, 0), tags.get(Base.TileLength, 0)
    if width * height > 4 * max(1 << 20, image.width * image.height):
        raise ImageTooLarge(f"{name} has tiles of {width}x{height} pixels, far larger than itself.", fix=REPLACE)


@contextmanager
def errors_translated(name: str) -> Iterator[None]:
    """Raise whatever is raised inside as an `ImageError` that calls the picture ``name``.

    >>> with errors_translated("a.png"):  # doctest: +ELLIPSIS
    ...     raise SyntaxError("not a PNG file")
    Traceback (most recent call last):
    qsplit.errors.UnreadableImage: a.png cannot be decoded (SyntaxError: not a PNG file). Replace it ...
    """
    try:
        yield
    except QsplitError:
        raise
    except Image.DecompressionBombError as error:  # some plugins ask Pillow's own bound, Image.MAX_IMAGE_PIXELS
        raise ImageTooLarge(f"{name} is too large for Pillow: {error}", fix="Save a smaller copy.") from error
    except Exception as error:  # hostile bytes have brought out every kind
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UnreadableImage(f"{name} cannot be decoded ({reason}).", fix=REPLACE) from error


class _Decoding(threading.local):
    active = False


_decoding = _Decoding()


class _OnlyWhileDecoding(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _decoding.active


class _Ignored(Warning, metaclass=_OnlyWhileDecoding):
    """Every warning of a thread that is decoding, and none of another thread."""


@contextmanager
def warnings_ignored() -> Iterator[None]:
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
