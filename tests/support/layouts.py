"""Stores as earlier layouts had them, spelled out here so that no change of today's schema can change them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import rows

from qsplit.features.features import Encoder

_KEY = {"lance-schema:unenforced-primary-key": "true", "lance-schema:unenforced-primary-key:position": "1"}
_OPTIONS = {"new_table_data_storage_version": "2.2", "new_table_enable_stable_row_ids": "true"}
_TIME = pa.timestamp("us", tz="UTC")
_TAKEN = [("taken_at", _TIME), ("camera", pa.string()), ("latitude", pa.float64()), ("longitude", pa.float64())]


def make_v0(folder: Path, seeds: Iterable[int], made_by: Encoder) -> Path:
    """A store of schema version 0: features without ``codec``, images without ``created_at``."""
    db = lancedb.connect(folder, storage_options=_OPTIONS)
    seeds = list(seeds)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    made = [rows.feature_row(seed, made_by) for seed in seeds]
    payloads = [bytes(row.features.to_payload().data) for row in made]
    features = [
        {
            "key": row.key, "pixels_digest": row.pixels_digest, "encoder_id": made_by.id, **asdict(made_by),
            **asdict(row.provenance), "grid_thw": list(row.features.grid_thw), "n_tokens": len(row.features),
            "sha256": hashlib.sha256(payload).hexdigest(), "payload": payload, "created_at": now,
        }
        for row, payload in zip(made, payloads, strict=True)
    ]  # fmt: skip
    images = [rows.picture(seed) for seed in seeds]
    _write(db, "features", _features_v0(), features)
    _write(db, "images", _images_v0(), [{name: getattr(one, name) for name in _images_v0().names} for one in images])
    vectors = [
        {name: getattr(one, name, None) for name in _vectors_v0(made_by.width).names}
        | {"pooled": rows.unit(seed, made_by.width), "semantic": None, "caption": None}
        for seed, one in zip(seeds, images, strict=True)
    ]
    _write(db, f"vectors-{made_by.id[:12]}", _vectors_v0(made_by.width), vectors)
    files = [
        {"path": f"/{seed}.jpg", "image_id": one.image_id, "size": seed, "mtime_ns": 1, "seen_at": now, "state": "ok"}
        for seed, one in zip(seeds, images, strict=True)
    ]
    _write(db, "files", _files_v0(), files)
    return folder


def _write(db: Any, name: str, schema: pa.Schema, records: list[dict[str, Any]]) -> None:
    laid_out = [
        lancedb.schema.blob(field.name, nullable=False) if pa.types.is_large_binary(field.type) else field
        for field in schema
    ]
    table = db.create_table(name, schema=pa.schema(laid_out, metadata={b"qsplit.schema": b"0"}))
    given = pa.schema([field for field in schema if not records or records[0].get(field.name) is not None])
    table.merge_insert(schema.names[0]).when_not_matched_insert_all().execute(
        pa.Table.from_pylist([{name: record[name] for name in given.names} for record in records], schema=given)
    )


def _schema(key: str, *fields: tuple[str, pa.DataType], optional: Iterable[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    return pa.schema(
        [
            pa.field(key, pa.string(), nullable=False, metadata=_KEY),
            *(pa.field(name, kind, nullable=False) for name, kind in fields),
            *(pa.field(name, kind) for name, kind in optional),
        ]
    )


def _files_v0() -> pa.Schema:
    numbers = [("size", pa.int64()), ("mtime_ns", pa.int64())]
    texts = [("image_id", pa.string()), ("reason", pa.string())]
    return _schema("path", *numbers, ("seen_at", _TIME), ("state", pa.string()), optional=texts)


def _images_v0() -> pa.Schema:
    return _schema(
        "image_id", ("pixels_digest", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
        ("format", pa.string()), ("phash", pa.uint64()), ("detail", pa.float32()), ("thumbnail", pa.large_binary()),
        optional=_TAKEN,
    )  # fmt: skip


def _features_v0() -> pa.Schema:
    texts = ("pixels_digest", "encoder_id", "model_id", "model_revision", "vision_weights", "processor", "dtype")
    numbers = ("layout", "merge_size", "n_tokens", "width", "levels")
    makers = ("sha256", "torch", "transformers", "torchvision", "pillow", "device", "attention")
    return _schema(
        "key",
        *((name, pa.string()) for name in texts),
        *((name, pa.int32()) for name in numbers),
        ("grid_thw", pa.list_(pa.int32(), 3)),
        *((name, pa.string()) for name in makers),
        ("payload", pa.large_binary()),
        ("created_at", _TIME),
    )


def _vectors_v0(width: int) -> pa.Schema:
    vector = pa.list_(pa.float32(), width)
    return _schema(
        "image_id", ("pixels_digest", pa.string()), ("pooled", vector), ("width", pa.int32()), ("height", pa.int32()),
        optional=[("semantic", vector), ("caption", pa.string()), *_TAKEN],
    )  # fmt: skip
