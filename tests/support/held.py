"""What a store holds, for tests that two of them hold the same."""

from __future__ import annotations

from typing import Any

from qsplit.album import Album
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore

TIMES = ("created_at", "seen_at")


def album_of(uri: str, vision: VisionEncoder) -> Album:
    """An album whose vision half is there already."""
    album = Album(uri, device="cpu")
    album.__dict__["vision"] = vision
    return album


def held(store: FeatureStore) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables but for when they were written, and the bytes of all payloads."""
    return {name: rows_of(store.lance(name)) for name in store.tables()}


def rows_of(table: Any) -> list[dict[str, Any]]:
    """The rows of a table as pylance has it, sorted by key, without the times at which they were written."""
    blobs = [field.name for field in table.schema if getattr(field.type, "extension_name", "") == "lance.blob.v2"]
    plain = [field.name for field in table.schema if field.name not in (*blobs, *TIMES)]
    rows: list[dict[str, Any]] = table.to_table(columns=plain).to_pylist()
    for column in blobs:
        read = table.read_blobs(column, indices=list(range(len(rows))), preserve_order=True) if rows else []
        for row, (_, blob) in zip(rows, read, strict=True):
            row[column] = bytes(blob)
    return sorted(rows, key=lambda row: str(row[plain[0]]))
