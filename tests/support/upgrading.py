"""Processes that open stores of older layouts for writing; a module, so that they can be spawned and ended.

As a script: run the commands of a JSON list, one after another, and print a line of JSON about each.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import rows
from patience import PATIENCE

from qsplit.cli import main
from qsplit.features.features import Encoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import DecisionRow, FileRow

SHARED = 900  # the seed of a picture that each of them writes


def seeds_of(worker: int) -> list[int]:
    """The pictures that `open_and_put` writes."""
    return [SHARED, SHARED + 1 + worker]


def path_of(seed: int) -> str:
    return f"/late/{seed}.jpg"


def open_and_put(folders: Sequence[str], worker: int, barrier: Any, results: Any) -> None:
    """Open one store after another for writing, each at the same moment as the others, and put rows to all tables."""
    try:
        for folder in folders:
            barrier.wait(PATIENCE)
            store = FeatureStore(folder, create=True)
            put(store, seeds_of(worker))
            results.put((folder, "done"))
    except BaseException:
        barrier.abort()
        results.put((folder, traceback.format_exc()))
        raise


def put(store: FeatureStore, seeds: Sequence[int]) -> None:
    """Put rows to every table that a store may have, as if its own encoder had made them."""
    made_by = encoder_of(store)
    store.put_features([rows.feature_row(seed, made_by) for seed in seeds])
    store.put_images([rows.picture(seed) for seed in seeds])
    store.put_vectors(made_by, [rows.vector_row(seed, made_by.width) for seed in seeds])
    store.put_checks([rows.check_row(seed) for seed in seeds])
    store.put_decisions([DecisionRow(rows.digest(f"pixels {seed}"), rows.digest("another")) for seed in seeds])
    store.put_files([FileRow(path_of(seed), rows.digest(f"image {seed}"), seed, 1, "ok") for seed in seeds])


def encoder_of(store: FeatureStore) -> Encoder:
    """The encoder of the only rows that there are."""
    ((uses),) = store.encoders().values()
    return next(iter(uses)).encoder


def _run(arguments: Sequence[str]) -> dict[str, Any]:
    code, out = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main.main(arguments)
    except SystemExit as exited:
        code = int(exited.code or 0)
    return {"code": code, "lines": [json.loads(line) for line in out.getvalue().splitlines()]}


if __name__ == "__main__":
    for one in json.loads(sys.argv[1]):
        print(json.dumps(_run([*one, "--json"])), flush=True)
