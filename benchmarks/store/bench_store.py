"""The store against files that hold nothing but tensors: a safetensors file a picture, one memory-mapped file, parquet.

    python -m benchmarks.store.bench_store [--rows 1000] [--tokens 256] [--width 1536] [--repeat 5]
                                           [--folder F] [--json OUT]
    python -m benchmarks.store.bench_store --rows 10000                  # 0.8 MB a picture, 7.9 GB a way: mind the disk
    python -m benchmarks.store.bench_store --rows 1000 --tokens 2304     # 7 MB a picture

Every way holds the same features and is read in the same run, the ways taking turns; ratios are medians of ``--repeat``
rounds. What is read is verified: each tensor's sha256 is that of what was written, computed by every way alike, since a
payload that is not checked is not what a store gives. Reads are warm: files were just written and lie in the page cache
as far as memory goes.

    one             one row to a checked tensor, at random places
    thirty-two      32 rows at a time, bytes a second
    bulk write      all rows, 64 a commit, in ``--writes`` rounds; the files' peer syncs each file, as the store does.
                    Features are made 64 at a time, and the time for that is nobody's
    add one         bytes that reach the disk when one picture is added to all of these, over the picture's own bytes
    housekeeping    bytes that `upkeep.compact` writes after all that, over those of the store
    open            opening a store of ``--many`` small rows and reading one, over the same at a hundredth of them
    memory          the peak of a process that reads every row, over that of one that reads a quarter of them
    codecs          bytes, and rates of encoding and decoding, over features of the bundled checkpoint's photographs;
                    ``--asked`` questions of its evaluation, answered over its features and over the same as int8
    prefill         with ``--prefill``, the language half of a 2B model over one row's tokens

Exit code 1 if anything that was read is wrong; a missed goal is only printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import real_shape
from benchmarks.common.report import at_least, at_most, peak_gib, tell, timed
from qsplit import bundled
from qsplit.features.codecs import CODECS, as_bytes, is_finite
from qsplit.features.features import Encoder, Features, Payload, Provenance
from qsplit.maintenance import garbage
from qsplit.media.images import Limits, open_picture
from qsplit.memory import keep_freed_memory
from qsplit.mini import photographs, scenes
from qsplit.mini import questions as phrases
from qsplit.mini.evaluate import PHOTO_KINDS, SCENE_KINDS, questions, samples
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

AT_ONCE = 32
COMMIT = 64  # rows
PARQUET_TURNS = 3
WARM = 5  # reads before any is timed; the store learns where its rows lie after three
SMALL = 16  # width of the rows of which many are opened
GOALS = {
    "one, over memmap": at_most(3.0),
    "thirty-two, of memmap's bytes a second": at_least(0.5),
    "thirty-two, of safetensors' bytes a second": at_least(1.0),
    "bulk write, of safetensors' bytes a second": at_least(1.0),
    "add one, over its own bytes": at_most(1.2),
    "housekeeping, of the store's bytes": at_most(0.05),
    "open, many rows over few": at_most(3.0),
    "memory, all rows over a quarter": at_most(1.1),
    "bytes of raw, planes-zstd": at_most(0.75),
    "bytes of raw, int8": at_most(0.52),
    "answers equal, int8": at_least(0.995),
    "one, over a 2B model's prefill": at_most(0.01),
}

Tensor = torch.Tensor
T = TypeVar("T")


class Wrong(Exception):
    """What was read is not what was written."""


class Rows:
    """Features that can be made again by number, as a model of this width would make them."""

    def __init__(self, tokens: int, width: int, encoder: Encoder | None = None) -> None:
        side = int(tokens**0.5)
        self.grid = (1, 2 * side, 2 * (tokens // side))
        self.encoder = encoder or Encoder("a" * 64, "b" * 64, "bfloat16", width=width, levels=0, merge_size=2)
        self.shape = (self.encoder.n_tokens(self.grid), width)
        self._base = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, number: int) -> FeatureRow:
        tokens = (self._base.roll(number, 0) + 0.01 * number).to(torch.bfloat16)
        return FeatureRow(digest(number), Features.from_torch([tokens], self.grid, self.encoder), Provenance("bench"))

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * 2

    def check(self, number: int, tokens: Tensor) -> None:
        if not torch.equal(tokens, self[number].features.to_torch()[0]):
            raise Wrong(f"row {number} is not what was written")


class Made:
    """Rows by number, so many at a time, and the seconds that it took to make them."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self.rows, self.numbers, self.seconds = rows, numbers, 0.0

    def __iter__(self) -> Iterator[dict[int, FeatureRow]]:
        for some in batches(self.numbers, COMMIT):
            seconds, made = timed(lambda some=some: {n: self.rows[n] for n in some})
            self.seconds += seconds
            yield made


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


