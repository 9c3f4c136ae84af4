"""Peak memory and load time of each half of a Qwen2-VL checkpoint, beside the unsplit model and the usual shortcut.

    python -m benchmarks.models.bench_memory [--checkpoint FOLDER | --shape 2b] [--repeat 3] [--json OUT]

Every figure comes from a fresh process of its own:

    imports         torch and transformers with the model's code, the image processor's and the tokenizer's
    store imports   the same and `qsplit.store.feature_store` (lancedb, lance, pyarrow)
    vision, first   `VisionEncoder.from_pretrained` with no fingerprint cached, one picture; its features put in a store
    vision half     `VisionEncoder.from_pretrained` with the fingerprint cached, one picture
    language half   `LanguageModel.from_pretrained`, the features from the store, a few tokens
    unsplit         `AutoModelForImageTextToText.from_pretrained`, the same picture, the same tokens
    naive           the vision class, `load_file` of every shard, the ``visual.`` tensors copied in, the same picture

and is verified: the features of all ways are equal bit for bit, and so are tokens and logits. Exit code 1 if they are
not, 2 if a way does not run, else 0; a missed goal is only printed.

Memory is the peak resident set of the whole process as the kernel counts it (``VmHWM`` of /proc/self/status, with
``ru_maxrss`` beside it). It counts anonymous memory and also every file page that is mapped and was touched: the code
of shared libraries, and weights that safetensors maps. Such pages are shared with the page cache and the kernel may
take them back when memory is short, so a peak can come out lower on a busy machine: the largest of the runs is
reported, and how much the kernel took back meanwhile. GiB = 2**30 bytes (in units of 1e9 bytes every figure is 1.074
times as large); the goals are in GiB too, on which scale the unsplit model in plain transformers takes 5.0.

Load time is ``from_pretrained`` alone, after all imports. Mapped weights are read only when they are first touched, so
"load + touch" adds reading one byte in each 4,096 of every parameter. The peer is a plain ``read()`` of exactly the
vision half's byte ranges: once into one buffer as large as the half, once through a buffer of 8 MiB. The goal compares
load + touch with the first, since both end with all bytes in memory; the other ratios stand beside it. Cold: the page
cache of the shards was dropped just before (fsync, POSIX_FADV_DONTNEED; what stayed is asked of ``mincore`` and
printed). Warm: a second run right after. All take turns in one run. The checkpoint's own folder is not written to: a
folder of links keeps the cache of fingerprints.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.report import machine
from benchmarks.models.memory_worker import GIB, Job, Row
from qsplit.errors import QsplitError
from qsplit.models.tensor_hashes import (
    stored_tensors,  # loads no torch: this process stays small, as its children's ru_maxrss needs
)

MEMORY_GOALS = {"vision half": 2.2, "language half": 3.8, "unsplit": 5.0}
STORE_GOAL = 0.15
LOAD_GOAL = 1.3
ROWS = ("imports", "store imports", "vision, first", "vision half", "language half", "unsplit", "naive")


@dataclass(slots=True)
class Bench:
    """One checkpoint, one place for what is written, and the rows of every process that ran."""

    job: Job
    place: Path
    runs: dict[str, list[Row]] = field(default_factory=dict)

    def run(self, worker: str, *, cold: bool) -> None:
        """Run a worker in a fresh process, and keep its row under ``worker, cold`` or ``worker, warm``."""
        cached = self.drop_cache() if cold else None
        print(f"  {worker}, {'cold' if cold else 'warm'} ...", file=sys.stderr, flush=True)
        job_file = self.place / "job.json"
        job_file.write_text(json.dumps(asdict(self.job)))
        command = [sys.executable, "-m", "benchmarks.models.memory_worker", worker, str(job_file)]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=sys.stderr)
        row = json.loads(job_file.with_suffix(".row").read_text()) | {"cached_before": cached}
        self.runs.setdefault(f"{worker}, {'cold' if cold else 'warm'}", []).append(row)

    def drop_cache(self) -> float:
        """Drop the shards from the page cache; returns the share of them that stayed."""
        files = list(Path(self.job.folder).glob("*.safetensors"))
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return sum(_cached_bytes(file) for file in files) / sum(file.stat().st_size for file in files)

    def rows(self, worker: str, state: str = "cold") -> list[Row]:
        return self.runs[f"{worker}, {state}"]

    def seconds(self, worker: str, state: str = "cold", *, stages: Sequence[str] = ("load",)) -> float:
        """The median of the runs."""
        return float(
            median(sum(row["seconds"].get(stage, 0.0) for stage in stages) for row in self.rows(worker, state))
        )

    def peak(self, worker: str) -> float:
        """The largest of the runs: the kernel can only make a peak smaller."""
        return float(max(row["peak"] for row in self.rows(worker)))


def _cached_bytes(file: Path) -> int:
    """How much of a file the page cache holds, from ``mincore``."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        anchor = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped)), pages
        )
        del anchor  # a mapping that is still referred to cannot be closed
        assert not failed
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def measure(folder: Path, place: Path, *, image_size: int, max_new_tokens: int, repeat: int) -> Bench:
    """Run every way ``repeat`` times, the ways taking turns."""
    linked = _linked(folder, place / "checkpoint")
    ranges = tuple(_vision_ranges(linked))
    bench = Bench(Job(str(linked), str(place / "album.qsplit"), image_size, max_new_tokens, ranges), place)
    bench.run("vision, first", cold=True)
    for _ in range(repeat):
        for worker in ("imports", "store imports", "language half", "unsplit", "naive"):
            bench.run(worker, cold=True)
        for worker, again in (("read whole",) * 2, ("vision half", "vision load"), ("read streamed",) * 2):
            bench.run(worker, cold=True)
            bench.run(again, cold=False)
    return bench


