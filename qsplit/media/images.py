"""Path or bytes -> one decoded, upright, bounded RGB picture, and what identifies it.

    read_bytes    file -> its bytes, whole and unchanged while read, and their sha256
    decode        bytes -> Picture; what the bytes are is decided by their content, never by a suffix
    open_picture  both

Only the first frame of an animation is read; of a video, the frames that `qsplit.media.videos` chooses. Colour follows
qwen-vl-utils, so that features equal the reference's: RGBA is laid on white, and colour profiles are not applied. Every
other kind of transparency is laid on white as well, where the reference shows whatever colour hides beneath it. Grey of
16 bits keeps its high byte, as Pillow does for 16-bit colour; the reference would clip it to white.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.ExifTags import Base
from PIL.Image import Transpose

from qsplit.config import Settings
from qsplit.errors import ImageTooLarge, UnreadableImage
from qsplit.media import exif
from qsplit.media.phash import detail, perceptual_hash, reduced
from qsplit.media.pillow_backend import REPLACE, errors_translated, load, warnings_ignored
from qsplit.media.videos import Clip, is_clip, read_clip

__all__ = [
    "NULL_PIXELS", "STRIP", "SUFFIXES", "Facts", "FileContent", "Limits", "Picture", "check_bytes", "decode",
    "describe", "null_picture", "open_picture", "pixels_digest", "read_bytes", "read_still", "strips",
]  # fmt: skip

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .tif .tiff .bmp .avif .heic .heif .hif"
SUFFIXES = frozenset(_SUFFIXES.split())  # lower case; what a folder walk considers

STRIP = 1 << 18  # pixels copied at a time

_DEFAULTS = Settings()
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of what is read (``max_bytes``) and decoded (``max_pixels``, width x height).

    ``max_frames`` is how many frames of a video are looked at.
    """

    max_bytes: int = _DEFAULTS.max_image_bytes
    max_pixels: int = _DEFAULTS.max_image_pixels
    max_frames: int = _DEFAULTS.max_video_frames

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The bounds that the settings name.

        >>> Limits.from_settings(Settings(max_image_pixels=50_000_000)).max_pixels
        50000000
        """
        return cls(settings.max_image_bytes, settings.max_image_pixels, settings.max_video_frames)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file's bytes with what its folder entry said at that moment; ``image_id`` is their sha256 in hex."""

    data: bytes = field(repr=False)
    size: int
    mtime_ns: int
    image_id: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of its picture beside the pixels; see `Picture`."""

    format: str
    taken_at: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture. ``width`` and ``height`` are of the upright picture; two are equal if their facts are.

    A video is the picture of its middle frame, with the ``clip`` beside it; its ``phash`` says nothing.
    """

    image_id: str  # sha256 hex of the file's bytes
    pixels_digest: str  # see `pixels_digest`
    width: int
    height: int
    format: str  # Pillow's name: "JPEG", "MPO", "PNG", "HEIF", ...
    taken_at: datetime | None  # aware, UTC; a time without an offset is taken as UTC
    camera: str | None
    latitude: float | None  # degrees, WGS84, north positive; both or neither
    longitude: float | None  # degrees, WGS84, east positive
    phash: int  # see `perceptual.perceptual_hash`
    detail: float  # see `perceptual.detail`; near 0: phash says nothing
    thumbnail: bytes = field(repr=False)  # WebP, long edge <= 256 px, no metadata
    rgb: Image.Image = field(repr=False, compare=False)  # mode RGB, upright, without metadata
    clip: Clip | None = field(default=None, repr=False, compare=False)


def open_picture(path: str | os.PathLike[str], limits: Limits) -> Picture:
    """Read and decode one file; raises what `read_bytes` and `decode` raise."""
    content = read_bytes(path, limits)
    return _picture(content.data, content.image_id, os.fspath(path), limits)


def load_image(path: str | os.PathLike[str]) -> Picture:
    """Read one picture as `qsplit index` does: upright, in RGB, within the default bounds.

    Raises what `read_bytes` and `decode` raise.
    """
    return open_picture(path, Limits())


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
    check_bytes(len(data), name, limits)
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
    check_bytes(before.st_size, name, limits)
    with path.open("rb") as file:
        data = file.read(before.st_size + 1)
    if len(data) != before.st_size or _version(path.stat()) != _version(before):
        return None
    return FileContent(data, before.st_size, before.st_mtime_ns, hashlib.sha256(data).hexdigest())


