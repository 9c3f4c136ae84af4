"""Peak memory and load time of each half of a Qwen2-VL checkpoint, beside the unsplit model and the usual shortcut.

    python benchmarks/bench_memory.py [--checkpoint FOLDER | --shape 2b] [--repeat 3] [--json OUT]

Every figure comes from a fresh process of its own:

    imports         torch and transformers with the model's code, the image processor's and the tokenizer's
    store imports   the same and `qsplit.store` (lancedb, lance, pyarrow)
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
reported, and how much the kernel took back meanwhile. GB = 1e9 bytes.

Load time is ``from_pretrained`` alone, after all imports. Mapped weights are read only when they are first touched, so
"load + touch" adds reading one byte in each 4,096 of every parameter. The peer is a plain ``read()`` of exactly the
vision half's byte ranges: once into one buffer as large as the half, once through a buffer of 8 MiB. The goal compares
load + touch with the first, since both end with all bytes in memory; the other ratios stand beside it. Cold: the page
cache of the shards was dropped just before (fsync, POSIX_FADV_DONTNEED; what stayed is asked of ``mincore`` and
printed). Warm: a second run right after. All take turns in one run. The checkpoint's own folder is not written to: a
folder of links keeps the cache of fingerprints.
"""

# ruff: noqa: PLC0415  # each worker imports what its way needs and no more: that is what is measured

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qsplit.digests import stored_tensors  # loads no torch: this process stays small, as its children's ru_maxrss needs
from qsplit.errors import QsplitError

if TYPE_CHECKING:
    import torch
    from PIL import Image

GB = 1e9
PAGE = 4096
STREAM = 8 * 1024**2
QUESTION = "What is in the picture?"
MEMORY_GOALS = {"vision half": 2.2, "language half": 3.8, "unsplit": 5.0}
STORE_GOAL = 0.15
LOAD_GOAL = 1.3
MODEL = "Qwen2VLForConditionalGeneration"
ROWS = ("imports", "store imports", "vision, first", "vision half", "language half", "unsplit", "naive")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process is told; ``ranges`` are the vision half's (file, begin, end) in bytes."""

    folder: str
    store: str
    image_size: int
    max_new_tokens: int
    ranges: tuple[tuple[str, int, int], ...]

    @property
    def cache(self) -> str:
        return f"{self.store}.cache"


# --- in a worker ---


@dataclass(slots=True)
class Probe:
    """Seconds of each stage, and the memory after it: anonymous and of mapped files."""

    seconds: dict[str, float] = field(default_factory=dict)
    anonymous: dict[str, float] = field(default_factory=dict)
    file_backed: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, stage: str) -> None:
        """End a stage; what is done after the last one, such as comparing logits, counts nowhere."""
        self.seconds[stage] = time.perf_counter() - self.last
        ru_maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
        self.peaks = {"peak": _status("VmHWM"), "ru_maxrss": ru_maxrss}
        self.anonymous[stage] = _status("RssAnon")
        self.file_backed[stage] = _status("RssFile")
        self.last = time.perf_counter()

    def row(self, found: Mapping[str, Any]) -> Row:
        return {
            **self.peaks,
            "seconds": self.seconds,
            "anonymous": self.anonymous,
            "file_backed": self.file_backed,
            **found,
        }


