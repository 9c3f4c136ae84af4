"""The tables of a store: get, put, scan, nearest. The only module that imports lancedb.

The tables are joined by key and never by row id: ``files`` (a row a path), ``images`` (a row a file content),
``features`` (a row a picture and encoder, only ever added), ``vectors-<encoder>`` (what is searched), ``semantics``
(how semantic vectors were made) and ``checks`` (a row a picture and question, once there are any); ``landmarks``,
``pairs``, ``compared`` and ``decisions`` are made when duplicates are first looked for. Writers may race: each table's
primary key is declared, and each put is one merge that inserts what is absent.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from lance import FragmentMetadata, LanceDataset, LanceOperation, Transaction
from lance.blob import BlobType
from lance.fragment import write_fragments
from lancedb.expr import Expr, col, lit

from qsplit.errors import CorruptStore, NotFound, QsplitError, StoreError, StoreVersionError, UsageError
from qsplit.features.features import Encoder, Features, Making, Payload
from qsplit.media.images import Picture
from qsplit.media.thumbnails import check_thumbnail
from qsplit.store import object_storage, schema
from qsplit.store.durability import Disk
from qsplit.store.key_index import Keys
from qsplit.store.migrations import is_old, migrations
from qsplit.store.object_storage import is_remote
from qsplit.store.payload_reader import KnownVersion, Source, check_descriptors, check_inside
from qsplit.store.records import (
    ENCODER_COLUMNS,
    FEATURE_COLUMNS,
    PROVENANCE_COLUMNS,
    Apart,
    Batch,
    CheckRow,
    ComparedRow,
    DecisionRow,
    EncoderUse,
    FeatureHead,
    FeatureRow,
    FileRow,
    ImageRow,
    LandmarkRow,
    PairRow,
    SemanticsRow,
    StoreSettings,
    VectorRow,
    check_record,
    check_row,
    dated_record,
    encoder_of,
    feature_record,
    head_of,
    image_record,
    provenance_of,
    times_of,
    vector_record,
)
from qsplit.store.row_ids import COLUMNS, check_ids, wrong_ids, wrong_rows
from qsplit.store.tables.vectors import Place, Vectors

__all__ = ["FeatureStore", "vectors_table"]

S = TypeVar("S")
T = TypeVar("T")
WithBlob = tuple[dict[str, Any], pa.Buffer]
_ToPut = tuple[str, pa.Schema, Mapping[str, Any], Callable[[Any], dict[str, Any]]]  # table, its schema, rows, record
Read = tuple[dict[str, Any], Encoder, Source]  # a features row, who made it, and what reads its payload
# What a read needs of a row beside its encoder; the key tells that, and the pixels.
_READ_COLUMNS = ["key", "grid_thw", "n_tokens", "codec", "sha256", "timestamps", "sample_fps", "device", "attention"]

_OPTIONS = {"new_table_data_storage_version": "2.2", "new_table_enable_stable_row_ids": "true"}
# Where a table's files are and what is in them, kept by Lance: of a writer's every commit, up to 1 GB if it is let.
_METADATA_BYTES = 128 * 1024**2
_AT_ONCE = 10_000  # values in one filter
_FEW = 16  # keys that a filter finds sooner than all keys are read
_ATTEMPTS = 8  # of a commit that lost a race
_REREADS = 4
_READS_BY_QUERY = 3  # of one version: reading all keys pays off for those who come back
_THUMBNAILS = 500  # read at once: some 5 MB
_LATER = ("checks", "landmarks", "pairs", "compared", "decisions")  # tables that are made when first put into
_SETTINGS = b"qsplit.settings"
_ID = b"qsplit.id"
_JOB = "qsplit.job"  # of a transaction: who joined rows
_DAMAGED = "`qsplit verify` tells what is damaged; `qsplit index` takes back what a power cut left unfinished."


class FeatureStore:
    """A store at a folder or object-store URI, as it is now or as it was at a ``snapshot``, which is read-only.

    Raises `NotFound` if there is none and ``create`` is false, or no such snapshot; `StoreVersionError` if it is newer
    than this qsplit, and `StoreError` if it cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     FeatureStore(f"{folder}/album.qsplit", create=True).count("images")
    0
    """

    def __init__(self, uri: str | Path, *, create: bool = False, snapshot: str = "") -> None:
        self.uri = _expanded(str(uri))
        self.snapshot = snapshot
        self._process = os.getpid()
        self._disk = Disk(self.uri)
        self._is_probed = not is_remote(self.uri)
        if create:
            self._check_writable()
        _check_place(self.uri, create=create)
        with _translated(f"The store {self.uri} cannot be opened"):
            if create:
                self._disk.drop_torn()
                self._probe()
            self._db = lancedb.connect(
                self.uri,
                storage_options=_OPTIONS,
                read_consistency_interval=timedelta(0),
                session=lancedb.Session(metadata_cache_size_bytes=_METADATA_BYTES),
            )
        self._tables: dict[str, Any] = {}
        self._inside: dict[str, int] = {}  # table -> the version whose files were seen to be in its folder
        self._leaves_out = False
        self._read_version = self._reads = 0
        self._known_version: KnownVersion | None = None
        self._known_encoders: dict[str, Encoder] = {}
        self._known_keys: dict[str, Keys] = {}
        self._known_vectors: dict[tuple[str, str], Vectors] = {}
        self._open_all(create=create)
        if create:
            self._mend()

    def __reduce__(self) -> tuple[Any, ...]:
        """A store that is sent to another process is opened there."""
        return partial(FeatureStore, self.uri, snapshot=self.snapshot), ()

    # --- identity ---

    @property
    def id(self) -> str:
        """Identifier of the store, 32 hexadecimal digits, wherever it is moved to; empty if none was assigned yet.

        Raises `CorruptStore` if the recorded value is not an identifier: it names a folder on this machine.
        """
        metadata = self._read(lambda: self._tables["files"].schema).metadata or {}
        held = str(metadata.get(_ID, b""), errors="replace")
        if held and not re.fullmatch("[0-9a-f]{32}", held):
            raise CorruptStore(
                f"Invalid identifier recorded in {self.uri}: {held[:80]!r}; it requires 32 hexadecimal digits.",
                fix="Restore a snapshot of before, or index into another --store.",
            )
        return held

    def identify(self) -> str:
        """Return the store's identifier, and assign one first if the store is of before there were any."""
        if self.id:
            return self.id
        self._check_writable()

        def write() -> None:
            if not self.id:  # another process may have been faster: its identifier stays
                self.write_id(uuid4().hex)

        self.commit("files", write, f"Assigning an identifier to {self.uri}")
        return self.id

    def write_id(self, identifier: str) -> None:
        """Write an identifier into the newest version of ``files``; to be called within `commit`."""
        self._newest("files").update_schema_metadata({_ID.decode(): identifier})

    # --- settings ---

    def settings(self) -> StoreSettings:
        """What was recorded at the first index."""
        held = (self._read(lambda: self._tables["files"].schema).metadata or {}).get(_SETTINGS, b"{}")
        try:
            return StoreSettings(**json.loads(held))
        except (ValueError, TypeError) as error:
            raise CorruptStore(f"The settings recorded in {self.uri} cannot be read: {error}.") from error

    def record(self, settings: StoreSettings) -> None:
        """Keep the settings with the store, if they differ from what it has."""
        if settings == self.settings():
            return
        self._check_writable()

        def write() -> None:
            self._newest("files").update_schema_metadata({_SETTINGS.decode(): json.dumps(asdict(settings))})

        self.commit("files", write, f"Recording the settings of {self.uri}")

    # --- put ---

    def put_features(self, rows: Sequence[FeatureRow]) -> int:
        """Add the rows whose key is absent, in one commit; returns how many there were."""
        return self._put(*_features_to_put(rows))

    def put_images(self, pictures: Sequence[Picture]) -> int:
        """Add the images whose id is absent, in one commit."""
        return self._put(*_images_to_put(pictures))

    def put_vectors(self, encoder: Encoder, rows: Sequence[VectorRow]) -> int:
        """Add the vectors whose image is absent, in one commit."""
        return self._put(*_vectors_to_put(encoder, rows))

    def put(self, encoder: Encoder, batch: Batch) -> None:
        """Put what indexing found; what a file refers to comes before it, so that a crash leaves no half of one."""
        self.put_features(batch.features)
        self.put_images(batch.pictures)
        if batch.vectors:
            self.put_vectors(encoder, batch.vectors)
        self.put_files(batch.files)

    def put_checks(self, rows: Sequence[CheckRow]) -> int:
        """Add the results whose key is absent, in one commit."""
        if not rows:
            return 0
        return self._put("checks", schema.checks_schema(), {row.key: row for row in rows}, check_record)

    def put_landmarks(self, rows: Sequence[LandmarkRow]) -> int:
        """Add the landmarks of pictures that have none, in one commit."""
        return self._put_dated("landmarks", schema.landmarks_schema(), rows)

    def put_pairs(self, rows: Sequence[PairRow], compared: Sequence[ComparedRow]) -> None:
        """Add what was found of pairs, and then which pictures were compared with all others that were."""
        self._put_dated("pairs", schema.pairs_schema(), rows)
        self._put_dated("compared", schema.compared_schema(), compared)

    def put_decisions(self, rows: Sequence[DecisionRow]) -> int:
        """Remember that pairs of pictures are no duplicates, in one commit."""
        return self._put_dated("decisions", schema.decisions_schema(), rows)

    def _put_dated(
        self, name: str, made: pa.Schema, rows: Sequence[LandmarkRow | PairRow | ComparedRow | DecisionRow]
    ) -> int:
        return self._put(name, made, {row.key: row for row in rows}, dated_record) if rows else 0

    def put_semantics(self, row: SemanticsRow) -> None:
        """Remember how semantic vectors are made, before the first of them is put."""
        self._put("semantics", schema.semantics_schema(), {row.key: row}, asdict)

    def put_files(self, rows: Sequence[FileRow]) -> None:
        """Add the paths, or replace what was known of them, in one commit.

        A row that is unreadable keeps the image that is known at its path, which must not become an orphan for it.
        """
        given: dict[str, FileRow] = {}
        for row in rows:
            given[row.path] = row.over(given.get(row.path))
        failed = [path for path, row in given.items() if row.state == "unreadable" and not row.image_id]
        seen_at = datetime.now(UTC)

        def records() -> list[dict[str, Any]]:
            known: dict[str, FileRow] = {}
            for start in range(0, len(failed), _AT_ONCE):
                known |= self.files(failed[start : start + _AT_ONCE])
            put = (row.over(known.get(path)) for path, row in given.items())
            return [{**{name: getattr(row, name) for name in FileRow.__slots__}, "seen_at": seen_at} for row in put]

        self._replace("files", schema.files_schema(), len(given), records)

    # --- put by many ---

    def prepare(self, encoder: Encoder) -> None:
        """Make the tables that rows of an encoder are written to, before many write: it is for one to make them."""
        name = vectors_table(encoder.id)
        if self._table(name) is None:
            self._tables[name] = self._create(name, schema.vectors_schema(encoder.width))

    def write_apart(self, encoder: Encoder, batch: Batch) -> list[Apart]:
        """Write what indexing found beside the tables, but for its files; `join` then makes it seen.

        Many may write at once, on any machine, and none waits for another. What is never joined is removed by
        `qsplit.maintenance.garbage.compact` when it is a week old.
        """
        to_put = [_features_to_put(batch.features), _images_to_put(batch.pictures)]
        if batch.vectors:
            to_put.append(_vectors_to_put(encoder, batch.vectors))
        return [self._write_apart(*one) for one in to_put if one[2]]

    def join(self, parts: Sequence[Apart], job: str) -> int:
        """Add rows of one table that were written apart, in one commit; returns how many.

        A row whose key is absent comes in once, however often it was written or its part is given: so a join that was
        cut off, or whose end nobody heard of, is done again. ``job`` is kept with the transaction.
        """
        (name,) = {part.table for part in parts}
        table = self._table(name)
        if table is None:
            raise NotFound(f"{self.uri} has no table {name}.", fix="Index into the store that the rows were made for.")
        key = table.schema.field(0).name
        return self._write(name, lambda: self._join(name, key, parts, job), f"Joining {len(parts)} parts")

    def _write_apart(
        self, name: str, made: pa.Schema, rows: Mapping[str, T], record: Callable[[T], dict[str, Any]]
    ) -> Apart:
        if self._table(name) is None:
            self._tables[name] = self._create(name, made)
        self._check_writable()
        with _translated(f"Writing {len(rows)} rows beside {name} of {self.uri} failed"):
            dataset = self._newest(name)
            batch = _laid_out_as(dataset.schema, _batch(made, _each(record, list(rows.values()))))
            written = write_fragments(batch, dataset, mode="append", enable_stable_row_ids=True)
            return Apart(name, list(rows), [fragment.to_json() for fragment in written])

    def _join(self, name: str, key: str, parts: Sequence[Apart], job: str) -> int:
        newest = self._newest(name)
        values = [value for part in parts for value in part.keys]
        seen, fresh = self._keys(name, key, newest).among(values), list[Apart]()
        for part in parts:
            if not seen.issuperset(part.keys):
                fresh.append(part)
                seen.update(part.keys)
        if fresh:
            added = LanceOperation.Append(
                [FragmentMetadata.from_json(json.dumps(f)) for p in fresh for f in p.fragments]
            )
            transaction = Transaction(newest.version, added, transaction_properties={_JOB: job})
            newest = LanceDataset.commit(newest, transaction)
        gone = self._drop_doubles(name, key, newest, values)
        return sum(len(part.keys) for part in fresh) - gone

    # --- scan ---

    def files(self, paths: Iterable[str] | None = None) -> dict[str, FileRow]:
        """Every known path, or the given ones."""
        columns = [field.name for field in fields(FileRow)]
        where = None if paths is None else _is_in("path", paths)
        return {row["path"]: FileRow(**row) for row in self._scan("files", columns, where)}

    def file(self, path: str) -> FileRow | None:
        """What is known of one path."""
        columns = [field.name for field in fields(FileRow)]
        return next((FileRow(**row) for row in self._scan("files", columns, col("path") == lit(path))), None)

    def images(self, image_ids: Iterable[str] | None = None) -> dict[str, ImageRow]:
        """Every known image, or those of the given ids."""
        where = None if image_ids is None else _is_in("image_id", image_ids)
        return {image.image_id: image for image in self._images(where)}

    def known_images(self, image_ids: Iterable[str]) -> set[str]:
        """Those of the given ids that are in the store; for who asks often, as each fragment's are read once."""
        return self._among("images", "image_id", image_ids)

    def images_of_pixels(self, pixels_digest: str) -> list[ImageRow]:
        """The images that show the same pixels, by id."""
        found = self._images(col("pixels_digest") == lit(pixels_digest))
        return sorted(found, key=lambda image: image.image_id)

    def image_ids_with_prefix(self, prefix: str) -> list[str]:
        """The image ids that begin with some hex digits, sorted."""
        where = (col("image_id") >= lit(prefix)) & (col("image_id") < lit(_after(prefix))) if prefix else None
        return sorted(row["image_id"] for row in self._scan("images", ["image_id"], where))

    def paths_of(self, image_ids: Iterable[str]) -> dict[str, list[str]]:
        """Image id -> the paths at which it was last seen, sorted."""
        where = _is_in("image_id", image_ids) & (col("state") == lit("ok"))
        paths: dict[str, list[str]] = {}
        for row in self._scan("files", ["path", "image_id"], where):
            paths.setdefault(row["image_id"], []).append(row["path"])
        return {image_id: sorted(found) for image_id, found in paths.items()}

    def encoded_pixels(self, encoder_id: str, pixels_digests: Iterable[str] | None = None) -> set[str]:
        """The pixels digests that have features of an encoder, of all or of the given ones."""
        where = col("encoder_id") == lit(encoder_id)
        if pixels_digests is not None:
            where &= _is_in("pixels_digest", pixels_digests)
        return {row["pixels_digest"] for row in self._scan("features", ["pixels_digest"], where)}

    def vector_ids(self, encoder_id: str, image_ids: Iterable[str] | None = None) -> set[str]:
        """The images that have a vector of an encoder, of all or of the given ones."""
        where = None if image_ids is None else _is_in("image_id", image_ids)
        return {row["image_id"] for row in self._scan(vectors_table(encoder_id), ["image_id"], where)}

    def checks(self, keys: Iterable[str]) -> dict[str, CheckRow]:
        """The results that are there of some keys."""
        columns = [field.name for field in fields(CheckRow)]
        found = (CheckRow(**row) for row in self._scan("checks", columns, _is_in("key", keys)))
        return {
            row.key: replace(row, choices=tuple(row.choices), probabilities=tuple(row.probabilities)) for row in found
        }

    def landmarks(self, version: int) -> dict[str, LandmarkRow]:
        """Pixels digest -> landmarks, of every picture that has some of this version."""
        columns, where = [field.name for field in fields(LandmarkRow)], col("version") == lit(version)
        return {row["pixels_digest"]: LandmarkRow(**row) for row in self._scan("landmarks", columns, where)}

    def pairs(self, made: str) -> list[PairRow]:
        """What was found of pairs by one way of comparing."""
        columns, where = [field.name for field in fields(PairRow)], col("made") == lit(made)
        return [PairRow(**row) for row in self._scan("pairs", columns, where)]

    def compared(self, made: str) -> set[str]:
        """The pixels digests that were compared with each other in one way."""
        where = col("made") == lit(made)
        return {row["pixels_digest"] for row in self._scan("compared", ["pixels_digest"], where)}

    def decisions(self) -> set[tuple[str, str]]:
        """The pairs that a person said are no duplicates."""
        return {(row["one"], row["other"]) for row in self._scan("decisions", ["one", "other"])}

    def pooled_vectors(self, encoder_id: str) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
        """The pixels digest of each image that has a vector of an encoder, and the unit vectors ``(n, width)``."""
        name = vectors_table(encoder_id)
        table = self._table(name)
        if table is None:
            return [], np.empty((0, 0), np.float32)
        rows = self._read(lambda: self._valid(name, _columns(table, ["pixels_digest", "pooled"])))
        rows = rows.combine_chunks()
        vectors = rows["pooled"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return rows["pixels_digest"].to_pylist(), vectors.reshape(rows.num_rows, -1)

    def thumbnails(self, image_ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Image id and WebP of each of some images, read a few hundred at a time; raises as `thumbnail` does."""
        wanted = sorted(set(image_ids))
        for start in range(0, len(wanted), _THUMBNAILS):
            some = _is_in("image_id", wanted[start : start + _THUMBNAILS])
            for row, blob in self._blobs("images", "thumbnail", ["image_id"], some):
                yield row["image_id"], _thumbnail(row["image_id"], blob)

    def thumbnail(self, image_id: str) -> bytes:
        """A WebP of at most 256 pixels a side; raises `NotFound`, and `CorruptStore` for anything else."""
        found = self._blobs("images", "thumbnail", ["image_id"], col("image_id") == lit(image_id))
        for _, blob in found:
            return _thumbnail(image_id, blob)
        raise NotFound(f"The store has no image {image_id}.")

    # --- get ---

    def heads(self, pixels_digests: Iterable[str]) -> list[FeatureHead]:
        """Every features row of the given pictures, of whatever encoder, without payloads."""
        where = _is_in("pixels_digest", pixels_digests)
        return [head_of(row) for row in self._scan("features", FEATURE_COLUMNS, where)]

    def get_features(self, keys: Iterable[str]) -> dict[str, Features]:
        """Key -> checked features, over the memory that Lance read them into; a key that is absent is left out.

        Raises `CorruptStore` for a payload that is not what was written, `InvalidFeatures` for one that no model can
        have made.
        """
        wanted = set(keys)
        return self._read(lambda: self._features(wanted))

    def vectors(self, encoder_id: str, semantics_id: str = "") -> Vectors:
        """What is searched of an encoder's pictures, by semantic vectors of one identity."""
        known, name = (encoder_id, semantics_id), vectors_table(encoder_id)
        if known not in self._known_vectors:
            place = Place(partial(self._table, name), self._read, partial(self._write, name))
            self._known_vectors[known] = Vectors(place, semantics_id)
        return self._known_vectors[known]

    def semantics(self, encoder_id: str) -> list[SemanticsRow]:
        """How semantic vectors of an encoder's pictures were made, the first way first."""
        columns, where = [field.name for field in fields(SemanticsRow)], col("encoder_id") == lit(encoder_id)
        found = (SemanticsRow(**row) for row in self._scan("semantics", columns, where))
        rows = [replace(row, image_mean=tuple(row.image_mean), text_mean=tuple(row.text_mean)) for row in found]
        return sorted(rows, key=lambda row: (row.created_at, row.key))

    # --- status ---

    def encoders(self) -> dict[str, dict[EncoderUse, int]]:
        """Encoder id -> how often it was used, by whom, and kept how."""
        found: dict[str, dict[EncoderUse, int]] = {}
        columns = ["encoder_id", "codec", *ENCODER_COLUMNS, *PROVENANCE_COLUMNS]
        for row in self._scan("features", columns):
            use = EncoderUse(encoder_of(row), provenance_of(row), row["codec"])
            uses = found.setdefault(row["encoder_id"], {})
            uses[use] = uses.get(use, 0) + 1
        return found

    def count(self, table: Literal["files", "images", "features"]) -> int:
        return self._read(lambda: int(self._tables[table].count_rows()))

    def bytes(self) -> dict[str, int]:
        """Bytes on disk: of the features table, and of the whole store, old versions included."""
        with _reading(self.uri):
            sizes = object_storage.sizes(self.uri) if is_remote(self.uri) else _sizes(self.uri)
        features = sum(size for path, size in sizes.items() if path.startswith("features.lance/"))
        return {"features": features, "total": sum(sizes.values())}

    # --- upkeep ---

    def remove(self, table: str, column: str, values: Iterable[str]) -> int:
        """Delete the rows that hold one of the values; their bytes go when `qsplit.maintenance.garbage.compact` is
        done."""
        gone, left = 0, sorted(set(values))
        for start in range(0, len(left), _AT_ONCE):
            gone += self._delete(table, _is_in(column, left[start : start + _AT_ONCE]))
        return gone

    def state(self, *tables: str) -> tuple[int, ...]:
        """A number of each table that grows whenever it is written to; -1 while there is none."""
        opened = [self._table(name) for name in tables]
        return self._read(lambda: tuple(-1 if table is None else int(table.version) for table in opened))

    def arrow(self, table: str, *columns: str) -> pa.Table | None:
        """Some columns of every row, for those who have no need of each by itself; None while there is no table."""
        opened = self._table(table)
        if opened is None:
            return None
        return self._read(lambda: self._valid(table, _columns(opened, list(columns))))

    def column(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        """Some columns of every row, for those who count and compare."""
        return [tuple(row.values()) for row in self._scan(table, list(columns))]

    def tables(self) -> list[str]:
        """The names of all tables, in the order in which rows are written: what is referred to comes first."""
        results = [name for name in _LATER if self._table(name) is not None]
        ways = ["semantics"] if self._table("semantics") is not None else []
        return ["features", "images", *ways, *self.vector_tables(), *results, "files"]

    def vector_tables(self) -> list[str]:
        """The names of the tables that hold vectors, one an encoder."""
        with _reading(self.uri):
            names = self._db.list_tables(limit=10_000).tables
        return sorted(name for name in names if name.startswith("vectors-") and self._table(name) is not None)

    def invalid_rows(self) -> Iterator[tuple[str, str, str]]:
        """Table, key and reason of every row with an id that is not 64 hex digits, which no other read returns."""
        for name in self.tables():
            names = self._tables[name].schema.names
            columns = [names[0], *(one for one in COLUMNS if one in names[1:])]
            rows = self._read(partial(_columns, self._tables[name], columns))
            for offset, reason in wrong_ids(rows):
                key = str(rows[names[0]][offset].as_py())
                yield name, key if key.isprintable() else repr(key), reason

    @contextmanager
    def leaving_out_invalid(self) -> Iterator[None]:
        """Leave out rows with invalid ids meanwhile, where a read would raise: for who tells of them otherwise."""
        self._leaves_out = True
        try:
            yield
        finally:
            self._leaves_out = False

    def snapshots(self) -> dict[str, int]:
        """Name -> the version of ``files`` that it names."""
        tags = self._read(self._tables["files"].tags.list)
        return {name: int(tag["version"]) for name, tag in tags.items()}

    def clear(self, table: str) -> None:
        """Delete every row of a table."""
        self._delete(table, lit(True))

    def payload_bytes(self, keys: Iterable[str]) -> int:
        """Bytes of the payloads of some features rows, as they are kept."""
        where = _is_in("key", keys)
        rows = self._read(
            lambda: self._tables["features"].search().select(["payload"]).where(where).limit(None).to_arrow()
        )
        return int(pc.sum(pc.struct_field(rows["payload"], "size")).as_py() or 0)

    def lance(self, table: str) -> Any:
        """The newest version of a table as pylance has it."""
        self._check_writable()
        self._table(table)
        with _reading(self.uri):
            return self._newest(table)

    def commit(self, table: str, act: Callable[[], T], what: str, *, rewritten: bool = False) -> T:
        """Write to a table, again after losing a race, and see that it is on disk; what fails is a `StoreError`.

        ``rewritten`` says that fragments of before get new files.
        """
        return self._commit(table, self._table(table), act, what, rewritten=rewritten)

    def _commit(self, name: str, table: Any, act: Callable[[], T], what: str, *, rewritten: bool) -> T:
        with _translated(f"{what} failed"), self._disk.turn():
            self._probe()
            self._disk.mend(name, _newest(table))
            result = _retried(act)
            self._disk.settle(name, _newest(table), rewritten=rewritten)
            return result

    def reopen(self) -> None:
        """Open every table again, after it has become another, and bring it up to date: others may be writing to it."""
        self._tables.clear()
        self._open_all(create=False)
        self.tables()

    # --- tables ---

    def _open_all(self, *, create: bool) -> None:
        base = {"files": schema.files_schema, "images": schema.images_schema, "features": schema.features_schema}
        for name, make in base.items():
            self._tables[name] = self._create(name, make()) if create else self._open(name)
        if None in self._tables.values() and self.snapshot:
            raise NotFound(f"{self.uri} has no snapshot {self.snapshot!r}.", fix="`qsplit snapshot` lists them.")
        if None in self._tables.values():
            raise NotFound(f"There is no store at {self.uri}.", fix="Make one with `qsplit index PATH`.")

    def _mend(self) -> None:
        """Take back what another writer's crash left, before anything is read."""
        names = self.tables()  # opened, and so brought up to date, in turns of their own
        with _translated(f"The store {self.uri} cannot be opened"), self._disk.turn():
            for name in names:
                self._disk.mend(name, self._newest(name))

    def _write(self, table: str, act: Callable[[], T], what: str) -> T:
        self._check_writable()
        return self.commit(table, act, f"{what} of {table} of {self.uri}")

    def _delete(self, table: str, where: Expr) -> int:
        opened = self._to_write(table)
        what = f"Removing rows of {table} of {self.uri}"
        return self.commit(table, lambda: int(opened.delete(where).num_deleted_rows), what)

    def _table(self, name: str) -> Any | None:
        if name not in self._tables:
            table = self._open(name)
            if table is None:
                return None
            self._tables[name] = table
        return self._tables[name]

    def _open(self, name: str) -> Any | None:
        with _reading(self.uri):
            try:
                table = self._db.open_table(name)
            except ValueError as error:
                if "not found" in str(error):
                    return None
                raise
            _check_version(table.schema, f"{self.uri} ({name})")
            self._check_inside(name, table)
        if is_old(name, table.schema):
            for step in migrations(name, table):
                self._commit(name, table, step, f"Migrating {name} of {self.uri}", rewritten=True)
        if self.snapshot:
            return self._at_snapshot(name, table)
        return table

    def _at_snapshot(self, name: str, table: Any) -> Any | None:
        with _reading(self.uri):
            if self.snapshot not in table.tags.list():
                return None  # a table that is younger than the snapshot
            table.checkout(self.snapshot)
            _check_version(table.schema, f"{self.uri} ({name})")
            if is_old(name, table.schema):
                raise StoreVersionError(
                    f"The snapshot {self.snapshot!r} of {self.uri} is older than schema version {schema.VERSION}.",
                    fix=f"Restore it: `qsplit snapshot {self.snapshot} --restore`.",
                )
            self._check_inside(name, table)
        return table

    def _check_inside(self, name: str, table: Any) -> None:
        """Refuse a version of a table that reaches beyond its folder; each version is looked at once."""
        version = int(table.version)
        if self._inside.get(name) != version:
            check_inside(table.to_lance())
            self._inside[name] = version

    def _create(self, name: str, made: pa.Schema) -> Any:
        """Open a table or make it, whoever is first."""
        table = self._open(name)
        if table is not None:
            return table
        self._check_writable()
        with _translated(f"The table {name} of {self.uri} cannot be made"), self._disk.turn():
            metadata = {**made.metadata, **({_ID: uuid4().hex} if name == "files" else {})}
            laid_out = pa.schema([_laid_out(field) for field in made], metadata=metadata)
            table = _retried(lambda: self._made(name, laid_out))
            self._disk.settle(name, table.to_lance())
            return table

    def _made(self, name: str, laid_out: pa.Schema) -> Any:
        """Make a table, or open the one that another process has just made."""
        try:
            return self._db.create_table(name, schema=laid_out)
        except ValueError as error:
            if "already exists" not in str(error):
                raise
            return self._db.open_table(name)

    def _put(self, name: str, made: pa.Schema, rows: Mapping[str, T], record: Callable[[T], dict[str, Any]]) -> int:
        """Add the rows whose key is absent to a table, which is made if need be.

        By key, each once: a merge would insert both of two equal ones.
        """
        if self._table(name) is None:
            self._tables[name] = self._create(name, made)
        key, version = made.field(0).name, self._read(lambda: int(self._tables[name].version))
        held = self._held(name, key, rows)
        batch = _batch(made, _each(record, [row for key, row in rows.items() if key not in held]))

        def commit() -> int:
            if self._disk.alone:
                return self._append(name, key, batch, version)
            return int(self._merge(name, key).execute(batch).num_inserted_rows)

        return self.commit(name, commit, f"Writing {len(batch)} rows to {name} of {self.uri}") if len(batch) else 0

    def _replace(self, name: str, made: pa.Schema, n_rows: int, records: Callable[[], list[dict[str, Any]]]) -> None:
        """Add so many rows, or put them in place of those that have their keys; they are made when it is their turn."""

        def commit() -> None:
            merge = self._merge(name, made.field(0).name).when_matched_update_all()
            merge.execute(_batch(made, records()))

        if n_rows:
            self.commit(name, commit, f"Writing {n_rows} rows to {name} of {self.uri}")

    def _merge(self, name: str, key: str) -> Any:
        # The key's index is not used: with it, writers that race would both insert.
        return self._to_write(name).merge_insert(key).use_index(False).when_not_matched_insert_all()

    def _append(self, name: str, key: str, batch: pa.Table, version: int) -> int:
        """Add the rows whose key is absent, as none of ``batch`` was there at ``version``, while nobody else commits.

        A merge does the same, and copies each payload twice on its way.
        """
        table = self._to_write(name)
        if int(table.version) != version:
            held = self._held(name, key, batch[key].to_pylist())
            batch = batch.filter(pc.invert(pc.is_in(batch[key], pa.array(held, batch[key].type))))
        if not len(batch):
            return 0
        before = int(table.version)
        table.add(batch)
        if int(table.version) == before + 1:
            return len(batch)
        # Somebody else did commit: another machine, on a disk that shares no locks.
        return len(batch) - self._drop_doubles(name, key, self._newest(name), batch[key].to_pylist())

    def _drop_doubles(self, name: str, key: str, dataset: Any, values: Iterable[str]) -> int:
        """Of rows with one key leave the first, as whoever else sees them does; returns how many went."""
        keys = self._keys(name, key, dataset)
        wanted, gone = sorted(keys.doubled(values)), 0
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            where = [dataset.get_fragment(fragment) for fragment in keys.fragments(some)]
            found = dataset.scanner(columns=[key], fragments=where, with_row_id=True).to_table()
            found = found.filter(pc.is_in(found[key], pa.array(some, found[key].type)))
            firsts = found.group_by(key).aggregate([("_rowid", "min")])["_rowid_min"].to_pylist()
            doubles = set(found["_rowid"].to_pylist()) - set(firsts)
            if doubles:
                self._to_write(name).delete(col("_rowid").isin(sorted(doubles)))
            gone += len(doubles)
        return gone

    def _images(self, where: Expr | None) -> Iterator[ImageRow]:
        columns = [field.name for field in fields(ImageRow)]
        return (ImageRow(**row) for row in self._scan("images", columns, where))

    def _held(self, name: str, key: str, values: Iterable[str]) -> set[str]:
        """Those of the values that are keys of a table: few are filtered for, unless all keys are known anyway."""
        wanted = set(values)
        if len(wanted) <= _FEW and name not in self._known_keys:
            return {row[key] for row in self._scan(name, [key], _is_in(key, wanted))}
        return self._among(name, key, wanted)

    def _among(self, name: str, key: str, values: Iterable[str]) -> set[str]:
        """Those of the values that are keys of a table, by all keys of its newest version."""
        return self._read(lambda: self._keys(name, key, self._newest(name)).among(values))

    def _keys(self, name: str, key: str, dataset: Any) -> Keys:
        """The keys of a version of a table, most of which were read before."""
        keys = self._known_keys.get(name, Keys(key)).look(dataset)
        self._known_keys[name] = keys  # of several threads the last: a cache, of which each has its own version
        return keys

    def _scan(self, name: str, columns: list[str], where: Expr | None = None) -> list[dict[str, Any]]:
        """Some columns of the rows of a table; one that nothing was ever put into need not be there."""
        table = self._table(name)
        if table is None:
            return []

        def scan() -> list[dict[str, Any]]:
            query = table.search().select(columns)
            rows = (query if where is None else query.where(where)).limit(None).to_arrow()
            return list(self._valid(name, rows).to_pylist())

        return self._read(scan)

    def _blobs(self, name: str, column: str, columns: list[str], where: Expr) -> Iterator[WithBlob]:
        """Rows and their blob, each blob a slice of one buffer for all of them."""
        yield from self._read(lambda: self._query_blobs(name, column, columns, where))

    def _query_blobs(self, name: str, column: str, columns: list[str], where: Expr) -> list[WithBlob]:
        table = self._tables[name]
        self._check_inside(name, table)
        # Found first: a filtered query reads whatever it selects of all rows, and all columns if none is selected.
        found = table.search().select(columns[:1]).where(where).limit(None).with_row_id(True).to_arrow()
        among = col("_rowid").isin(found["_rowid"].to_pylist())
        rows = table.search().select([*columns, column]).where(among).limit(None).with_row_id(True).to_arrow()
        rows = self._valid(name, rows)
        check_descriptors(rows, column)
        rows = rows.drop_columns(column)
        blobs = table.fetch_blobs(column, rows) if rows.num_rows else []
        return [(row, blob.as_buffer()) for row, blob in zip(rows.to_pylist(), blobs, strict=True)]

    def _valid(self, name: str, rows: pa.Table) -> pa.Table:
        """The rows of a table, whose ids are checked before any of them becomes a value."""
        return (
            rows.filter(pc.invert(wrong_rows(rows))) if self._leaves_out else check_ids(rows, f"{name} of {self.uri}")
        )

    def _features(self, keys: set[str]) -> dict[str, Features]:
        try:
            rows = self._payloads(keys)
            return dict(_each(_checked, rows))
        except (RuntimeError, OSError, ValueError):
            self._known_version = None  # housekeeping may have removed this version's files: read again by a query
            raise

    def _payloads(self, keys: set[str]) -> list[Read]:
        """Features rows with their payloads: by a query, or from their places once those are known."""
        known = self._known()
        if known is None:
            found = self._query_blobs("features", "payload", [*_READ_COLUMNS, *ENCODER_COLUMNS], _is_in("key", keys))
            return [(row, encoder_of(row), partial(_same, blob)) for row, blob in found]
        return [
            (row, self._encoder(known.dataset, i, row["key"].partition(":")[2]), source)
            for i, row, source in known.find(keys)
        ]

    def _encoder(self, dataset: Any, offset: int, name: str) -> Encoder:
        """Who made the row at an offset, whose key names it; there are few, and each is read once."""
        if name in self._known_encoders:
            return self._known_encoders[name]
        encoder = encoder_of(dataset.take([offset], columns=ENCODER_COLUMNS).to_pylist()[0])
        if encoder.id == name:  # a row that contradicts itself says nothing of the others
            self._known_encoders[name] = encoder
        return encoder

    def _known(self) -> KnownVersion | None:
        """The newest version of the features with its places, once it has been read a few times."""
        if self._known_version is not None and (self.snapshot or self._known_version.is_newest):
            return self._known_version
        table = self._tables["features"]
        version = int(table.version)
        if version != self._read_version:
            self._read_version, self._reads, self._known_version = version, 0, None
        self._reads += 1
        if self._known_version is None and self._reads > _READS_BY_QUERY:
            dataset = table.to_lance()
            if dataset.version == version:
                self._known_version = KnownVersion(dataset, _READ_COLUMNS, "payload")
        return self._known_version

    def _read(self, read: Callable[[], T]) -> T:
        """Read again if a file is gone: housekeeping may have moved the rows of the version that was being read."""
        self._check_process()
        with _reading(self.uri):
            for attempt in range(_REREADS):
                try:
                    return read()
                except (RuntimeError, OSError, ValueError) as error:
                    if attempt == _REREADS - 1 or "not found" not in str(error).lower():
                        raise
                    time.sleep(0.02 * 2**attempt)
        raise AssertionError("unreachable")

    def _newest(self, name: str) -> Any:
        return _newest(self._tables[name])

    def _to_write(self, name: str) -> Any:
        self._check_writable()
        return self._tables[name]

    def _check_process(self) -> None:
        """Lance's threads do not survive a fork: a read would wait for ever."""
        if os.getpid() != self._process:
            raise StoreError(
                f"The store {self.uri} was opened by process {self._process}, of which this one is a fork.",
                fix="Open the store in each process, or start processes with the spawn method.",
            )

    def _probe(self) -> None:
        """See once that the store's place is one that writers may share."""
        if not self._is_probed:
            object_storage.check_conditional_put(self.uri)
            self._is_probed = True

    def _check_writable(self) -> None:
        self._check_process()
        if self.snapshot:
            raise UsageError(
                f"The snapshot {self.snapshot!r} of {self.uri} is read-only.",
                fix="Restore it first, or write to the store itself.",
            )


def _each(act: Callable[[S], T], rows: Sequence[S]) -> list[T]:
    """What becomes of each row, of several on threads: to hash a payload lets the others run."""
    if len(rows) < 2:
        return [act(row) for row in rows]
    with ThreadPoolExecutor(min(len(rows), os.cpu_count() or 1)) as pool:
        return list(pool.map(act, rows))


def _columns(table: Any, names: list[str]) -> pa.Table:
    return table.search().select(names).limit(None).to_arrow()


def _thumbnail(image_id: str, blob: pa.Buffer) -> bytes:
    return check_thumbnail(bytes(blob.to_pybytes()), f"The thumbnail of {image_id}")


def _newest(table: Any) -> Any:
    table.checkout_latest()
    dataset = table.to_lance()
    check_inside(dataset)
    return dataset


def _same(blob: pa.Buffer) -> pa.Buffer:
    return blob


def _checked(read: Read) -> tuple[str, Features]:
    """A row's key and its features, if they are what was written."""
    row, encoder, source = read
    check_row(row, encoder)
    timestamps, sample_fps = times_of(row)
    payload = Payload(source(), row["sha256"], row["codec"])
    making = Making.recorded(row["device"], row["attention"])
    return row["key"], Features.from_payload(
        payload, row["grid_thw"], encoder, timestamps=timestamps, sample_fps=sample_fps, making=making
    )


def _batch(made: pa.Schema, records: list[dict[str, Any]]) -> pa.Table:
    """Records as a table; a column that they leave out becomes null where they are put."""
    given = [field for field in made if records and field.name in records[0]]
    return pa.Table.from_pylist(records, schema=pa.schema(given))


def _features_to_put(rows: Sequence[FeatureRow]) -> _ToPut:
    return "features", schema.features_schema(), {row.key: row for row in rows}, feature_record


def _images_to_put(pictures: Sequence[Picture]) -> _ToPut:
    return "images", schema.images_schema(), {one.image_id: one for one in pictures}, image_record


def _vectors_to_put(encoder: Encoder, rows: Sequence[VectorRow]) -> _ToPut:
    by_id = {row.image.image_id: row for row in rows}
    return vectors_table(encoder.id), schema.vectors_schema(encoder.width), by_id, vector_record


def vectors_table(encoder_id: str) -> str:
    """The table that holds an encoder's vectors."""
    return f"vectors-{encoder_id[:12]}"


def _is_in(column: str, values: Iterable[str]) -> Expr:
    return col(column).isin(sorted(set(values)))


def _after(prefix: str) -> str:
    """The smallest string above all that begin with the prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _laid_out(field: pa.Field) -> pa.Field:
    if (field.metadata or {}).get(schema.BLOB):
        return lancedb.schema.blob(field.name, nullable=field.nullable)
    return field


def _laid_out_as(wanted: pa.Schema, batch: pa.Table) -> pa.Table:
    """A batch with its blobs as a table's own schema has them."""
    made = {field.name: field for field in wanted if field.name in batch.column_names}
    columns = [
        lance.blob_array(batch[name].to_pylist()) if isinstance(made[name].type, BlobType) else batch[name]
        for name in made
    ]
    return pa.table(columns, schema=pa.schema(list(made.values())))


def _expanded(uri: str) -> str:
    return uri if "://" in uri else os.path.expanduser(uri)  # noqa: PTH111  # as given, but for a ~


def _check_place(uri: str, *, create: bool) -> None:
    path = uri.removeprefix("file://")
    if "://" in path:
        object_storage.check_address(uri)
        return
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112  # Path's would raise for a long name
        raise StoreError(f"{uri} is a file; a store is a folder.", fix="Choose another --store.")
    if not create and not os.path.exists(path):  # noqa: PTH110  # connecting would make the folder
        raise NotFound(
            f"There is no store at {uri}.", fix="Make one with `qsplit index PATH`, or name it with --store."
        )


def _check_version(found: pa.Schema, where: str) -> None:
    """See that a table is one that this qsplit can read, or bring up to date."""
    text = (found.metadata or {}).get(schema.VERSION_KEY, b"").decode()
    if not text.isdigit():
        raise StoreError(f"{where} is a Lance table, but not of a qsplit store.", fix="Choose another --store.")
    if int(text) > schema.VERSION:
        raise StoreVersionError(
            f"{where} has schema version {text}; this qsplit reads up to {schema.VERSION}.",
            fix="Upgrade with `pip install --upgrade qsplit`.",
        )


def _sizes(uri: str) -> dict[str, int]:
    """Path below the store -> bytes, of every file."""
    files, root = pyarrow.fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
    found = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
    return {info.path.removeprefix(f"{root}/"): info.size or 0 for info in found}


def _retried(commit: Callable[[], T]) -> T:
    """Commit again after losing a race to another writer; the merge then sees what the other wrote."""
    for attempt in range(_ATTEMPTS):
        try:
            return commit()
        except (RuntimeError, OSError, ValueError) as error:
            if attempt == _ATTEMPTS - 1 or not _is_conflict(error):
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def _is_conflict(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("conflict", "concurrent", "already exists", "too many"))


@contextmanager
def _translated(what: str, kind: type[StoreError] = StoreError, *, fix: str = "") -> Iterator[None]:
    """Lance's errors become errors of ours."""
    try:
        yield
    except QsplitError:
        raise
    except Exception as error:  # damaged bytes have brought out every kind, Rust's panics among them
        raise kind(f"{what}: {object_storage.hidden(str(error))}.", fix=fix) from error


def _reading(uri: str) -> Any:
    return _translated(f"The store {uri} cannot be read", CorruptStore, fix=_DAMAGED)
