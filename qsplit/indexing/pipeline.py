"""Files -> what is missing -> encode -> put; resumable, because each batch is committed whole and in order.

A batch is written features first, then images, vectors and files: a reader trusts ``files``, so what a crash leaves
behind is found again on the next run and is never half of a picture.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from PIL import Image

from qsplit.concurrency import ahead
from qsplit.errors import FeaturesError, ImageError, UnsupportedImage
from qsplit.features.features import Encoder, Features
from qsplit.indexing.discovery import find_files, is_gone
from qsplit.media.images import SUFFIXES, FileContent, Limits, Picture, decode, read_bytes
from qsplit.media.videos import CLIP_SUFFIXES
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.models.vision.preprocessing import Prepared
from qsplit.progress import Progress
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import absolute, is_text
from qsplit.store.records import Batch, FeatureRow, FileRow, ImageRow, Skipped, VectorRow, feature_key

__all__ = ["IndexReport", "add", "encode", "index", "refresh"]

_BATCH_BYTES = 128 * 1024**2  # of payload a commit: small commits cost more than they carry
_BATCH_FILES = 512
_BATCH_SECONDS = 30.0  # what a crash can cost
_CHUNK = 64  # files that are looked at together at most
_NO_BOUND = 2**62
_NO_PIXELS = Image.new("RGB", (1, 1))


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What an index run did, in files: ``encoded`` went through the vision half, ``reused`` are new paths or changed
    files whose picture was known, ``unchanged`` were not even read, ``missing`` were known and are gone.

    Then in images: how many got a ``semantic`` vector or a caption; ``unsearchable`` are the files of those that could
    not get one."""

    found: int = 0
    encoded: int = 0
    reused: int = 0
    unchanged: int = 0
    missing: int = 0
    unreadable: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0
    semantic: int = 0
    captions: int = 0
    unsearchable: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int
    mtime_ns: int

    def row(self, image_id: str) -> FileRow:
        return FileRow(self.path, image_id, self.size, self.mtime_ns, "ok")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A file that was read: with what the store lacks of its picture, if that is anything, and the picture prepared for
    the model if its pixels were never encoded."""

    file: _File
    image_id: str
    picture: Picture | None = None
    prepared: Prepared | None = None

    @property
    def patches(self) -> int:
        return len(self.prepared) if self.prepared else 0


@dataclass(slots=True)
class _Known:
    """What the store holds of the current encoder; grows with each put."""

    files: dict[str, FileRow]
    images: dict[str, ImageRow]
    encoded: set[str]
    vectors: set[str]

    def has(self, image_id: str | None) -> bool:
        image = self.images.get(image_id or "")
        return image is not None and image.pixels_digest in self.encoded and image.image_id in self.vectors


@dataclass(slots=True)
class _Batch(Batch):
    nbytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def is_full(self) -> bool:
        return (
            self.nbytes >= _BATCH_BYTES
            or len(self.files) >= _BATCH_FILES
            or time.monotonic() - self.began >= _BATCH_SECONDS
        )


def index(
    store: FeatureStore,
    paths: Sequence[str | os.PathLike[str]],
    encoder: Encoder,
    vision: Callable[[], VisionEncoder],
    *,
    limits: Limits,
    codec: str = "raw",
    videos: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Bring the store up to date with files, folders and globs; with ``videos``, also those that lie in folders.

    ``vision`` is called only if there is something to encode; ``codec`` is how it is kept. A picture that cannot be
    used is reported and the rest goes on; what was known at its path stays known. Raises `NotFound` for a path that
    does not exist, before anything is written.
    """
    suffixes = SUFFIXES | CLIP_SUFFIXES if videos else SUFFIXES
    return _Run(store, encoder, vision, limits, codec, on_progress).index(paths, suffixes)


