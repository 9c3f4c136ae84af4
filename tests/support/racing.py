"""Processes that read a store, or write to it at the same moment as others; a module, so that they can be spawned."""

from __future__ import annotations

import traceback
from typing import Any

import rows
from patience import PATIENCE

from qsplit.errors import QsplitError
from qsplit.store import durability
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, StoreSettings

ROUNDS = 20
SHARED = 3  # rows a round that every process writes; one more is its own


def numbers(worker: int, round_: int) -> list[int]:
    """The seeds of the rows that a process writes in a round."""
    return [10 * round_ + i for i in range(SHARED)] + [10_000 * (worker + 1) + round_]


def race(uri: str, worker: int, barrier: Any, results: Any, locks: bool) -> None:
    """Write what `numbers` says, at the same moment as the others; without locks as on a disk that shares none."""
    if not locks:
        setattr(durability, "fcntl", None)  # noqa: B010  # as it is where there is no such module
    try:
        barrier.wait(PATIENCE)
        store = FeatureStore(uri, create=True)
        mine = [seed for round_ in range(ROUNDS) for seed in numbers(worker, round_)]
        store.put_images([rows.picture(seed) for seed in mine])
        store.put_vectors(rows.encoder(), [rows.vector_row(seed) for seed in mine])
        for round_ in range(ROUNDS):
            seeds = numbers(worker, round_)
            barrier.wait(PATIENCE)
            inserted = store.put_features([rows.feature_row(seed) for seed in seeds])
            store.put_files([FileRow(f"/{seed}.jpg", rows.digest(f"image {seed}"), seed, 1, "ok") for seed in seeds])
            results.put(inserted)
        barrier.wait(PATIENCE)
        store.record(StoreSettings(model=f"model {worker}"))
    except BaseException:
        barrier.abort()
        results.put(traceback.format_exc())
        raise


def read(uri: str, keys: list[str], answers: Any) -> None:
    """Tell what reading features came to."""
    try:
        answers.put(f"{len(FeatureStore(uri).get_features(keys))} read")
    except QsplitError as error:
        answers.put(f"{type(error).__name__}: {error}")


def pictures_of(worker: int, number: int) -> list[int]:
    """The seeds of the pictures that `write_pictures` writes."""
    return [1_000 * (worker + 1) + i for i in range(number)]


def write_pictures(uri: str, worker: int, number: int, results: Any) -> None:
    """Put whole pictures one after another, in the order in which an index writes them."""
    made_by = rows.encoder(width=512)
    try:
        store = FeatureStore(uri)
        for seed in pictures_of(worker, number):
            store.put_features([rows.feature_row(seed, made_by, grid=(1, 40, 40))])
            store.put_images([rows.picture(seed)])
            store.put_vectors(made_by, [rows.vector_row(seed, 512)])
            store.put_files([FileRow(f"/{seed}.jpg", rows.digest(f"image {seed}"), seed, 1, "ok")])
        results.put("done")
    except BaseException:
        results.put(traceback.format_exc())
        raise


def open_together(uri: str, encoder_id: str, barrier: Any, results: Any) -> None:
    """Open a store at the same moment as others, and tell how many vectors it has."""
    try:
        barrier.wait(PATIENCE)
        results.put(len(FeatureStore(uri).vector_ids(encoder_id)))
    except BaseException:
        results.put(traceback.format_exc())
        raise


def count_features(store: FeatureStore) -> int:
    return store.count("features")


def identify(uri: str, barrier: Any, results: Any, locks: bool) -> None:
    """Have an id assigned at the same moment as others; without locks as on a disk that shares none."""
    if not locks:
        setattr(durability, "fcntl", None)  # noqa: B010  # as it is where there is no such module
    try:
        store = FeatureStore(uri)
        barrier.wait(PATIENCE)
        results.put(store.identify())
    except BaseException:
        results.put(traceback.format_exc())
        raise
