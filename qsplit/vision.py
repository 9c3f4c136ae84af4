"""Images -> `Features`: the vision half of a checkpoint, loaded alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
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
from qsplit.grids import LINES, PATCHES
from qsplit.images import Picture
from qsplit.resize import Resize
from qsplit.tiles import grid_of_lines, grid_of_tiles, side_of

__all__ = ["VisionEncoder"]

_LARGEST_ASPECT = 200  # Qwen's preprocessing takes no longer or taller picture


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One image as the model takes it, and what its processor made beside; sizes are in pixels, before resizing."""

    made: Mapping[str, Any]
    height: int
    width: int


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
        encoded. Raises `UnsupportedImage` for an aspect ratio above 200, for a picture so narrow that pieces of it hold
        nothing, and for a video where the family takes none.
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
        # A clip passes the same tower as a picture, as in the model's ``get_video_features``.
        inputs = {"pixel_values": made["pixel_values_videos"], "image_grid_thw": made["video_grid_thw"]}
        return _Prepared(inputs, *video.shape[-2:])

    def _check_clips(self) -> None:
        if not self.checkpoint.family.clips:
            raise UnsupportedImage(
                f"{self.checkpoint.name} is a {self.checkpoint.family.model_type}, of which no videos are taken.",
                fix="Use a Qwen-VL checkpoint, or leave the video out.",
            )

    def _prepare(self, image: Picture | Image.Image) -> _Prepared:
        rgb = _rgb(image)
        _check_aspect(rgb)
        sized, options = self._resize.options(), self.checkpoint.family.options
        if self.checkpoint.family.layout == PATCHES:
            options = {"do_resize": not sized}
        if sized:  # sized by qwen-vl-utils, as in a message; the processor then only cuts and normalises
            rgb = fetch_image({"image": rgb, **sized}, image_patch_size=self._processor.patch_size)
        made = self._processor(images=[rgb], **options, return_tensors="pt")
        return _Prepared(made, rgb.height, rgb.width)

    def _forward(self, one: _Prepared, timestamps: Sequence[float] = (), sample_fps: float = 0.0) -> Features:
        device, look = self._model.device, self._model.get_image_features
        taken = [name for name in signature(look).parameters if name in one.made]
        with torch.no_grad():
            out = look(**{name: one.made[name].to(device, non_blocking=True) for name in taken}, return_dict=True)
        seen = out.pooler_output  # a tensor (tiles, tokens, width), or one (tokens, width) for each picture
        tokens = (seen.flatten(0, 1) if isinstance(seen, torch.Tensor) else seen[0]).cpu()
        return Features(
            tokens=tokens.clone(),  # of its own, whatever else the tower's output holds
            grid_thw=self._grid(one, tokens),
            encoder=self.encoder,
            levels=tuple(level[0].cpu().clone() for level in getattr(out, "deepstack_features", None) or ()),
            timestamps=tuple(timestamps),
            sample_fps=sample_fps,
        )

    def _grid(self, one: _Prepared, tokens: torch.Tensor) -> tuple[int, int, int]:
        layout = self.checkpoint.family.layout
        if layout == PATCHES:
            t, h, w = one.made["image_grid_thw"][0].tolist()
            return t, h, w
        side = side_of(self.checkpoint.config, self.encoder.merge_size)
        if layout == LINES:
            return grid_of_lines(tokens, self._model.model.image_newline.cpu(), side)
        return grid_of_tiles(one.made, self._processor, one.height, one.width, side)


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
