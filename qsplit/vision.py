"""Images -> `Features`: the vision half of a checkpoint, loaded alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils import vision_process as qwen
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from qsplit.checkpoint import Checkpoint, default_device, resolve
from qsplit.errors import UnsupportedImage
from qsplit.features import Encoder, Features, Provenance
from qsplit.images import Picture
from qsplit.resize import Resize

__all__ = ["VisionEncoder"]

_LARGEST_ASPECT = 200  # Qwen's preprocessing takes no longer or taller picture


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One image as the model takes it: patches ``(t*h*w, patch values)`` and its grid ``(1, 3)``."""

    pixel_values: torch.Tensor
    grid: torch.Tensor


class VisionEncoder:
    """The vision half of a checkpoint and its image processor.

    >>> encoder = VisionEncoder.from_pretrained()  # the bundled checkpoint
    >>> features, = encoder.encode([Image.new("RGB", (112, 112), "red")])
    >>> features.tokens.shape, features.grid_thw
    (torch.Size([16, 192]), (1, 8, 8))
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, encoder: Encoder, *, resize: Resize) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.provenance = _provenance(checkpoint, model)
        self._model = model
        self._processor = checkpoint.image_processor()
        self._resize = resize

    @classmethod
    def from_pretrained(
        cls,
        model: str = "",
        *,
        revision: str = "",
        device: str = "",
        dtype: str = "",
        attention: str | None = None,
        resize: Resize | None = None,
        cache: str = "~/.cache/qsplit",
    ) -> VisionEncoder:
        """Load the vision half of a folder or hub id (empty: the bundled one), and nothing of the language half.

        ``dtype`` empty is the checkpoint's own, ``device`` empty the best present, ``attention`` transformers'
        ``attn_implementation``. Raises `CheckpointError`.
        """
        checkpoint = resolve(model, "vision", revision=revision, cache=cache)
        encoder = checkpoint.encoder(dtype, resize)
        half = checkpoint.load("vision", dtype=encoder.dtype, device=device or default_device(), attention=attention)
        return cls(checkpoint, half, encoder, resize=resize or Resize())

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def encode(self, images: Sequence[Picture | Image.Image]) -> list[Features]:
        """Features of each image, in order. Each goes through the model by itself: several at once round otherwise.

        A PIL image should be RGB and upright, as `images.decode` makes it; of a picture with a clip, the clip is
        encoded. Raises `UnsupportedImage` for an aspect ratio above 200, and for a video where the family takes none.
        """
        return [self._encode(image) for image in images]

    def encode_video(self, frames: Sequence[Picture | Image.Image], *, sample_fps: float = 2.0) -> Features:
        """Features of a clip, given as frames in order; ``grid_thw`` then has ``t`` > 1 for more than two frames.

        Frames are sized as qwen-vl-utils sizes a list of frames. Raises `UnsupportedImage` as `encode` does.
        """
        self._check_clips()
        rgb = [_rgb(frame) for frame in frames]
        for frame in rgb:
            _check_aspect(frame)
        clip = {"video": rgb, "sample_fps": sample_fps, **self._resize.options()}
        video = fetch_video(clip, image_patch_size=self._processor.patch_size)  # (frames, 3, height, width)
        times = [i / sample_fps for i in range(len(video))]
        return self._forward(self._prepare_video(video, sized=True), times, sample_fps)

    def _encode(self, image: Picture | Image.Image) -> Features:
        if not isinstance(image, Picture) or image.clip is None:
            return self._forward(self._prepare(image))
        self._check_clips()
        _check_aspect(image.rgb)
        clip, sized = image.clip, self._resize.options()
        frames = (torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in clip.frames())
        if sized:  # as qwen-vl-utils sizes a file's frames; else the processor does
            size = self._clip_size(image.rgb.height, image.rgb.width, len(clip.numbers))
            frames = (resize(frame, size, InterpolationMode.BICUBIC, antialias=True).float() for frame in frames)
        prepared = self._prepare_video(torch.stack(list(frames)), sized=bool(sized))
        return self._forward(prepared, clip.timestamps, clip.sample_fps)

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

    def _prepare_video(self, video: torch.Tensor, *, sized: bool) -> _Prepared:
        processor = self.checkpoint.video_processor()
        made = processor(videos=[video], do_resize=not sized, do_sample_frames=False, return_tensors="pt")
        return _Prepared(made["pixel_values_videos"], made["video_grid_thw"])

    def _check_clips(self) -> None:
        if not self.checkpoint.family.clips:
            raise UnsupportedImage(
                f"{self.checkpoint.name} is a {self.checkpoint.family.model_type}, of which no videos are taken.",
                fix="Use a Qwen-VL checkpoint, or leave the video out.",
            )

    def _prepare(self, image: Picture | Image.Image) -> _Prepared:
        rgb = _rgb(image)
        _check_aspect(rgb)
        sized = self._resize.options()
        if sized:  # sized by qwen-vl-utils, as in a message; the processor then only cuts and normalises
            rgb = fetch_image({"image": rgb, **sized}, image_patch_size=self._processor.patch_size)
        made = self._processor(images=[rgb], do_resize=not sized, return_tensors="pt")
        return _Prepared(made["pixel_values"], made["image_grid_thw"])

    def _forward(self, one: _Prepared, timestamps: Sequence[float] = (), sample_fps: float = 0.0) -> Features:
        """Features of an image; a clip passes the same tower, as in the model's ``get_video_features``."""
        device = self._model.device
        with torch.no_grad():
            out = self._model.get_image_features(
                pixel_values=one.pixel_values.to(device, non_blocking=True),
                image_grid_thw=one.grid.to(device),
                return_dict=True,
            )
        t, h, w = one.grid[0].tolist()
        return Features(
            tokens=out.pooler_output[0].cpu().clone(),  # of its own, whatever else the tower's output holds
            grid_thw=(t, h, w),
            encoder=self.encoder,
            levels=tuple(level[0].cpu().clone() for level in getattr(out, "deepstack_features", None) or ()),
            timestamps=tuple(timestamps),
            sample_fps=sample_fps,
        )


def _rgb(image: Picture | Image.Image) -> Image.Image:
    rgb = image.rgb if isinstance(image, Picture) else image
    return rgb if rgb.mode == "RGB" else rgb.convert("RGB")


def _check_aspect(rgb: Image.Image) -> None:
    aspect = max(rgb.size) / min(rgb.size)
    if aspect > _LARGEST_ASPECT:
        raise UnsupportedImage(
            f"A picture of {rgb.width}x{rgb.height} has an aspect ratio of {aspect:.0f}; "
            f"the model takes at most {_LARGEST_ASPECT}.",
            fix="Crop it.",
        )


def _provenance(checkpoint: Checkpoint, model: Any) -> Provenance:
    return Provenance(
        model_id=checkpoint.name,
        model_revision=checkpoint.revision,
        device=_device_name(model.device),
        attention=str(model.config._attn_implementation),  # noqa: SLF001  # it has no public name
        **{name: version(name) for name in ("torch", "transformers", "torchvision", "pillow")},
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
