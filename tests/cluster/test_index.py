"""Indexing on a real Ray cluster of this machine: the rows of a plain run, whoever dies meanwhile."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from archives import png, write_tar
from held import album_of, held
from object_stores import BUCKET, enter, seaweedfs, unsteady
from obstore.exceptions import BaseError
from patience import PATIENCE
from ray import cloudpickle
from ray.cluster_utils import Cluster

from qsplit.album import Album
from qsplit.cli import main
from qsplit.cluster.index import HERE
from qsplit.errors import NotFound, UsageError
from qsplit.indexing.shards import QUARANTINED, cut
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.shard_log import Notes

PICTURES = 24
POISON = b"whoever decodes this dies"


SECONDS = 10.0  # between two workers that are killed


def poisoned() -> None:
    """Run by Ray in each of its processes: one file kills whoever decodes it."""
    indexing: Any = importlib.import_module("qsplit.indexing.pipeline")
    decode = indexing.decode

    def decode_or_die(data: bytes, **options: Any) -> Any:
        if data == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, **options)

    indexing.decode = decode_or_die


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without a core, and a node of two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's, and of forks that become programs of their own
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.add_node(num_cpus=2)
        yield made
        made.shutdown()


@pytest.fixture
def connected(nodes: Cluster) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes do not find this file
        ray.init(address=nodes.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": poisoned})
        yield
        ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for seed in range(PICTURES):
        (made / f"{seed:03}.png").write_bytes(png(seed))
    (made / "again.png").write_bytes(png(0))
    (made / "broken.png").write_bytes(b"nothing")
    return made


@pytest.fixture
def plain(tmp_path: Path, mini_vision: VisionEncoder, folder: Path) -> FeatureStore:
    album = album_of(str(tmp_path / "plain.qsplit"), mini_vision)
    album.index(folder)
    return album.store


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsplit.cluster.index.cut", partial(cut, at_most=5))


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return Album(tmp_path / "cluster.qsplit", device="cpu")


@pytest.mark.usefixtures("connected", "small_shards")
def test_the_rows_are_those_of_a_plain_run(album: Album, folder: Path, plain: FeatureStore) -> None:
    told: list[tuple[int, int]] = []
    report = album.index(folder, ray=HERE, on_progress=lambda progress: told.append((progress.done, progress.total)))
    assert (report.found, len(report.unreadable)) == (PICTURES + 2, 1)
    assert report.encoded + report.reused == PICTURES + 1  # a copy is reused if what it is of was joined by then
    assert told[-1] == (PICTURES + 2, PICTURES + 2)
    assert held(album.store) == held(plain)
    (folder / "001.png").unlink()
    (folder / "broken.png").unlink()
    again = album.index(folder, ray=HERE)
    assert (again.encoded, again.unchanged, again.missing) == (0, PICTURES, 2)
    assert album.store.files()[str(folder / "001.png")].state == "missing"


@pytest.mark.usefixtures("connected", "small_shards")
def test_an_index_is_made_in_parts_that_are_searched_as_one(
    album: Album, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsplit.store.vector_index.INDEXED_FROM", PICTURES)
    album.index(folder, ray=HERE)
    store = album.store
    name = vectors_table(store.settings().encoder)
    stats = store._tables[name].index_stats("pooled_idx")
    assert (stats.num_indices, stats.num_indexed_rows, stats.num_unindexed_rows) == (2, PICTURES, 0)
    searched = store.vectors(store.settings().encoder)
    vector_of = searched.get("pooled", store.images())
    vectors = np.stack(list(vector_of.values()))
    for row in (0, 7, 23):
        cosines = vectors @ vectors[row]
        found = searched.nearest("pooled", vectors[row], 5)
        assert [cosine for _, cosine in found] == pytest.approx(np.sort(cosines)[::-1][:5].tolist(), abs=1e-5)
        assert [cosine for _, cosine in found] == pytest.approx(
            [vector_of[i] @ vectors[row] for i, _ in found], abs=1e-5
        )
    (folder / "new.png").write_bytes(png(PICTURES))
    album.index(folder, ray=HERE)
    assert len(searched.nearest("pooled", vectors[0], PICTURES + 5)) == PICTURES + 1
    assert store._tables[name].index_stats("pooled_idx").num_unindexed_rows == 1  # few: read beside it


@pytest.mark.usefixtures("connected", "small_shards")
def test_a_worker_that_is_killed_and_a_node_that_leaves_lose_nothing(
    nodes: Cluster, album: Album, folder: Path, plain: FeatureStore
) -> None:
    leaving = nodes.add_node(num_cpus=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(album.index, folder, ray=HERE)
        wait_until(lambda: list(Path(album.uri).glob("_shards/*.done")) or running.done())
        assert not running.done()
        wait_until(lambda: encoders(os.getpid()))
        os.kill(encoders(os.getpid())[0], signal.SIGKILL)
        nodes.remove_node(leaving)
        nodes.add_node(num_cpus=1)
        running.result()
    assert held(album.store) == held(plain)


@pytest.mark.usefixtures("connected", "small_shards")
def test_a_picture_that_kills_is_quarantined_and_the_others_are_there(
    album: Album, folder: Path, plain: FeatureStore
) -> None:
    poison = folder / "003 poison.png"
    poison.write_bytes(POISON)
    report = album.index(folder, ray=HERE)
    (reason,) = (one.reason for one in report.unreadable if one.path == str(poison))
    assert reason.startswith(f"{QUARANTINED} 2 workers died over {poison}")
    rows = held(album.store)
    rows["files"] = [row for row in rows["files"] if row["path"] != str(poison)]
    assert rows == held(plain)
    assert album.index(folder, ray=HERE).encoded == 0  # it is not tried again


@pytest.mark.thorough
@pytest.mark.parametrize(("pictures", "drivers"), [(150, 1), (2000, 2)])
def test_whoever_is_killed_while_storage_is_often_too_busy_all_is_there_once(
    tmp_path: Path, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch, pictures: int, drivers: int
) -> None:
    """Drivers are killed as soon as some shards are done, and while one runs, a worker every few seconds."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(pictures):
        (folder / f"{seed:04}.png").write_bytes(png(seed))
    uri = f"s3://{BUCKET}/album.qsplit"
    (tmp_path / "s3").mkdir()
    with seaweedfs(tmp_path / "s3") as endpoint, unsteady(endpoint, 0.05, seed=3) as (address, counts):
        enter(address, monkeypatch)
        command = [sys.executable, "-m", "qsplit", "index", str(folder), "--ray", "--json", "--store", uri]
        for _ in range(drivers):
            log = tmp_path / "log"
            with log.open("w") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as driver:
                known = set(noted(uri))
                wait_until(lambda: set(noted(uri)) - known or driver.poll() is not None)  # noqa: B023  # called here
                assert driver.poll() is None, log.read_text()
                driver.kill()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
            stop = threading.Event()
            killer = threading.Thread(target=kill_workers, args=(driver.pid, stop))
            killer.start()
            out, err = driver.communicate()
            stop.set()
            killer.join()
        assert driver.returncode == 0, err.decode()
        assert json.loads(out)["unreadable"] == []
        found = held(FeatureStore(uri))
    assert counts[True] > 3
    plain = album_of(str(tmp_path / "plain.qsplit"), mini_vision)
    plain.index(folder)
    assert len(found["features"]) == pictures
    assert found == held(plain.store)


