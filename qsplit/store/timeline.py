"""All pictures in one order, the newest first, and where in it each month begins: what an album is scrolled by.

The order is by when a picture was taken. Those that do not say come last, by when their file was written. Equal times
are ordered by id, so that the order is the same however often it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qsplit.store.feature_store import FeatureStore

__all__ = ["TABLES", "Entry", "Month", "Timeline", "read_timeline"]

TABLES = ("files", "images")  # what it is made of
_OF_FILE = ("path", "size", "mtime_ns")
_COLUMNS = ("image_id", "pixels_digest", "width", "height", "format", "taken_at", "camera", "latitude", "longitude")


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture, and the first by name of the files that it is in, with its size."""

    image_id: str
    path: str
    bytes: int
    width: int
    height: int
    format: str
    taken_at: datetime | None
    camera: str | None
    latitude: float | None
    longitude: float | None


_ENTRY = [field.name for field in fields(Entry)]


@dataclass(frozen=True, slots=True)
class Month:
    """So many pictures of a month (``2024-05``), of which the first stands at an offset; None: that do not say when."""

    month: str | None
    count: int
    offset: int


@dataclass(frozen=True)
class Timeline:
    """Every picture of which a file is left, in order, and its months; a row is an `Entry`, and its pixels digest."""

    rows: pa.Table
    months: tuple[Month, ...]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def page(self, offset: int, limit: int) -> list[Entry]:
        """So many entries from an offset on; fewer, or none, at the end."""
        rows = self.rows.select(_ENTRY).slice(min(offset, len(self)), limit)
        return [Entry(**row) for row in rows.to_pylist()]


def read_timeline(store: FeatureStore) -> Timeline:
    """The timeline of a store as it is now; of 100,000 pictures, no row is looked at by itself."""
    files, images = store.arrow("files", *_OF_FILE, "image_id", "state"), store.arrow("images", *_COLUMNS)
    assert files is not None
    assert images is not None, "a store has these tables from its beginning"
    there = files.filter(pc.equal(files["state"], "ok")).sort_by("path")
    firsts = there.group_by("image_id", use_threads=False).aggregate([(name, "first") for name in _OF_FILE])
    rows = _ordered(images.join(firsts, "image_id", join_type="inner"))
    rows = rows.rename_columns({"path_first": "path", "size_first": "bytes"})
    return Timeline(rows.select([*_ENTRY, "pixels_digest"]), _months(rows["taken_at"]))


def _ordered(rows: pa.Table) -> pa.Table:
    """By time, the newest first, those without behind all others; equal ones by id."""
    taken = rows["taken_at"].cast(pa.int64())
    rows = rows.append_column("undated", pc.is_null(taken))
    rows = rows.append_column("time", pc.coalesce(taken, rows["mtime_ns_first"]))
    return rows.sort_by([("undated", "ascending"), ("time", "descending"), ("image_id", "ascending")])


def _months(taken_at: pa.ChunkedArray) -> tuple[Month, ...]:
    """The runs of one month in times that are in order."""
    total, undated = len(taken_at), int(taken_at.null_count)
    moments = taken_at.drop_null().cast(pa.int64()).to_numpy()
    months = moments.astype("datetime64[us]").astype("datetime64[M]")
    starts = np.flatnonzero(np.concatenate([[True], months[1:] != months[:-1]])) if len(months) else np.empty(0, int)
    ends = [*starts[1:].tolist(), total - undated]
    found = [Month(str(months[a]), b - a, a) for a, b in zip(starts.tolist(), ends, strict=False)]
    return (*found, *([Month(None, undated, total - undated)] if undated else []))
