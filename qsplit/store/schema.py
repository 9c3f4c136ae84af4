"""The Arrow schemas of the store's tables, by version.

A schema here is what a reader of any other language would see; ``schemas/store.v5.json`` is rendered from it. Two
markers are kept as field metadata: the primary key, which Lance enforces between concurrent writers only if it is
declared, and ``qsplit:blob``, which tells the store to lay a binary column out as a blob beside the rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

__all__ = [
    "BLOB",
    "VERSION",
    "VERSION_KEY",
    "checks_schema",
    "compared_schema",
    "decisions_schema",
    "features_schema",
    "files_schema",
    "images_schema",
    "landmarks_schema",
    "pairs_schema",
    "render",
    "semantics_schema",
    "vectors_schema",
]

VERSION = 5
VERSION_KEY = b"qsplit.schema"
BLOB = b"qsplit:blob"
_PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true", "lance-schema:unenforced-primary-key:position": "1"}
_TIME = pa.timestamp("us", tz="UTC")


def files_schema() -> pa.Schema:
    """One row per path: what was there when it was last looked at."""
    return _schema(
        _key("path"),
        _optional("image_id", pa.string()),
        _required("size", pa.int64()),
        _required("mtime_ns", pa.int64()),
        _required("seen_at", _TIME),
        _required("state", pa.string()),
        _optional("reason", pa.string()),
    )


def images_schema() -> pa.Schema:
    """One row per distinct file content."""
    return _schema(
        _key("image_id"),
        _required("pixels_digest", pa.string()),
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        _required("format", pa.string()),
        *_taken(),
        _required("phash", pa.uint64()),
        _required("detail", pa.float32()),
        _required("created_at", _TIME),
        _blob("thumbnail"),
    )


def features_schema() -> pa.Schema:
    """One row per picture (by its pixels) and encoder; rows are only ever added. Videos alone have times.

    ``shown`` is the digest of what the model was shown (`qsplit.features.patch_digest`), where that was kept. A row
    that a server put has it as ``pixels_digest``, too: no more is known of the picture.
    """
    return _schema(
        _key("key"),
        _required("pixels_digest", pa.string()),
        _required("encoder_id", pa.string()),
        _required("model_id", pa.string()),
        _required("model_revision", pa.string()),
        *(_required(name, pa.string()) for name in ("vision_weights", "processor", "dtype")),
        *(_required(name, pa.int32()) for name in ("layout", "merge_size")),
        _required("grid_thw", pa.list_(pa.int32(), 3)),
        *(_required(name, pa.int32()) for name in ("n_tokens", "width", "levels")),
        _required("codec", pa.string()),
        _required("sha256", pa.string()),
        _blob("payload"),
        *(
            _required(name, pa.string())
            for name in ("torch", "transformers", "torchvision", "pillow", "device", "attention")
        ),
        _required("created_at", _TIME),
        _optional("timestamps", pa.list_(pa.float64())),
        _optional("sample_fps", pa.float64()),
        _required("compute", pa.string()),
        _optional("shown", pa.string()),
    )


def vectors_schema(width: int) -> pa.Schema:
    """One row per image, of one encoder; filter columns are copied in, so that a search reads one table.

    ``semantic`` is comparable with those of the same ``semantic_id``, a key of the table ``semantics``; ``caption_id``
    says how the caption was asked for, and ``terms`` is what full-text search reads of it.
    """
    return _schema(
        _key("image_id"),
        _required("pixels_digest", pa.string()),
        _required("pooled", pa.list_(pa.float32(), width)),
        _optional("semantic", pa.list_(pa.float32(), width)),
        _optional("caption", pa.string()),
        *_taken(),
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        *(_optional(name, pa.string()) for name in ("semantic_id", "caption_id", "terms")),
    )


def semantics_schema() -> pa.Schema:
    """One row per way of making semantic vectors: of one encoder, by one language half, and less which means."""
    return _schema(
        _key("key"),
        *(
            _required(name, pa.string())
            for name in ("encoder_id", "language_weights", "model_id", "model_revision", "retrieval")
        ),
        *(_required(name, pa.list_(pa.float32())) for name in ("image_mean", "text_mean")),
        _required("created_at", _TIME),
    )


def checks_schema() -> pa.Schema:
    """One row per picture (by its pixels) and question with choices, of one encoder and language half."""
    return _schema(
        _key("key"),
        _required("pixels_digest", pa.string()),
        _required("asked", pa.string()),
        _required("question", pa.string()),
        _required("choices", pa.list_(pa.string())),
        _required("probabilities", pa.list_(pa.float64())),
        _required("mass", pa.float64()),
        _required("exact", pa.bool_()),
        _required("encoder_id", pa.string()),
        _required("model_id", pa.string()),
        _required("model_revision", pa.string()),
        _required("created_at", _TIME),
    )


def landmarks_schema() -> pa.Schema:
    """One row per picture (by its pixels) and version of what finds landmarks; made from thumbnails."""
    return _schema(
        _key("key"),
        _required("pixels_digest", pa.string()),
        _required("version", pa.int32()),
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        _required("landmarks", pa.binary()),
        _required("created_at", _TIME),
    )


def pairs_schema() -> pa.Schema:
    """One row per two pictures (by their pixels) that were found to be copies or similar shots, and by what."""
    return _schema(
        _key("key"),
        *(_required(name, pa.string()) for name in ("one", "other", "made", "kind")),
        _required("score", pa.float64()),
        _required("evidence", pa.string()),
        _required("created_at", _TIME),
    )


def compared_schema() -> pa.Schema:
    """One row per picture (by its pixels) that was compared with every other that has such a row."""
    return _schema(
        _key("key"),
        *(_required(name, pa.string()) for name in ("pixels_digest", "made")),
        _required("created_at", _TIME),
    )


def decisions_schema() -> pa.Schema:
    """One row per two pictures that a person said are no duplicates: digests of their pixels, or ids if those agree."""
    return _schema(
        _key("key"), *(_required(name, pa.string()) for name in ("one", "other")), _required("created_at", _TIME)
    )


def render(schema: pa.Schema) -> dict[str, Any]:
    """A schema as plain JSON values: fields in order with type, nullability and markers."""
    return {
        "metadata": _texts(schema.metadata),
        "fields": [
            {"name": f.name, "type": str(f.type), "nullable": f.nullable, "metadata": _texts(f.metadata)}
            for f in schema
        ],
    }


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={VERSION_KEY: str(VERSION)})


def _key(name: str) -> pa.Field:
    return pa.field(name, pa.string(), nullable=False, metadata=_PRIMARY_KEY)


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind)


def _blob(name: str) -> pa.Field:
    return pa.field(name, pa.large_binary(), nullable=False, metadata={BLOB: "v2"})


def _taken() -> tuple[pa.Field, ...]:
    """When, with what and where a picture was taken, as far as its EXIF says."""
    return (
        _optional("taken_at", _TIME),
        _optional("camera", pa.string()),
        _optional("latitude", pa.float64()),
        _optional("longitude", pa.float64()),
    )


def _texts(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in sorted((metadata or {}).items())}