@pytest.mark.usefixtures("connected")
def test_an_archive_is_indexed_and_known_afterwards(album: Album, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {f"{seed}.png": png(seed) for seed in range(5)})
    assert album.index(tar, ray=HERE).encoded == 5
    again = album.index(tar, ray=HERE)
    assert (again.found, again.encoded, again.unchanged) == (1, 0, 1)
    album.index(tmp_path)  # the plain way does not look into it, nor takes what it holds for gone
    assert {row.state for row in album.store.files().values()} == {"ok"}
    tar.unlink()
    assert album.index(tmp_path, ray=HERE).missing == 5


@pytest.mark.usefixtures("connected")
def test_the_command_says_what_it_did(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(folder.iterdir())[4:]:
        path.unlink()
    with pytest.raises(SystemExit) as exited:
        main.main(["index", str(folder), "--ray", "--semantic", "--json", "--store", str(tmp_path / "album.qsplit")])
    captured = capsys.readouterr()
    assert exited.value.code == 0, captured.err
    told = json.loads(captured.out)
    assert (told["encoded"], told["semantic"]) == (4, 4)


def test_what_is_no_address_is_refused_before_anything_is_written(album: Album, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no Ray at 127\.0\.0\.1:1"):
        album.index(folder, ray="127.0.0.1:1")
    with pytest.raises(NotFound, match="nowhere"):
        album.index(folder / "nowhere", ray=HERE)
    assert not Path(album.uri).exists()


def test_without_ray_it_is_named_before_anything_is_written(
    album: Album, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "qsplit.cluster.index")
    monkeypatch.delattr("qsplit.cluster.index")
    with pytest.raises(UsageError, match=r"needs ray\. pip install 'qsplit\[cluster\]'"):
        album.index(folder, ray=HERE)
    assert not Path(album.uri).exists()


def test_a_path_is_no_address(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main.main(["index", str(folder), "--ray", str(folder), "--store", str(tmp_path / "album.qsplit")])
    assert exited.value.code == 2
    assert "Write the paths first" in capsys.readouterr().err


def noted(uri: str) -> list[str]:
    """The shards that are done and not yet joined."""
    try:
        return Notes(uri).done()
    except BaseError:  # as this endpoint does
        return []


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_workers(driver: int, stop: threading.Event) -> None:
    while not stop.wait(SECONDS):
        for process in encoders(driver)[:1]:
            os.kill(process, signal.SIGKILL)


def encoders(ancestor: int) -> list[int]:
    """The processes that descend from one and in which Ray's encoders are, but for those that only start."""
    parents, titles = dict[int, int](), dict[int, bytes]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (process / "stat").read_text()
            parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])  # a title may hold spaces
            titles[int(process.name)] = (process / "cmdline").read_bytes()

    def descends(process: int) -> bool:
        while process in parents and process != ancestor:
            process = parents[process]
        return process == ancestor

    encoding = (one for one, title in titles.items() if b"MapWorker" in title and b"__init__" not in title)
    return sorted(filter(descends, encoding))


def test_an_encoder_of_another_program_is_not_found() -> None:
    """Its title is that of an encoder; who is killed in these tests is theirs."""
    title = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", title, "ray::MapWorker"], stdin=subprocess.PIPE) as ours:
        wait_until(lambda: ours.pid in encoders(os.getpid()))
        assert encoders(ours.pid) == [ours.pid]
        with subprocess.Popen([sys.executable, "-c", title], stdin=subprocess.PIPE) as other:
            assert encoders(other.pid) == []
            assert other.stdin is not None
            other.stdin.close()
        assert ours.stdin is not None
        ours.stdin.close()
