"""The rows of the store's tables as values, and how they become Arrow records and back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qsplit.errors import CorruptStore
from qsplit.features.features import Encoder, Features, Provenance
from qsplit.media.images import Picture
from qsplit.store import schema
from qsplit.store.row_ids import check_id

__all__ = [
    "ENCODER_COLUMNS",
    "FEATURE_COLUMNS",
    "PROVENANCE_COLUMNS",
    "Apart",
    "Batch",
    "CheckRow",
    "ComparedRow",
    "DecisionRow",
    "EncoderUse",
    "FeatureHead",
    "FeatureRow",
    "FileRow",
    "ImageRow",
    "LandmarkRow",
    "PairRow",
    "SemanticsRow",
    "Skipped",
    "StoreSettings",
    "VectorRow",
    "check_key",
    "check_record",
    "check_row",
    "dated_record",
    "encoder_of",
    "feature_key",
    "feature_record",
    "head_of",
    "image_record",
    "provenance_of",
    "semantics_key",
    "times_of",
    "vector_record",
]

ENCODER_COLUMNS = [field.name for field in fields(Encoder)]
PROVENANCE_COLUMNS = [field.name for field in fields(Provenance)]
_FIRST, _LAST = -(2**63), 2**63 - 1  # of what 64 bits hold
FEATURE_COLUMNS = [field.name for field in schema.features_schema() if field.name not in ("payload", "shown")]


@dataclass(frozen=True, slots=True)
class FileRow:
    """What was found at a path: ``state`` is ``ok``, ``unreadable`` (with the reason) or ``missing``.

    The image, size and time are those of the last content that could be read, if any ever could. A time before 1677 or
    after 2262 becomes the first or last that 64 bits hold, so compare a file's with `has`.
    """

    path: str
    image_id: str | None
    size: int
    mtime_ns: int
    state: Literal["ok", "unreadable", "missing"]
    reason: str | None = None

    def __post_init__(self) -> None:
        if not (_FIRST <= self.mtime_ns <= _LAST and self.size <= _LAST):
            object.__setattr__(self, "size", _clamped(self.size))
            object.__setattr__(self, "mtime_ns", _clamped(self.mtime_ns))

    def has(self, size: int, mtime_ns: int) -> bool:
        """Return whether a file of this size and modification time is the one that was read.

        >>> row = FileRow("a.jpg", "ba78", 9, 2**64, "ok")
        >>> row.mtime_ns == 2**63 - 1, row.has(9, 2**64), row.has(9, 1), row.has(8, 2**64)
        (True, True, False, False)
        """
        return (self.size, self.mtime_ns) == (_clamped(size), _clamped(mtime_ns))

    def over(self, known: FileRow | None) -> FileRow:
        """Return the row that takes the place of a known one: a failed read keeps the image that is known.

        >>> FileRow("a.jpg", None, 3, 2, "unreadable", "Truncated.").over(FileRow("a.jpg", "ba78", 9, 1, "ok"))
        FileRow(path='a.jpg', image_id='ba78', size=9, mtime_ns=1, state='unreadable', reason='Truncated.')
        """
        if self.state != "unreadable" or self.image_id or known is None or not known.image_id:
            return self
        return replace(known, state=self.state, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that could not be used, and why; the next index tries it again."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One file content, as far as its pixels and EXIF tell; ``phash`` has 64 bits, ``detail`` is 0 for a blank
    picture.
    """

    image_id: str
    pixels_digest: str
    width: int
    height: int
    format: str
    taken_at: datetime | None
    camera: str | None
    latitude: float | None
    longitude: float | None
    phash: int
    detail: float


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """Features on their way into the store; ``shown`` is the digest of what the model was shown, if that is known."""

    pixels_digest: str
    features: Features
    provenance: Provenance
    codec: str = "raw"
    shown: str = ""

    @property
    def key(self) -> str:
        return feature_key(self.pixels_digest, self.features.encoder.id)


@dataclass(frozen=True, slots=True)
class FeatureHead:
    """A features row without its payload."""

    key: str
    pixels_digest: str
    encoder: Encoder
    provenance: Provenance
    grid_thw: tuple[int, int, int]
    n_tokens: int
    codec: str
    sha256: str


