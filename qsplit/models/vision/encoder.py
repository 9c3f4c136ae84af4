"""Images -> `Features`: the vision half of a checkpoint, loaded alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from PIL import Image

from qsplit.concurrency import ahead
from qsplit.features.features import PACKED, PLAIN, Encoder, Features, Making, Provenance
from qsplit.features.layouts import LINES, PATCHES
from qsplit.features.sizing import Resize
from qsplit.media.images import Picture
from qsplit.memory import keep_freed_memory
from qsplit.models.checkpoint import Checkpoint, default_device, resolve
from qsplit.models.vision.packing import TOGETHER, attend, attention_of, budget_of, packs
from qsplit.models.vision.preprocessing import Prepared, Preparer
from qsplit.models.vision.tiling import grid_of_lines, grid_of_tiles, side_of

__all__ = ["VisionEncoder"]


class VisionEncoder:
    """The vision half of a checkpoint and its image processor.

    >>> encoder = VisionEncoder.from_pretrained()  # the bundled checkpoint
    >>> features, = encoder.encode([Image.new("RGB", (112, 112), "red")])
    >>> features.tokens.shape, features.grid_thw
    ((16, 192), (1, 8, 8))
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, encoder: Encoder, *, resize: Resize) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.provenance = _provenance(checkpoint, model)
        self.making = Making(model.device.type, self.provenance.attention)
        self.budget = budget_of(model.device) if encoder.compute == PACKED else 0  # patches a pass; 0: one picture
        self._model = model
        self._preparer = Preparer(checkpoint, resize, encoder.dtype)
        if model.device.type == "cpu":
            keep_freed_memory()

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
        compute: str = PLAIN,
        cache: str = "~/.cache/qsplit",
    ) -> VisionEncoder:
        """Load the vision half of a folder or hub id (empty: the bundled one), and nothing of the language half.

        ``dtype`` empty is the checkpoint's own, ``device`` empty the best present, ``attention`` transformers'
        ``attn_implementation``. ``compute`` is ``plain``, picture by picture with the unsplit model's bits, or
        ``packed``, several in one pass: faster, another encoder, and answers over it are not exact. On a CPU, the
        process keeps some of the memory that it frees from now on (`qsplit.memory`). Raises `CheckpointError`, and
        `UsageError` for a dtype or way of computing that there is not.
        """
        checkpoint = resolve(model, "vision", revision=revision, cache=cache)
        encoder = checkpoint.encoder(dtype, resize, compute)
        device = device or default_device()
        if compute == PACKED and attention is None:
            attention = attention_of(torch.device(device), getattr(torch, encoder.dtype))
        own = attention == TOGETHER
        half = checkpoint.load("vision", dtype=encoder.dtype, device=device, attention=None if own else attention)
        if own:
            attend(half, TOGETHER)
        return cls(checkpoint, half, encoder, resize=resize or Resize())

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def encode(self, images: Sequence[Picture | Image.Image]) -> list[Features]:
        """Features of each image, in order; one goes through the model while the next are prepared on other threads.

        A PIL image should be RGB and upright, as `images.decode` makes it; of a picture with a clip, the clip is
        encoded. Raises `UnsupportedImage` for an aspect ratio above 200, for a picture so narrow that pieces of it hold
        nothing, and for a video where the family takes none.
        """
        return self.encode_prepared(future.result() for _, future in ahead(self.prepare, images))

    def encode_prepared(self, prepared: Iterable[Prepared]) -> list[Features]:
        """Features of what `prepare` made, in order."""
        return [features for pack in packs(prepared, self.budget) for features in self._forward(pack)]

    def encode_video(self, frames: Sequence[Picture | Image.Image], *, sample_fps: float = 2.0) -> Features:
        """Features of a clip, given as frames in order; ``grid_thw`` then has ``t`` > 1 for more than two frames.

        Frames are sized as qwen-vl-utils sizes a list of frames. Raises `UnsupportedImage` as `encode` does.
        """
        (features,) = self._forward([self._preparer.prepare_frames(frames, sample_fps)])
        return features

    def prepare(self, image: Picture | Image.Image) -> Prepared:
        """What `encode` does to an image before the model sees it, on any thread. Raises `UnsupportedImage`."""
        return self._preparer.prepare(image)

    def _forward(self, pack: Sequence[Prepared]) -> list[Features]:
        """Features of each image; a clip passes the same tower, as in the model's ``get_video_features``."""
        device, look = self._model.device, self._model.get_image_features
        taken = [name for name in signature(look).parameters if name in pack[0].made]
        inputs = {name: torch.cat([one.made[name] for one in pack]).to(device, non_blocking=True) for name in taken}
        with torch.no_grad():
            out = look(**inputs, return_dict=True)
        seen = out.pooler_output  # a tensor (tiles, tokens, width), or one (tokens, width) for each picture
        each = [seen.flatten(0, 1)] if isinstance(seen, torch.Tensor) else seen
        deepstack = getattr(out, "deepstack_features", None) or ()
        return [
            self._features(one, tokens.cpu(), [level[i] for level in deepstack])
            for i, (one, tokens) in enumerate(zip(pack, each, strict=True))
        ]

    def _features(self, one: Prepared, tokens: torch.Tensor, levels: Iterable[torch.Tensor]) -> Features:
        return Features.from_torch(
            [
                tokens.clone(),
                *(level.cpu().clone() for level in levels),
            ],  # of their own, whatever else the output holds
            self._grid(one, tokens),
            self.encoder,
            timestamps=one.timestamps,
            sample_fps=one.sample_fps,
            making=self.making,
        )

    def _grid(self, one: Prepared, tokens: torch.Tensor) -> tuple[int, int, int]:
        layout = self.encoder.layout
        if layout == PATCHES:
            t, h, w = one.made["image_grid_thw"][0].tolist()
            return t, h, w
        side = side_of(self.checkpoint.config, self.encoder.merge_size)
        if layout == LINES:
            return grid_of_lines(tokens, self._model.model.image_newline.cpu(), side)
        return grid_of_tiles(one.made, self.checkpoint.image_processor(), one.height, one.width, side)


def _provenance(checkpoint: Checkpoint, model: Any) -> Provenance:
    attention = str(model.config._attn_implementation)  # noqa: SLF001  # it has no public name
    return checkpoint.provenance(device=_device_name(model.device), attention=attention)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
