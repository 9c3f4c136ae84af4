"""A store on object storage: what it holds is what a folder would hold, whoever writes to it and whatever fails."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from held import album_of, held
from object_stores import BUCKET, KEY, SECRET, enter, environment, free_port, moto, rclone, seaweedfs, unsteady
from patience import PATIENCE
from PIL import Image
from racing import ROUNDS, SHARED, numbers, race

from qsplit.cli import main
from qsplit.duplicates import cleanup, trash
from qsplit.errors import StoreError, UsageError
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store import object_storage
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, feature_key

SERVERS = {"moto": moto, "seaweedfs": seaweedfs}
KILLED = """
import os, signal, sys
import qsplit
from qsplit.store.feature_store import FeatureStore

uri, folder, step = sys.argv[1:]
put = getattr(FeatureStore, step)

def put_and_die(*given):
    put(*given)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(FeatureStore, step, put_and_die)
qsplit.open(uri, device="cpu").index(folder)
"""


@pytest.fixture(scope="module", params=SERVERS)
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as address:
        yield address


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a place of its own for each test, at an endpoint that the environment names."""
    enter(endpoint, monkeypatch)
    return f"s3://{BUCKET}/{os.urandom(6).hex()}/album.qsplit"


@pytest.fixture
def folder(tmp_path: Path, photos: list[Path]) -> Path:
    """Three photographs, the first twice, and a bad copy of it."""
    made = tmp_path / "pictures"
    made.mkdir()
    for i, name in ((0, "one.jpg"), (0, "one again.jpg"), (1, "other.jpg"), (2, "third.jpg")):
        shutil.copy(photos[i], made / name)
    with Image.open(photos[0]) as opened:
        opened.convert("RGB").save(made / "small.jpg", quality=40)
    return made


# --- what it holds ---


def test_an_album_is_the_same_rows_as_in_a_folder(
    s3: str, folder: Path, tmp_path: Path, mini_vision: VisionEncoder
) -> None:
    reports = [album_of(uri, mini_vision).index(folder) for uri in (s3, str(tmp_path / "album.qsplit"))]
    assert [report.encoded for report in reports] == [4, 4]
    here, there = (held(FeatureStore(uri)) for uri in (tmp_path / "album.qsplit", s3))
    assert here == there
    assert len(here["features"]) == 4
    again = album_of(s3, mini_vision).index(folder)
    assert (again.encoded, again.unchanged) == (0, 5)


def test_features_are_read_together_and_one_by_one(s3: str, folder: Path, mini_vision: VisionEncoder) -> None:
    album = album_of(s3, mini_vision)
    album.index(folder)
    store = FeatureStore(s3)
    (encoder_id,) = store.encoders()
    keys = [feature_key(image.pixels_digest, encoder_id) for image in store.images().values()]
    together = store.get_features(keys)
    assert together.keys() == set(keys)
    for key in keys:
        assert FeatureStore(s3).get_features([key])[key].digest() == together[key].digest()
    assert store.bytes()["features"] > sum(one.nbytes for one in together.values())
    assert store.bytes()["total"] > store.bytes()["features"]


