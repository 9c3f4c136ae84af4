"""Index runs that are cut off on purpose: ``python crashing.py FOLDER SHIM faults MODE FIRST STEP`` or ``... kills N``.

The process loads the vision half once and forks a child for each run and for each look at what it left, so that the
parent never touches a store. ``SHIM`` is the library made of ``faults.c``, which this process was started with. It
prints one JSON object: how many runs were cut off, and what was wrong after which.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qsplit import Album
from qsplit.errors import NotFound, QsplitError
from qsplit.features.sizing import Resize
from qsplit.indexing import pipeline
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow

MODES = {"error": 1, "full": 2, "kill": 3, "stays-full": 4}
LARGE = 560
RESIZE = Resize(min_pixels=56 * 56, max_pixels=LARGE**2)
TYPED, FOREIGN = 3, 4  # exit codes of a child that raised


class Child:
    """A forked run: its exit, what it returned, and the files that it acknowledged before it ended."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(act, write)
        os.close(write)

    def join(self) -> tuple[int, Any]:
        """(exit code or minus the signal, what was returned or the traceback)."""
        with os.fdopen(self._read) as stream:
            text = stream.read()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def _be_child(act: Callable[[], Any], write: int) -> None:
    code, result = 0, None
    try:
        result = act()
    except QsplitError as error:
        code, result = TYPED, f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  # told to the parent
        code, result = FOREIGN, traceback.format_exc()
    with os.fdopen(write, "w") as stream:
        json.dump(result, stream)
    os._exit(code)


class Runs:
    """Runs over one folder of pictures, each judged against the content of a run that nothing disturbed."""

    def __init__(self, folder: Path, shim: Path, pictures: int) -> None:
        self.folder, self.acknowledged = folder, folder / "acknowledged"
        self.shim = ctypes.CDLL(str(shim))
        self.vision = VisionEncoder.from_pretrained(device="cpu", resize=RESIZE)
        self.pictures = folder / "pictures"
        draw(self.pictures, pictures)
        self.failures: list[str] = []
        code, self.expected = Child(lambda: self.index(folder / "expected.qsplit") and self.content("expected")).join()
        assert code == 0, self.expected
        self.acknowledged.unlink()

    def store(self, name: str) -> Path:
        return self.folder / f"{name}.qsplit"

    def index(self, uri: Path) -> bool:
        album = Album(uri, resize=RESIZE)
        album.__dict__["vision"] = self.vision
        put = FeatureStore.put_files

        def put_and_tell(store: FeatureStore, rows: list[FileRow]) -> None:
            put(store, rows)
            with self.acknowledged.open("a") as stream:
                stream.write("".join(f"{row.path}\n" for row in rows if row.state == "ok"))

        FeatureStore.put_files = put_and_tell  # type: ignore[assignment,method-assign]  # in this child alone
        pipeline._BATCH_FILES = 3
        album.index(self.pictures)
        return True

    def content(self, name: str) -> dict[str, Any]:
        """What a store holds, without when it was put; raises for anything that does not check out."""
        album = Album(self.store(name))
        verified = album.verify()
        assert verified.sound, verified
        store = album.store
        encoder = store.settings().encoder
        keys = sorted(key for (key,) in store.column("features", "key"))
        found = store.get_features(keys)
        return {
            "files": {path: [row.image_id, row.state] for path, row in sorted(store.files().items())},
            "images": {key: row.pixels_digest for key, row in sorted(store.images().items())},
            "features": {key: found[key].to_payload().sha256 for key in keys},
            "vectors": sorted(store.vector_ids(encoder)),
        }

    def holds_what_was_acknowledged(self, name: str) -> None:
        lines = self.acknowledged.read_text().splitlines() if self.acknowledged.exists() else []
        try:
            content = self.content(name)
        except NotFound:
            assert not lines, "files were acknowledged, and there is no store"
            return
        for path in lines:
            image_id, state = content["files"][path]
            assert state == "ok", path
            digest = content["images"][image_id]
            assert any(key.startswith(digest) for key in content["features"]), path

    def converges(self, name: str) -> None:
        """Indexing again, and housekeeping, end in what an undisturbed run ends in."""
        self.index(self.store(name))
        assert self.content(name) == self.expected
        album = Album(self.store(name))
        album.compact(alone=True)
        assert len(album.verify().orphans) == 0
        assert self.content(name) == self.expected

    def check(self, after: str, act: Callable[[str], None], name: str) -> None:
        code, told = Child(lambda: act(name)).join()
        if code:
            self.failures.append(f"{after}, {act.__name__}: {told}")

    def armed(self, name: str, number: int, mode: str) -> dict[str, Any]:
        """Index with a fault; a fault that the library retries or ignores is none."""
        self.shim.fault_arm(str(self.store(name)).encode(), number, MODES[mode])
        self.index(self.store(name))
        return {"struck": bool(self.shim.fault_struck()), "changes": int(self.shim.fault_changes())}