def _status(name: str) -> float:
    """A line of /proc/self/status, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(f"{name}:"))


def _import_transformers() -> None:
    """What every way needs: transformers imports a model's code at its first use, which is no part of loading
    weights.
    """
    import transformers

    for name in ("AutoImageProcessor", "AutoTokenizer", "Qwen2Tokenizer", "Qwen2VLImageProcessor", MODEL):
        getattr(transformers, name)


def imports(_: Job, probe: Probe) -> Row:
    _import_transformers()
    probe.mark("imports")
    return {}


def store_imports(_: Job, probe: Probe) -> Row:
    import qsplit.store

    _import_transformers()
    probe.mark("imports")
    return {"module": qsplit.store.__name__}


def vision(job: Job, probe: Probe) -> Row:
    encoder = _load_vision(job, probe)
    (features,) = encoder.encode([_picture(job)])
    probe.mark("work")
    return {"features": _digest(features.tokens), "n_tokens": len(features)}


def vision_first(job: Job, probe: Probe) -> Row:
    encoder = _load_vision(job, probe)
    (features,) = encoder.encode([_picture(job)])
    peak = _status("VmHWM")
    from qsplit.images import pixels_digest
    from qsplit.store import FeatureRow, FeatureStore

    row = FeatureRow(pixels_digest(_picture(job)), features, encoder.provenance)
    FeatureStore(job.store, create=True).put_features([row])
    probe.mark("work")
    return {"features": _digest(features.tokens), "n_tokens": len(features), "peak_before_store": peak}


def vision_load(job: Job, probe: Probe) -> Row:
    return {"n_parameters": _load_vision(job, probe).n_parameters}


def _load_vision(job: Job, probe: Probe) -> Any:
    from qsplit.vision import VisionEncoder

    _import_transformers()
    probe.mark("imports")
    encoder = VisionEncoder.from_pretrained(job.folder, device="cpu", cache=job.cache)
    probe.mark("load")
    _touch(encoder._model, probe)  # noqa: SLF001  # the weights are no part of the interface
    return encoder


def language(job: Job, probe: Probe) -> Row:
    from qsplit.images import pixels_digest
    from qsplit.language import LanguageModel, Sampling
    from qsplit.store import FeatureStore

    _import_transformers()
    probe.mark("imports")
    model = LanguageModel.from_pretrained(job.folder, device="cpu", cache=job.cache)
    probe.mark("load")
    _touch(model._model, probe)  # noqa: SLF001  # the weights are no part of the interface
    store = FeatureStore(job.store)
    (head,) = store.heads([pixels_digest(_picture(job))])
    features = store.get_features([head.key])[head.key]
    answer = model.answer([features], QUESTION, sampling=Sampling(job.max_new_tokens))
    probe.mark("work")
    logits = model.logits(model.prompt([features], QUESTION))
    found = {"features": _digest(features.tokens), "logits": _digest(logits)}
    return found | {"tokens": list(answer.tokens), "exact": answer.exact}


def unsplit(job: Job, probe: Probe) -> Row:
    import torch
    from transformers import AutoModelForImageTextToText

    _import_transformers()
    probe.mark("imports")
    model: Any = AutoModelForImageTextToText.from_pretrained(job.folder, dtype="auto", local_files_only=True)
    probe.mark("load")
    _touch(model, probe)
    seen: list[Any] = []
    model.model.visual.register_forward_hook(lambda _module, _inputs, out: seen.append(out.pooler_output))
    inputs = _prompt(job, model.config.image_token_id)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=job.max_new_tokens)
    probe.mark("work")
    model.model.rope_deltas = None  # left over from the generation
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    found = {"features": _digest(seen[0]), "logits": _digest(logits)}
    return found | {"tokens": out[0, inputs["input_ids"].shape[1] :].tolist()}


def naive(job: Job, probe: Probe) -> Row:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    _import_transformers()
    probe.mark("imports")
    config = AutoConfig.from_pretrained(job.folder, local_files_only=True).vision_config
    vision_class: Any = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    model = vision_class._from_config(config, dtype=torch.bfloat16)  # noqa: SLF001  # as the recipe has it
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(job.folder).glob("*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict({key.removeprefix("visual."): weights[key] for key in weights if key.startswith("visual.")})
    probe.mark("load")
    _touch(model, probe)
    made = _image_inputs(job)
    with torch.no_grad():
        out = model(made["pixel_values"].to(model.dtype), grid_thw=made["image_grid_thw"])
    probe.mark("work")
    return {"features": _digest(out.pooler_output)}


def read_whole(job: Job, probe: Probe) -> Row:
    """The vision half's bytes into one fresh buffer of their size."""
    buffer = memoryview(bytearray(sum(end - begin for _, begin, end in job.ranges)))
    filled = 0
    for file, begin, end in job.ranges:
        _read(file, begin, buffer[filled : filled + end - begin])
        filled += end - begin
    probe.mark("load")
    return {"bytes": filled}


def read_streamed(job: Job, probe: Probe) -> Row:
    """The vision half's bytes through one small buffer: what the files cost, with no memory to be made."""
    buffer = memoryview(bytearray(STREAM))
    for file, begin, end in job.ranges:
        for position in range(begin, end, STREAM):
            _read(file, position, buffer[: min(STREAM, end - position)])
    probe.mark("load")
    return {"bytes": sum(end - begin for _, begin, end in job.ranges)}


def _read(file: str, begin: int, into: memoryview) -> None:
    with Path(file).open("rb", buffering=0) as stream:
        stream.seek(begin)
        while len(into):
            into = into[stream.readinto(into) or len(into) :]


WORKERS: dict[str, Callable[[Job, Probe], Row]] = {
    "imports": imports,
    "store imports": store_imports,
    "vision, first": vision_first,
    "vision half": vision,
    "vision load": vision_load,
    "language half": language,
    "unsplit": unsplit,
    "naive": naive,
    "read whole": read_whole,
    "read streamed": read_streamed,
}


def _touch(model: Any, probe: Probe) -> None:
    """Read one byte of every page of the parameters, so that mapped weights are really in memory."""
    import torch

    total = sum(int(p.detach().flatten().view(torch.uint8)[::PAGE].sum()) for p in model.parameters())
    assert total > 0
    probe.mark("touch")


