"""Images -> what the model takes: sized, normalised, cut into patches, in the model's dtype. Needs no weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils import vision_process as qwen
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from qsplit.errors import UnsupportedImage
from qsplit.features.layouts import PATCHES
from qsplit.features.patch_digest import Scale
from qsplit.features.sizing import Resize
from qsplit.media.images import Picture, strips
from qsplit.media.videos import Clip
from qsplit.models.checkpoint import Checkpoint

__all__ = ["Prepared", "Preparer"]

_LARGEST_ASPECT = 200  # Qwen's preprocessing takes no longer or taller picture

if hasattr(os, "register_at_fork"):
    # After a fork torch makes its thread pool anew when it is first used, and breaks if two threads do that at once.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One image or video as the model takes it, and what its processor made beside.

    ``made`` of a family of patches holds ``pixel_values`` ``(t*h*w, patch values)`` and ``image_grid_thw`` ``(1, 3)``.
    ``height`` and ``width`` are in pixels, before resizing; of a video there is also when each frame was, in seconds,
    and how many were taken of a second. ``shown`` is the digest of a picture's patches
    (`qsplit.features.patch_digest`).
    """

    made: Mapping[str, Any]
    height: int
    width: int
    timestamps: tuple[float, ...] = ()
    sample_fps: float = 0.0
    shown: str = ""

    def __len__(self) -> int:
        """Patches, of what may share a pass with others."""
        return len(self.made["pixel_values"])


class Preparer:
    """A checkpoint's image and video processor with the sizes asked for; may be used from several threads at once."""

    def __init__(self, checkpoint: Checkpoint, resize: Resize, dtype: str) -> None:
        self._checkpoint, self._resize = checkpoint, resize
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._processor = checkpoint.image_processor()
        self._patches = checkpoint.family.layout == PATCHES
        self._scale = Scale.of(self._processor)

    def prepare(self, image: Picture | Image.Image) -> Prepared:
        """An image, which should be RGB and upright; of a picture with a clip, the clip.

        Raises `UnsupportedImage` for an aspect ratio above 200, and for a video where the family takes none.
        """
        rgb = _rgb(image)
        if isinstance(image, Picture) and image.clip is not None:
            self._check_clips()
            _check_aspect(rgb)
            return self._clip(image.clip, rgb.height, rgb.width)
        _check_aspect(rgb)
        sized, options = self._resize.options(), dict[str, Any](self._checkpoint.family.options)
        if self._patches:
            options = {"do_resize": not sized, "input_data_format": "channels_first"}
        if sized:  # sized by qwen-vl-utils, as in a message; the processor then only cuts and normalises
            rgb = fetch_image({"image": rgb, **sized}, image_patch_size=self._processor.patch_size)
        made = self._processor(images=[_planes(rgb) if self._patches else rgb], **options, return_tensors="pt")
        if not self._patches:
            return Prepared(made, rgb.height, rgb.width)
        shown = self._scale.digest(made["pixel_values"], made["image_grid_thw"][0].tolist())
        made["pixel_values"] = made["pixel_values"].to(self._dtype)  # as the model would: half the bytes wait
        return Prepared(made, rgb.height, rgb.width, shown=shown)

    def prepare_frames(self, frames: Sequence[Picture | Image.Image], sample_fps: float) -> Prepared:
        """A clip given as frames in order, sized as qwen-vl-utils sizes a list of frames."""
        self._check_clips()
        rgb = [_rgb(frame) for frame in frames]
        for frame in rgb:
            _check_aspect(frame)
        clip = {"video": rgb, "sample_fps": sample_fps, **self._resize.options()}
        video = fetch_video(clip, image_patch_size=self._processor.patch_size)  # (frames, 3, height, width)
        return self._video(video, tuple(i / sample_fps for i in range(len(video))), sample_fps, sized=True)

    def _clip(self, clip: Clip, height: int, width: int) -> Prepared:
        sized = bool(self._resize.options())
        frames = (torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in clip.frames())
        if sized:  # as qwen-vl-utils sizes a file's frames; else the processor does
            size = self._clip_size(height, width, len(clip.numbers))
            frames = (resize(frame, size, InterpolationMode.BICUBIC, antialias=True).float() for frame in frames)
        return self._video(torch.stack(list(frames)), clip.timestamps, clip.sample_fps, sized=sized)

    def _clip_size(self, height: int, width: int, n: int) -> list[int]:
        """The height and width that each of ``n`` frames is resized to."""
        wanted = self._resize
        factor = self._processor.patch_size * qwen.SPATIAL_MERGE_SIZE
        if wanted.resized_height and wanted.resized_width:
            return [*qwen.smart_resize(wanted.resized_height, wanted.resized_width, factor)]
        least = wanted.min_pixels or qwen.VIDEO_MIN_TOKEN_NUM * factor**2
        if not wanted.min_pixels and (wanted.max_pixels or least) < least:  # as for pictures, whose least is less
            least = qwen.IMAGE_MIN_TOKEN_NUM * factor**2
        room = qwen.MODEL_SEQ_LEN * factor**2 * 0.9 / n * qwen.FRAME_FACTOR  # of the context, for each pair of frames
        most = max(min(qwen.VIDEO_MAX_TOKEN_NUM * factor**2, room), int(1.05 * least))
        return [*qwen.smart_resize(height, width, factor, least, min(wanted.max_pixels or most, most))]

    def _video(self, video: torch.Tensor, times: tuple[float, ...], sample_fps: float, *, sized: bool) -> Prepared:
        processor = self._checkpoint.video_processor()
        made = processor(videos=[video], do_resize=not sized, do_sample_frames=False, return_tensors="pt")
        # A clip passes the same tower as a picture, as in the model's ``get_video_features``.
        inputs = {
            "pixel_values": made["pixel_values_videos"].to(self._dtype),
            "image_grid_thw": made["video_grid_thw"],
        }
        height, width = video.shape[-2:]
        return Prepared(inputs, height, width, times, sample_fps)

    def _check_clips(self) -> None:
        family = self._checkpoint.family
        if not family.clips:
            raise UnsupportedImage(
                f"{self._checkpoint.name} is a {family.model_type}, of which no videos are taken.",
                fix="Use a Qwen-VL checkpoint, or leave the video out.",
            )


def _rgb(image: Picture | Image.Image) -> Image.Image:
    rgb = image.rgb if isinstance(image, Picture) else image
    return rgb if rgb.mode == "RGB" else rgb.convert("RGB")


def _planes(rgb: Image.Image) -> torch.Tensor:
    """The pixels as the processor has them: uint8 ``(3, height, width)``.

    Left to itself it takes twice the memory: Pillow makes all bytes in pieces and joins them.
    """
    planes, top = torch.empty((3, rgb.height, rgb.width), dtype=torch.uint8), 0
    for strip in strips(rgb):
        rows = torch.frombuffer(bytearray(strip), dtype=torch.uint8).view(-1, rgb.width, 3).permute(2, 0, 1)
        planes[:, top : top + rows.shape[1]] = rows
        top += rows.shape[1]
    return planes


def _check_aspect(rgb: Image.Image) -> None:
    aspect = max(rgb.size) / min(rgb.size)
    if aspect > _LARGEST_ASPECT:
        raise UnsupportedImage(
            f"A picture of {rgb.width}x{rgb.height} has an aspect ratio of {aspect:.0f}; "
            f"the model takes at most {_LARGEST_ASPECT}.",
            fix="Crop it.",
        )
