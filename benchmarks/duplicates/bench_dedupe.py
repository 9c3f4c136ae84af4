"""Copies found among distractors: `qsplit duplicates` beside hashes that people use, over the set of `copyset.py`.

    python -m benchmarks.duplicates.bench_dedupe SET [--store URI] [--peers PYTHON] [--fastdup PYTHON] [--json FILE]
    python -m benchmarks.duplicates.bench_dedupe --scale 100000

SET is what ``copyset.py`` made. Queries are compared with the album; a pair is right if the query was made of that very
picture. Micro average precision ranks all pairs of all queries together, ties at their worst; recall is at the
strictest score from which precision stays above a bound, and at each way's own threshold. Similar pairs, two shots of
one scene, are wrong when they are called copies. B-cubed is over groups of the whole set, each way's at its default.
Queries in a mirror count, so qsplit looks with ``--mirrored``.

Peers run in the interpreter that ``--peers`` names, where they are installed as their users do: imagehash and
imagededup by the distance of their hashes, at 10 bits, imagededup's default; findimagedupes, if it is on the path, by
its groups. ``--fastdup`` names an interpreter of its own, which it wants: pairs are called copies from .9, its default,
and its groups are the connected components of its default. With ``--scale``, all near pairs of so many vectors with
planted pairs are found in buckets and by a blocked matrix product, and one new picture is compared with all.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qsplit
from benchmarks.common.report import at_least, at_most, tell, timed
from benchmarks.duplicates.copyset import NO_COPIES
from qsplit.duplicates.descriptors import Portraits
from qsplit.duplicates.detector import _distinct, compare_all
from qsplit.duplicates.matching.comparison import COPY
from qsplit.duplicates.matching.neighbors import near_vectors, nearest_few

Pairs = dict[tuple[str, str], float]  # (query, picture of the album) -> score, the higher the surer

PEER_BITS = 10
GOALS = {
    "µAP over the best peer's": at_least(0.15),
    "recall at precision .99 over the best peer's": at_least(0.25),
    "recall of crop 50 % at the default": at_least(0.8),
    "recall of screenshot at the default": at_least(0.8),
    "recall of rotated 25 at the default": at_least(0.8),
    "similar pairs called copies": at_most(0.02),
    "precision at the default": at_least(0.99),
    "near pairs found": at_least(0.999),
    "near pairs, time over a blocked product's": at_most(0.25),
    "near pairs, GB above the vectors": at_most(1.5),
    "a new picture, time over a pass of dot products": at_most(50),
}
PEERS = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from PIL import Image
def hashes(path):
    import imagehash
    from imagededup.methods import AHash, DHash, PHash
    found = {}
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    for name in ("phash", "dhash", "average_hash"):
        found["imagehash " + name] = str(getattr(imagehash, name)(image))
    for method in (PHash, DHash, AHash):
        found["imagededup " + method.__name__] = method(verbose=False).encode_image(image_file=path)
    return found
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        paths = json.load(sys.stdin)
        print(json.dumps(dict(zip(paths, pool.map(hashes, paths, chunksize=50)))))
"""

FASTDUP = """
import contextlib, json, sys
import fastdup
with contextlib.redirect_stdout(sys.stderr):
    made = fastdup.create(work_dir=sys.argv[2], input_dir=sys.argv[1])
    made.run(threshold=0.5, nearest_neighbors_k=12, overwrite=True, print_summary=False)
    near, (parts, _) = made.similarity(), made.connected_components()
pairs = near[["filename_from", "filename_to", "distance"]].values.tolist()
groups = parts.groupby("component_id")["filename"].apply(list).tolist()
print("FOUND " + json.dumps([pairs, [group for group in groups if len(group) > 1]]))
"""
FASTDUP_CALLS = 0.9


