"""Blobs of a local table, read from the files that Lance put them into, by the places of their rows.

Lance plans each read and hands it to threads of its own, which for one picture takes as long as the reading. A blob's
descriptor says where its bytes are; how Lance names the files is not promised, so one is compared with what Lance reads
of it, and where they differ Lance reads them all. A query takes milliseconds, whatever it finds; the blob of a row
whose place in a version is known is read in less than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qsplit.errors import CorruptStore

__all__ = [
    "FRAGMENT",
    "OUTSIDE",
    "Blobs",
    "KnownVersion",
    "Places",
    "Source",
    "check_descriptors",
    "check_inside",
    "folder_of",
]

Bytes = npt.NDArray[np.uint8]
Source = Callable[[], bytes | pa.Buffer]
OUTSIDE = (1, 2)  # kinds of blobs that lie in files of their own: many in one, or each in one
_INSIDE = (0, *OUTSIDE)  # kinds of blobs that lie in the table; another is an address of any file or object
_FURTHEST_BYTE = 2**40
_REPLACE = "`qsplit forget` the picture and index it again, or restore the store from a copy."
_ALIGNED = 64  # bytes: as vector instructions like it
_PIECE = 2**25  # bytes: of blobs that are let go of together
FRAGMENT = 32  # bits of a row's address below its fragment


class Blobs:
    """The blobs of a column in one version of a table; ``dataset`` is that version in pylance.

    ``rows`` are a scan of it with row addresses: a row's ``_rowaddr``, and in the column its blob's descriptor. Raises
    `CorruptStore` for a table that reaches beyond its folder.
    """

    def __init__(self, dataset: Any, column: str, rows: pa.Table) -> None:
        check_inside(dataset)
        self._dataset = dataset
        self._column = column
        self._data = Path(dataset.uri.removeprefix("file://")) / "data"
        fragments = [] if "://" in dataset.uri.removeprefix("file://") else dataset.get_fragments()
        self._names = {one.fragment_id: [file.path for file in one.metadata.files] for one in fragments}
        self._folders: dict[int, Path | None] = {}
        self._agreed = self._agree(rows)

    def find(self, rows: Mapping[int, Mapping[str, Any]]) -> dict[int, Source]:
        """What reads the blob of each row, given and returned by offset in the table.

        Raises `CorruptStore` for a descriptor that no blob of a table can have.
        """
        for row in rows.values():
            _check(row[self._column], f"The {self._column} of {row['key']}")
        far = [i for i, row in rows.items() if not self._is_near(row)]
        read = self._dataset.read_blobs(self._column, indices=far, preserve_order=True) if far else []
        held = {i: blob for i, (_, blob) in zip(far, read, strict=True)}
        rooms = _rooms({i: row[self._column]["size"] for i, row in rows.items() if i not in held})
        return {
            i: partial(held.__getitem__, i) if i in held else partial(self._read, i, row, rooms[i])
            for i, row in rows.items()
        }

    def _is_near(self, row: Mapping[str, Any]) -> bool:
        return self._agreed and row[self._column]["kind"] in OUTSIDE

    def _agree(self, rows: pa.Table) -> bool:
        """Whether the first blob outside its table is where it is looked for."""
        kinds = pc.struct_field(rows[self._column], "kind")
        offset = pc.index(pc.is_in(kinds, pa.array(OUTSIDE, kinds.type)), True).as_py()
        if offset < 0:
            return False
        row = rows.slice(offset, 1).to_pylist()[0]
        if _wrong(row[self._column], self._column):
            return False
        near = self._near(row, np.empty(row[self._column]["size"], np.uint8))
        return near is not None and near.equals(pa.py_buffer(self._far(offset)))

    def _read(self, offset: int, row: Mapping[str, Any], room: Bytes) -> bytes | pa.Buffer:
        """A blob, by Lance if it is not where it should be: it will say what is wrong."""
        return self._near(row, room) or self._far(offset)

    def _near(self, row: Mapping[str, Any], room: Bytes) -> pa.Buffer | None:
        blob, folder = row[self._column], self._folder(row["_rowaddr"] >> FRAGMENT)
        if folder is None:
            return None
        try:
            with (folder / _name(blob["blob_id"])).open("rb", buffering=0) as stream:
                stream.seek(blob["position"])
                whole = stream.readinto(room.data) == len(room)
        except OSError:
            return None
        return pa.py_buffer(room) if whole else None

    def _far(self, offset: int) -> bytes:
        ((_, blob),) = self._dataset.read_blobs(self._column, indices=[offset])
        return bytes(blob)

    def _folder(self, fragment: int) -> Path | None:
        """Where a fragment's blobs are: one of its data files has a folder of its name for them."""
        if fragment not in self._folders:
            named = (folder_of(self._data / name) for name in self._names.get(fragment, ()))
            self._folders[fragment] = next(filter(Path.is_dir, named), None)
        return self._folders[fragment]


def check_descriptors(rows: pa.Table, column: str) -> None:
    """Refuse blobs that do not lie in their table, before one of them is read.

    An address leads to any file that this process can read, or to an object by its credentials; for bytes beyond any
    file Lance would wait for ever. Raises `CorruptStore` naming the row by its first column.
    """
    blobs, name = rows[column], rows.column_names[0]
    kinds = pa.array(_INSIDE, pc.struct_field(blobs, "kind").type)
    wrong = pc.or_(
        pc.invert(pc.is_in(pc.struct_field(blobs, "kind"), kinds)),
        pc.not_equal(pc.struct_field(blobs, "blob_uri"), ""),
    )
    for part in ("position", "size"):
        wrong = pc.or_(wrong, pc.greater_equal(pc.struct_field(blobs, part), pa.scalar(_FURTHEST_BYTE, pa.uint64())))
    offset = pc.index(wrong, True).as_py()
    if offset >= 0:
        row = rows.slice(offset, 1).to_pylist()[0]
        _check(row[column], f"The {column} of {row[name]}")


