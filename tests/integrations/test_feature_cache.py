"""Features are found by what a model was shown, and by nothing less; what a server made is kept until it is let go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import rows
import torch
from held import album_of
from PIL import Image

from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import InvalidFeatures
from qsplit.features.features import PACKED, SERVED, Features
from qsplit.features.patch_digest import Scale
from qsplit.integrations.vllm.feature_cache import Made, Shelf
from qsplit.maintenance import garbage
from qsplit.models.checkpoint import resolve
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow


@pytest.fixture
def album(tmp_path: Path, mini_vision: VisionEncoder) -> Album:
    """Two pictures, indexed."""
    album = album_of(str(tmp_path / "album.qsplit"), mini_vision)
    album.index(*bundled.photos()[:2])
    return album


@pytest.fixture
def shelf(album: Album, mini_vision: VisionEncoder) -> Shelf:
    return Shelf.open(album.uri, str(bundled.checkpoint()), dtype=mini_vision.encoder.dtype, server="vllm 1.0")


def patches(picture: Path | Image.Image) -> tuple[torch.Tensor, list[int]]:
    """What vLLM has of a picture: bytes, which its model normalises."""
    processor = resolve(str(bundled.checkpoint()), "vision").image_processor()
    image = picture if isinstance(picture, Image.Image) else Image.open(picture).convert("RGB")
    made = processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt")
    return made["pixel_values"].to(torch.uint8), made["image_grid_thw"][0].tolist()


def keys(store: FeatureStore, shown: str) -> list[str]:
    return [key for key, digest in store.column("features", "key", "shown") if digest == shown]


def embedded(shelf: Shelf, grid: Sequence[int], seed: int = 0) -> torch.Tensor:
    n, width = shelf.encoder.n_tokens(grid), (1 + shelf.encoder.levels) * shelf.encoder.width
    made = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return made.to(getattr(torch, shelf.encoder.dtype))


def test_what_was_indexed_is_found_by_its_patches(album: Album, shelf: Shelf) -> None:
    for picture in bundled.photos()[:2]:
        shown, found = shelf.find(*patches(picture))
        (key,) = keys(album.store, shown)
        assert found is not None
        assert rows.same_bits(found, album.store.get_features([key])[key])
    assert shelf.find(*patches(bundled.photos()[2]))[1] is None


def test_one_pixel_makes_another_picture(shelf: Shelf) -> None:
    seen, grid = patches(bundled.photos()[0])
    seen[7, 7] ^= 1
    assert shelf.find(seen, grid)[1] is None


def test_patches_that_lie_otherwise_are_another_picture(shelf: Shelf) -> None:
    seen, (t, h, w) = patches(bundled.photos()[1])
    assert h != w
    assert shelf.find(seen, (t, w, h))[1] is None


def test_patches_are_told_back_from_what_was_normalised_and_not_where_digits_are_lost(shelf: Shelf) -> None:
    processor = resolve(str(bundled.checkpoint()), "vision").image_processor()
    made = processor(images=[Image.open(bundled.photos()[0]).convert("RGB")], return_tensors="pt")
    values, grid = made["pixel_values"], made["image_grid_thw"][0].tolist()
    assert shelf.find(values, grid)[0] == shelf.find(*patches(bundled.photos()[0]))[0] != ""
    assert shelf.find(values.bfloat16(), grid) == ("", None)


def test_another_scale_is_another_picture() -> None:
    seen = torch.zeros(4, 6, dtype=torch.uint8)
    one, other = Scale(1 / 255, (0.5,) * 3, (0.5,) * 3), Scale(1 / 255, (0.5,) * 3, (0.4,) * 3)
    assert one.digest(seen, (1, 2, 2)) != other.digest(seen, (1, 2, 2))


@pytest.mark.parametrize("change", [{"vision_weights": "0" * 64}, {"dtype": "float16"}, {"merge_size": 1}])
def test_features_of_another_model_are_not_found(album: Album, shelf: Shelf, change: dict[str, object]) -> None:
    other = Shelf(album.store, replace(shelf.encoder, **change), shelf.scale, shelf.provenance)  # type: ignore[arg-type]
    assert other.find(*patches(bundled.photos()[0]))[1] is None


def test_another_way_of_sizing_is_no_hindrance(tmp_path: Path, shelf: Shelf, mini_vision: VisionEncoder) -> None:
    """What the model is shown is the same, whichever settings led to it."""
    seen, grid = patches(bundled.photos()[2])
    shown = shelf.scale.digest(seen, grid)
    (features,) = mini_vision.encode([Image.open(bundled.photos()[2])])
    other = replace(features.encoder, processor="1" * 64)
    moved = Features(features.tokens, features.grid_thw, other, features.levels)
    shelf.store.put_features([FeatureRow("2" * 64, moved, mini_vision.provenance, shown=shown)])
    found = shelf.find(seen, grid)[1]
    assert found is not None
    assert found.digest() == features.digest()


def test_what_a_server_made_is_kept_once_and_found(album: Album, shelf: Shelf) -> None:
    seen, grid = patches(bundled.photos()[2])
    shown, nothing = shelf.find(seen, grid)
    assert nothing is None
    made = embedded(shelf, grid)
    assert [shelf.put([Made(shown, grid, made)]) for _ in range(2)] == [1, 0]
    found = shelf.find(seen, grid)[1]
    assert found is not None
    assert torch.equal(torch.cat(found.to_torch(), dim=1), made)
    assert found.encoder.compute == SERVED
    assert album.verify().sound


def test_the_bits_of_the_unsplit_model_come_first(album: Album, shelf: Shelf) -> None:
    seen, grid = patches(bundled.photos()[0])
    shown, plain = shelf.find(seen, grid)
    shelf.put([Made(shown, grid, embedded(shelf, grid))])
    packed = replace(shelf.encoder, compute=PACKED)
    tokens = embedded(shelf, grid, seed=1)[:, : packed.width]
    row = Features.from_torch([tokens], grid, packed)
    album.store.put_features([FeatureRow("3" * 64, row, shelf.provenance, shown=shown)])
    found = shelf.find(seen, grid)[1]
    assert len(keys(album.store, shown)) == 3
    assert found is not None
    assert plain is not None
    assert rows.same_bits(found, plain)


def test_what_is_not_sound_is_not_kept(shelf: Shelf) -> None:
    seen, grid = patches(bundled.photos()[2])
    shown, _ = shelf.find(seen, grid)
    made = embedded(shelf, grid)
    made[0, 0] = torch.nan
    for wrong in (made, made[1:], made[:, 1:]):
        with pytest.raises(InvalidFeatures):
            shelf.put([Made(shown, grid, wrong)])
    assert shelf.find(seen, grid)[1] is None


def test_what_others_put_is_found_after_a_moment(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("qsplit.integrations.vllm.feature_cache.time.monotonic", lambda: now)
    other = Shelf(FeatureStore(shelf.store.uri), shelf.encoder, shelf.scale, shelf.provenance)
    seen, grid = patches(bundled.photos()[2])
    shown, _ = shelf.find(seen, grid)
    other.put([Made(shown, grid, embedded(shelf, grid))])
    assert shelf.find(seen, grid)[1] is None
    monkeypatch.setattr("qsplit.integrations.vllm.feature_cache.time.monotonic", lambda: now + 60)
    assert shelf.find(seen, grid)[1] is not None


def test_a_store_is_made_for_a_server(tmp_path: Path) -> None:
    shelf = Shelf.open(str(tmp_path / "cache.qsplit"), str(bundled.checkpoint()), server="vllm 1.0")
    seen, grid = patches(bundled.photos()[0])
    assert shelf.put([Made(shelf.find(seen, grid)[0], grid, embedded(shelf, grid))]) == 1
    later = Shelf.open(str(tmp_path / "cache.qsplit"), str(bundled.checkpoint()), server="vllm 1.0")
    assert later.find(seen, grid)[1] is not None
    assert Album(str(tmp_path / "cache.qsplit")).status().features == 1


# --- how long it is kept ---


def test_what_a_server_put_is_no_orphan_until_it_is_old(album: Album, shelf: Shelf) -> None:
    seen, grid = patches(bundled.photos()[2])
    shelf.put([Made(shelf.find(seen, grid)[0], grid, embedded(shelf, grid))])
    assert garbage.compact(album.store, alone=True).orphans.features == []
    assert garbage.compact(album.store, alone=True, served_for=timedelta(days=1)).orphans.features == []
    assert len(garbage.compact(album.store, alone=True, served_for=timedelta(0)).orphans.features) == 1
    assert shelf.find(seen, grid)[1] is None
    assert album.store.count("features") == 2


def test_a_forgotten_picture_is_forgotten_by_the_server_too(album: Album, shelf: Shelf) -> None:
    first, second = (patches(path) for path in bundled.photos()[:2])
    for seen, grid in (first, second):
        shelf.put([Made(shelf.scale.digest(seen, grid), grid, embedded(shelf, grid))])
    row = album.store.file(str(bundled.photos()[0]))
    assert row is not None
    assert garbage.forget(album.store, [str(row.image_id)]).features == 2
    assert shelf.find(*first)[1] is None
    assert shelf.find(*second)[1] is not None