def _linked(folder: Path, place: Path) -> Path:
    """A folder of links to a checkpoint's files, without the fingerprints that may lie beside them."""
    place.mkdir()
    for file in folder.iterdir():
        if not file.name.startswith("."):
            (place / file.name).symlink_to(file.resolve())
    return place


def _vision_ranges(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(file, begin, end) of the vision half's tensors, neighbours joined."""
    for file in sorted(folder.glob("*.safetensors")):
        spans = sorted((t.begin, t.end) for key, t in stored_tensors(file).items() if "visual." in key)
        joined: list[tuple[int, int]] = []
        for begin, end in spans:
            if joined and joined[-1][1] == begin:
                begin = joined.pop()[0]  # noqa: PLW2901  # the span grows to the left
            joined.append((begin, end))
        yield from ((str(file), begin, end) for begin, end in joined)


def verify(bench: Bench) -> dict[str, bool]:
    """What was compared -> whether all runs agree, bit for bit."""
    reference = bench.rows("unsplit")[0]
    checks = {}
    for worker in ("vision, first", "vision half", "naive", "unsplit", "language half"):
        what = {"language half": "features read from the store", "unsplit": "features of unsplit, every run"}
        same = all(row["features"] == reference["features"] for row in bench.rows(worker))
        checks[f"{what.get(worker, f'features of {worker}')} = unsplit"] = same
    answers = [row for worker in ("language half", "unsplit") for row in bench.rows(worker)]
    for key in ("tokens", "logits"):
        checks[f"{key} of language half = unsplit"] = all(row[key] == reference[key] for row in answers)
    checks["language half calls its answer exact"] = all(row["exact"] for row in bench.rows("language half"))
    return checks


def memory_table(bench: Bench) -> list[Row]:
    """One row a way: GiB at the peak, and the medians of its seconds."""
    return [
        {
            "way": worker,
            "peak": bench.peak(worker),
            "ru_maxrss": max(row["ru_maxrss"] for row in bench.rows(worker)),
            "file_backed": max(list(row["file_backed"].values())[-1] for row in bench.rows(worker)),
            "of_unsplit": bench.peak(worker) / bench.peak("unsplit"),
            "load": bench.seconds(worker),
            "load_touch": bench.seconds(worker, stages=("load", "touch")),
            "work": bench.seconds(worker, stages=("work",)),
        }
        for worker in ROWS
    ]


def load_table(bench: Bench) -> list[Row]:
    """Cold and warm: the vision half's load, and its ratios to the plain reads taken between the loads."""
    table = []
    for state, worker in (("cold", "vision half"), ("warm", "vision load")):
        row: Row = {"state": state, "load": bench.seconds(worker, state)}
        row["load_touch"] = bench.seconds(worker, state, stages=("load", "touch"))
        row |= {name: bench.seconds(name, state) for name in ("read whole", "read streamed")}
        row |= {f"{a} / {b}": row[a] / row[b] for a in ("load", "load_touch") for b in ("read whole", "read streamed")}
        table.append(row)
    return table


def goals(bench: Bench, loads: Sequence[Row]) -> list[Row]:
    """Each goal with what was found."""
    store = bench.peak("store imports") - bench.peak("imports")
    first = max(row["peak_before_store"] for row in bench.rows("vision, first"))
    found = [
        ("peak of vision half, GiB", bench.peak("vision half"), MEMORY_GOALS["vision half"]),
        ("peak of vision, first (before the store), GiB", first, MEMORY_GOALS["vision half"]),
        (
            "peak of language half, less the store's imports, GiB",
            bench.peak("language half") - store,
            MEMORY_GOALS["language half"],
        ),
        ("peak of unsplit, GiB", bench.peak("unsplit"), MEMORY_GOALS["unsplit"]),
        ("store's imports, GiB", store, STORE_GOAL),
    ]
    for row in loads:
        ratio = row["load_touch / read whole"]
        found.append((f"vision half, load + touch / plain read, {row['state']}", ratio, LOAD_GOAL))
    return [{"goal": name, "found": value, "at_most": goal, "met": value <= goal} for name, value, goal in found]


def _reclaimed() -> float:
    """GiB that the kernel has taken back from all processes and the page cache since it started."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return sum(int(n) for name, n in lines if name in ("pgsteal_kswapd", "pgsteal_direct")) * mmap.PAGESIZE / GIB


def _report(result: Mapping[str, Any]) -> None:
    print("machine:", ", ".join(f"{key} {_short(value)}" for key, value in result["machine"].items()))
    print("workload:", ", ".join(f"{key} {_short(value)}" for key, value in result["workload"].items()))
    print("\nGiB = 2**30 bytes; load in seconds with a cold page cache; median of the runs, peaks the largest")
    _print_table(result["memory"])
    print("\nvision half: seconds to load, and ratios to a plain read; the goal takes load_touch / read whole")
    _print_table(result["loads"])
    first, again = result["first_load"], result["loads"][0]["load"]
    print(
        f"\nfirst load with fingerprinting, cold: {first:.2f} s, of which {first - again:.2f} s over a load without it"
    )
    print(f"page cache left after dropping it: at most {result['cached_before']:.2%} of the shards")
    print(f"taken back by the kernel meanwhile: {result['reclaimed']:.2f} GiB (peaks may be low if it is not 0)")
    print("\nverified:")
    for what, held in result["checks"].items():
        print(f"  {'ok    ' if held else 'FAILED'} {what}")
    print("\ngoals (of the 2b shape):")
    for row in result["goals"]:
        verdict = "met   " if row["met"] else "MISSED"
        print(f"  {verdict} {row['goal']}: {row['found']:.3f}, goal at most {row['at_most']}")


def _print_table(rows: Sequence[Row]) -> None:
    cells = [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for n, row in enumerate(cells):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if n == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _checkpoint(options: argparse.Namespace, place: Path) -> Path:
    """The folder asked for, or a random one of the shape, written by a process of its own."""
    if options.checkpoint:
        return Path(options.checkpoint)
    command = [sys.executable, "-m", "benchmarks.common.real_shape", str(place / "made"), "--shape", options.shape]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return place / "made"


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written, in one JSON object."""
    with tempfile.TemporaryDirectory(prefix="qsplit-bench-") as name:
        folder = _checkpoint(options, Path(name))
        before = _reclaimed()
        sizes = {"image_size": options.image_size, "max_new_tokens": options.max_new_tokens, "repeat": options.repeat}
        done = measure(folder, Path(name), **sizes)
        loads = load_table(done)
        checks = verify(done)
        return {
            "machine": machine(),
            "workload": {
                "checkpoint": str(options.checkpoint or f"random, {options.shape}"),
                "vision half, GiB": done.rows("read whole")[0]["bytes"] / GIB,
                "shards, GiB": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GIB,
                "image tokens": done.rows("vision half")[0]["n_tokens"],
                **sizes,
            },
            "memory": memory_table(done),
            "loads": loads,
            "first_load": done.seconds("vision, first"),
            "cached_before": max(row["cached_before"] or 0.0 for rows in done.runs.values() for row in rows),
            "reclaimed": _reclaimed() - before,
            "checks": checks,
            "verified": all(checks.values()),
            "goals": goals(done, loads),
            "runs": done.runs,
        }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="FOLDER", help="default: a random one of --shape, in a temporary place")
    parser.add_argument("--shape", choices=("2b", "small"), default="2b")
    parser.add_argument("--image-size", type=int, default=448, help="pixels a side")
    parser.add_argument("--max-new-tokens", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything, every run included")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        result = bench(options)
    except (subprocess.CalledProcessError, OSError, QsplitError) as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 2
    _report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
