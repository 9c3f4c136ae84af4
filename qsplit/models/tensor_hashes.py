"""sha256 of the tensors in safetensors files, cached by what the file system says of each file.

A digest is of a tensor's bytes, not of a file, so that a resharded checkpoint keeps its identity. The bytes are read,
not mapped: hashing a checkpoint adds nothing to the memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsplit.errors import CheckpointError

__all__ = ["StoredTensor", "TensorDigests", "header", "locate_tensors", "pieces", "stored_tensors"]

CACHE = ".qsplit-digests.json"
_CHUNK = 1024**2  # what a thread reads at a time: larger ones are not faster, and their memory stays with the process
_LONGEST_HEADER = 100 * 1024**2  # the format's own bound
_LFS = b"version "  # what a pointer of Git LFS begins with; read as a header's length, it is over any bound


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in its file: ``[begin, end)`` in bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def header(tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a safetensors file of these tensors begins with; each is given by name as (dtype, shape, bytes)."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    begin = 0
    for name, (dtype, shape, nbytes) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + nbytes]}
        begin += nbytes
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file's header lists; raises `CheckpointError` if it is no such file."""
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            if first == _LFS:
                raise CheckpointError(
                    f"{file} is a pointer of Git LFS, not the file itself.",
                    fix=f"Run `git lfs pull` in {file.parent}.",
                )
            length = int.from_bytes(first, "little")
            if not 2 <= length <= _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        return {name: _stored(entry, 8 + length) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file: {error}.") from error


def locate_tensors(tensors: Mapping[str, tuple[Path, str]]) -> dict[str, StoredTensor]:
    """Where each of some tensors lies, given by name as (file, stored name); nothing but the headers is read.

    Raises `CheckpointError` for a tensor that its file does not hold.
    """
    headers = {file: stored_tensors(file) for file in {file for file, _ in tensors.values()}}
    for file, key in tensors.values():
        if key not in headers[file]:
            raise CheckpointError(f"{file} does not hold tensor {key!r} although the index says so.")
    return {name: headers[file][key] for name, (file, key) in tensors.items()}


def _stored(entry: Mapping[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


class TensorDigests:
    """The digests of a folder's tensors; what was hashed before is not read again.

    The cache lies in the folder, or under ``cache`` if the folder cannot be written, and holds for a file as long as
    its size, modification time and inode are the same.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder = folder
        fallback = cache / "digests" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
        self._paths = (folder / CACHE, fallback)
        self._known = self._load()

    def rows(self, tensors: Mapping[str, tuple[Path, str]]) -> list[list[Any]]:
        """``[name, dtype, shape, sha256]`` per tensor, sorted by name; hashes and remembers what is not known."""
        located = locate_tensors(tensors)
        unknown = [name for name, where in tensors.items() if where[1] not in self._digests(where[0])]
        for name, digest in _hashed(unknown, tensors, located).items():
            file, key = tensors[name]
            self._digests(file)[key] = digest
        if unknown:
            self._save()
        return [
            [name, located[name].dtype, list(located[name].shape), self._digests(file)[key]]
            for name, (file, key) in sorted(tensors.items())
        ]

    def changed(self, tensors: Mapping[str, tuple[Path, str]]) -> list[str]:
        """Which of the tensors are remembered with another digest than their bytes have now; all are read."""
        located = locate_tensors(tensors)
        remembered = {name: self._digests(file).get(key) for name, (file, key) in tensors.items()}
        known = [name for name, digest in remembered.items() if digest is not None]
        return [name for name, now in _hashed(known, tensors, located).items() if now != remembered[name]]

    def _digests(self, file: Path) -> dict[str, str]:
        """Stored name -> sha256 of what is known of a file, to be added to."""
        if file.name not in self._known:
            self._known[file.name] = {"state": _state(file), "tensors": {}}
        digests: dict[str, str] = self._known[file.name]["tensors"]
        return digests

    def _load(self) -> dict[str, Any]:
        """What is known of files that are still as they were."""
        known: dict[str, Any] = {}
        for path in self._paths:
            try:
                content = json.loads(path.read_text())
                known |= {
                    name: entry for name, entry in content.items() if entry["state"] == _state(self._folder / name)
                }
            except (OSError, ValueError, AttributeError, KeyError, TypeError):
                continue  # a cache that cannot be read is no cache
        return known

    def _save(self) -> None:
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f"{path.name}.{os.getpid()}")
                draft.write_text(json.dumps(self._known))
                draft.replace(path)
            except OSError:
                continue  # a read-only folder: the user's cache is next; without either, hashing is repeated
            return


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _hashed(
    names: Sequence[str], tensors: Mapping[str, tuple[Path, str]], located: Mapping[str, StoredTensor]
) -> dict[str, str]:
    """The sha256 of some of the tensors by name, several at a time: hashing releases the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: _sha256(tensors[name][0], located[name]), names)
        return dict(zip(names, found, strict=True))


def _sha256(file: Path, tensor: StoredTensor) -> str:
    digest = hashlib.sha256()
    for piece in pieces(file, tensor):
        digest.update(piece)
    return digest.hexdigest()


def pieces(file: Path, tensor: StoredTensor) -> Iterator[memoryview]:
    """A tensor's bytes, piece by piece, each over the same memory; raises `CheckpointError` if the file ends sooner."""
    left = tensor.nbytes
    buffer = memoryview(bytearray(min(_CHUNK, left)))
    with file.open("rb", buffering=0) as stream:
        stream.seek(tensor.begin)
        while left > 0:
            n = stream.readinto(buffer[: min(_CHUNK, left)])
            if not n:
                raise CheckpointError(f"{file} ends inside a tensor.", fix="Copy or download that file again.")
            yield buffer[:n]
            left -= n
