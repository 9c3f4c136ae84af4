"""Pictures are prepared on other threads while the model works: in order, bounded, with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, make_checkpoint
from patience import PATIENCE
from PIL import Image

from qsplit.concurrency import ahead
from qsplit.errors import UnsupportedImage
from qsplit.features.features import Features
from qsplit.media import images
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.models.vision.preprocessing import Prepared


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_results_come_in_order_and_never_far_ahead() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return -item

    looked_at = []
    for item, future in ahead(work, range(20), threads=3):
        assert future.result() == -item
        assert len(begun) <= item + 1 + 3
        looked_at.append(item)
    assert looked_at == list(range(20))


def test_nothing_more_is_begun_once_nobody_looks() -> None:
    begun: list[int] = []
    results = ahead(begun.append, range(100), threads=2)
    next(results)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(begun) <= 3


def test_the_next_pictures_are_prepared_while_the_model_works(
    mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass waits for the preparation of the picture after it, which comes only from another thread."""
    prepare, forward = VisionEncoder.prepare, VisionEncoder._forward
    done = [threading.Event() for _ in range(4)]
    images = [noise(56, 56, seed) for seed in range(4)]
    passes = iter(range(4))

    def announced(self: VisionEncoder, image: Any) -> Prepared:
        assert threading.current_thread() is not threading.main_thread()
        prepared = prepare(self, image)
        done[images.index(image)].set()
        return prepared

    def waiting(self: VisionEncoder, pack: Sequence[Prepared]) -> list[Features]:
        assert done[min(next(passes) + 1, 3)].wait(PATIENCE)
        return forward(self, pack)

    expected = [one.digest() for one in mini_vision.encode(images)]
    monkeypatch.setattr(VisionEncoder, "prepare", announced)
    monkeypatch.setattr(VisionEncoder, "_forward", waiting)
    assert [one.digest() for one in mini_vision.encode(images)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_prepare_the_same_bits(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_checkpoint(tmp_path_factory.mktemp("prepared") / family, family)
    vision = VisionEncoder.from_pretrained(str(folder), device="cpu")
    pictures = [noise(40 + 37 * seed % 300, 40 + 91 * seed % 300, seed) for seed in range(24)]
    alone = [vision.prepare(picture) for picture in pictures]
    together = [future.result() for _, future in ahead(vision.prepare, pictures, threads=8)]
    for a, b in zip(alone, together, strict=True):
        for name in ("pixel_values", "image_grid_thw"):
            assert torch.equal(a.made[name], b.made[name])
    assert alone[0].made["pixel_values"].dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(3, 4), (1, 150), (29, 31), (224, 224), (1023, 517), (3001, 16)])
def test_pixels_are_prepared_as_the_processor_prepares_a_picture(
    size: tuple[int, int], mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP", 5_000)
    picture = noise(*size)
    made = mini_vision.checkpoint.image_processor()(images=[picture], return_tensors="pt")
    prepared = mini_vision.prepare(picture).made
    assert torch.equal(prepared["pixel_values"], made["pixel_values"].to(prepared["pixel_values"].dtype))
    assert torch.equal(prepared["image_grid_thw"], made["image_grid_thw"])


def test_a_picture_that_is_refused_is_an_error_of_its_own(mini_vision: VisionEncoder) -> None:
    made: list[Features] = []

    def images() -> Iterator[Image.Image]:
        yield from (noise(56, 56), noise(1, 5000), noise(56, 56, 2))

    with pytest.raises(UnsupportedImage, match="1x5000"):
        made += mini_vision.encode(list(images()))
    assert made == []


FORKS = """
import os, torch
from PIL import Image
from qsplit.models.vision.encoder import VisionEncoder

torch.set_num_threads(1)  # OpenMP itself does not survive a fork with more
vision = VisionEncoder.from_pretrained(device="cpu")
images = [Image.new("RGB", (112, 112), (30 * i, 0, 0)) for i in range(8)]
vision.encode(images)

def child():
    try:
        vision.encode(images)
        os._exit(0)
    except BaseException:
        os._exit(1)

failed = 0
for _ in range(40):
    if (pid := os.fork()) == 0:
        child()
    failed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_threads_prepare_in_a_forked_process_too() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n", done.stderr
