"""Rows that somebody else put into a store: what anyone can do who may write to its folder, and needs no qsplit for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.blob import Blob, BlobType


def add_row(folder: Path, table: str, blob: bytes | Blob | None = None, **changes: Any) -> None:
    """Append a copy of a table's first row with some values changed, and a blob that may lie anywhere."""
    dataset = lance.dataset(str(folder / f"{table}.lance"))
    plain = [field.name for field in dataset.schema if not isinstance(field.type, BlobType)]
    row = dataset.to_table(plain, limit=1).to_pylist()[0] | changes
    columns = [
        pa.array([row[field.name]], field.type) if field.name in plain else lance.blob_array([blob])
        for field in dataset.schema
    ]
    made = pa.table(columns, schema=pa.schema(list(dataset.schema)))
    lance.write_dataset(made, dataset, mode="append", allow_external_blob_outside_bases=True)
