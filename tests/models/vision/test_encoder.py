"""The vision half: sizes as in qwen-vl-utils' messages, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, make_checkpoint, unsplit
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoImageProcessor, AutoVideoProcessor

from qsplit.errors import UnsupportedImage
from qsplit.features.features import Features
from qsplit.features.sizing import Resize
from qsplit.media.images import Limits, open_picture
from qsplit.models.vision.encoder import VisionEncoder

SIZES: list[dict[str, int]] = [
    {"max_pixels": 112 * 112},
    {"min_pixels": 150 * 150},
    {"min_pixels": 56 * 56, "max_pixels": 84 * 140},
    {"resized_height": 84, "resized_width": 168},
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sha(features: Features) -> str:
    return features.to_payload().sha256


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("vision") / request.param, request.param)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_mean_what_they_mean_in_a_message(checkpoint: Path, size: dict[str, int]) -> None:
    """The published recipe (process_vision_info, then the processor without its own resize) gives the same bits."""
    image = noise(200, 120)
    processor: Any = AutoImageProcessor.from_pretrained(checkpoint)
    message = {"role": "user", "content": [{"type": "image", "image": image, **size}]}
    images, _ = process_vision_info([message], image_patch_size=processor.patch_size)
    inputs = processor(images=images, do_resize=False, return_tensors="pt")
    with torch.no_grad():
        expected = unsplit(checkpoint, "bfloat16").get_image_features(**inputs).pooler_output[0]
    (features,) = VisionEncoder.from_pretrained(str(checkpoint), resize=Resize(**size)).encode([image])
    assert features.grid_thw == tuple(inputs["image_grid_thw"][0].tolist())
    assert torch.equal(features.to_torch()[0], expected)


@pytest.mark.parametrize("size", [{}, {"resized_height": 64, "resized_width": 96}], ids=str)
def test_frames_are_read_as_in_a_message(checkpoint: Path, size: dict[str, int]) -> None:
    frames = [noise(100, 60, seed) for seed in range(5)]
    processor: Any = AutoVideoProcessor.from_pretrained(checkpoint)
    message = {"role": "user", "content": [{"type": "video", "video": frames, "sample_fps": 2.0, **size}]}
    _, videos = process_vision_info([message], image_patch_size=processor.patch_size)
    inputs = processor(videos=videos, do_resize=False, do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        expected = unsplit(checkpoint, "bfloat16").get_video_features(**inputs).pooler_output[0]
    vision = VisionEncoder.from_pretrained(str(checkpoint), resize=Resize(**size))
    features = vision.encode_video(frames)
    assert features.grid_thw == tuple(inputs["video_grid_thw"][0].tolist())
    assert features.grid_thw[0] == 3
    assert torch.equal(features.to_torch()[0], expected)
    assert features.encoder.id == vision.encoder.id
    assert features.timestamps == tuple(i / 2 for i in range(6))
    assert features.sample_fps == 2


def test_every_size_is_another_encoder(checkpoint: Path) -> None:
    ids = {VisionEncoder.from_pretrained(str(checkpoint), resize=Resize(**size)).encoder.id for size in SIZES}
    assert len(ids | {VisionEncoder.from_pretrained(str(checkpoint)).encoder.id}) == len(SIZES) + 1


def test_pictures_paths_and_pil_images_are_seen_alike(mini_vision: VisionEncoder, photos: list[Path]) -> None:
    picture = open_picture(photos[0], Limits())
    (a,), (b,) = mini_vision.encode([picture]), mini_vision.encode([picture.rgb])
    assert sha(a) == sha(b)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 3), (1, 150), (300, 2), (57, 1001)])
def test_small_and_narrow_pictures_are_encoded(mini_vision: VisionEncoder, width: int, height: int) -> None:
    (features,) = mini_vision.encode([noise(width, height)])
    assert len(features) == features.encoder.n_tokens(features.grid_thw) > 0


def test_an_aspect_outside_the_limit_is_refused_with_its_numbers(mini_vision: VisionEncoder) -> None:
    with pytest.raises(UnsupportedImage, match="1x5000 has an aspect ratio of 5000; the model takes at most 200"):
        mini_vision.encode([noise(1, 5000)])


def test_features_do_not_depend_on_company_or_order(mini_vision: VisionEncoder) -> None:
    images = [noise(60, 60), noise(112, 56, 1), noise(90, 140, 2)]
    together = [sha(features) for features in mini_vision.encode(images)]
    assert together == [sha(mini_vision.encode([image])[0]) for image in images]
    assert together[::-1] == [sha(features) for features in mini_vision.encode(images[::-1])]


def test_what_made_the_features_is_told(mini_vision: VisionEncoder) -> None:
    provenance = mini_vision.provenance
    assert provenance.model_id == "qsplit-mini"
    assert provenance.torch == torch.__version__.partition("+")[0]
    assert (provenance.device, provenance.attention) == ("cpu", "sdpa")
