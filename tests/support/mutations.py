"""Rows of the features table with something wrong in them, and the way that a row takes to whoever answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from qsplit.features.features import Encoder, Features, Payload
from qsplit.store.records import FeatureRow, check_row, encoder_of, feature_key, feature_record

Row = dict[str, Any]
_PLACES = {"bfloat16": 2, "float16": 2, "float32": 4}
_INFINITE = {"bfloat16": b"\x80\x7f", "float16": b"\x00\x7c", "float32": b"\x00\x00\x80\x7f"}
_NO_NUMBER = {"bfloat16": b"\xc0\x7f", "float16": b"\x00\x7e", "float32": b"\x00\x00\xc0\x7f"}


def mutated(row: FeatureRow, rng: np.random.Generator, number: int) -> Iterator[Row]:
    """So many rows, each wrong in one way; half of those with a spoilt payload carry the right digest of it."""
    for _ in range(number):
        record = feature_record(row)
        record["payload"] = bytes(record["payload"])
        _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](record, rng)
        yield record


def features_of(record: Row) -> Features:
    """As the store reads a row."""
    encoder = encoder_of(record)
    check_row(record, encoder)
    payload = Payload(record["payload"], record["sha256"], record["codec"])
    return Features.from_payload(payload, record["grid_thw"], encoder)


def _signed(record: Row) -> None:
    record["sha256"] = hashlib.sha256(record["payload"]).hexdigest()


def _flipped(record: Row, rng: np.random.Generator) -> None:
    spoilt = bytearray(record["payload"])
    spoilt[int(rng.integers(len(spoilt)))] ^= 1 << int(rng.integers(8))
    record["payload"] = bytes(spoilt)


def _no_number(record: Row, rng: np.random.Generator) -> None:
    size = _PLACES[record["dtype"]]
    at = int(rng.integers(len(record["payload"]) // size)) * size
    value = (_NO_NUMBER, _INFINITE)[int(rng.integers(2))][record["dtype"]]
    record["payload"] = record["payload"][:at] + value + record["payload"][at + size :]
    _signed(record)


def _other_length(record: Row, rng: np.random.Generator) -> None:
    by = int(rng.integers(1, 5000))
    record["payload"] = record["payload"][:-by] if rng.random() < 0.5 else record["payload"] + bytes(by)
    if rng.random() < 0.5:
        _signed(record)


def _other_grid(record: Row, rng: np.random.Generator) -> None:
    grid = list(record["grid_thw"])
    while np.prod(grid) == np.prod(record["grid_thw"]):
        grid[int(rng.integers(3))] = int(rng.integers(-2, 400))
    record["grid_thw"] = grid
    if rng.random() < 0.5:
        record["n_tokens"] = int(np.prod(grid)) // record["merge_size"] ** 2


def _other_encoder(record: Row, rng: np.random.Generator) -> None:
    changes: dict[str, Callable[[], Any]] = {
        "vision_weights": lambda: rng.bytes(32).hex(),
        "processor": lambda: rng.bytes(32).hex(),
        "width": lambda: int(rng.integers(1, 4096)),
        "levels": lambda: record["levels"] + int(rng.integers(1, 4)),
        "merge_size": lambda: record["merge_size"] + int(rng.integers(1, 3)),
        "dtype": lambda: {"float32": "float16"}.get(record["dtype"], "float32"),
        "layout": lambda: record["layout"] + int(rng.integers(1, 3)),
    }
    name = str(rng.choice(sorted(changes)))
    record[name] = changes[name]()
    if rng.random() < 0.5:
        encoder = Encoder(**{field.name: record[field.name] for field in fields(Encoder)})
        record["encoder_id"], record["key"] = encoder.id, feature_key(record["pixels_digest"], encoder.id)


def _other_picture(record: Row, rng: np.random.Generator) -> None:
    record["pixels_digest"] = rng.bytes(32).hex()


_MUTATIONS = (_flipped, _no_number, _other_length, _other_grid, _other_encoder, _other_picture)
