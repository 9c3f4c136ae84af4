"""What a file holds that its decoded first frame does not show, so that one file can stand for another.

Features are a function of upright RGB pixels laid on white; a person wants more of a file: all frames or pages and
their timing, transparency, 16-bit values, the colour profile, sound, and data behind the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.ExifTags import IFD, Base

from qsplit.errors import ImageTooLarge
from qsplit.media import exif
from qsplit.media.appended import appended
from qsplit.media.images import Limits, read_bytes
from qsplit.media.pillow_backend import errors_translated, opened, warnings_ignored
from qsplit.media.videos import is_clip, opened_clip

__all__ = ["Content", "differences", "fraction_of", "read_content"]

_PLAIN = ("RGB", "L")  # modes of which 8 bits a channel are all that there is
_BITS_PER_SAMPLE = 258  # a TIFF tag
_PIXELS = 1 << 31  # of all frames together: what is compared
_CACHED = 4096  # files


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds beside the pixels of its first frame. Durations are in milliseconds; the rest are digests.

    ``frames_digest`` is of every frame or page as it is stored, and empty where the first one in RGB tells all.
    """

    frames: int
    durations: tuple[int, ...]
    mode: str
    alpha: bool
    bits: int
    profile: str
    audio: str
    appended: str
    frames_digest: str


_CALLED = {
    "frames": "number of frames or pages",
    "durations": "durations",
    "mode": "mode",
    "alpha": "transparency",
    "bits": "bit depth",
    "profile": "colour profile",
    "audio": "audio",
    "appended": "data behind the picture",
    "frames_digest": "frames, pages or values as stored",
}


def differences(one: Content, other: Content) -> list[str]:
    """Return in words what two files do not agree in.

    >>> plain = Content(1, (), "RGB", False, 8, "", "", "", "")
    >>> differences(plain, Content(2, (), "RGB", False, 8, "", "", "", "x"))
    ['number of frames or pages', 'frames, pages or values as stored']
    """
    names = (field.name for field in fields(Content))
    return [_CALLED[name] for name in names if getattr(one, name) != getattr(other, name)]


def read_content(path: str, limits: Limits) -> Content:
    """Read what a file holds; remembered for as long as the file is unchanged.

    Raises `UnreadableImage` or `ImageTooLarge` for what cannot be read, and `OSError` for a file that is not there.
    """
    stat = Path(path).stat()
    return _read(path, limits, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


def fraction_of(path: str) -> str:
    """Return the sub-seconds of the time that a picture was taken at, as decimal digits; empty if it has none.

    Raises `OSError` or `UnreadableImage`.
    """
    with Path(path).open("rb") as file, warnings_ignored(), errors_translated(path):
        head = file.read(16)
        if is_clip(head):
            return ""
        with opened(head + file.read(), path) as image:
            digits = str(exif.tag(image, Base.SubsecTimeOriginal, IFD.Exif) or "").strip().strip("\0").strip()
    return digits.rstrip("0") or "0" if digits.isdecimal() else ""


@lru_cache(maxsize=_CACHED)
def _read(path: str, limits: Limits, _version: tuple[int, ...]) -> Content:
    data = read_bytes(path, limits).data
    if is_clip(data):
        return _of_clip(data, path)
    with warnings_ignored(), errors_translated(path), opened(data, path) as image:
        return _of_image(data, image, path)


def _of_image(data: bytes, image: ImageFile.ImageFile, name: str) -> Content:
    frames, bits = int(getattr(image, "n_frames", 1)), _bits(data, image)
    if frames * image.width * image.height > _PIXELS:
        raise ImageTooLarge(f"{name} has {frames} frames or pages, too many to compare.", fix="Compare them by hand.")
    mode, alpha, extra = image.mode, image.has_transparency_data, appended(data, image)
    profile = _profile(image)
    durations: tuple[int, ...] = ()
    frames_digest = ""
    if frames > 1 or alpha or mode not in _PLAIN or bits > 8:
        durations, frames_digest = _frames(data, image, frames, bits)
    return Content(frames, durations, mode, alpha, bits, profile, "", extra, frames_digest)


def _frames(data: bytes, image: ImageFile.ImageFile, frames: int, bits: int) -> tuple[tuple[int, ...], str]:
    """How long each frame is shown, and a digest of all of them as they are stored."""
    digest, durations = hashlib.sha256(str(exif.tag(image, Base.Orientation)).encode()), []
    for number in range(frames):
        image.seek(number)
        image.load()
        durations.append(round(float(image.info.get("duration") or 0)))
        if bits > 8 and not image.mode.startswith(("I", "F")):
            digest.update(data)  # Pillow drops the low bits: only the same bytes are known to be the same picture
        for piece in _values(image):
            digest.update(piece)
    return tuple(durations) if any(durations) else (), digest.hexdigest()


def _values(image: Image.Image) -> Iterator[bytes]:
    """The values of a frame, palettes looked up, row by row."""
    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = image.convert("RGBA")
    values = np.asarray(image)
    if values.dtype.kind in "iu":
        values = values.astype(np.int64 if values.dtype.itemsize > 1 else np.uint8)  # of either byte order
    yield f"{image.mode.partition(';')[0]}:{values.shape}".encode()
    for row in values:
        yield np.ascontiguousarray(row).tobytes()


def _bits(data: bytes, image: ImageFile.ImageFile) -> int:
    """Bits a channel, as the file says."""
    if image.format == "PNG":
        return data[24] if image.mode not in ("P", "1") else 8
    if image.format == "TIFF":
        found = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
        return max(8, *map(int, found if isinstance(found, tuple) else (found,)))
    if image.format == "AVIF":
        place = data.find(b"av1C", 0, 1 << 16)
        flags = data[place + 6] if place >= 0 else 0
        return 12 if flags & 0x20 else 10 if flags & 0x40 else 8
    return int(image.info.get("bit_depth") or 8)


def _of_clip(data: bytes, name: str) -> Content:
    """The streams of a film as they are stored: a container may differ, no frame and no sound may."""
    with opened_clip(data, name) as (container, video):
        return _streams(container, video)


def _streams(container: Any, video: Any) -> Content:
    mode, length = str(video.format.name), round((container.duration or 0) / 1000)
    pictures, others, frames = hashlib.sha256(), hashlib.sha256(), 0
    for packet in container.demux():
        if packet.stream is video:
            frames += 1 if packet.size else 0
            pictures.update(bytes(packet))
        else:
            others.update(f"{packet.stream.type}:".encode() + bytes(packet))
    bits = max((component.bits for component in video.format.components), default=8)
    audio = others.hexdigest() if len(container.streams) > 1 else ""
    alpha = any(component.is_alpha for component in video.format.components)
    return Content(frames, (length,), mode, alpha, bits, "", audio, "", pictures.hexdigest())


def _profile(image: Image.Image) -> str:
    """A digest of the ICC profile, or of the colour description that HEIF has in its place; empty without either."""
    profile, described = image.info.get("icc_profile") or b"", image.info.get("nclx_profile")
    said = profile + (repr(described).encode() if described else b"")
    return hashlib.sha256(said).hexdigest() if said else ""