@dataclass(frozen=True, slots=True)
class EncoderUse:
    """What rows of one encoder have in common: who made them, and how they are kept."""

    encoder: Encoder
    provenance: Provenance
    codec: str


@dataclass(frozen=True, slots=True)
class VectorRow:
    """What a search of one encoder's vectors reads: ``pooled`` is a unit vector ``(width,)``."""

    image: ImageRow
    pooled: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(slots=True)
class Batch:
    """What indexing found of some files: the rows that the store lacks of their pictures, and one of each file."""

    features: list[FeatureRow] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    vectors: list[VectorRow] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Apart:
    """Rows that were written beside a table, where no reader sees them: their keys, and Lance's fragments of them."""

    table: str
    keys: list[str]
    fragments: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SemanticsRow:
    """How semantic vectors were made: ``key`` is the digest of all of it but the model's name; ``retrieval`` is JSON,
    and the means are ``(width,)``, or empty where none was taken off.
    """

    key: str
    encoder_id: str
    language_weights: str
    model_id: str
    model_revision: str
    retrieval: str
    image_mean: tuple[float, ...]
    text_mean: tuple[float, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CheckRow:
    """How likely each of a question's choices was said of a picture; ``asked`` is the digest of all that decides it."""

    pixels_digest: str
    asked: str
    question: str
    choices: tuple[str, ...]
    probabilities: tuple[float, ...]
    mass: float
    exact: bool
    encoder_id: str
    model_id: str
    model_revision: str

    @property
    def key(self) -> str:
        return check_key(self.pixels_digest, self.asked)

    @property
    def is_sound(self) -> bool:
        """Whether the model gave the choices a chance. One that produced NaN was once recorded with a mass of 0."""
        return self.mass > 0 and all(map(math.isfinite, (self.mass, *self.probabilities)))


@dataclass(frozen=True, slots=True)
class LandmarkRow:
    """What copies of a picture are found by: packed landmarks of its thumbnail, ``width`` by ``height`` pixels."""

    pixels_digest: str
    version: int
    width: int
    height: int
    landmarks: bytes

    @property
    def key(self) -> str:
        return f"{self.pixels_digest}:{self.version}"


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two pictures, by their pixels and in order, that are copies or similar shots; ``made`` names what compared them.

    ``evidence`` is JSON.
    """

    one: str
    other: str
    made: str
    kind: str
    score: float
    evidence: str

    @property
    def key(self) -> str:
        return f"{self.one}:{self.other}:{self.made}"


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A picture, by its pixels, that was compared with every other that has such a row."""

    pixels_digest: str
    made: str

    @property
    def key(self) -> str:
        return f"{self.pixels_digest}:{self.made}"


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """Two pictures, in order, that a person said are no duplicates: pixels digests, or image ids of equal pixels."""

    one: str
    other: str

    @property
    def key(self) -> str:
        return f"{self.one}:{self.other}"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What the first index recorded, so that later commands need not repeat it; sizes as in qwen-vl-utils."""

    model: str = ""
    revision: str = ""
    dtype: str = ""
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    codec: str = ""  # of what is encoded from now on
    compute: str = ""  # how it is encoded
    caption_prompts: str = ""  # what captions are asked for by, a line each, if not by the checkpoint's own words
    encoder: str = ""  # the id of the encoder that the last index used


def _clamped(number: int) -> int:
    return min(max(number, _FIRST), _LAST)


def feature_key(pixels_digest: str, encoder_id: str) -> str:
    """The key of a features row: one picture, by its pixels, and one encoder."""
    return f"{pixels_digest}:{encoder_id}"


def semantics_key(encoder_id: str, language_weights: str, retrieval: str, *means: ArrayLike) -> str:
    """The key of a semantics row: sha256 over the canonical JSON of all that decides a vector, means as float32."""
    digests = [hashlib.sha256(np.asarray(mean, "<f4").tobytes()).hexdigest() for mean in means]
    decides = json.dumps([encoder_id, language_weights, retrieval, *digests], separators=(",", ":"))
    return hashlib.sha256(decides.encode()).hexdigest()


def check_key(pixels_digest: str, asked: str) -> str:
    """The key of a checks row: one picture, by its pixels, and all that decides what is said of it."""
    return f"{pixels_digest}:{asked}"


def feature_record(row: FeatureRow) -> dict[str, Any]:
    """A row of the ``features`` table, payload included."""
    payload = row.features.to_payload(row.codec)
    encoder = row.features.encoder
    return {
        "key": row.key,
        "pixels_digest": row.pixels_digest,
        "encoder_id": encoder.id,
        **asdict(encoder),
        **asdict(row.provenance),
        "grid_thw": list(row.features.grid_thw),
        "n_tokens": len(row.features),
        "timestamps": list(row.features.timestamps) or None,
        "sample_fps": row.features.sample_fps or None,
        "shown": row.shown or None,
        "codec": payload.codec,
        "sha256": payload.sha256,
        "payload": memoryview(payload.data),
        "created_at": datetime.now(UTC),
    }


def image_record(picture: Picture) -> dict[str, Any]:
    """A row of the ``images`` table, thumbnail included."""
    names = [field.name for field in schema.images_schema() if field.name != "created_at"]
    return {name: getattr(picture, name) for name in names} | {"created_at": datetime.now(UTC)}


def vector_record(row: VectorRow) -> dict[str, Any]:
    """A row of a ``vectors`` table; semantic vector and caption are made later, if at all."""
    copied = ("image_id", "pixels_digest", "taken_at", "camera", "latitude", "longitude", "width", "height")
    return {name: getattr(row.image, name) for name in copied} | {"pooled": row.pooled}


def check_record(row: CheckRow) -> dict[str, Any]:
    """A row of the ``checks`` table."""
    return {"key": row.key, **asdict(row), "created_at": datetime.now(UTC)}


def dated_record(row: LandmarkRow | PairRow | ComparedRow | DecisionRow) -> dict[str, Any]:
    """A row of a table whose columns are the fields of its value, a key before them and a time behind."""
    return {"key": row.key, **asdict(row), "created_at": datetime.now(UTC)}


def encoder_of(row: Mapping[str, Any]) -> Encoder:
    """The encoder that a row of the ``features`` table names."""
    return Encoder(**{name: row[name] for name in ENCODER_COLUMNS})


def provenance_of(row: Mapping[str, Any]) -> Provenance:
    """Who made a row of the ``features`` table."""
    return Provenance(**{name: row[name] for name in PROVENANCE_COLUMNS})


def check_row(row: Mapping[str, Any], encoder: Encoder) -> None:
    """Raise `CorruptStore` if a row of the ``features`` table contradicts its own key, or is not of this encoder.

    The row may come without its pixels digest, for whoever asked for it by its key.
    """
    # The payload's sha256 says nothing of the row that it hangs on.
    digest = row.get("pixels_digest") or row["key"].partition(":")[0]
    key = feature_key(check_id(digest, "The pixels digest of a features row"), encoder.id)
    if row["key"] != key or row["n_tokens"] != encoder.n_tokens(row["grid_thw"]):
        raise CorruptStore(
            f"The features row {row['key'][:12]}… names another picture, encoder or number of tokens than it holds.",
            fix="Restore the store from a copy, or index into a new one.",
        )


def times_of(row: Mapping[str, Any]) -> tuple[tuple[float, ...], float]:
    """When each frame of a video was, and how many were taken of a second; of a picture, nothing."""
    return tuple(row["timestamps"] or ()), row["sample_fps"] or 0.0


def head_of(row: Mapping[str, Any]) -> FeatureHead:
    """A row of the ``features`` table, checked against its own key; raises `CorruptStore` if it contradicts itself."""
    encoder = encoder_of(row)
    check_row(row, encoder)
    t, h, w = row["grid_thw"]
    return FeatureHead(
        key=row["key"],
        pixels_digest=row["pixels_digest"],
        encoder=encoder,
        provenance=provenance_of(row),
        grid_thw=(t, h, w),
        n_tokens=row["n_tokens"],
        codec=row["codec"],
        sha256=row["sha256"],
    )
