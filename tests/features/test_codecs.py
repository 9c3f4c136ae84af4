"""What a codec gives back: the same bits, or nearly so where it says that it loses some; never another's bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rows
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsplit.errors import InvalidFeatures
from qsplit.features.codecs import CODECS, DTYPES, Array, as_float32, decode, encode, is_finite, is_lossless
from qsplit.features.features import Features, Payload

LOSSLESS = [name for name in CODECS if is_lossless(name)]
SHAPE = (2, 6, 16)


def arrays(seed: int, dtype: str) -> list[Array]:
    """Of every finite bit pattern."""
    return [rows.random_bits(seed + i, SHAPE[1:], dtype) for i in range(SHAPE[0])]


def like_features(width: int, tokens: int = 256) -> Array:
    """bfloat16: bell curves of another spread in each dimension, as the tokens of a model are."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(width, generator=generator) * 3
    return rows.array_of((torch.randn(tokens, width, generator=generator) * spread).to(torch.bfloat16))


def test_two_lose_nothing_and_one_says_that_it_does() -> None:
    assert LOSSLESS == ["raw", "planes-zstd"]
    assert not is_lossless("int8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", LOSSLESS)
@given(seed=st.integers(0, 2**31))
def test_every_bit_comes_back(codec: str, dtype: str, seed: int) -> None:
    made = arrays(seed, dtype)
    back = decode(codec, pa.py_buffer(encode(codec, made, dtype)), SHAPE, dtype)
    for one, other in zip(made, back, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_what_lies_at_an_odd_address_is_read_as_well(codec: str, dtype: str) -> None:
    packed = encode(codec, arrays(1, dtype), dtype)
    shifted = pa.py_buffer(b"?" + packed).slice(1)
    expected = decode(codec, pa.py_buffer(packed), SHAPE, dtype)
    for one, other in zip(expected, decode(codec, shifted, SHAPE, dtype), strict=True):
        assert np.array_equal(one, other)


def from_planes(high: np.ndarray[Any, np.dtype[np.uint8]], low: np.ndarray[Any, np.dtype[np.uint8]]) -> Array:
    """Finite bfloat16 numbers ``(1, n)`` whose exponents are ``high``, and whose signs and mantissas are ``low``."""
    turned = high.astype(np.uint16) << 8 | low
    return (turned >> 1 | turned << 15)[None]


def test_a_plane_that_zstd_makes_no_shorter_comes_back() -> None:
    """Its length alone says whether a plane is compressed: where both are as long, it has to lie there as it is."""
    ties = 0
    for seed, letters in product(range(40), range(60, 160, 4)):
        draw = np.random.default_rng(seed)
        high, low = draw.integers(0, letters, 256, np.uint8), draw.integers(0, 256, 256, np.uint8)
        if len(pa.Codec("zstd", compression_level=1).compress(high, asbytes=True)) != len(high):
            continue
        ties += 1
        made = from_planes(high, low)
        packed = bytes(encode("planes-zstd", [made], "bfloat16"))
        assert packed[16:] == high.tobytes() + low.tobytes()
        (back,) = decode("planes-zstd", pa.py_buffer(packed), (1, 1, 256), "bfloat16")
        assert np.array_equal(made, back)
    assert ties, "zstd makes each of these planes shorter or longer: draw others"


# Payloads as stores hold them, of two tensors of two tokens: both zeros, the largest numbers and the smallest normal
# one, and some between. Of "int8" also the numbers that come back, as "raw" has them.
GOLDEN = {
    "bfloat16": {
        "raw": "803f20c0000000807f7f7fff80004940cd3d9abee04080c7833a7f43d7b3003f",
        "planes-zstd": "10000000000000001000000000000000"
        "7f800000fefe01807b7d818f7586677e00410001feff00929a35c00106feaf00",
        "int8": "8542a13c0281007c0402014402810040338100007f81000000000081007f0000",
        "back": "813f20c0000000007f7f7fff0000000000000000000080c700007f4300000000",
    },
    "float16": {
        "raw": "003c00c100000080ff7bfffb00044842662ecdb40047d0e31914f85b02800038",
        "planes-zstd": "10000000000000001000000000000000"
        "78820000f7f708845c698ec728b7007000010001feff0090cc9b00a132f00500",
        "int8": "8542a13ce4f10044f0f7fb4002810040338100007f81000000000181007f0000",
        "back": "043c00c100000000ff7bfffb0000000000000000e047d0e30000f85b00000000",
    },
    "float32": {
        "raw": "0000803f000020c00000000000000080ffff7f7fffff7fff0000800000004940"
        "cdcccc3d9a9999be0000e04000e07fc76f12833a00007f4395bfd6b30000003f",
        "planes-zstd": "1000000000000000100000000000000010000000000000001000000000000000"
        "7f800000fefe01807b7d818e7586677e00400000ffff00929933c0ff06fead00"
        "00000000ffff0000993300c024007f0000010001feff00009a350001de002b00",
        "int8": "8542a13c0402017ce4f1004402810040338100007f81000000000081007f0000",
        "back": "0281803f000020c00000000000000000ffff7f7fffff7fff0000000000000000"
        "00000000000000000000000000e07fc70000000000007f430000000000000000",
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_is_the_same_bytes_in_every_version(codec: str, dtype: str) -> None:
    """Written as ever, and read as ever: whatever turns both round alike would leave stores that nobody can read."""
    shape, golden = (2, 2, 4), GOLDEN[dtype]
    made = np.frombuffer(bytes.fromhex(golden["raw"]), DTYPES[dtype]).reshape(shape)
    assert bytes(encode(codec, list(made), dtype)).hex() == golden[codec]
    back = decode(codec, pa.py_buffer(bytes.fromhex(golden[codec])), shape, dtype)
    read = b"".join(one.tobytes() for one in back)
    assert read.hex() == golden["raw" if is_lossless(codec) else "back"]


def test_a_plane_that_is_compressed_is_read_as_ever() -> None:
    """Of this the bytes written may differ, as one zstd compresses better than another; what they are read as may not.

    The numbers from 1 on, a 64th apart: one plane of few exponents, and one of mantissas that are all different.
    """
    made = rows.array_of((1 + torch.arange(1, 65) / 64).to(torch.bfloat16).unsqueeze(0))
    mantissas = bytes(range(4, 256, 4)) + b"\0"
    golden = "1200000000000000400000000000000028b52ffd20404d0000187f7f800100920016" + mantissas.hex()
    (back,) = decode("planes-zstd", pa.py_buffer(bytes.fromhex(golden)), (1, 1, 64), "bfloat16")
    assert np.array_equal(back, made)
    packed = bytes(encode("planes-zstd", [made], "bfloat16"))
    high, low = np.frombuffer(packed[:16], "<u8").tolist()
    assert (high < low, low, packed[16 + high :]) == (True, 64, mantissas)


def test_the_exponents_of_features_take_little_room() -> None:
    made = like_features(512)
    assert len(encode("planes-zstd", [made], "bfloat16")) <= 0.75 * made.nbytes


@pytest.mark.parametrize("width", [192, 1536, 3584])
def test_eight_bits_take_half_the_room_and_keep_a_hundredth(width: int) -> None:
    made = like_features(width)
    packed = encode("int8", [made], "bfloat16")
    assert len(packed) <= 0.52 * made.nbytes
    (back,) = decode("int8", pa.py_buffer(packed), (1, *made.shape), "bfloat16")
    wanted, found = as_float32(made, "bfloat16"), as_float32(back, "bfloat16")
    largest = np.abs(wanted).max(1, keepdims=True)
    # Half a step of 1/127 of the largest, and what bfloat16 rounds.
    assert (np.abs(found - wanted) <= largest * (0.5 / 127 + 2**-8)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**31))
def test_eight_bits_of_any_numbers_stay_finite(dtype: str, seed: int) -> None:
    back = decode("int8", pa.py_buffer(encode("int8", arrays(seed, dtype), dtype)), SHAPE, dtype)
    assert all(is_finite(one, dtype) for one in back)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_of_the_smallest_numbers(dtype: str) -> None:
    tiny = torch.zeros(SHAPE[1:], dtype=getattr(torch, dtype))
    tiny[1] = torch.finfo(tiny.dtype).smallest_normal
    made = rows.array_of(tiny)
    (back,) = decode("int8", pa.py_buffer(encode("int8", [made], dtype)), (1, *SHAPE[1:]), dtype)
    assert np.array_equal(back[0], made[0])
    assert is_finite(back, dtype)


@pytest.mark.parametrize("codec", CODECS)
def test_too_few_and_too_many_bytes_are_refused(codec: str) -> None:
    packed = bytes(encode(codec, arrays(1, "bfloat16"), "bfloat16"))
    for wrong in (b"", packed[:1], packed[:-1], packed + b"?"):
        with pytest.raises(InvalidFeatures, match="payload"):
            decode(codec, pa.py_buffer(wrong), SHAPE, "bfloat16")
    for shape in ((2, 6, 15), (1, 6, 16), (2, 0, 16)):
        with pytest.raises(InvalidFeatures):
            decode(codec, pa.py_buffer(packed), shape, "bfloat16")


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    packed = bytearray(encode("int8", [like_features(16, 32)], "bfloat16"))
    packed[:4] = np.float32(scale).tobytes()
    with pytest.raises(InvalidFeatures, match="no number"):
        decode("int8", pa.py_buffer(bytes(packed)), (1, 32, 16), "bfloat16")


@pytest.mark.parametrize("codec", ["planes-zstd", "int8"])
@given(data=st.data())
def test_other_bytes_are_tensors_or_refused(codec: str, data: st.DataObject) -> None:
    tokens, width = 32, 16
    packed = bytearray(encode(codec, [like_features(width, tokens)], "bfloat16"))
    places = data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=4))
    for place in places:
        packed[place] = data.draw(st.integers(0, 255))
    try:
        (back,) = decode(codec, pa.py_buffer(bytes(packed)), (1, tokens, width), "bfloat16")
    except InvalidFeatures:
        # Numbers that lie there as they are may be any: the eight-bit ones, and the lower plane of these.
        assert min(places) < len(packed) - tokens * width
        return
    assert back.shape == (tokens, width)


