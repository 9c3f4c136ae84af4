"""Give the pictures of a store what they lack, from their features, and put it batch by batch: resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qsplit.errors import CorruptStore, FeaturesError, IncompatibleFeatures, NotIndexed, UsageError
from qsplit.features.features import Features
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import Skipped, feature_key
from qsplit.store.tables.vectors import Lacking

__all__ = ["Filled", "fill", "made_of"]

T = TypeVar("T")
Make = Callable[[Sequence[Features]], Sequence[T]]

_FETCHED = 32  # pictures whose features are read at once
_COMMIT_IMAGES = 512
_COMMIT_SECONDS = 30.0  # what a crash can cost


@dataclass(frozen=True, slots=True)
class Filled:
    """Of how many images something was made, and the files of those of which it could not be."""

    images: int
    skipped: list[Skipped]


def fill(
    store: FeatureStore,
    encoder_id: str,
    lacking: Iterable[Lacking],
    make: Make[T],
    put: Callable[[Mapping[str, T]], None],
    *,
    at_once: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Filled:
    """Make something of each picture's features, once for all images with its pixels, and put it: image id -> value.

    ``make`` takes several pictures' features, ``at_once`` at most; what it cannot be made of is skipped.
    ``on_progress`` is told of pictures done and of all. Raises `IncompatibleFeatures` for those that the language half
    was not made for.
    """
    images: dict[str, list[str]] = {}
    for one in lacking:
        images.setdefault(one.pixels_digest, []).append(one.image_id)
    failed: dict[str, str] = {}
    batch: dict[str, T] = {}
    done, filled, began = 0, 0, time.monotonic()
    try:
        for digests in _parts(list(images), at_once or _FETCHED):
            made = made_of(store, encoder_id, digests, make, failed)
            batch |= {image_id: value for digest, value in made.items() for image_id in images[digest]}
            done += len(digests)
            if len(batch) >= _COMMIT_IMAGES or time.monotonic() - began >= _COMMIT_SECONDS:
                put(batch)
                filled, batch, began = filled + len(batch), {}, time.monotonic()
            if on_progress is not None:
                on_progress(done, len(images))
    finally:
        put(batch)  # whoever stops this keeps what was made
        filled += len(batch)
    return Filled(filled, _skipped(store, {one: why for digest, why in failed.items() for one in images[digest]}))


def made_of(
    store: FeatureStore, encoder_id: str, digests: Sequence[str], make: Make[T], failed: dict[str, str]
) -> dict[str, T]:
    """Pixels digest -> what was made; one picture of which it cannot be is added to ``failed``, with the reason."""
    keys = [feature_key(digest, encoder_id) for digest in digests]
    try:
        held = store.get_features(keys)
        if lost := [digest for key, digest in zip(keys, digests, strict=True) if key not in held]:
            raise NotIndexed(f"The store has no features of the picture {lost[0][:12]}.", fix="Run `qsplit index`.")
        return dict(zip(digests, make([held[key] for key in keys]), strict=True))
    except IncompatibleFeatures:
        raise
    except (CorruptStore, FeaturesError, NotIndexed, UsageError) as error:
        if len(digests) > 1:
            each = (made_of(store, encoder_id, [digest], make, failed) for digest in digests)
            return {digest: value for one in each for digest, value in one.items()}
        failed[digests[0]] = str(error)
        return {}


def _parts(digests: Sequence[str], number: int) -> Iterator[Sequence[str]]:
    return (digests[start : start + number] for start in range(0, len(digests), number))


def _skipped(store: FeatureStore, failed: Mapping[str, str]) -> list[Skipped]:
    paths = store.paths_of(failed)
    return [Skipped(path, why) for image_id, why in sorted(failed.items()) for path in paths.get(image_id, [image_id])]
