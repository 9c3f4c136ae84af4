"""Indexing on Ray: what it costs over the plain loop, and what it costs to join what very many workers wrote.

    python -m benchmarks.cluster.bench_cluster equal [--pictures 3600] [--few 300] [--side 224] [--repeat 2]
    python -m benchmarks.cluster.bench_cluster commits [--rows 1000000] [--joined 1000] [--writers 2] [--tokens 4]

``equal`` has `qsplit index` and `qsplit index --ray --workers 1` encode the same drawn pictures, both with one thread,
each in a process of its own, few pictures and then many: what the many take beyond the few is without start-up, and is
told as a ratio. Of fewer pictures it cannot be told: to start Ray takes half a minute, give or take some seconds. Both
stores must hold the same features, bit for bit.

``commits`` writes the rows of so many pictures as workers would, without a model: a few tokens, shards of 64, from a
few processes. Then one process joins them, 1,000 shards a commit, while another keeps putting rows of its own into the
same tables. It tells the seconds of each commit by the rows that were there before, the joiner's peak memory, and how
often a commit had to be done again. Every row must be there once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common.report import at_most, machine, peak_gib, tell, timed
from qsplit.features.features import Encoder, Features, Provenance
from qsplit.indexing.shards import Joiner
from qsplit.media.images import Picture
from qsplit.store import feature_store
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import Batch, FeatureRow, FileRow, ImageRow, VectorRow
from qsplit.store.shard_log import Done, Notes

GOALS = {"on Ray, a picture, over the loop": at_most(1.10)}
ENCODER = Encoder("0" * 64, "1" * 64, "bfloat16", width=64, levels=0, merge_size=2)
DOT = Image.new("RGB", (1, 1))
SHARD = 64  # rows
PAUSE = 2.0  # seconds between two puts of whoever disturbs the joiner


# --- equal ---


def drawn(folder: Path, number: int, side: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        pixels = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(folder / f"{i:06}.jpg", quality=90)
    return folder


def indexed(folder: Path, uri: Path, *options: str) -> float:
    """Seconds of a whole process."""
    command = [sys.executable, "-m", "qsplit", "index", str(folder), "--store", str(uri), "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    found = json.loads(done.stdout)
    if found["unreadable"] or found["encoded"] != found["found"]:
        raise SystemExit(f"wrong: {found}")
    return seconds


def digests(uri: Path) -> dict[str, str]:
    return {str(key): str(sha256) for key, sha256 in FeatureStore(uri).column("features", "key", "sha256")}


def equal(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    ways = {"loop": (), "Ray": ("--ray", "--workers", "1")}
    took: dict[str, list[float]] = {f"{way}, {size}": [] for way in ways for size in ("few", "many")}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sizes = {"few": options.few, "many": options.pictures}
        folders = {size: drawn(place / size, number, options.side) for size, number in sizes.items()}
        for turn in range(options.repeat):
            for size, folder in folders.items():
                for way, given in ways.items():
                    took[f"{way}, {size}"].append(indexed(folder, place / f"{way} {size} {turn}.qsplit", *given))
        if digests(place / "loop many 0.qsplit") != digests(place / "Ray many 0.qsplit"):
            raise SystemExit("wrong: the features differ")
    figures = {f"{name}, s": median(seconds) for name, seconds in took.items()}
    each = {
        way: (figures[f"{way}, many, s"] - figures[f"{way}, few, s"]) / (options.pictures - options.few) for way in ways
    }
    figures |= {f"{way}, ms a picture": seconds * 1000 for way, seconds in each.items()}
    figures["Ray, s to start"] = figures["Ray, few, s"] - options.few * each["Ray"]
    figures["loop, s to start"] = figures["loop, few, s"] - options.few * each["loop"]
    return figures, {"on Ray, a picture, over the loop": each["Ray"] / each["loop"]}


# --- commits ---


def batch_of(numbers: range, tokens: int) -> Batch:
    """The rows of pictures that nobody looked at."""
    batch, rng = Batch(), np.random.default_rng(numbers.start)
    for number in numbers:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        values = torch.from_numpy(rng.normal(size=(tokens, ENCODER.width)).astype(np.float32)).bfloat16()
        features = Features.from_torch([values], (1, 2, 2 * tokens), ENCODER)
        facts = ImageRow(digest, digest, 28, 28, "JPEG", None, None, None, None, number, 1.0)
        told = {name: getattr(facts, name) for name in ImageRow.__slots__}
        batch.features.append(FeatureRow(digest, features, Provenance()))
        batch.pictures.append(Picture(**told, thumbnail=b"webp" * 64, rgb=DOT))
        batch.vectors.append(VectorRow(facts, features.pooled()))
        batch.files.append(FileRow(f"/pictures/{number:09}.jpg", digest, 1, 1, "ok"))
    return batch


def write(uri: str, first: int, step: int, rows: int, tokens: int) -> int:
    """Write what the workers of every ``step``-th shard leave; returns how many rows."""
    written, place, notes = 0, FeatureStore(uri), Notes(uri)
    for start in range(first * SHARD, rows, step * SHARD):
        numbers = range(start, min(start + SHARD, rows))
        batch = batch_of(numbers, tokens)
        parts = place.write_apart(ENCODER, batch)
        notes.put(Done(f"{start:09}", parts, batch.files, len(numbers), 0))
        written += len(numbers)
    return written


def disturb(uri: str, stop: Event, told: Any) -> None:
    """Keep putting rows that no shard has, as a service does that takes uploads."""
    number = 10**9
    place = FeatureStore(uri)
    while not stop.wait(PAUSE):
        place.put(ENCODER, batch_of(range(number, number + 4), 1))
        number += 4
    told.put(number - 10**9)


def join(uri: str, joined: int, told: Any) -> None:
    """In a process of its own: join all, and tell of each commit."""
    place, commits, again = FeatureStore(uri), list[tuple[int, float]](), list[str]()

    class Timed(Joiner):
        def flush(self) -> None:
            before = place.count("features")
            seconds, _ = timed(super().flush)
            commits.append((before, seconds))

    def lost(error: Exception) -> bool:
        again.append(str(error))
        return is_conflict(error)

    is_conflict, feature_store._is_conflict = feature_store._is_conflict, lost  # noqa: SLF001  # called for each commit that failed
    began, start = time.perf_counter(), peak_gib()
    for _ in Timed(place, "bench", at_once=joined).join_known():
        pass
    told.put((commits, time.perf_counter() - began, start, peak_gib(), len(again)))


def commits(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        uri = f"{name}/album.qsplit"
        FeatureStore(uri, create=True)
        given = [(uri, i, options.writers, options.rows, options.tokens) for i in range(options.writers)]
        with context.Pool(options.writers) as pool:
            writing, written = timed(pool.starmap, write, given)
        stop, told, disturbed = context.Event(), context.Queue(), context.Queue()
        disturber = context.Process(target=disturb, args=(uri, stop, disturbed))
        joiner = context.Process(target=join, args=(uri, options.joined, told))
        for process in (disturber, joiner):
            process.start()
        each, seconds, start, peak, again = told.get()
        stop.set()
        others = disturbed.get()
        for process in (disturber, joiner):
            process.join()
        verify(FeatureStore(uri), options.rows, others)
    shards = -(-options.rows // SHARD)
    for before, took in each:
        print(f"  {before:12,} rows before  {took:8.2f} s")
    figures = {
        "rows": float(sum(written)),
        "shards": float(shards),
        "s to write apart, all processes": writing * options.writers,
        "s to join": seconds,
        "rows joined a second": options.rows / seconds,
        "commits": float(len(each)),
        "commits done again": float(again),
        "joiner, GiB at first": start,
        "joiner, GiB at most": peak,
        "rows that somebody else put meanwhile": float(others),
    }
    return figures, {"s of the last full commit over the first": each[-2][1] / each[0][1] if len(each) > 2 else 1.0}


def verify(place: FeatureStore, rows: int, others: int) -> None:
    for table, key in (("features", "key"), ("images", "image_id"), *((v, "image_id") for v in place.vector_tables())):
        found = [value for (value,) in place.column(table, key)]
        if len(found) != len(set(found)) or len(found) != rows + others:
            raise SystemExit(f"wrong: {table} has {len(found)} rows, {len(set(found))} of them different")
    if place.count("files") != rows + others or Notes(place.uri).done():
        raise SystemExit("wrong: files or notes")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equal", "commits"])
    for name, default in (
        ("pictures", 3600), ("few", 300), ("side", 224), ("repeat", 2),
        ("rows", 1_000_000), ("writers", 2), ("tokens", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--joined", type=int, default=1000, help="shards a commit")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    print(machine())
    figures, ratios = equal(options) if options.what == "equal" else commits(options)
    tell(figures, ratios, GOALS, options.json)


if __name__ == "__main__":
    main()