def test_lengths_of_planes_that_are_lies_are_refused() -> None:
    packed = encode("planes-zstd", [like_features(16, 32)], "bfloat16")
    for lengths in ([2**63, 2**63 + len(packed) - 16], [len(packed), 2**64 - 16], [0, len(packed) - 16]):
        lie = np.array(lengths, np.uint64).tobytes() + packed[16:]
        with pytest.raises(InvalidFeatures):
            decode("planes-zstd", pa.py_buffer(lie), (1, 32, 16), "bfloat16")


def test_an_unknown_codec_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InvalidFeatures, match="'zip'; this qsplit knows raw, planes-zstd, int8"):
        encode("zip", arrays(1, "bfloat16"), "bfloat16")


# As payloads


@pytest.mark.parametrize("codec", CODECS)
def test_features_know_whether_they_were_kept_with_loss(codec: str) -> None:
    made = rows.features(1, rows.encoder(levels=2, width=64))
    payload = made.to_payload(codec)
    assert payload.codec == codec
    back = Features.from_payload(payload, made.grid_thw, made.encoder)
    assert back.exact == is_lossless(codec)
    assert rows.same_bits(back, made) == is_lossless(codec)


def test_loss_is_never_passed_off_as_none() -> None:
    made = rows.features(1, rows.encoder(width=64))
    lossy = Features.from_payload(made.to_payload("int8"), made.grid_thw, made.encoder)
    for codec in LOSSLESS:
        with pytest.raises(InvalidFeatures, match="kept with loss"):
            lossy.to_payload(codec)
    assert lossy.to_payload("int8").codec == "int8"


@pytest.mark.parametrize("codec", ["planes-zstd", "int8"])
def test_sound_bytes_under_the_wrong_name_are_refused(codec: str) -> None:
    made = rows.features(1, rows.encoder(width=64))
    raw = made.to_payload()
    with pytest.raises(InvalidFeatures):
        Features.from_payload(replace(raw, codec=codec), made.grid_thw, made.encoder)
    packed = made.to_payload(codec).data
    named = Payload(packed, hashlib.sha256(packed).hexdigest(), "raw")
    with pytest.raises(InvalidFeatures):
        Features.from_payload(named, made.grid_thw, made.encoder)
