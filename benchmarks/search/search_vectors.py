"""Search by vector, over a hundred thousand of them, beside numpy, faiss, usearch and hnswlib.

The vectors are drawn, with what real ones have that evenly spread ones lack: all lean one way, they lie in groups of
very different sizes (an event, a subject), those of a group differ along few directions more than along many, and some
are nearly the same (bursts). How alike random pairs, nearest and tenth-nearest neighbours are is printed, so that it
can be compared with an album's. Queries are drawn likewise, and are none of the vectors.

The peers hold the same vectors in memory; each approximate one gets the lowest setting with which its recall@10 is at
least .99 on queries of its own, and is then measured on the others, as are we with what the store chooses by itself.
All answer one query at a time, the ways taking turns, and recall is counted against numpy's float32 products.

    nearest          `Vectors.nearest`: the whole call, with exact cosines
    with paths       the same and where the files lie
    lance            the query alone that it sends
    rare, common     with a filter that leaves 3 and 30 of 100 pictures, at random
    fresh            right after a hundredth more was added, which no index holds yet
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import lancedb
import numpy as np
from lancedb.expr import Expr, col, lit

from benchmarks.common.report import Goal, at_least
from qsplit.features.features import Encoder
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.records import FileRow, ImageRow, VectorRow
from qsplit.store.tables.vectors import Vector, Vectors
from qsplit.store.vector_index import PROBES, REFINE

__all__ = ["GOALS", "add_options", "run"]

K = 10
RECALL = 0.99  # that approximate peers are set to
BATCH = 5_000  # rows a commit
GOALS: dict[str, Goal] = {
    "nearest, recall@10": at_least(0.99),
    "nearest, of numpy's rate": at_least(8.0),
    "rare, recall@10": at_least(0.99),
    "common, recall@10": at_least(0.99),
    "fresh, recall@10": at_least(0.99),
}
PEERS = {"faiss": "faiss-cpu", "usearch": "usearch", "hnswlib": "hnswlib"}  # module -> what pip calls it

Search = Callable[[Vector], Sequence[int]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=100_000, help="Vectors [100,000].")
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument(
        "--searches", type=int, default=200, help="Measured queries; as many choose peers' settings [200]."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="Of faiss, usearch and hnswlib, between commas, or none."
    )


def run(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    peers = [name for name in options.peers.split(",") if name and name != "none"]
    modules = {name: _imported(name) for name in peers}
    held = draw(options.rows + options.rows // 100, options.width, seed=0)
    held, fresh = held[: options.rows], held[options.rows :]
    tuning, queries = np.split(draw(2 * options.searches, options.width, seed=1), 2)
    figures = likeness(held, queries)
    truth = [exact(held, query) for query in queries]
    ours, built = store_with(folder, held)
    figures |= built
    searches: dict[str, Search] = {"numpy": lambda query: exact(held, query)}
    for name, module in modules.items():
        for kind, search, seconds in MAKERS[name](module, held, tuning):
            searches[kind] = search
            figures[f"{kind}, build, s"] = seconds
    searches |= {name: _numbered(search) for name, search in ours_by_name(ours).items()}
    taken, found = measured(searches, queries, options.rounds)
    figures |= {f"{name}, ms": 1000 * value for name, value in taken.items()}
    ratios = {f"{name}, recall@10": recall(some, truth) for name, some in found.items() if name not in FILTERS}
    ratios |= {f"{name}, of numpy's rate": taken["numpy"] / value for name, value in taken.items() if name != "numpy"}
    ratios |= filtered(ours, held, queries)
    ratios["fresh, recall@10"] = with_fresh(ours, held, fresh, queries)
    return figures, dict(sorted(ratios.items()))


def draw(number: int, width: int, *, seed: int) -> Vector:
    """Unit vectors ``(number, width)``; those of every seed lie in the same groups."""
    world, own = np.random.default_rng(0), np.random.default_rng([7, seed])
    groups = 2_000
    lean = _normal(world, (1, width), 1.0)
    centres = _normal(world, (groups, width), 1.0)
    directions = _normal(world, (64, width), 1.0)
    spread = np.arange(1, 65) ** -0.5
    sizes = 1.0 / np.arange(1, groups + 1)  # few large, many small
    rows = []
    for start in range(0, number, BATCH):
        n = min(BATCH, number - start)
        group = own.choice(groups, n, p=sizes / sizes.sum())
        few = (own.standard_normal((n, 64)) * spread).astype(np.float32) @ directions
        rows.append(lean + centres[group] + 0.5 * few + _normal(own, (n, width), 0.5))
        burst = own.random(n) < 0.05  # nearly the same as the one before
        rows[-1][1:][burst[1:]] = rows[-1][:-1][burst[1:]] + _normal(own, (int(burst[1:].sum()), width), 0.1)
    vectors: Vector = np.concatenate(rows)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, int], length: float) -> Vector:
    """Rows of about this length."""
    rows: Vector = (rng.standard_normal(shape) * (length / shape[1] ** 0.5)).astype(np.float32)
    return rows


def likeness(held: Vector, queries: Vector) -> dict[str, float]:
    some = queries[:100] @ held.T
    best = -np.sort(-some, axis=1)
    return {
        "cosine of random pairs, mean": float(some.mean()),
        "cosine with the nearest, mean": float(best[:, 0].mean()),
        "cosine with the tenth, mean": float(best[:, K - 1].mean()),
    }


def exact(held: Vector, query: Vector) -> Sequence[int]:
    scores = held @ query
    best = np.argpartition(-scores, K)[:K]
    return [int(i) for i in best[np.argsort(-scores[best])]]


def recall(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> float:
    return float(
        np.mean([len(set(some) & set(wanted)) / len(wanted) for some, wanted in zip(found, truth, strict=True)])
    )


def measured(
    searches: dict[str, Search], queries: Vector, rounds: int
) -> tuple[dict[str, float], dict[str, list[Sequence[int]]]]:
    """Median seconds of a query over all rounds and queries, the ways taking turns; and what each found."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[Sequence[int]]] = {}
    for search in searches.values():
        for query in queries[:5]:
            search(query)  # caches
    for _ in range(rounds):
        for name, search in searches.items():
            found[name] = []
            for query in queries:
                began = time.perf_counter()
                some = search(query)
                taken[name].append(time.perf_counter() - began)
                found[name].append(some)
    return {name: median(values) for name, values in taken.items()}, found