# --- the ways ---


class Store:
    name = "store"

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.rows, self.uri = rows, folder / "album.qsplit"

    def write(self, made: Made) -> None:
        store = FeatureStore(self.uri, create=True)
        for some in made:
            store.put_features(list(some.values()))

    def open(self) -> None:
        self.store = FeatureStore(self.uri)

    def read(self, numbers: Sequence[int]) -> list[Tensor]:
        keys = {f"{digest(n)}:{self.rows.encoder.id}": n for n in numbers}
        found = self.store.get_features(keys)
        return [found[key].to_torch()[0] for key in keys]


class Safetensors:
    name = "safetensors"

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.rows, self.folder = rows, folder / "files"

    def write(self, made: Made) -> None:
        self.folder.mkdir(exist_ok=True)
        for n, row in (pair for some in made for pair in some.items()):
            (tokens,) = row.features.to_torch()
            path = self.folder / f"{n}.safetensors"
            save_file({"tokens": tokens}, path, metadata={"sha256": row.features.to_payload().sha256})
            with path.open("rb") as stream:
                os.fsync(stream.fileno())

    def open(self) -> None:
        pass

    def read(self, numbers: Sequence[int]) -> list[Tensor]:
        return [checked(load_file(self.folder / f"{n}.safetensors")["tokens"]) for n in numbers]


class Memmap:
    name = "memmap"

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.rows, self.path = rows, folder / "rows.bin"

    def write(self, made: Made) -> None:
        with self.path.open("wb") as stream:
            for row in (row for some in made for row in some.values()):
                stream.write(as_bytes(row.features.tokens))
            stream.flush()
            os.fsync(stream.fileno())

    def open(self) -> None:
        self.map = np.memmap(self.path, np.int16, "r").reshape(-1, *self.rows.shape)

    def read(self, numbers: Sequence[int]) -> list[Tensor]:
        return [checked(torch.from_numpy(np.array(self.map[n])).view(torch.bfloat16)) for n in numbers]


class Parquet:
    name = "parquet"

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.rows, self.path = rows, folder / "rows.parquet"

    def write(self, made: Made) -> None:
        schema = pa.schema([("number", pa.int64()), ("payload", pa.large_binary())])
        with pq.ParquetWriter(self.path, schema, compression="none") as writer:
            for some in made:
                payloads = [bytes(as_bytes(row.features.tokens)) for row in some.values()]
                writer.write_table(pa.table({"number": list(some), "payload": payloads}, schema=schema))
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())

    def open(self) -> None:
        self.file = ds.dataset(self.path)

    def read(self, numbers: Sequence[int]) -> list[Tensor]:
        table = self.file.to_table(filter=ds.field("number").isin(list(numbers)))
        found = dict(zip(table["number"].to_pylist(), table["payload"], strict=True))
        tensors = [np.frombuffer(found[n].as_buffer(), np.int16).copy() for n in numbers]
        return [checked(torch.from_numpy(one).view(torch.bfloat16).view(self.rows.shape)) for one in tensors]


def checked(tokens: Tensor) -> Tensor:
    """What every way must do before its features are as good as the store's: hash them, and refuse NaN."""
    bits = tokens.view(torch.int16).numpy()
    hashlib.sha256(as_bytes(bits)).hexdigest()
    if not is_finite(bits, "bfloat16"):
        raise Wrong("NaN")
    return tokens


Way = Store | Safetensors | Memmap | Parquet
WAYS = (Store, Safetensors, Memmap, Parquet)


def batches(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[i : i + size] for i in range(0, len(numbers), size))


# --- what is measured ---


def measure(folder: Path, rows: Rows, number: int, repeat: int, writes: int) -> dict[str, float]:
    """Writing, then both ways of reading, the ways taking turns in each round."""
    ways = [way(folder, rows) for way in WAYS]
    figures = writing(folder, ways, number, writes, rng := random.Random(0))
    for way in ways:
        way.open()
    times: dict[tuple[str, str], list[float]] = {}
    for way, _ in product(ways, range(WARM)):  # warm: whoever reads one store again and again
        way.read([0])
    # One row by turns, then many by turns: after 25 MB of other rows nothing of a way's own code is warm.
    for what, count in (("one", 1), ("many", min(AT_ONCE, number))):
        for turn in range(repeat):
            numbers = rng.sample(range(number), count)
            for way in rng.sample(ways, len(ways)):
                if way.name == "parquet" and turn >= PARQUET_TURNS:
                    continue  # it reads whole row groups: three turns tell enough
                took, found = timed(way.read, numbers)
                times.setdefault((what, way.name), []).append(took)
                for n, tokens in zip(numbers, found, strict=True):
                    rows.check(n, tokens)
    for (what, name), each in times.items():
        if what == "one":
            figures[f"one ms, {name}"] = 1000 * median(each)
        else:
            figures[f"32 MB/s, {name}"] = min(AT_ONCE, number) * rows.nbytes / 1e6 / median(each)
    return figures


