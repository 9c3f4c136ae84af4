"""Is what the store holds what was put into it? Every payload is read, every key counted, every reference followed.

How far another machine's numbers are from the stored ones is another question, which `drift` answers by looking again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from qsplit.errors import CorruptStore, InvalidFeatures
from qsplit.features.codecs import is_lossless
from qsplit.features.features import Features
from qsplit.maintenance.drift import Drift
from qsplit.maintenance.garbage import GRACE, Orphans, find_orphans
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.records import feature_key, semantics_key
from qsplit.store.text_analysis import terms_of

__all__ = ["Corrupt", "Verified", "verify"]

_THUMBNAILS_AT_ONCE = 500
_TOKENS_AT_ONCE = 16_384  # 50 MB of a 2B model's features
_IMAGE = ("image_id", "pixels_digest", "created_at")
_KEYS = {"files": "path", "images": "image_id"}  # of the tables whose key has another name than "key"
_CLOSE = 1 - 1e-5  # the least cosine of a vector and the mean of its features: sums may run in another order
_CLOSE_WITH_LOSS = 0.99
_SLACK = 1e-3  # of a unit vector's length
_DECIDES = ("key", "encoder_id", "language_weights", "retrieval", "image_mean", "text_mean")
_SEMANTIC = ("image_id", "semantic", "semantic_id", "caption", "caption_id", "terms")


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A row that cannot be trusted, and why."""

    table: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found.

    ``checked`` payloads were read. ``corrupt`` rows are never answered from; ``duplicate_keys`` are ``table: key``;
    ``missing`` is what a row refers to and is not there, which the next index makes again; ``orphans`` are rows that
    nothing refers to and are harmless; `qsplit compact` removes them once they are an hour old.
    """

    checked: int
    corrupt: list[Corrupt]
    duplicate_keys: list[str]
    missing: list[str]
    orphans: Orphans
    drift: Drift | None = field(default=None)

    @property
    def sound(self) -> bool:
        return not (self.corrupt or self.duplicate_keys or self.missing)


def verify(store: FeatureStore, *, on_progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read everything once; needs no checkpoint and changes nothing.

    ``on_progress`` is told of payloads done and of all. Raises `CorruptStore` if a table cannot be read at all.
    """
    invalid = [Corrupt(*row) for row in store.invalid_rows()]
    with store.leaving_out_invalid():
        found = _verify(store, on_progress)
    return replace(found, corrupt=[*invalid, *found.corrupt])


def _verify(store: FeatureStore, on_progress: Callable[[int, int], None] | None) -> Verified:
    rows = store.column("features", "key", "pixels_digest", "encoder_id", "n_tokens", "codec")
    means: dict[tuple[str, str], tuple[np.ndarray[Any, np.dtype[np.float32]], bool]] = {}
    corrupt: list[Corrupt] = []
    checked = 0
    for some in _chunks(rows):
        read = _read(store, [row[0] for row in some])
        for (key, digest, encoder_id, _, codec), found in zip(some, read, strict=True):
            if isinstance(found, str):
                corrupt.append(Corrupt("features", key, found))
            elif key != feature_key(digest, encoder_id):
                corrupt.append(Corrupt("features", key, "The row names another picture or encoder than its key."))
            else:
                means[digest, encoder_id] = found.pooled(), is_lossless(codec)
        checked += len(some)
        if on_progress is not None:
            on_progress(checked, len(rows))
    corrupt += _wrong_thumbnails(store, [image_id for (image_id,) in store.column("images", "image_id")])
    corrupt += _wrong_vectors(store, means)
    corrupt += _wrong_semantics(store)
    return Verified(checked, corrupt, _doubled(store), _missing(store), find_orphans(store, grace=timedelta(0)))


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    some: list[tuple[Any, ...]] = []
    tokens = 0
    for row in rows:
        some.append(row)
        tokens += row[3]
        if tokens >= _TOKENS_AT_ONCE:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def _read(store: FeatureStore, keys: Sequence[str]) -> list[Features | str]:
    """The features of each key, or why there are none; one bad row does not hide the others."""
    try:
        found = store.get_features(keys)
        return [found.get(key, "The row cannot be found by its key.") for key in keys]
    except (CorruptStore, InvalidFeatures) as error:
        if len(keys) == 1:
            return [str(error)]
        return [one for key in keys for one in _read(store, [key])]