class Typed:
    """Runs commands on one album."""

    def __init__(self, store: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._store, self._capsys = store, capsys

    def __call__(self, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
        with pytest.raises(SystemExit) as exited:
            main.main([*map(str, arguments), "--store", self._store, "--json"])
        captured = self._capsys.readouterr()
        assert int(exited.value.code or 0) == code, captured.err
        return [json.loads(line) for line in captured.out.splitlines()]


def test_every_command_works(
    s3: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    qsplit = Typed(s3, capsys)
    assert qsplit("index", folder, "--semantic", "--captions")[0]["encoded"] == 4
    (answer,) = qsplit("ask", folder / "other.jpg", "What is it?")
    assert answer["exact"]
    assert answer["tokens"]
    assert len(qsplit("search", "a photograph", "--all")) == 4
    assert qsplit("search", "--like", folder / "one.jpg")
    assert {line["kind"] for line in qsplit("duplicates")} == {"exact", "copy"}
    assert all(
        line["state"] == "moved" for line in qsplit("duplicates", "--trash", "--kind", "exact", "--kind", "copy")
    )
    assert sorted(path.name for path in folder.iterdir()) == ["one.jpg", "other.jpg", "third.jpg"]
    assert {line["state"] for line in qsplit("duplicates", "--undo")} == {"restored"}
    assert len(list(folder.iterdir())) == 5
    assert len(qsplit("check", "moderation")) % 4 == 0
    qsplit("snapshot", "before")
    assert qsplit("forget", folder / "third.jpg")
    assert [qsplit("status", *at)[0]["images"] for at in ((), ("--at", "before"))] == [3, 4]
    assert qsplit("status")[0]["bytes"]["total"] > 0
    qsplit("snapshot", "before", "--restore")
    assert qsplit("refresh")[0]["encoded"] == 0
    assert qsplit("compact", "--dry-run")
    assert qsplit("compact")
    verified = qsplit("verify")[0]
    assert (verified["corrupt"], verified["duplicate_keys"]) == ([], [])
    assert verified["checked"] == 4


def test_a_journal_of_an_earlier_version_is_undone(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lay in the user's own folder, too, by the address of the store."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    store = FeatureStore(s3, create=True)
    keep, path = tmp_path / "keep.jpg", tmp_path / "copy.jpg"
    for one in (keep, path):
        one.write_bytes(b"its bytes")
    sha = hashlib.sha256(b"its bytes").hexdigest()
    store.put_files([FileRow(str(path), sha, 9, 1, "ok")])
    old = tmp_path / "data" / "qsplit" / hashlib.sha256(s3.encode()).hexdigest()[:16] / "trash.journal"
    old.parent.mkdir(parents=True)
    (moved,) = trash.move(old, [trash.Wanted(str(path), sha, "exact", str(keep), sha)])
    assert (moved.state, path.exists()) == ("moved", False)
    assert [one.state for one in cleanup.bring_back(store)] == ["restored"]
    assert path.read_bytes() == b"its bytes"
    assert list(cleanup.bring_back(FeatureStore(f"{s3}/"))) == [], "by its id, however the address is written"
    assert store.id in {folder.name for folder in (tmp_path / "data" / "qsplit").iterdir()}


# --- who writes ---


@pytest.mark.thorough
def test_writers_that_race_store_each_row_once(s3: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = 2
    barrier, results = context.Barrier(workers), context.Queue()
    started = [context.Process(target=race, args=(s3, worker, barrier, results, True)) for worker in range(workers)]
    for process in started:
        process.start()
    inserted = [results.get(timeout=PATIENCE) for _ in range(workers * ROUNDS)]
    for process in started:
        process.join(PATIENCE)
    assert all(isinstance(one, int) for one in inserted), inserted
    wanted = {seed for worker in range(workers) for round_ in range(ROUNDS) for seed in numbers(worker, round_)}
    assert len(wanted) == ROUNDS * (SHARED + workers)
    keys = [key for (key,) in FeatureStore(s3).column("features", "key")]
    assert len(keys) == len(set(keys)) == len(wanted)


@pytest.mark.thorough
def test_a_writer_that_is_killed_leaves_a_store_that_reads_and_converges(
    s3: str, folder: Path, tmp_path: Path, mini_vision: VisionEncoder
) -> None:
    for step in ("put_features", "put_vectors"):
        done = subprocess.run([sys.executable, "-c", KILLED, s3, str(folder), step], capture_output=True, check=False)
        assert done.returncode == -9, done.stderr
        assert FeatureStore(s3).files() == {}
    album_of(s3, mini_vision).index(folder)
    album_of(str(tmp_path / "album.qsplit"), mini_vision).index(folder)
    assert held(FeatureStore(s3)) == held(FeatureStore(tmp_path / "album.qsplit"))


def test_an_endpoint_that_is_often_too_busy_changes_nothing(
    s3: str, endpoint: str, folder: Path, tmp_path: Path, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unsteady(endpoint, 0.05, seed=7) as (address, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        album_of(s3, mini_vision).index(folder)
        found = held(FeatureStore(s3))
    assert counts[True] > 3
    album_of(str(tmp_path / "album.qsplit"), mini_vision).index(folder)
    assert found == held(FeatureStore(tmp_path / "album.qsplit"))


# --- what is refused ---


def test_an_endpoint_that_overwrites_is_refused_before_anything_is_written(
    tmp_path: Path, folder: Path, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rclone(tmp_path) as endpoint:
        enter(endpoint, monkeypatch)
        with pytest.raises(StoreError, match="overwrites") as raised:
            album_of(f"s3://{BUCKET}/album.qsplit", mini_vision).index(folder)
        assert endpoint in raised.value.message
        assert not [path for path in (tmp_path / BUCKET).rglob("*") if path.is_file()]
        # What was copied there can be read.
        album_of(str(tmp_path / "local"), mini_vision).index(folder)
        shutil.copytree(tmp_path / "local", tmp_path / BUCKET / "copied.qsplit")
        copied = FeatureStore(f"s3://{BUCKET}/copied.qsplit")
        assert len(copied.images()) == 4
        with pytest.raises(StoreError, match="overwrites"):
            copied.remove("images", "image_id", copied.images())
        assert len(FeatureStore(copied.uri).images()) == 4


def test_the_probe_leaves_nothing_behind(s3: str, endpoint: str) -> None:
    object_storage.check_conditional_put(s3)
    assert object_storage.sizes(s3) == {}
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET)
    prefix = s3.removeprefix(f"s3://{BUCKET}/")
    assert client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0
    client.close()


@pytest.mark.parametrize("given", ["s3://user:hidden-secret@photos/album", "az://photos/album?sig=hidden-secret"])
def test_an_address_with_credentials_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY") as raised:
        FeatureStore(given)
    assert "hidden-secret" not in str(raised.value)
    with pytest.raises(SystemExit):
        main.main(["--verbose", "status", "--store", given])
    assert "hidden-secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", [("status",), ("index", "FOLDER")])
def test_what_fails_tells_no_secret(
    command: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = (
        os.environ | environment(f"http://127.0.0.1:{free_port()}") | {"RUST_LOG": "trace", "AWS_MAX_ATTEMPTS": "1"}
    )
    given = [str(folder) if word == "FOLDER" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "qsplit", "--verbose", *given, "--store", f"s3://{BUCKET}/album.qsplit"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 5)
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_of_the_environment_are_hidden() -> None:
    environ = {"AZURE_STORAGE_SAS_TOKEN": "sig=abcdef", "AWS_REGION": "us-east-1", "OTHER_SECRET": "abcdefgh"}
    assert (
        object_storage.hidden("GET /x?sig=abcdef in us-east-1: abcdefgh", environ)
        == "GET /x?*** in us-east-1: abcdefgh"
    )