def check_inside(dataset: Any) -> None:
    """Refuse a version of a table whose files lie elsewhere: they would be read, and removed, with its own.

    Raises `CorruptStore`.
    """
    places = [base.path for base in dataset.base_paths().values()]
    names = (file.path for fragment in dataset.get_fragments() for file in fragment.metadata.files)
    places += [name for name in names if Path(name).name != name]
    if places:
        raise CorruptStore(
            f"The table {dataset.uri} keeps files outside of its folder, at {places[0]!r}.",
            fix="Restore the store from a copy, or index into a new one.",
        )


def _check(blob: Mapping[str, Any], what: str) -> None:
    if wrong := _wrong(blob, what):
        raise CorruptStore(wrong, fix=_REPLACE)


def _wrong(blob: Mapping[str, Any], what: str) -> str:
    """The reason why no blob of a table can have this descriptor; empty if one can."""
    if blob["kind"] not in _INSIDE or blob["blob_uri"]:
        return f"{what} lies outside of the store, at {blob['blob_uri']!r}."
    for part in ("position", "size"):
        if blob[part] >= _FURTHEST_BYTE:
            return f"A blob's {part} is said to be {blob[part]}, beyond any file: {what}."
    return ""


def folder_of(data_file: Path) -> Path:
    """The folder of the blobs that belong to a data file."""
    return data_file.with_suffix("")


def _rooms(sizes: Mapping[int, int]) -> dict[int, Bytes]:
    """Memory for blobs, given and returned by offset in the table.

    Several lie in one piece, since the kernel is slow to hand out many large ones while other threads fill theirs.
    """
    rooms: dict[int, Bytes] = {}
    starts = dict(
        zip(sizes, accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes.values()), initial=0), strict=False)
    )
    for _, together in groupby(sizes, key=lambda offset: starts[offset] // _PIECE):
        some = list(together)
        first = starts[some[0]]
        piece = np.empty(starts[some[-1]] + sizes[some[-1]] - first, np.uint8)
        for offset in some:
            rooms[offset] = piece[starts[offset] - first :][: sizes[offset]]
    return rooms


def _name(blob_id: int) -> str:
    return f"{blob_id:032b}"[::-1] + ".blob"  # turned round, so that names that follow each other begin differently


_DIGITS = 16  # of a key's digest: more than tell any two pictures of an album apart


class Places:
    """The rows of a table, found by the beginning of their ``key``: 24 bytes a row beside the rows themselves.

    The rows are in the table's order, and their keys begin with hex digits. Other rows may share a beginning, as those
    of one picture do.

    >>> places = Places(pa.table({"key": ["b" * 64 + ":1", "a" * 64 + ":1", "b" * 64 + ":2"], "n": [5, 6, 7]}))
    >>> [(offset, row["n"]) for offset, row in places.find({"b" * 64 + ":2", "c" * 64 + ":1"}).items()]
    [(2, 7)]
    """

    def __init__(self, rows: pa.Table) -> None:
        self._columns = {name: rows[name].combine_chunks() for name in rows.column_names}
        beginnings = pc.utf8_slice_codeunits(rows["key"].cast(pa.string()), 0, _DIGITS)
        held = np.array(beginnings.to_pylist(), dtype=f"S{_DIGITS}")
        self._order = np.argsort(held, kind="stable")
        self._held = held[self._order]

    def find(self, keys: AbstractSet[str]) -> dict[int, dict[str, Any]]:
        """Offset in the table -> row, in the table's order, of all rows that have one of these keys."""
        wanted = np.array(sorted({key[:_DIGITS] for key in keys}), dtype=f"S{_DIGITS}")
        first, last = (np.searchsorted(self._held, wanted, side=side) for side in ("left", "right"))
        found = [self._order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        offsets = sorted(int(i) for some in found for i in some)
        return {i: self._row(i) for i in offsets if self._columns["key"][i].as_py() in keys}

    def _row(self, offset: int) -> dict[str, Any]:
        # Value by value: a kernel of Arrow's takes as long to be called as this whole way.
        return {name: column[offset].as_py() for name, column in self._columns.items()}


class KnownVersion:
    """One version of a table, in which rows are found and their blobs read without a query."""

    def __init__(self, dataset: Any, columns: Sequence[str], blob: str) -> None:
        rows = dataset.to_table(columns=[*columns, blob], with_row_address=True)
        self.dataset = dataset
        self._places = Places(rows)
        self._blobs = Blobs(dataset, blob, rows)

    @property
    def is_newest(self) -> bool:
        return bool(self.dataset.latest_version == self.dataset.version)

    def find(self, keys: AbstractSet[str]) -> list[tuple[int, dict[str, Any], Source]]:
        """Offset, columns and blob of the rows that have one of these keys, in the table's order."""
        rows = self._places.find(keys)
        blobs = self._blobs.find(rows)
        return [(i, row, blobs[i]) for i, row in rows.items()]
