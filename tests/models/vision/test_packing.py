"""The packed way: near the plain one in every family, another encoder, and never passed off as exact."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rows
import torch
from models import FAMILIES, OTHERS, by_tier, make_checkpoint
from PIL import Image
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward
from transformers.utils.import_utils import is_flash_attn_2_available

import qsplit
from qsplit.errors import UsageError
from qsplit.features.features import Encoder, Features, check_compatible
from qsplit.models.checkpoint import resolve
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision import packing
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.models.vision.packing import BY_HEADS, TOGETHER, attention_of, by_heads, packs, together
from qsplit.models.vision.preprocessing import Prepared

PACKED = {"compute": "packed"}
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def prepared(*sizes: int) -> list[Prepared]:
    return [Prepared({"pixel_values": torch.full((n, 1), n)}, 14, 14 * n) for n in sizes]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Which share a pass


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0, [[4], [4], [9], [1], [16]]),
        (8, [[4, 4], [9], [1], [16]]),
        (10, [[4, 4], [9, 1], [16]]),
        (100, [[4, 4, 9, 1, 16]]),
    ],
)
def test_neighbours_share_a_pass_up_to_the_budget(budget: int, expected: list[list[int]]) -> None:
    found = packs(prepared(4, 4, 9, 1, 16), budget)
    assert [[len(one) for one in pack] for pack in found] == expected


def test_a_full_pass_does_not_wait_for_the_next_picture() -> None:
    one, _ = prepared(4, 4)

    def only_one() -> Any:
        yield one
        pytest.fail("waited")

    assert next(packs(only_one(), 4)) == [one]
    assert next(packs(only_one(), 0)) == [one]


# Attention


def exact_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = (one.double().repeat_interleave(shared, dim=1) for one in (key, value))
    return ((query.double() @ key.transpose(2, 3) * scaling).softmax(-1) @ value).transpose(1, 2)


class Module(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = False


@pytest.mark.parametrize("n", [60, 300, 700])
def test_attention_by_heads_is_attention(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Also where a head's scores come in pieces, the last of them smaller, and where two heads share keys."""
    monkeypatch.setattr(packing, "_SCORES", 256 * 300)
    torch.manual_seed(n)
    query, key, value = (torch.randn(n, heads, 80).bfloat16().transpose(0, 1)[None] for heads in (4, 2, 2))
    found, weights = by_heads(Module(), query, key, value, None, scaling=0.2)
    expected = exact_attention(query, key, value, 0.2)
    assert weights is None
    assert found.shape == expected.shape == (1, n, 4, 80)
    eager, _ = eager_attention_forward(Module(), query, key, value, None, scaling=0.2)
    assert (found - expected).abs().mean() < 1.1 * (eager - expected).abs().mean()
    assert (found - expected).abs().max() < 1.5 * (eager - expected).abs().max()


def stand_in(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begins: torch.Tensor, *_: Any) -> Any:
    """What torch's flash attention computes, where there is no GPU to run it."""
    spans = list(pairwise(begins.tolist()))
    one = [[part[a:b].transpose(0, 1)[None] for part in (query, key, value)] for a, b in spans]
    return torch.cat([exact_attention(part[0], part[1], part[2], query.shape[-1] ** -0.5)[0] for part in one]).to(
        query.dtype
    )


@pytest.mark.parametrize("scaling", [80**-0.5, 0.2])
@pytest.mark.parametrize("device", DEVICES)
def test_attention_together_keeps_pictures_apart(monkeypatch: pytest.MonkeyPatch, device: str, scaling: float) -> None:
    if device == "cpu":
        monkeypatch.setattr(packing, "varlen_attn", stand_in)
    torch.manual_seed(0)
    query, key, value = (torch.randn(100, 4, 80).bfloat16().transpose(0, 1)[None] for _ in range(3))
    begins = [0, 4, 60, 100]
    q, k, v = (one.to(device) for one in (query, key, value))
    places = torch.tensor(begins, dtype=torch.int32).to(device)
    found, weights = together(Module(), q, k, v, None, scaling, cu_seq_lens_q=places, max_length_q=56)
    assert weights is None
    parts = [[one[:, :, a:b] for one in (query, key, value)] for a, b in pairwise(begins)]
    expected = torch.cat([exact_attention(part[0], part[1], part[2], scaling) for part in parts], dim=1)
    assert (found.cpu() - expected).abs().max() < 0.03


def test_attention_is_chosen_by_device() -> None:
    flash = "flash_attention_2" if is_flash_attn_2_available() else TOGETHER if torch.cuda.is_available() else None
    assert attention_of(torch.device("cpu"), torch.bfloat16) == BY_HEADS
    assert attention_of(torch.device("cpu"), torch.float32) is None
    assert attention_of(torch.device("cuda"), torch.bfloat16) == flash
    assert attention_of(torch.device("cuda"), torch.float32) is None
    assert attention_of(torch.device("mps"), torch.float16) is None


# Features