# --- ours ---

FILTERS: dict[str, tuple[Expr, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]]] = {
    "rare": (col("width") < lit(3), lambda marks: marks < 3),
    "common": (col("width") < lit(30), lambda marks: marks < 30),
}


def _marks(number: int) -> np.ndarray[Any, Any]:
    """A number below 100 for each row, at random, kept as its picture's width."""
    return np.random.default_rng(3).integers(0, 100, number)


def _image(number: int, mark: int) -> ImageRow:
    return ImageRow(f"{number:064x}", f"{number:064x}", mark, 1, "JPEG", None, None, None, None, 0, 1.0)


class Ours:
    """A store of vectors, and the encoder that they are said to be of."""

    def __init__(self, folder: Path, width: int) -> None:
        self.encoder = Encoder("0" * 64, "0" * 64, "float32", width=width, levels=0, merge_size=2)
        self.store = FeatureStore(folder / "album.qsplit", create=True)
        self.count = 0

    @property
    def vectors(self) -> Vectors:
        return self.store.vectors(self.encoder.id)

    def put(self, vectors: Vector, marks: np.ndarray[Any, Any]) -> None:
        for start in range(0, len(vectors), BATCH):
            some = [
                VectorRow(_image(self.count + i, int(mark)), vector)
                for i, (vector, mark) in enumerate(zip(vectors[start : start + BATCH], marks[start:], strict=False))
            ]
            self.store.put_vectors(self.encoder, some)
            self.store.put_files(
                [FileRow(f"/{one.image.image_id}.jpg", one.image.image_id, 1, 1, "ok") for one in some]
            )
            self.count += len(some)

    def table(self) -> Any:
        """The table, as lancedb has it."""
        db = lancedb.connect(self.store.uri, read_consistency_interval=timedelta(0))
        return db.open_table(vectors_table(self.encoder.id))


def store_with(folder: Path, held: Vector) -> tuple[Ours, dict[str, float]]:
    ours = Ours(folder, held.shape[1])
    began = time.perf_counter()
    ours.put(held, _marks(len(held)))
    put = time.perf_counter()
    ours.vectors.tend()
    done = time.perf_counter()
    return ours, {"store, write, s": put - began, "store, index, s": done - put}


def ours_by_name(ours: Ours) -> dict[str, Callable[[Vector], list[str]]]:
    vectors, table = ours.vectors, ours.table()

    def with_paths(query: Vector) -> list[str]:
        found = [image_id for image_id, _ in vectors.nearest("pooled", query, K)]
        paths = ours.store.paths_of(found)
        return [image_id for image_id in found if image_id in paths]

    def lance(query: Vector) -> list[str]:
        asked = table.search(query, vector_column_name="pooled").distance_type("cosine")
        asked = asked.nprobes(PROBES).refine_factor(REFINE)
        return list(asked.limit(K).select(["image_id", "_distance"]).to_arrow()["image_id"].to_pylist())

    found: dict[str, Callable[[Vector], list[str]]] = {
        "nearest": lambda query: [image_id for image_id, _ in vectors.nearest("pooled", query, K)],
        "with paths": with_paths,
        "lance": lance,
    }
    for name, (where, _) in FILTERS.items():
        found[name] = _with(vectors, where)
    return found


