"""The bytes of a video file -> which of its frames a model is shown, when each was, and the frames themselves.

Frames are chosen as qwen-vl-utils chooses them: two a second, four at least, evenly from the first to the last. A clip
is decoded as often as its frames are asked for, and never more than one frame of it is in memory.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from qsplit.errors import ImageTooLarge, UnreadableImage
from qsplit.media.pillow_backend import REPLACE

__all__ = ["CLIP_SUFFIXES", "Clip", "is_clip", "opened_clip", "read_clip"]

CLIP_SUFFIXES = frozenset([".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".mpg", ".mpeg"])  # lower case

_STILL_BRANDS = (b"hei", b"hev", b"mif", b"msf", b"avif", b"avis")  # of pictures in the box format of MP4
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MPEG = b"\x00\x00\x01\xba"


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A video file's bytes, and which frames are taken of it: their numbers, and when each was, in seconds.

    ``sample_fps`` is how many are taken of a second; ``format`` is the container's name in capitals.
    """

    data: bytes = field(repr=False)
    name: str
    format: str
    numbers: tuple[int, ...]
    timestamps: tuple[float, ...]
    sample_fps: float
    taken_at: datetime | None

    def frames(self) -> Iterator[Image.Image]:
        """The chosen frames, upright, in RGB. Raises `UnreadableImage`."""
        wanted = iter(self.numbers)
        number = next(wanted)
        for i, frame in enumerate(_decoded(self.data, self.name)):
            while i == number:
                yield _upright(frame)
                number = next(wanted, -1)
            if number < 0:
                return
        raise UnreadableImage(f"{self.name} ends before its frame {number}.", fix=REPLACE)


def is_clip(data: bytes) -> bool:
    """Whether bytes begin as a video file does.

    >>> is_clip(bytes(4) + b"ftypisom"), is_clip(bytes(4) + b"ftypheic"), is_clip(b"RIFF1234AVI ")
    (True, False, True)
    """
    if data[4:8] in _BOXES:
        return not data[8:12].startswith(_STILL_BRANDS)
    return data.startswith((_MATROSKA, _MPEG)) or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def read_clip(data: bytes, *, name: str, max_frames: int, max_pixels: int) -> Clip:
    """Choose at most ``max_frames`` frames of a video file; ``name`` is what messages call it.

    Raises `ImageTooLarge` for frames of more than ``max_pixels``, before any is decoded, and `UnreadableImage` for what
    cannot be decoded, has fewer than two frames, or needs PyAV where that is not installed.
    """
    with opened_clip(data, name) as (container, stream):
        if stream.width * stream.height > max_pixels:
            fix = f"Set QSPLIT_MAX_IMAGE_PIXELS={stream.width * stream.height} to allow it, or leave it out."
            raise ImageTooLarge(f"{name} is {stream.width}x{stream.height}; the bound is {max_pixels:,}.", fix=fix)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        made = _made_at({**container.metadata, **stream.metadata})
        kind = container.format.name.split(",")[0].upper()
    # What a container says of its length may be wrong, and packets may hold no frame or two.
    total = sum(1 for _ in _decoded(data, name))
    if total < 2 or fps <= 0:
        raise UnreadableImage(f"{name} has {total} frames at {fps:g} a second, which is no video.", fix=REPLACE)
    numbers = _chosen(total, fps, max_frames)
    times = tuple(number / fps for number in numbers)
    return Clip(data, name, kind, numbers, times, len(numbers) / total * fps, made)


def _chosen(total: int, fps: float, max_frames: int) -> tuple[int, ...]:
    """The numbers of the frames that are shown. Whoever reads only stills never waits for torch."""
    qwen, torch = (importlib.import_module(name) for name in ("qwen_vl_utils.vision_process", "torch"))
    n = qwen.smart_nframes({"max_frames": max(2, max_frames)}, total_frames=total, video_fps=fps)
    return tuple(torch.linspace(0, total - 1, n).round().long().tolist())


@contextmanager
def opened_clip(data: bytes, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever PyAV raises meanwhile is an `UnreadableImage`."""
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise UnreadableImage(f"{name} is a video, which needs PyAV.", fix="pip install 'qsplit[video]'") from None
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise UnreadableImage(f"{name} holds no video stream.", fix=REPLACE)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableImage(f"{name} cannot be decoded: {error}.", fix=REPLACE) from error


def _decoded(data: bytes, name: str) -> Iterator[Any]:
    with opened_clip(data, name) as (container, stream):
        yield from container.decode(stream)


def _upright(frame: Any) -> Image.Image:
    """Phones record lying frames, and say by how much a player is to turn them."""
    image: Image.Image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, -90: Image.Transpose.ROTATE_270}
    turn = turns.get(frame.rotation, Image.Transpose.ROTATE_180 if abs(frame.rotation) == 180 else None)
    return image if turn is None else image.transpose(turn)


def _made_at(metadata: dict[str, str]) -> datetime | None:
    try:
        made = datetime.fromisoformat(metadata.get("creation_time", ""))
    except ValueError:
        return None
    return made if made.tzinfo else made.replace(tzinfo=UTC)