def distances(a: Features, b: Features) -> tuple[float, float]:
    """The largest difference over the largest value, and the lowest cosine of a token."""
    assert a.grid_thw == b.grid_thw
    pairs = list(zip(a.to_torch(), b.to_torch(), strict=True))
    largest = max(float((x.float() - y.float()).abs().max() / x.float().abs().max()) for x, y in pairs)
    return largest, min(float(torch.cosine_similarity(x.float(), y.float(), dim=-1).min()) for x, y in pairs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", by_tier([*(f"{f}-{d}" for f in FAMILIES for d in ("bfloat16", "float32")), *OTHERS]))
def test_a_pass_of_several_is_near_the_plain_way(
    tmp_path: Path, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of different sizes, one of them large enough for attention by heads, in passes of some of them."""
    monkeypatch.setattr(packing, "_BUDGET", {"cpu": 300, "cuda": 300})
    family, _, dtype = name.partition("-")
    folder = str(make_checkpoint(tmp_path / "model", family, dtype=dtype or "bfloat16"))
    images = [noise(60, 60), noise(224, 224, 1), noise(100, 140, 2), noise(56, 112, 3)]
    plain = VisionEncoder.from_pretrained(folder, device=device)
    packed = VisionEncoder.from_pretrained(folder, device=device, compute="packed")
    assert packed.provenance.attention == (
        "sdpa" if dtype == "float32" else attention_of(torch.device(device), torch.bfloat16)
    )
    passes: list[int] = []
    forward = packed._forward
    packed._forward = lambda pack: passes.append(len(pack)) or forward(pack)  # type: ignore[method-assign,func-returns-value]
    for a, b in zip(plain.encode(images), packed.encode(images), strict=True):
        largest, cosine = distances(a, b)
        assert largest < (1e-4 if dtype == "float32" else 0.1)
        assert cosine > (0.999999 if dtype == "float32" else 0.999)
        assert check_compatible(b.encoder, a.encoder) is False
    assert len(passes) < len(images)


# Identity


def test_a_plain_encoder_keeps_the_id_it_had() -> None:
    plain = Encoder("a" * 64, "b" * 64, "bfloat16", width=1536, levels=0, merge_size=2)
    assert plain.id == "8ac248e832f6c60eb6f85ac72a24470249f3efe6e8145f2476e9a67fe73596de"
    packed = Encoder("a" * 64, "b" * 64, "bfloat16", width=1536, levels=0, merge_size=2, compute="packed")
    assert packed.id == "33095ea7e4f1230079455c3083df2ab502ee049c5f41a67049e623a54c3f1616"


def test_packed_features_are_taken_and_not_exact(mini_language: LanguageModel) -> None:
    plain = resolve("", "vision").encoder()
    packed = resolve("", "vision").encoder(compute="packed")
    assert plain.id != packed.id
    assert mini_language.check(plain) is True
    assert mini_language.check(packed) is False


def test_a_way_that_there_is_not(tmp_path: Path, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="There is no way of computing 'fast'"):
        VisionEncoder.from_pretrained(compute="fast")
    with pytest.raises(UsageError, match="'fast'"):
        qsplit.open(tmp_path / "album.qsplit", compute="fast").index(photos[0])
    assert not (tmp_path / "album.qsplit").exists()


def test_the_store_keeps_rows_of_both_ways_apart(store: Any) -> None:
    packed = Encoder(**{**rows.encoder().__dict__, "compute": "packed"})
    made = [rows.feature_row(1, one) for one in (rows.encoder(), packed)]
    store.put_features(made)
    found = store.get_features([row.key for row in made])
    assert [found[row.key].encoder.compute for row in made] == ["plain", "packed"]
    assert store.encoded_pixels(packed.id) == {made[1].pixels_digest}


def test_an_album_of_packed_features(tmp_path: Path, photos: list[Path]) -> None:
    """The way is recorded, answers say that they are not exact, and the plain way is another encoder."""
    some, quick = photos[:3], Sampling(max_new_tokens=2)
    album = qsplit.open(tmp_path / "album.qsplit", compute="packed")
    assert album.index(*some).encoded == 3
    assert [encoder.compute for encoder in album.status().encoders] == ["packed"]
    later = qsplit.open(tmp_path / "album.qsplit")
    assert later.index(*some).unchanged == 3
    (reply,) = later.ask(some[0], "What is it?", sampling=quick, exact=True)
    assert reply.exact is False
    assert later.search(like=some[0])
    back = qsplit.open(tmp_path / "album.qsplit", compute="plain")
    assert back.refresh().encoded == 3
    (reply,) = back.ask(some[0], "What is it?", sampling=quick, exact=True)
    assert reply.exact is True
    assert {encoder.compute: encoder.current for encoder in back.status().encoders} == {"packed": False, "plain": True}
    assert qsplit.open(tmp_path / "album.qsplit").status().stale == 0


def test_pictures_in_pieces_are_not_packed(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "whole", "internvl")
    with pytest.raises(UsageError, match="cannot be packed"):
        VisionEncoder.from_pretrained(str(folder), device="cpu", compute="packed")