def writing(folder: Path, ways: Sequence[Way], number: int, rounds: int, rng: random.Random) -> dict[str, float]:
    """Megabytes a second of each way's writing, the last of whose rounds is left to be read.

    A first round is not counted: memory that no process had before comes to whoever asks first, and slowly.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for count in (min(number, COMMIT), *[number] * rounds):
        shutil.rmtree(folder)
        folder.mkdir()
        for way in rng.sample(ways, len(ways)):
            made = Made(way.rows, range(count))
            times[way.name].append((timed(way.write, made)[0] - made.seconds) / count)
    return {f"write MB/s, {name}": ways[0].rows.nbytes / 1e6 / median(each[1:]) for name, each in times.items()}


def growth(folder: Path, rows: Rows, number: int) -> dict[str, float]:
    """Bytes that one more picture costs, and what housekeeping writes."""
    store = FeatureStore(folder / "album.qsplit")
    before = written()
    store.put_features([rows[number]])
    added = written() - before
    whole = store.bytes()["total"]
    before = written()
    garbage.compact(store, alone=False)
    # Nothing refers to these rows, but they are young: they stay.
    kept = written() - before
    rows.check(number, store.get_features([rows[number].key])[rows[number].key].to_torch()[0])
    return {"added bytes": added, "own bytes": rows.nbytes, "housekeeping bytes": kept, "store bytes": whole}


def written() -> int:
    """Bytes that this process has had written, as the kernel counts them."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("wchar:")))


