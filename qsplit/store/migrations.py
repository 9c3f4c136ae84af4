"""Bring the tables of an older store to today's layout, step by step, with no payload rewritten.

Each step leaves a table that the next one starts from, and can be done twice: a crash between or within steps is
followed by the same steps. What was done is kept in the table's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from typing import Any

import pyarrow as pa

from qsplit.store import schema

__all__ = ["STEPS", "Step", "history", "is_old", "migrations"]

HISTORY = b"qsplit.migrations"


@dataclass(frozen=True, slots=True)
class Step:
    """A column that a table gets, or each whose name matches, and what its rows of before hold in it: an SQL
    expression, or null of a type.
    """

    table: str
    column: str
    value: str | pa.DataType


# From each version to the next. A column's value says what was true of every row while there was no such column.
STEPS: Mapping[int, tuple[Step, ...]] = {
    0: (
        Step("features", "codec", "'raw'"),
        # When the row was written was not kept: long ago is what matters to those who ask.
        Step("images", "created_at", "arrow_cast('2026-01-01T00:00:00Z', 'Timestamp(Microsecond, Some(\"UTC\"))')"),
    ),
    1: (Step("features", "timestamps", pa.list_(pa.float64())), Step("features", "sample_fps", pa.float64())),
    2: (Step("features", "compute", "'plain'"),),
    3: tuple(Step("vectors-*", column, pa.string()) for column in ("semantic_id", "caption_id", "terms")),
    4: (Step("features", "shown", pa.string()),),
}


def is_old(name: str, found: pa.Schema) -> bool:
    """Whether a table is of an older version, or lacks a column that its version has."""
    return _version(found) < schema.VERSION or any(step.column not in found.names for _, step in _steps(name))


def migrations(name: str, table: Any) -> Iterator[Callable[[], None]]:
    """The commits, to be made one by one, that bring a lancedb table to `qsplit.store.schema.VERSION`.

    A column that is not there is added whatever version the table says that it has: the first stores of version 1 were
    written before their images had a time.
    """
    table.checkout_latest()
    found = _version(table.schema)
    for version in range(schema.VERSION):
        for of, step in _steps(name):
            if of == version and (version >= found or step.column not in table.schema.names):
                yield partial(_add, table, step)
        if version >= found:
            yield partial(_record, table, version)


def _version(found: pa.Schema) -> int:
    return int(found.metadata[schema.VERSION_KEY])


def _steps(name: str) -> list[tuple[int, Step]]:
    """The steps of a table, each with the version that it starts from."""
    return [(version, step) for version in STEPS for step in STEPS[version] if fnmatch(name, step.table)]


def _add(table: Any, step: Step) -> None:
    table.checkout_latest()
    if step.column not in table.schema.names:
        made = {step.column: step.value} if isinstance(step.value, str) else pa.field(step.column, step.value)
        table.add_columns(made)


def _record(table: Any, version: int) -> None:
    table.checkout_latest()
    # Another process may have recorded the same step: it is told once.
    done = [one for one in history(table.schema.metadata) if one["to"] <= version]
    done.append({"to": version + 1, "at": datetime.now(UTC).isoformat()})
    metadata = {schema.VERSION_KEY.decode(): str(version + 1), HISTORY.decode(): json.dumps(done)}
    table.to_lance().update_schema_metadata(metadata)


def history(metadata: Mapping[bytes, bytes] | None) -> list[dict[str, Any]]:
    """The migrations that a table has been through: to which version, and when."""
    steps: list[dict[str, Any]] = json.loads((metadata or {}).get(HISTORY, b"[]"))
    return steps