class Truth:
    """What is a copy of what."""

    def __init__(self, folder: Path) -> None:
        self.rows = {row["file"]: row for row in json.loads((folder / "truth.json").read_text())}
        self.album = [file for file in self.rows if file.startswith("album/")]
        self.queries = [file for file in self.rows if file.startswith("queries/")]

    def is_copy(self, query: str, other: str) -> bool:
        a, b = self.rows[query], self.rows[other]
        return a["scene"] == b["scene"] and a["transform"] not in NO_COPIES

    def is_similar(self, query: str, other: str) -> bool:
        a, b = self.rows[query], self.rows[other]
        return bool(a["scene"] == b["scene"] and a["transform"] == "burst")

    @property
    def copies(self) -> list[str]:
        """The queries that have an original in the album."""
        return [file for file in self.queries if self.rows[file]["transform"] not in NO_COPIES]

    def judged(self, name: str, pairs: Pairs, least: float) -> dict[str, float]:
        """Figures of one way, whose own threshold is ``least``."""
        order = sorted(pairs, key=lambda pair: (-pairs[pair], self.is_copy(*pair)))
        right = np.array([self.is_copy(*pair) for pair in order])
        scores = np.array([pairs[pair] for pair in order])
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        n = len(self.copies)
        found = {f"{name}: µAP": float(precision[right].sum() / n)}
        last = np.append(scores[1:] != scores[:-1], True)  # a threshold takes all of equal scores
        for bound in (0.9, 0.99):
            enough = np.nonzero((precision >= bound) & last)[0]
            found[f"{name}: recall at {bound}"] = float(right[: enough[-1] + 1].sum() / n) if len(enough) else 0.0
        called = scores >= least
        found[f"{name}: recall at the default"] = float(right[called].sum() / n)
        found[f"{name}: precision at the default"] = float(right[called].mean()) if called.any() else 1.0
        similar = sum(self.is_similar(*pair) for pair, is_called in zip(order, called, strict=True) if is_called)
        found[f"{name}: similar pairs called copies"] = similar / max(self.n_similar, 1)
        blank = sum(
            "blank" in (self.rows[a]["transform"], self.rows[b]["transform"])
            for (a, b), is_called in zip(order, called, strict=True)
            if is_called
        )
        found[f"{name}: pairs with blanks called copies"] = float(blank)
        return found

    @property
    def n_similar(self) -> int:
        """Pairs of a query and a picture of the album that are two shots of one scene."""
        shots: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for file, row in self.rows.items():
            if row["transform"] == "burst":
                shots[row["scene"]][file.startswith("album/")] += 1
        return sum(a * b for a, b in shots.values())

    def by_transform(self, pairs: Pairs, least: float) -> dict[str, float]:
        """The share of each transform's queries of which the original is found at a threshold."""
        hit = {query for (query, other), score in pairs.items() if score >= least and self.is_copy(query, other)}
        rows: dict[str, list[bool]] = defaultdict(list)
        for query in self.copies:
            rows[self.rows[query]["transform"]].append(query in hit)
        return {name: sum(hits) / len(hits) for name, hits in rows.items()}

    def b_cubed(self, groups: Iterable[Sequence[str]]) -> float:
        """F1 of groups of files against scenes; a file in no group stands alone, one in several is in the first."""
        group_of: dict[str, int] = {}
        for number, group in enumerate(groups):
            for file in group:
                group_of.setdefault(file, number)
        scene_of = {
            file: file if row["transform"] in NO_COPIES else str(row["scene"]) for file, row in self.rows.items()
        }
        together: dict[Any, set[str]] = defaultdict(set)
        same: dict[str, set[str]] = defaultdict(set)
        for file, scene in scene_of.items():
            together[group_of.get(file, file)].add(file)
            same[scene].add(file)
        shares = []
        for file, scene in scene_of.items():
            of_group, of_scene = together[group_of.get(file, file)], same[scene]
            both = len(of_group & of_scene)
            shares.append((both / len(of_group), both / len(of_scene)))
        precision, recall = np.mean(shares, axis=0)
        return float(2 * precision * recall / (precision + recall))