def _with(vectors: Vectors, where: Expr) -> Callable[[Vector], list[str]]:
    return lambda query: [image_id for image_id, _ in vectors.nearest("pooled", query, K, where)]


def _numbered(search: Callable[[Vector], list[str]]) -> Search:
    return lambda query: [int(image_id, 16) for image_id in search(query)]


def filtered(ours: Ours, held: Vector, queries: Vector) -> dict[str, float]:
    """Recall with filters; raises if a cosine is not the exact one."""
    marks, found = _marks(len(held)), {}
    for name, (where, holds) in FILTERS.items():
        left = np.flatnonzero(holds(marks))
        truth = [[int(left[i]) for i in exact(held[left], query)] for query in queries]
        some = []
        for query in queries:
            best = ours.vectors.nearest("pooled", query, K, where)
            some.append([int(image_id, 16) for image_id, _ in best])
            wrong = max(abs(score - float(held[i] @ query)) for i, (_, score) in zip(some[-1], best, strict=True))
            if wrong > 1e-4:
                raise AssertionError(f"A cosine is wrong by {wrong}.")
        found[f"{name}, recall@10"] = recall(some, truth)
    return found


def with_fresh(ours: Ours, held: Vector, fresh: Vector, queries: Vector) -> float:
    ours.put(fresh, np.zeros(len(fresh), int))
    everything = np.concatenate([held, fresh])
    found = [[int(image_id, 16) for image_id, _ in ours.vectors.nearest("pooled", query, K)] for query in queries]
    return recall(found, [exact(everything, query) for query in queries])


# --- peers ---

Made = Iterator[tuple[str, Search, float]]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} is not here: pip install {PEERS[name]}, or name other --peers.") from error


def _set(name: str, held: Vector, tuning: Vector, set_to: Callable[[int], None], search: Search) -> None:
    """Give an approximate peer the lowest setting with which it finds enough."""
    truth = [exact(held, query) for query in tuning]
    for effort in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
        set_to(effort)
        if recall([search(query) for query in tuning], truth) >= RECALL:
            print(f"  {name} at {effort}")
            return
    print(f"  {name} does not reach {RECALL} at {effort}")


def faiss_indexes(faiss: Any, held: Vector, tuning: Vector) -> Made:
    groups = max(1, min(int(4 * len(held) ** 0.5), len(held) // 39))
    width = held.shape[1]
    ways: dict[str, tuple[Callable[[], Any], Callable[[Any, int], None] | None]] = {
        "faiss flat": (lambda: faiss.IndexFlatIP(width), None),
        "faiss IVF": (
            lambda: faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, groups, faiss.METRIC_INNER_PRODUCT),
            lambda index, effort: setattr(index, "nprobe", effort),
        ),
        "faiss HNSW": (
            lambda: faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT),
            lambda index, effort: setattr(index.hnsw, "efSearch", effort),
        ),
    }
    for name, (make, set_to) in ways.items():
        began = time.perf_counter()
        index = make()
        if not index.is_trained:
            index.train(held)
        index.add(held)
        seconds = time.perf_counter() - began
        search = _faiss_search(index)
        if set_to is not None:
            _set(name, held, tuning, _effort(set_to, index), search)
        yield name, search, seconds


def _effort(set_to: Callable[[Any, int], None], index: Any) -> Callable[[int], None]:
    return lambda effort: set_to(index, effort)


def _faiss_search(index: Any) -> Search:
    return lambda query: list(index.search(query[None], K)[1][0])


def usearch_index(_: Any, held: Vector, tuning: Vector) -> Made:
    made = importlib.import_module("usearch.index")
    began = time.perf_counter()
    index = made.Index(ndim=held.shape[1], metric="ip", dtype="f32", connectivity=32)
    index.add(np.arange(len(held)), held)
    seconds = time.perf_counter() - began

    def search(query: Vector) -> Sequence[int]:
        return list(index.search(query, K).keys.tolist())

    _set("usearch", held, tuning, lambda effort: setattr(index, "expansion_search", effort), search)
    yield "usearch", search, seconds


def hnswlib_index(hnswlib: Any, held: Vector, tuning: Vector) -> Made:
    began = time.perf_counter()
    index = hnswlib.Index(space="ip", dim=held.shape[1])
    index.init_index(max_elements=len(held), ef_construction=200, M=32)
    index.add_items(held, np.arange(len(held)))
    seconds = time.perf_counter() - began

    def search(query: Vector) -> Sequence[int]:
        return list(index.knn_query(query, k=K, num_threads=1)[0][0].tolist())

    _set("hnswlib", held, tuning, lambda effort: index.set_ef(max(K, effort)), search)
    yield "hnswlib", search, seconds


MAKERS: dict[str, Callable[[Any, Vector, Vector], Made]] = {
    "faiss": faiss_indexes,
    "usearch": usearch_index,
    "hnswlib": hnswlib_index,
}