def refresh(
    store: FeatureStore,
    encoder: Encoder,
    vision: Callable[[], VisionEncoder],
    *,
    limits: Limits,
    codec: str = "raw",
    on_progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Encode the known pictures that this encoder has not seen, and nothing else; resumable, as `index` is."""
    return _Run(store, encoder, vision, limits, codec, on_progress).refresh()


def add(
    store: FeatureStore,
    picture: Picture,
    path: str,
    encoder: Encoder,
    vision: Callable[[], VisionEncoder],
    *,
    limits: Limits,
    codec: str = "raw",
) -> bool:
    """Put one picture that was decoded already, by the stages of `index`; whether its pixels had to be encoded.

    ``path`` is where its file lies. Raises `UnsupportedImage` for pixels that the model does not take; nothing is
    written then.
    """
    return _Run(store, encoder, vision, limits, codec, None).add(picture, path)


def encode(
    store: FeatureStore,
    contents: Mapping[str, FileContent | ImageError],
    encoder: Encoder,
    vision: Callable[[], VisionEncoder],
    *,
    limits: Limits,
    codec: str = "raw",
) -> tuple[Batch, IndexReport]:
    """What `index` would put of some files that were read, or could not be, by path; nothing is put."""
    return _Run(store, encoder, vision, limits, codec, None).encode(contents)


class _Run:
    """One index run."""

    def __init__(
        self,
        store: FeatureStore,
        encoder: Encoder,
        vision: Callable[[], VisionEncoder],
        limits: Limits,
        codec: str,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._store, self._encoder, self._load_vision, self._limits = store, encoder, vision, limits
        self._loading = Lock()
        self._codec, self._on_progress = codec, on_progress
        self._read: Callable[[str], FileContent] = lambda path: read_bytes(path, limits)
        self._began = time.monotonic()
        self._skipped: list[Skipped] = []
        self._batch = _Batch()
        self._encoded = self._reused = 0

    def index(self, paths: Sequence[str | os.PathLike[str]], suffixes: frozenset[str]) -> IndexReport:
        self._known = self._look_up()
        found = list(find_files(paths, suffixes=suffixes, on_error=self._skip_folder))
        return self._bring_up_to_date(found, lambda: self._gone(paths, found))

    def refresh(self) -> IndexReport:
        self._known = self._look_up()
        known = [row for row in self._known.files.values() if row.state != "missing" and row.image_id]
        wanted = [row for row in known if not self._known.has(row.image_id)]
        gone = [row for row in wanted if is_gone(row.path)]
        here = sorted({row.path for row in wanted} - {row.path for row in gone})
        return self._bring_up_to_date(here, lambda: list(map(_missing, gone)))

    def add(self, picture: Picture, path: str) -> bool:
        self._known = self._look_up_one(picture)
        stat, known = Path(path).stat(), picture.pixels_digest in self._known.encoded
        file = _File(absolute(path), stat.st_size, stat.st_mtime_ns)
        self._add([_Loaded(file, picture.image_id, picture, None if known else self._vision().prepare(picture))])
        if self._skipped:
            raise UnsupportedImage(self._skipped[0].reason)
        self._commit()
        return bool(self._encoded)

    def encode(self, contents: Mapping[str, FileContent | ImageError]) -> tuple[Batch, IndexReport]:
        self._known = self._look_up_some(one.image_id for one in contents.values() if isinstance(one, FileContent))
        self._read = lambda path: _or_raise(contents[path])
        files = [_File(path, getattr(one, "size", 0), getattr(one, "mtime_ns", 0)) for path, one in contents.items()]
        for chunk in self._chunks(files):
            self._add(chunk)
        return self._batch, self._told(len(files))

    def _bring_up_to_date(self, found: list[str], gone: Callable[[], list[FileRow]]) -> IndexReport:
        n_folders = len(self._skipped)
        changed = [file for file in map(self._stat, found) if file and not self._is_unchanged(file)]
        unchanged = len(found) - len(changed) - len(self._skipped) + n_folders
        try:
            for chunk in self._chunks(changed):
                self._add(chunk)
                if self._batch.is_full():
                    self._commit()
        finally:
            self._commit()  # whoever stops a run keeps what was encoded
        missing = gone()
        self._batch.files += missing
        self._commit()
        return self._told(len(found) + n_folders, unchanged, len(missing))

    def _told(self, found: int, unchanged: int = 0, missing: int = 0) -> IndexReport:
        skipped = sorted(self._skipped, key=lambda skipped: skipped.path)
        seconds = time.monotonic() - self._began
        return IndexReport(found, self._encoded, self._reused, unchanged, missing, skipped, seconds)

    def _look_up(self) -> _Known:
        store, encoder_id = self._store, self._encoder.id
        return _Known(store.files(), store.images(), store.encoded_pixels(encoder_id), store.vector_ids(encoder_id))

    def _look_up_one(self, picture: Picture) -> _Known:
        """As much of what is known as one picture asks for: the album may be large."""
        store, encoder_id, image_id = self._store, self._encoder.id, picture.image_id
        encoded = store.encoded_pixels(encoder_id, [picture.pixels_digest])
        return _Known({}, store.images([image_id]), encoded, store.vector_ids(encoder_id, [image_id]))

    def _look_up_some(self, image_ids: Iterable[str]) -> _Known:
        """What is known of some images; pixels that are known by another image only are found when they are put."""
        store, encoder_id = self._store, self._encoder.id
        known = store.known_images(image_ids)
        if not known:
            return _Known({}, {}, set(), set())
        images = store.images(known)
        encoded = store.encoded_pixels(encoder_id, {image.pixels_digest for image in images.values()})
        return _Known({}, images, encoded, store.vector_ids(encoder_id, images))

    def _stat(self, path: str) -> _File | None:
        try:
            stat = Path(path).stat()
        except OSError as error:
            self._skip(_File(path, 0, 0), str(error.strerror))
            return None
        if not is_text(path):
            self._skip(_File(path, 0, 0), "Its name is not valid UTF-8; rename it.")
            return None
        return _File(path, stat.st_size, stat.st_mtime_ns)

    def _is_unchanged(self, file: _File) -> bool:
        row = self._known.files.get(file.path)
        if row is None or row.state != "ok" or not row.has(file.size, file.mtime_ns):
            return False
        return self._known.has(row.image_id)

    def _chunks(self, files: Sequence[_File]) -> Iterator[list[_Loaded]]:
        """As many files as share a pass through the model, and whatever needs none between them."""
        chunk: list[_Loaded] = []
        patches = 0
        for loaded in self._ahead(files):
            budget = self._vision().budget if loaded.prepared else _NO_BOUND
            if patches and patches + loaded.patches > budget:
                yield chunk
                chunk, patches = [], 0
            chunk.append(loaded)
            patches += loaded.patches
            if patches >= budget or len(chunk) >= _CHUNK:
                yield chunk
                chunk, patches = [], 0
        yield chunk

    def _ahead(self, files: Sequence[_File]) -> Iterator[_Loaded]:
        """Files, read, decoded and prepared by a few threads while the model works on those before."""
        began = time.monotonic()
        for done, (file, future) in enumerate(ahead(self._load, files), 1):
            try:
                yield future.result()
            except ImageError as error:
                self._skip(file, str(error))
            self._report(Progress(done, len(files), time.monotonic() - began))

    def _load(self, file: _File) -> _Loaded:
        """On a thread of its own."""
        content = self._read(file.path)
        read = _File(file.path, content.size, content.mtime_ns)
        if self._known.has(content.image_id):
            return _Loaded(read, content.image_id)
        picture = decode(content.data, name=file.path, limits=self._limits)
        known = picture.pixels_digest in self._known.encoded
        prepared = None if known else self._vision().prepare(picture)
        # what waits needs no pixels: a batch of photographs would take gigabytes
        return _Loaded(read, content.image_id, replace(picture, rgb=_NO_PIXELS, clip=None), prepared)

    def _vision(self) -> VisionEncoder:
        with self._loading:
            return self._load_vision()

    def _add(self, chunk: Sequence[_Loaded]) -> None:
        """Encode what is new in a chunk, and note every file of it in the batch."""
        encoded = self._encode(chunk)
        for loaded in chunk:
            if loaded.picture and not self._note(loaded.picture, encoded, loaded.prepared):
                continue  # skipped while encoding
            if loaded.picture and loaded.picture.pixels_digest in encoded:
                del encoded[loaded.picture.pixels_digest]
                self._encoded += 1
            else:
                self._reused += 1
            self._batch.files.append(loaded.file.row(loaded.image_id))

    def _encode(self, chunk: Sequence[_Loaded]) -> dict[str, Features]:
        """Pixels digest -> features, of the pictures whose pixels have none yet; those that fail are skipped."""
        wanted: dict[str, list[_Loaded]] = {}
        for loaded in chunk:
            if loaded.picture and loaded.picture.pixels_digest not in self._known.encoded:
                wanted.setdefault(loaded.picture.pixels_digest, []).append(loaded)
        if not wanted:
            return {}
        vision = self._vision()
        try:
            features = vision.encode_prepared([same[0].prepared for same in wanted.values() if same[0].prepared])
            return dict(zip(wanted, map(_searchable, features), strict=True))
        except (ImageError, FeaturesError):
            return self._encode_each(vision, wanted)

    def _encode_each(self, vision: VisionEncoder, wanted: dict[str, list[_Loaded]]) -> dict[str, Features]:
        encoded = {}
        for digest, same in wanted.items():
            try:
                (features,) = vision.encode_prepared([same[0].prepared] if same[0].prepared else [])
                encoded[digest] = _searchable(features)
            except (ImageError, FeaturesError) as error:
                for loaded in same:
                    self._skip(loaded.file, str(error))
        return encoded

    def _note(self, picture: Picture, encoded: dict[str, Features], prepared: Prepared | None) -> bool:
        """Put what the store lacks of a picture into the batch; False if its pixels could not be encoded."""
        known, digest = self._known, picture.pixels_digest
        if digest in encoded:
            shown = prepared.shown if prepared else ""
            row = FeatureRow(digest, encoded[digest], self._vision().provenance, self._codec, shown)
            self._batch.features.append(row)
            self._batch.nbytes += encoded[digest].nbytes
            known.encoded.add(digest)
        elif digest not in known.encoded:
            return False
        image = _image_row(picture)
        if picture.image_id not in known.images:
            self._batch.pictures.append(picture)
            known.images[picture.image_id] = image
        if picture.image_id not in known.vectors:
            features = encoded.get(digest) or self._features_of(digest)
            self._batch.vectors.append(VectorRow(image, features.pooled()))
            known.vectors.add(picture.image_id)
        return True

    def _features_of(self, digest: str) -> Features:
        """Features that were made earlier: in this batch, or in the store."""
        for row in self._batch.features:
            if row.pixels_digest == digest:
                return row.features
        key = feature_key(digest, self._encoder.id)
        return self._store.get_features([key])[key]

    def _commit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._store.put(self._encoder, batch)

    def _gone(self, paths: Iterable[str | os.PathLike[str]], found: Iterable[str]) -> list[FileRow]:
        """Known files that lay under a folder which was looked through, and are no longer there."""
        roots = tuple(f"{absolute(path).rstrip('/')}/" for path in paths if Path(absolute(path)).is_dir())
        here = set(found)
        return [
            _missing(row)
            for row in self._known.files.values()
            if row.state != "missing" and row.path.startswith(roots) and row.path not in here and is_gone(row.path)
        ]

    def _skip(self, file: _File, reason: str) -> None:
        self._skipped.append(Skipped(file.path.encode(errors="replace").decode(), reason))
        row, known = FileRow(file.path, None, file.size, file.mtime_ns, "unreadable", reason), self._known.files
        if is_text(file.path) and known.get(file.path) != row.over(known.get(file.path)):
            self._batch.files.append(row)

    def _skip_folder(self, error: OSError) -> None:
        path = str(error.filename).encode(errors="replace").decode()
        self._skipped.append(Skipped(path, f"The folder cannot be looked through: {error.strerror}."))

    def _report(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)


def _or_raise(content: FileContent | ImageError) -> FileContent:
    if isinstance(content, ImageError):
        raise content
    return content


def _missing(row: FileRow) -> FileRow:
    return replace(row, state="missing", reason=None)


def _searchable(features: Features) -> Features:
    """The features, if they have a direction; raises `InvalidFeatures` while the picture can still be skipped."""
    features.pooled()
    return features


def _image_row(picture: Picture) -> ImageRow:
    return ImageRow(**{name: getattr(picture, name) for name in ImageRow.__slots__})