def _picture(job: Job) -> Image.Image:
    """Noise over a gradient: the same pixels in every process."""
    import numpy as np
    from PIL import Image

    side = job.image_size
    ramp = np.linspace(0, 127, side)[:, None, None]
    noise = np.random.default_rng(0).integers(0, 128, (side, side, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def _image_inputs(job: Job) -> Any:
    from transformers import AutoImageProcessor

    load: Callable[..., Any] = AutoImageProcessor.from_pretrained
    return load(job.folder, local_files_only=True)(images=[_picture(job)], return_tensors="pt")


def _prompt(job: Job, image_token_id: int) -> dict[str, Any]:
    """The unsplit model's inputs, by transformers alone."""
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job.folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    made = _image_inputs(job)
    n_tokens = int(made["image_grid_thw"].prod()) // 4  # 2 x 2 patches to a token
    token = tokenizer.convert_ids_to_tokens(image_token_id)
    ids = tokenizer(text.replace(token, token * n_tokens), return_tensors="pt").input_ids
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image_token_id).long(),
        "pixel_values": made["pixel_values"],
        "image_grid_thw": made["image_grid_thw"],
    }


def _digest(tokens: torch.Tensor) -> str:
    import torch

    return hashlib.sha256(tokens.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _work(name: str, job_file: Path) -> None:
    job = json.loads(job_file.read_text())
    probe = Probe()
    found = WORKERS[name](Job(**job), probe)
    job_file.with_suffix(".row").write_text(json.dumps(probe.row(found)))


# --- in the parent ---


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
        command = [sys.executable, __file__, "--worker", worker, "--job", str(job_file)]
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
    """One row a way: GB at the peak, and the medians of its seconds."""
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
    found = [(f"peak of {worker}, GB", bench.peak(worker), goal) for worker, goal in MEMORY_GOALS.items()]
    first = max(row["peak_before_store"] for row in bench.rows("vision, first"))
    found.insert(1, ("peak of vision, first (before the store), GB", first, MEMORY_GOALS["vision half"]))
    found.append(("store imports above imports, GB", bench.peak("store imports") - bench.peak("imports"), STORE_GOAL))
    for row in loads:
        ratio = row["load_touch / read whole"]
        found.append((f"vision half, load + touch / plain read, {row['state']}", ratio, LOAD_GOAL))
    return [{"goal": name, "found": value, "at_most": goal, "met": value <= goal} for name, value, goal in found]


def machine() -> dict[str, Any]:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors", "lancedb")},
    }


def _reclaimed() -> float:
    """GB that the kernel has taken back from all processes and the page cache since it started."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return sum(int(n) for name, n in lines if name in ("pgsteal_kswapd", "pgsteal_direct")) * mmap.PAGESIZE / GB


def _report(result: Mapping[str, Any]) -> None:
    print("machine:", ", ".join(f"{key} {_short(value)}" for key, value in result["machine"].items()))
    print("workload:", ", ".join(f"{key} {_short(value)}" for key, value in result["workload"].items()))
    print("\nGB = 1e9 bytes; load in seconds with a cold page cache; median of the runs, peaks the largest")
    _print_table(result["memory"])
    print("\nvision half: seconds to load, and ratios to a plain read; the goal takes load_touch / read whole")
    _print_table(result["loads"])
    first, again = result["first_load"], result["loads"][0]["load"]
    print(
        f"\nfirst load with fingerprinting, cold: {first:.2f} s, of which {first - again:.2f} s over a load without it"
    )
    print(f"page cache left after dropping it: at most {result['cached_before']:.2%} of the shards")
    print(f"taken back by the kernel meanwhile: {result['reclaimed']:.2f} GB (peaks may be low if it is not 0)")
    print("\nverified:")
    for what, held in result["checks"].items():
        print(f"  {'ok    ' if held else 'FAILED'} {what}")
    print("\ngoals (of the 2b shape):")
    for row in result["goals"]:
        verdict = "met   " if row["met"] else "MISSED"
        binary = f" ({row['found'] * GB / 2**30:.3f} GiB)" if "GB" in row["goal"] else ""
        print(f"  {verdict} {row['goal']}: {row['found']:.3f}{binary}, goal at most {row['at_most']}")


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
    maker = Path(__file__).with_name("real_shape.py")
    command = [sys.executable, str(maker), str(place / "made"), "--shape", options.shape]
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
                "vision half, GB": done.rows("read whole")[0]["bytes"] / GB,
                "shards, GB": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GB,
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
    parser = argparse.ArgumentParser(description="Peak memory and load time of each half of a Qwen2-VL checkpoint.")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="default: a random one of --shape, in a temporary place")
    parser.add_argument("--shape", choices=("2b", "small"), default="2b")
    parser.add_argument("--image-size", type=int, default=448, help="pixels a side")
    parser.add_argument("--max-new-tokens", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything, every run included")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        _work(options.worker, options.job)
        return 0
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