def _wrong_thumbnails(store: FeatureStore, image_ids: Sequence[str]) -> Iterator[Corrupt]:
    """Thumbnails that are elsewhere or no WebP of their size; one bad row does not hide the others."""
    for start in range(0, len(image_ids), _THUMBNAILS_AT_ONCE):
        some = image_ids[start : start + _THUMBNAILS_AT_ONCE]
        try:
            for _ in store.thumbnails(some):
                pass
        except CorruptStore as error:
            if len(image_ids) == 1:
                yield Corrupt("images", image_ids[0], str(error))
                return
            middle = -(-len(some) // 2)
            yield from _wrong_thumbnails(store, some[:middle])
            yield from _wrong_thumbnails(store, some[middle:])


def _wrong_vectors(
    store: FeatureStore, means: dict[tuple[str, str], tuple[np.ndarray[Any, np.dtype[np.float32]], bool]]
) -> Iterator[Corrupt]:
    """Vectors that do not point where the mean of their features does."""
    tables = store.vector_tables()
    for encoder_id in sorted({encoder_id for _, encoder_id in means}):
        table = vectors_table(encoder_id)
        if table not in tables:
            continue
        for image_id, digest, vector in store.column(table, "image_id", "pixels_digest", "pooled"):
            mean, lossless = means.get((digest, encoder_id), (None, True))
            if mean is None:
                continue  # reported as missing
            pooled = np.asarray(vector, np.float32)
            cosine = float(pooled @ mean / max(float(np.linalg.norm(pooled)), 1e-12))
            if not cosine >= (_CLOSE if lossless else _CLOSE_WITH_LOSS):
                reason = f"Its cosine with the mean of its features is {cosine:.6f}."
                yield Corrupt(table, image_id, reason)


def _wrong_semantics(store: FeatureStore) -> Iterator[Corrupt]:
    """Semantic vectors and captions that cannot be what was put: whether they say the right thing needs a model."""
    ways = {key: semantics_key(*decides) for key, *decides in store.column("semantics", *_DECIDES)}
    for key, wanted in ways.items():
        if key != wanted:
            yield Corrupt("semantics", key, "It tells of another way of making vectors than its key.")
    for table in store.vector_tables():
        for image_id, vector, way, caption, asked, terms in store.column(table, *_SEMANTIC):
            if (vector is None) != (way is None) or (way is not None and way not in ways):
                yield Corrupt(table, image_id, "Nothing tells how its semantic vector was made.")
            elif vector is not None and not abs(float(np.linalg.norm(np.asarray(vector, np.float32))) - 1) < _SLACK:
                yield Corrupt(table, image_id, "Its semantic vector has not the length 1.")
            if (caption is None) != (asked is None) or (caption is not None and terms != terms_of(caption)):
                yield Corrupt(table, image_id, "Its caption is not what full-text search finds it by.")


def _doubled(store: FeatureStore) -> list[str]:
    """Keys that are there more than once."""
    found = []
    for table in store.tables():
        counts = Counter(
            key
            for (key,) in store.column(table, _KEYS.get(table, "image_id" if table.startswith("vectors-") else "key"))
        )
        found += [f"{table}: {key}" for key, n in counts.items() if n > 1]
    return found


def _missing(store: FeatureStore) -> list[str]:
    """What a file, an image or a vector refers to and is not there.

    Others may be writing: what is referred to is read after what refers, and images of the last hour may still wait
    for their vectors.
    """
    files = store.column("files", "path", "image_id")
    vectors = {table: dict(store.column(table, "image_id", "pixels_digest")) for table in store.vector_tables()}
    images = {image_id: (digest, made) for image_id, digest, made in store.column("images", *_IMAGE)}
    encoded: dict[str, set[str]] = {}
    for digest, encoder_id in store.column("features", "pixels_digest", "encoder_id"):
        encoded.setdefault(vectors_table(encoder_id), set()).add(digest)
    anywhere = set().union(*encoded.values())
    before = datetime.now(UTC) - GRACE
    found = [f"image {one} of {path}" for path, one in files if one is not None and one not in images]
    found += [f"features of image {image_id}" for image_id, (digest, _) in images.items() if digest not in anywhere]
    for table, held in vectors.items():
        digests = encoded.get(table, set())
        found += [f"features of vector {image_id}" for image_id, digest in held.items() if digest not in digests]
        found += [
            f"vector of image {image_id}"
            for image_id, (digest, made) in images.items()
            if digest in digests and image_id not in held and made <= before
        ]
    return found
