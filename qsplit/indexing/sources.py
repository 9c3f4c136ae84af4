"""Where pictures lie -> their bytes: files and folders, object storage, and archives that hold many.

An archive is a WebDataset's tar, or a Parquet file with pictures in a column; what it holds is named after it, as
``photos.tar#0001.jpg`` and ``photos.parquet#17``. On object storage, credentials come from the environment alone.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError
from obstore.store import from_url

from qsplit.errors import ImageError, NotFound, UnreadableImage
from qsplit.indexing.discovery import find_files, is_wanted
from qsplit.media.images import FileContent, Limits, check_bytes, read_bytes
from qsplit.store.object_storage import hidden, is_remote

__all__ = ["Content", "Entry", "find", "is_archive", "read"]

Content = FileContent | ImageError

_ARCHIVES = frozenset({".tar", ".parquet"})
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "data")  # of Parquet, where several hold bytes
_ROWS = 16  # of Parquet, read at once
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, an object or an archive, as its folder or bucket tells of it."""

    path: str
    size: int
    mtime_ns: int


def is_archive(path: str) -> bool:
    """Whether what lies there holds pictures instead of being one."""
    return Path(path).suffix.lower() in _ARCHIVES


def find(
    paths: Iterable[str], *, suffixes: frozenset[str], on_error: Callable[[OSError], None] | None = None
) -> Iterator[Entry]:
    """What lies at files, folders, globs and addresses on object storage (``s3://bucket/folder``), each once.

    ``on_error`` is told of what cannot be looked at. Raises `NotFound` for a name that is nothing of these.
    """
    named, wanted = list(paths), suffixes | _ARCHIVES
    for address in filter(is_remote, named):
        yield from _listed(address, wanted)
    for path in find_files([name for name in named if not is_remote(name)], suffixes=wanted, on_error=on_error):
        try:
            found = Path(path).stat()
        except OSError as error:
            if on_error is not None:
                on_error(error)
            continue
        yield Entry(path, found.st_size, found.st_mtime_ns)


def read(entry: Entry, limits: Limits, suffixes: frozenset[str]) -> Iterator[tuple[str, Content]]:
    """The path and content of each picture of an entry; what cannot be read comes as the error that says why."""
    try:
        if entry.path.lower().endswith(".tar"):
            yield from _read_tar(entry, limits, suffixes)
        elif is_archive(entry.path):
            yield from _read_parquet(entry, limits)
        else:
            yield entry.path, _read_one(entry, limits)
    except ImageError as error:
        yield entry.path, error
    except (OSError, BaseError, tarfile.TarError, pa.ArrowException) as error:
        text = f"{entry.path} cannot be read: {hidden(str(error))}."
        yield entry.path, UnreadableImage(text, fix="Check that it is whole and may be read.")


def _listed(address: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    """The objects below an address, or the one that has it."""
    place, key = _split(address)
    bucket = from_url(place)
    found = [meta for page in obstore.list(bucket, prefix=key or None) for meta in page]
    if not found and key:
        with suppress(FileNotFoundError):
            found = [obstore.head(bucket, key)]
    if not found:
        raise NotFound(f"There is nothing at {address}.", fix="Check the address, and that it may be listed.")
    for meta in found:
        if meta["path"] == key or is_wanted(meta["path"], suffixes):
            yield Entry(f"{place}/{meta['path']}", meta["size"], _ns(meta["last_modified"]))


def _split(address: str) -> tuple[str, str]:
    """A bucket, and what is asked of it."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


def _ns(moment: Any) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000


def _read_one(entry: Entry, limits: Limits) -> FileContent:
    if not is_remote(entry.path):
        return read_bytes(entry.path, limits)
    check_bytes(entry.size, entry.path, limits)
    place, key = _split(entry.path)
    got = obstore.get(from_url(place), key)
    return _content(bytes(got.bytes()), _ns(got.meta["last_modified"]))


def _content(data: bytes, mtime_ns: int) -> FileContent:
    return FileContent(data, len(data), mtime_ns, hashlib.sha256(data).hexdigest())


class _Object(io.RawIOBase):
    """An object as a file."""

    def __init__(self, address: str) -> None:
        place, key = _split(address)
        self._reader = obstore.open_reader(from_url(place), key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = memoryview(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _opened(entry: Entry) -> BinaryIO:
    if not is_remote(entry.path):
        return Path(entry.path).open("rb")
    return io.BufferedReader(_Object(entry.path), _BUFFER)


def _read_tar(entry: Entry, limits: Limits, suffixes: frozenset[str]) -> Iterator[tuple[str, Content]]:
    with _opened(entry) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            path = f"{entry.path}#{member.name}"
            if not member.isfile() or not is_wanted(member.name, suffixes):
                continue
            try:
                check_bytes(member.size, path, limits)
                data = archive.extractfile(member)
                yield path, _content(data.read() if data else b"", entry.mtime_ns)
            except ImageError as error:
                yield path, error


def _read_parquet(entry: Entry, limits: Limits) -> Iterator[tuple[str, Content]]:
    with _opened(entry) as file:
        table = pq.ParquetFile(file)
        column, number = _column(table.schema_arrow, entry.path), 0
        for batch in table.iter_batches(_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                path = f"{entry.path}#{number}"
                number += 1
                data = (value["bytes"] if isinstance(value, dict) else value) or b""
                try:
                    check_bytes(len(data), path, limits)
                    yield path, _content(data, entry.mtime_ns)
                except ImageError as error:
                    yield path, error


def _column(schema: pa.Schema, path: str) -> str:
    """The column of pictures: bytes, or as the datasets library has them, bytes with a path."""
    holding: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    for name in (*_COLUMNS, *holding):
        if name in holding:
            return name
    raise UnreadableImage(
        f"{path} has no column of pictures, only {', '.join(schema.names) or 'none'}.",
        fix=f"Keep their bytes in a column {_COLUMNS[0]!r}.",
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
