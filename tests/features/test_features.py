"""The value that travels: what it refuses to be, its bytes, and the gate in front of the language half."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import rows
import torch

from qsplit.errors import CorruptStore, IncompatibleFeatures, InvalidFeatures
from qsplit.features.codecs import DTYPES
from qsplit.features.features import Encoder, Features, Payload, check_compatible

ENCODER = Encoder("a" * 64, "b" * 64, "bfloat16", width=8, levels=2, merge_size=2)
GRID = (1, 4, 6)  # 6 tokens


def make(encoder: Encoder = ENCODER, n: int = 6, seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, encoder.width, generator=random) for _ in range(1 + encoder.levels)]
    return Features.from_torch([tensor.to(getattr(torch, encoder.dtype)) for tensor in tensors], GRID, encoder)


# --- what is no features ---


@pytest.mark.parametrize(
    "grid", [(1, 4, 4), (1, 4, 8), (2, 4, 6), (1, 6, 4, 1), (1, 4), (0, 4, 6), (1, -4, -6), (1, 3, 8)]
)
def test_a_grid_that_does_not_give_the_tokens_is_refused(grid: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidFeatures, match="grid_thw"):
        replace(make(), grid_thw=grid)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["tokens", "level"])
def test_values_that_are_not_finite_are_refused(bad: float, where: str) -> None:
    features = make()
    spoilt = (features.tokens if where == "tokens" else features.levels[1]).copy()
    spoilt[3, 2] = rows.array_of(torch.tensor([bad], dtype=torch.bfloat16))[0]
    change = {"tokens": spoilt} if where == "tokens" else {"levels": (features.levels[0], spoilt)}
    with pytest.raises(InvalidFeatures, match="NaN or infinity"):
        replace(features, **change)


def test_other_shapes_dtypes_and_levels_are_refused() -> None:
    features = make()
    with pytest.raises(InvalidFeatures, match=r"shape \(6, 7\)"):
        replace(features, tokens=features.tokens[:, :7])
    with pytest.raises(InvalidFeatures, match="dtype float32"):
        replace(features, tokens=features.float32[0])
    with pytest.raises(InvalidFeatures, match="1 DeepStack levels were given, but the encoder makes 2"):
        replace(features, levels=features.levels[:1])
    with pytest.raises(InvalidFeatures, match=r"level 1 has shape \(5, 8\)"):
        replace(features, levels=(features.levels[0], features.levels[1][:5]))
    tensors = features.to_torch()
    with pytest.raises(InvalidFeatures, match="meta"):
        Features.from_torch([tensors[0].to("meta"), *tensors[1:]], GRID, ENCODER)
    with pytest.raises(InvalidFeatures, match=r"dtype torch\.float32"):
        Features.from_torch([tensors[0].float(), *tensors[1:]], GRID, ENCODER)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_share_the_memory_of_the_arrays(dtype: str) -> None:
    features = make(replace(ENCODER, dtype=dtype))
    tensors = features.to_torch()
    assert [one.dtype for one in tensors] == [getattr(torch, dtype)] * 3
    for tensor, array in zip(tensors, features.arrays.values(), strict=True):
        assert tensor.data_ptr() == array.ctypes.data
    again = Features.from_torch(tensors, GRID, features.encoder)
    assert again.tokens.ctypes.data == features.tokens.ctypes.data
    assert again.digest() == features.digest()


# --- bytes ---


def test_the_payload_is_tokens_then_levels_little_endian() -> None:
    encoder = Encoder("a" * 64, "b" * 64, "float32", width=2, levels=1, merge_size=2)
    features = Features.from_torch([torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.0]])], (1, 2, 2), encoder)
    payload = features.to_payload()
    assert payload.data == bytes.fromhex("0000803f 000000c0 0000003f 00000000")
    assert payload.sha256 == hashlib.sha256(bytes(payload.data)).hexdigest()
    assert payload.codec == "raw"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_payload_comes_back_as_the_same_bits_without_a_copy(dtype: str) -> None:
    features = make(replace(ENCODER, dtype=dtype))
    payload = features.to_payload()
    buffer = pa.py_buffer(bytes(payload.data))
    back = Features.from_payload(Payload(buffer, payload.sha256), GRID, features.encoder)
    assert np.array_equal(back.tokens, features.tokens)
    assert all(np.array_equal(a, b) for a, b in zip(back.levels, features.levels, strict=True))
    assert back.tokens.ctypes.data == buffer.address
    assert back.levels[1].ctypes.data == buffer.address + 2 * features.tokens.nbytes
    assert back.to_torch()[0].data_ptr() == buffer.address


def test_a_payload_at_an_odd_address_still_reads_right() -> None:
    features = make(replace(ENCODER, dtype="float32"))
    payload = features.to_payload()
    buffer = pa.py_buffer(b"?" + payload.data).slice(1)
    back = Features.from_payload(Payload(buffer, payload.sha256), GRID, features.encoder)
    assert np.array_equal(back.tokens, features.tokens)


def test_each_flipped_byte_is_refused() -> None:
    payload = make().to_payload()
    for i in range(len(payload.data)):
        spoilt = bytearray(payload.data)
        spoilt[i] ^= 1
        with pytest.raises(CorruptStore, match="sha256"):
            Features.from_payload(Payload(bytes(spoilt), payload.sha256), GRID, ENCODER)


def test_a_payload_that_does_not_fit_its_row_is_refused() -> None:
    payload = make().to_payload()
    for encoder in (replace(ENCODER, width=4), replace(ENCODER, levels=1), replace(ENCODER, dtype="float32")):
        with pytest.raises(InvalidFeatures, match="bytes"):
            Features.from_payload(payload, GRID, encoder)
    with pytest.raises(InvalidFeatures, match="bytes"):
        Features.from_payload(payload, (1, 4, 8), ENCODER)
    with pytest.raises(InvalidFeatures, match="codec is 'zip'"):
        Features.from_payload(replace(payload, codec="zip"), GRID, ENCODER)
    with pytest.raises(InvalidFeatures, match="dtype is 'int8'"):
        Features.from_payload(payload, GRID, replace(ENCODER, dtype="int8"))


# --- pooled ---


def test_the_pooled_vector_is_the_mean_direction() -> None:
    features = make()
    pooled = features.pooled()
    assert pooled.dtype == np.float32
    mean = features.float32[0].mean(0)
    np.testing.assert_allclose(pooled, mean / np.linalg.norm(mean), rtol=1e-6)
    with pytest.raises(InvalidFeatures, match="zero vector"):
        replace(features, tokens=np.zeros_like(features.tokens)).pooled()


# --- identity and gate ---


def test_an_encoders_id_is_pinned_and_depends_on_every_field() -> None:
    assert ENCODER.id == "ad2ffe4785d03b2691cf326da1466c2afb89ce42400b566ad093fae4b361b73b"
    changes = {
        "vision_weights": "c" * 64,
        "processor": "c" * 64,
        "dtype": "float32",
        "width": 9,
        "levels": 1,
        "merge_size": 1,
        "layout": 2,
    }
    ids = {replace(ENCODER, **{name: value}).id for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(ids | {ENCODER.id}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vision_weights": "c" * 64}, "other vision weights (cccccccccccc…, the language model belongs to aaaa"),
        ({"processor": "c" * 64}, "other processor settings (cccccccccccc…"),
        ({"dtype": "float16"}, "other dtype (float16, the language model runs in bfloat16"),
        ({"width": 16}, "other width (16, the language model takes 8)"),
        ({"levels": 0}, "other number of DeepStack levels (0, the language model takes 2)"),
        ({"merge_size": 1}, "other merge size (1, the language model takes 2)"),
        ({"layout": 2}, "other layout (2, the language model takes 1)"),
    ],
)
def test_each_difference_is_refused_and_spelled_out(change: dict[str, object], reason: str) -> None:
    with pytest.raises(IncompatibleFeatures) as refused:
        check_compatible(replace(ENCODER, **change), ENCODER)  # type: ignore[arg-type]
    assert len(refused.value.reasons) == 1
    assert refused.value.reasons[0].startswith(reason)
    assert "qsplit index" in refused.value.fix


def test_every_difference_is_listed() -> None:
    other = Encoder("c" * 64, "d" * 64, "float16", width=9, levels=0, merge_size=1, layout=2)
    with pytest.raises(IncompatibleFeatures) as refused:
        check_compatible(other, ENCODER)
    assert len(refused.value.reasons) == 7


def test_a_dtype_that_loses_nothing_is_taken_and_not_exact() -> None:
    assert check_compatible(ENCODER, ENCODER)
    for dtype in ("bfloat16", "float16"):
        assert not check_compatible(replace(ENCODER, dtype=dtype), replace(ENCODER, dtype="float32"))
    with pytest.raises(IncompatibleFeatures):
        check_compatible(replace(ENCODER, dtype="float32"), ENCODER)


def test_vouching_covers_identity_but_not_shape() -> None:
    other = replace(ENCODER, vision_weights="c" * 64)
    assert not check_compatible(other, ENCODER, trusted=other.id[:12])
    with pytest.raises(IncompatibleFeatures):
        check_compatible(other, ENCODER, trusted=other.id[:11])
    wider = replace(other, width=16)
    with pytest.raises(IncompatibleFeatures, match="width"):
        check_compatible(wider, ENCODER, trusted=wider.id)