def faults(runs: Runs, mode: str, first: int, step: int) -> dict[str, Any]:
    """Fail the N-th change of a file, for N = first, first + step, ... until a run is done before it comes to that."""
    for cut, number in enumerate(range(first, 100_000, step)):
        runs.acknowledged.unlink(missing_ok=True)
        code, told = Child(partial(runs.armed, "faulty", number, mode)).join()
        after = f"{mode} at change {number}"
        if code == FOREIGN or (code < 0 and (mode != "kill" or code != -signal.SIGKILL)):
            runs.failures.append(f"{after}: exit {code}: {told}")
        runs.check(after, runs.holds_what_was_acknowledged, "faulty")
        runs.check(after, runs.converges, "faulty")
        shutil.rmtree(runs.store("faulty"), ignore_errors=True)
        if code == 0 and not told["struck"]:
            return {"cut": cut, "changes": told["changes"], "failures": runs.failures}
    raise AssertionError("unreachable")


def kills(runs: Runs, number: int, seed: int) -> dict[str, Any]:
    """Kill index runs of one store at random moments, as often as asked; what is done is begun again."""
    rng = random.Random(seed)
    cut = rounds = 0
    while cut < number:
        child = Child(lambda: runs.index(runs.store("killed")))
        time.sleep(rng.uniform(0.02, 0.8))
        os.kill(child.pid, signal.SIGKILL)
        code, told = child.join()
        if code == -signal.SIGKILL:
            cut += 1
        elif code != 0:
            runs.failures.append(f"kill {cut}: exit {code}: {told}")
        runs.check(f"kill {cut}", runs.holds_what_was_acknowledged, "killed")
        if code == 0:  # it was done before it could be killed
            runs.check(f"kill {cut}", runs.converges, "killed")
            shutil.rmtree(runs.store("killed"))
            runs.acknowledged.unlink(missing_ok=True)
            rounds += 1
    runs.check("the last kill", runs.converges, "killed")
    return {"cut": cut, "rounds": rounds, "failures": runs.failures}


def draw(folder: Path, number: int) -> None:
    """Small pictures, one there twice, one whose features lie in a file of their own, and one that is no picture."""
    folder.mkdir()
    for seed in range(number):
        values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(values).resize((56, 56), Image.Resampling.NEAREST).save(folder / f"{seed:04}.png")
    shutil.copy(folder / "0000.png", folder / "again.png")
    Image.new("RGB", (LARGE, LARGE), "teal").save(folder / "large.png")
    (folder / "broken.jpg").write_bytes(b"no picture")


def main() -> None:
    warnings.filterwarnings("ignore", message=".*fork")  # the parent never touches a store
    torch.set_num_threads(1)
    folder, shim, what, *options = sys.argv[1:]
    if what == "faults":
        mode, first, step = options
        result = faults(Runs(Path(folder), Path(shim), 6), mode, int(first), int(step))
    else:
        pictures, number, seed = map(int, options)
        result = kills(Runs(Path(folder), Path(shim), pictures), number, seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