def ours(folder: Path, truth: Truth, store: str) -> tuple[Pairs, list[list[str]], dict[str, float]]:
    """Scores of pairs, groups, and how long it took."""
    album = qsplit.open(store)
    seconds, _ = timed(album.index, folder / "album", folder / "queries")
    files = [row for row in album.store.files().values() if row.state == "ok"]
    images = album.store.images()
    names = {images[str(row.image_id)].pixels_digest: str(Path(row.path).relative_to(folder)) for row in files}
    took, portraits = timed(Portraits, album.store, _distinct(files, images), album.store.settings().encoder)
    began, pairs, alike = time.perf_counter(), Pairs(), []
    found_all = (pair for step in compare_all(portraits, range(len(portraits)), mirrored=True) for pair in step.pairs)
    for candidate, found in found_all:
        one, other = (names[portraits.digests[i]] for i in (candidate.one, candidate.other))
        put(pairs, one, other, found.score)
        if found.score >= COPY:
            alike.append((one, other))
    figures = {"qsplit: s to index": seconds, "qsplit: s for landmarks": took}
    return pairs, stars(alike, truth), figures | {"qsplit: s to compare": time.perf_counter() - began}


def put(pairs: Pairs, one: str, other: str, score: float) -> None:
    """Add a pair, in whatever order, if it is of a query and a picture of the album; of several scores the highest."""
    query, known = (one, other) if one.startswith("queries/") else (other, one)
    if query.startswith("queries/") and known.startswith("album/"):
        pairs[query, known] = max(score, pairs.get((query, known), 0.0))


def stars(alike: Iterable[tuple[str, str]], truth: Truth) -> list[list[str]]:
    """Groups in which each member matches the first, originals first: as `qsplit duplicates` makes them."""
    near: dict[str, set[str]] = defaultdict(set)
    for one, other in alike:
        near[one].add(other)
        near[other].add(one)
    taken: set[str] = set()
    groups = []
    for file in [*truth.album, *truth.queries]:
        if file not in taken and (members := near[file] - taken):
            taken |= {file, *members}
            groups.append([file, *sorted(members)])
    return groups