def opening(folder: Path, many: int, repeat: int) -> dict[str, float]:
    """Seconds to open a store and read one row, at ``many`` rows and at a hundredth of them."""
    rows = Rows(4, SMALL)
    figures = {}
    for number in (many // 100, many):
        uri = folder / f"many-{number}.qsplit"
        store = FeatureStore(uri, create=True)
        for some in batches(range(number), 5000):
            store.put_features([rows[n] for n in some])

        def look(uri: Path = uri, number: int = number) -> None:
            (found,) = FeatureStore(uri).get_features([rows[number // 2].key]).values()
            rows.check(number // 2, found.to_torch()[0])

        look()
        figures[f"open s, {number} rows"] = median(timed(look)[0] for _ in range(repeat))
    return figures


def memory(folder: Path, tokens: int, width: int, number: int) -> dict[str, float]:
    """Peak resident GiB of a process that reads a quarter of the rows, and of one that reads them all."""
    figures = {}
    for share in (number // 4, number):
        command = [
            sys.executable,
            "-m",
            "benchmarks.store.bench_store",
            "--read",
            str(folder / "album.qsplit"),
            str(tokens),
            str(width),
            str(share),
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures[f"peak GiB, {share} rows"] = float(done.stdout)
    return figures


def read_all(uri: str, tokens: int, width: int, number: int) -> float:
    rows, store = Rows(tokens, width), FeatureStore(uri)
    for some in batches(range(number), AT_ONCE):
        for n, found in zip(some, store.get_features([rows[n].key for n in some]).values(), strict=True):
            assert len(found) == rows.shape[0], n
    return peak_gib()


def codecs(repeat: int, asked: int) -> dict[str, float]:
    """Bytes over raw, and rates, of each codec on real features; and how many answers int8 leaves as they were."""
    vision = VisionEncoder.from_pretrained(device="cpu")
    features = vision.encode([open_picture(path, Limits()) for path in bundled.photos()])
    raw_bytes = sum(one.nbytes for one in features)
    figures = {}
    for codec in CODECS:
        payloads = encoded(features, codec)
        figures[f"bytes of raw, {codec}"] = sum(len(one.data) for one in payloads) / raw_bytes
        for what, act, given in (("encode", encoded, codec), ("decode", decoded, payloads)):
            taken = median(timed(act, features, given)[0] for _ in range(repeat))
            figures[f"{what} MB/s, {codec}"] = raw_bytes / 1e6 / taken
    return figures | answers(vision, asked)


def encoded(features: Sequence[Features], codec: str) -> list[Payload]:
    return [one.to_payload(codec) for one in features]


def decoded(features: Sequence[Features], payloads: Sequence[Payload]) -> list[Features]:
    return [Features.from_payload(p, f.grid_thw, f.encoder) for p, f in zip(payloads, features, strict=True)]


def answers(vision: VisionEncoder, asked: int) -> dict[str, float]:
    """Greedy answers over features as they were made and over those kept as int8, to questions of the evaluation."""
    rng = np.random.default_rng(0)
    language = LanguageModel.from_pretrained(device="cpu")
    sampling = Sampling(max_new_tokens=64)
    originals = samples()
    equal: list[bool] = []
    while len(equal) < asked:
        scene = scenes.invent(rng, 168, 168)
        photograph, up = originals[len(equal) % len(originals)]
        edited, labels, _ = photographs.edit(photograph, up, (252, 168), rng)
        for image, kinds, about in (
            (scenes.draw(scene, rng), SCENE_KINDS, partial(phrases.about_scene, scene)),
            (edited, PHOTO_KINDS, partial(phrases.about_photograph, labels)),
        ):
            (made,) = vision.encode([image])
            (kept,) = decoded([made], encoded([made], "int8"))
            for _, question, _ in questions(0, rng, kinds, about):
                said = [language.answer([one], question.text, sampling=sampling).tokens for one in (made, kept)]
                equal.append(said[0] == said[1])
    return {"answers": len(equal), "answers equal, int8": sum(equal) / len(equal)}


def prefill(folder: Path, tokens: int, repeat: int) -> dict[str, float]:
    """Seconds of the language half of a 2B model over a row's tokens, before its first answer token."""
    language = LanguageModel.from_pretrained(str(real_shape.make(folder / "2b")), device="cpu")
    rows = Rows(tokens, language.wanted.width, language.wanted)
    sampling = Sampling(max_new_tokens=1)
    features = rows[0].features
    language.answer([features], "What is it?", sampling=sampling)
    taken = [language.answer([features], "What is it?", sampling=sampling).prefill for _ in range(repeat)]
    return {"prefill ms, 2B": 1000 * median(taken)}


def ratios(figures: dict[str, float], many: int, number: int) -> dict[str, float]:
    found = {
        "one, over memmap": figures["one ms, store"] / figures["one ms, memmap"],
        "thirty-two, of memmap's bytes a second": figures["32 MB/s, store"] / figures["32 MB/s, memmap"],
        "thirty-two, of safetensors' bytes a second": figures["32 MB/s, store"] / figures["32 MB/s, safetensors"],
        "bulk write, of safetensors' bytes a second": figures["write MB/s, store"] / figures["write MB/s, safetensors"],
        "add one, over its own bytes": figures["added bytes"] / figures["own bytes"],
        "housekeeping, of the store's bytes": figures["housekeeping bytes"] / figures["store bytes"],
        "open, many rows over few": figures[f"open s, {many} rows"] / figures[f"open s, {many // 100} rows"],
        "memory, all rows over a quarter": figures[f"peak GiB, {number} rows"]
        / figures[f"peak GiB, {number // 4} rows"],
    }
    if "prefill ms, 2B" in figures:
        found["one, over a 2B model's prefill"] = figures["one ms, store"] / figures["prefill ms, 2B"]
    return found | {name: figures[name] for name in GOALS if name in figures}


def main() -> int:
    if sys.argv[1:2] == ["--read"]:
        uri, *numbers = sys.argv[2:]
        print(read_all(uri, *map(int, numbers)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--writes", type=int, default=3, help="Rounds of writing all rows [3].")
    parser.add_argument("--asked", type=int, default=500, help="Questions over int8 features [500].")
    parser.add_argument("--prefill", action="store_true", help="Also time a 2B language half: 4.4 GB of disk.")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a process that encodes does
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    rows = Rows(options.tokens, options.width)
    try:
        figures = measure(folder, rows, options.rows, options.repeat, options.writes)
        figures |= growth(folder, rows, options.rows)
        figures |= memory(folder, options.tokens, options.width, options.rows)
        figures |= opening(folder, options.many, options.repeat)
        figures |= codecs(options.repeat, options.asked)
        if options.prefill:
            figures |= prefill(folder, options.tokens, options.repeat)
    except Wrong as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    found = ratios(figures, options.many, options.rows)
    print(f"{options.rows} rows of {rows.nbytes / 1e6:.2f} MB on {platform.processor() or platform.machine()}")
    tell(figures, found, GOALS, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