def _version(entry: os.stat_result) -> tuple[int, int, int]:
    return entry.st_size, entry.st_mtime_ns, entry.st_ino


def check_bytes(size: int, name: str, limits: Limits) -> None:
    """Raise `UnreadableImage` for a file of no bytes, `ImageTooLarge` for one beyond ``limits.max_bytes``."""
    if size == 0:
        raise UnreadableImage(f"{name} is empty.", fix=REPLACE)
    if size > limits.max_bytes:
        fix = f"Set QSPLIT_MAX_IMAGE_BYTES={size} to allow it, or leave it out."
        raise ImageTooLarge(f"{name} has {size:,} bytes; the bound is {limits.max_bytes:,}.", fix=fix)


# Pixels


def _picture(data: bytes, image_id: str, name: str, limits: Limits) -> Picture:
    if is_clip(data):
        return _moving_picture(data, image_id, name, limits)
    return describe(image_id, *read_still(data, name=name, max_pixels=limits.max_pixels))


def read_still(data: bytes, *, name: str, max_pixels: int) -> tuple[Facts, Image.Image]:
    """What a file says, and its pixels: upright, in RGB. Raises as `decode` does."""
    with warnings_ignored(), errors_translated(name):
        image = load(data, name=name, max_pixels=max_pixels)
        facts = Facts(image.format or "", exif.taken_at(image), exif.camera(image), *exif.position(image))
        return facts, _upright(image, _rgb(image, name))


def describe(image_id: str, facts: Facts, rgb: Image.Image) -> Picture:
    """The picture of a file whose bytes have this sha256, by what it says and by its upright pixels in RGB."""
    small = reduced(rgb)
    return Picture(
        image_id=image_id,
        pixels_digest=pixels_digest(rgb),
        width=rgb.width,
        height=rgb.height,
        **asdict(facts),
        phash=perceptual_hash(small),
        detail=detail(small),
        thumbnail=_webp(small),
        rgb=rgb,
    )


def _moving_picture(data: bytes, image_id: str, name: str, limits: Limits) -> Picture:
    clip = read_clip(data, name=name, max_frames=limits.max_frames, max_pixels=limits.max_pixels)
    digest = hashlib.sha256(f"{clip.timestamps}:{clip.sample_fps}:".encode("ascii"))
    middle = Image.new("RGB", (1, 1))
    for i, frame in enumerate(clip.frames()):
        digest.update(pixels_digest(frame).encode("ascii"))
        if i == len(clip.numbers) // 2:
            middle = frame
    return Picture(
        image_id=image_id,
        pixels_digest=digest.hexdigest(),
        width=middle.width,
        height=middle.height,
        format=clip.format,
        taken_at=clip.taken_at,
        camera=None,
        latitude=None,
        longitude=None,
        phash=0,
        detail=0.0,  # no still is a copy of a clip, and two clips are not one for a frame that they share
        thumbnail=_webp(reduced(middle)),
        rgb=middle,
        clip=clip,
    )


def _upright(image: ImageFile.ImageFile, rgb: Image.Image) -> Image.Image:
    """A copy that shares nothing with the file. TIFF and HEIF arrive upright, and say so in their EXIF by now."""
    turn = None if image.format == "HEIF" else _TURNS.get(exif.tag(image, Base.Orientation))
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
    for strip in strips(rgb):
        digest.update(strip)
    return digest.hexdigest()


def strips(rgb: Image.Image) -> Iterator[bytes]:
    """The RGB bytes of a picture, some whole rows at a time: Pillow keeps 4 bytes a pixel, so that all are a copy."""
    rows = max(1, STRIP // rgb.width)
    for top in range(0, rgb.height, rows):
        yield rgb.crop((0, top, rgb.width, min(top + rows, rgb.height))).tobytes()


def null_picture() -> Image.Image:
    """A picture that shows nothing, for what a model would say whatever it is shown: grey, 224 x 224."""
    return Image.new("RGB", (224, 224), (128, 128, 128))


NULL_PIXELS = pixels_digest(null_picture())


def _webp(rgb: Image.Image) -> bytes:
    encoded = io.BytesIO()
    rgb.save(encoded, "WEBP", quality=80)
    return encoded.getvalue()