def hashed(folder: Path, truth: Truth, python: str) -> dict[str, tuple[Pairs, list[list[str]]]]:
    """Scores of pairs and groups of each peer that hashes."""
    paths = [str(folder / file) for file in truth.rows]
    done = subprocess.run([python, "-c", PEERS], input=json.dumps(paths), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"No peers: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    by_path = json.loads(done.stdout)
    found = {}
    for name in by_path[paths[0]]:
        values = {file: int(by_path[str(folder / file)][name], 16) for file in truth.rows}
        album = np.array([values[file] for file in truth.album], np.uint64)
        pairs, alike = Pairs(), []
        for query in truth.queries:
            distance = np.bitwise_count(album ^ np.uint64(values[query]))
            for i in np.nonzero(distance <= 26)[0]:
                pairs[query, truth.album[i]] = -float(distance[i])
            alike += [(query, truth.album[i]) for i in np.nonzero(distance <= PEER_BITS)[0]]
        found[name] = pairs, stars(alike, truth)
    return found


def findimagedupes(folder: Path) -> list[list[str]] | None:
    """The groups of findimagedupes at its default of 90 %."""
    if shutil.which("findimagedupes") is None:
        return None
    command = ["findimagedupes", "-R", "-0", "--", str(folder / "album"), str(folder / "queries")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    groups = [line for line in done.stdout.replace("\0\0", "\n").splitlines() if line]
    return [[str(Path(path).relative_to(folder)) for path in group.split("\0") if path] for group in groups]


def by_fastdup(folder: Path, python: str) -> tuple[Pairs, list[list[str]]]:
    """What fastdup finds: cosines of pairs of a query and a picture of the album, and its groups."""
    with tempfile.TemporaryDirectory() as work:
        command = [python, "-c", FASTDUP, str(folder), work]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder.parent)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    near, parts = json.loads(line.removeprefix("FOUND "))

    def named(path: str) -> str:
        return str((folder.parent / path).resolve().relative_to(folder))

    pairs = Pairs()
    for one, other, cosine in near:
        put(pairs, named(one), named(other), cosine)
    return pairs, [list(map(named, group)) for group in parts]


def scale(n: int, width: int = 1536) -> dict[str, float]:
    """All near pairs among so many vectors of which a hundredth is planted twice, and a new one against them all."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    planted = n // 100
    for number in range(planted):
        near = vectors[number] + np.float32(0.3) * rng.standard_normal(width, np.float32) / np.float32(width**0.5)
        vectors[n - 1 - number] = near / np.linalg.norm(near)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: set[tuple[int, int]] = set()
    began = time.perf_counter()
    for one, other, _ in near_vectors(vectors, 0.9):
        found.update(zip(one.tolist(), other.tolist(), strict=True))
    bucketed = time.perf_counter() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024**2
    blocks = list(range(0, n, 2048))
    sampled = blocks[:: max(1, len(blocks) // 6)]  # a few of the rows, which all take the same time
    began = time.perf_counter()
    for start in sampled:
        block = vectors[start : start + 2048]
        for begin in blocks:
            np.nonzero(block @ vectors[begin : begin + 2048].T >= 0.9)
    product = (time.perf_counter() - began) * len(blocks) / len(sampled) / 2  # each pair once
    dots, _ = timed(vectors.__matmul__, vectors[7])
    new, _ = timed(nearest_few, vectors, np.array([7]), 12)
    return {
        "near pairs found": sum((i, n - 1 - i) in found for i in range(planted)) / planted,
        "near pairs s": bucketed,
        "blocked product s (each pair once, from a sample)": product,
        "near pairs, time over a blocked product's": bucketed / product,
        "near pairs, GB above the vectors": memory,
        "a new picture, time over a pass of dot products": new / dots,
    }


def compared(
    truth: Truth, ways: Mapping[str, tuple[Pairs, list[list[str]]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of every way, and ours against the best of the others."""
    figures: dict[str, float] = {}
    for name, (pairs, groups) in ways.items():
        least = {"qsplit": COPY, "fastdup": FASTDUP_CALLS}.get(name, -float(PEER_BITS))
        figures |= truth.judged(name, pairs, least) | {f"{name}: B-cubed F1": truth.b_cubed(groups)}
        figures |= {f"{name}: recall of {change}": share for change, share in truth.by_transform(pairs, least).items()}
    ratios = {
        "similar pairs called copies": figures["qsplit: similar pairs called copies"],
        "precision at the default": figures["qsplit: precision at the default"],
    }
    for change in ("crop 50 %", "screenshot", "rotated 25"):
        ratios[f"recall of {change} at the default"] = figures[f"qsplit: recall of {change}"]
    if len(ways) > 1:
        for told, key in (("µAP", "µAP"), ("recall at precision .99", "recall at 0.99")):
            best = max(figures[f"{name}: {key}"] for name in ways if name != "qsplit")
            ratios[f"{told} over the best peer's"] = figures[f"qsplit: {key}"] - best
    return figures, ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="SET")
    parser.add_argument("--store", default="", help="Where to index [beside SET].")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="Where peers are installed.")
    parser.add_argument("--fastdup", default="", metavar="PYTHON", help="Where fastdup is installed.")
    parser.add_argument("--scale", type=int, default=0, metavar="N", help="Compare N vectors instead.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.scale:
        figures = scale(options.scale)
        tell(figures, {name: figures[name] for name in GOALS if name in figures}, GOALS, options.json)
        return 0
    folder = options.folder.resolve()
    truth = Truth(folder)
    pairs, groups, figures = ours(folder, truth, options.store or f"{folder}.qsplit")
    ways = {"qsplit": (pairs, groups), **hashed(folder, truth, options.peers)}
    if options.fastdup:
        ways["fastdup"] = by_fastdup(folder, options.fastdup)
    judged, ratios = compared(truth, ways)
    other = findimagedupes(folder)
    if other is not None:
        judged["findimagedupes: B-cubed F1"] = truth.b_cubed(other)
    tell(figures | judged, ratios, GOALS, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
