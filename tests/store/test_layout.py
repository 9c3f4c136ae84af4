"""Housekeeping removes what qsplit and Lance wrote, and nothing that a link leads to or that somebody put there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import rows
from patience import PATIENCE
from serving import made_album, serving

from qsplit.errors import StoreError
from qsplit.maintenance import garbage
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store import compaction
from qsplit.store.feature_store import FeatureStore
from qsplit.store.layout import check_removable, is_note
from qsplit.store.records import FileRow
from qsplit.store.shard_log import Done, Notes

LONG_AGO = time.time() - 30 * 86_400
NAMES = ["thesis.doc", "a.lance", "b.txn", "c.blob", "d.bin", "e.arrow", "f.done", "sub/thesis.doc", "sub/a.lance"]
HELD = rows.digest("image 1")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store with a snapshot, old versions, and features of two encoders."""
    store = FeatureStore(tmp_path / "album.qsplit", create=True)
    for seed in range(3):
        store.put_features([rows.feature_row(seed), rows.feature_row(seed, rows.encoder(weights="old"))])
        store.put_images([rows.picture(seed)])
        store.put_vectors(rows.encoder(), [rows.vector_row(seed)])
        store.put_files([FileRow(f"/{seed}.jpg", rows.digest(f"image {seed}"), seed, 1, "ok")])
        if seed == 1:
            garbage.snapshot(store, "monday")
    return store


def precious(folder: Path, names: Iterable[str] = NAMES) -> list[Path]:
    """Old files that somebody needs."""
    made = [folder / name for name in names]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        os.utime(path, (LONG_AGO, LONG_AGO))
    return made


ACTIONS: dict[str, Callable[[FeatureStore], object]] = {
    "forget": lambda store: garbage.forget(store, [HELD]),
    "compact": garbage.compact,
    "compact --alone": lambda store: garbage.compact(store, alone=True),
    "drop old": lambda store: garbage.drop_old(store, rows.encoder().id),
    "drop a snapshot": lambda store: garbage.drop_snapshot(store, "monday"),
    "tend": lambda store: compaction.tend(store, many=1),
}


LINKS = (
    "_shards", "_shards/ab", "features.lance/_indices", "images.lance/_indices/x", "images.lance/data/x",
    "files.lance/_transactions/x", "files.lance/_deletions",
)  # fmt: skip
STRAY = (
    "_indices/notes/thesis.doc", "_indices/thesis.doc", "data/mine.lance", "data/sub/x.blob", "_transactions/list.txn",
    "_deletions/x.bin", "_deletions/x.arrow",
)  # fmt: skip


@pytest.mark.parametrize("place", LINKS)
def test_no_link_is_followed_by_housekeeping(store: FeatureStore, tmp_path: Path, place: str) -> None:
    kept = precious(tmp_path / "documents")
    link = Path(store.uri, place)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(tmp_path / "documents")
    for name, act in ACTIONS.items():
        with pytest.raises(StoreError, match="is a link"):
            act(store)
        assert all(path.read_text() == "precious" for path in kept), name
    opened = FeatureStore(store.uri)
    assert len(opened.images()) == len(opened.files()) == 3, "what is refused is refused before anything is done"
    assert opened.thumbnail(HELD) == rows.thumbnail(1)
    link.unlink()
    garbage.compact(opened, alone=True)


def test_a_table_behind_a_link_is_read_and_left_alone(store: FeatureStore, tmp_path: Path) -> None:
    moved = Path(store.uri, "images.lance").rename(tmp_path / "images.lance")
    Path(store.uri, "images.lance").symlink_to(moved)
    before = sorted(moved.rglob("*"))
    opened = FeatureStore(store.uri)
    assert opened.thumbnail(HELD) == rows.thumbnail(1)
    with pytest.raises(StoreError, match=r"images\.lance is a link"):
        garbage.compact(opened)
    assert sorted(moved.rglob("*")) == before


def test_the_folder_of_a_store_may_be_a_link(store: FeatureStore, tmp_path: Path) -> None:
    moved = Path(store.uri).rename(tmp_path / "moved")
    Path(store.uri).symlink_to(moved)
    assert garbage.compact(FeatureStore(store.uri), alone=True).after > 0
    assert garbage.forget(FeatureStore(store.uri), [HELD]).images == 1


@pytest.mark.parametrize("name", STRAY)
def test_what_lance_would_take_for_its_own_is_refused(store: FeatureStore, name: str) -> None:
    (kept,) = precious(Path(store.uri, "images.lance"), [name])
    for act in ACTIONS.values():
        with pytest.raises(StoreError, match="written neither by qsplit nor by Lance"):
            act(store)
    assert kept.exists()


def test_what_lance_leaves_alone_hinders_nobody(store: FeatureStore) -> None:
    kept = precious(Path(store.uri, "images.lance"), ["thesis.doc", "data/thesis.doc", "_versions/notes.txt"])
    kept += precious(Path(store.uri), ["thesis.doc", "_indices/thesis.doc"])
    for act in ACTIONS.values():
        act(store)
    assert all(path.exists() for path in kept)


def test_of_a_folder_of_notes_only_notes_go(store: FeatureStore) -> None:
    notes = Notes(store.uri)
    notes.put(Done("ab"))
    notes.put_piece(3, Done("cd"))
    ours = [Path(store.uri, "_shards", name) for name in ("ab.done", "cd/000000003.piece")]
    for path in ours:
        os.utime(path, (LONG_AGO, LONG_AGO))
    kept = precious(
        Path(store.uri, "_shards"), ["thesis.doc", "cd/thesis.doc", "xyz.done", "ab.done.bak", "cd/3.piece"]
    )
    assert notes.done() == ["ab"]
    garbage.compact(store)
    assert not any(path.exists() for path in ours)
    garbage.compact(store, alone=True)
    notes.drop(["ab", "cd", "xyz", "thesis"])
    assert all(path.exists() for path in kept)


def test_which_names_a_note_can_have() -> None:
    shard = rows.digest("shard")
    for name in (f"{shard}.done", f"{shard}.trial", f"{shard}/000000012.piece"):
        assert is_note(f"_shards/{name}")
    for name in ("../x.done", f"{shard}/x.done", f"{shard}.doc", f"{shard}/1.piece", f"{shard}/../000000012.piece", ""):
        assert not is_note(f"_shards/{name}")


def test_the_names_of_all_that_is_written_are_known(store: FeatureStore) -> None:
    vectors = store.vectors(rows.encoder().id, "x")
    vectors.put_captions("asked", {rows.digest(f"image {seed}"): "a cat" for seed in range(3)})
    vectors.tend()  # makes an index
    store.put_images([rows.picture(seed) for seed in (7, 8)])
    store.remove("images", "image_id", [rows.digest("image 7")])  # makes a file of deletions
    Notes(store.uri).put(Done("ab"))
    assert list(Path(store.uri).glob("*/_indices/*/*"))
    assert list(Path(store.uri).glob("*/_deletions/*"))
    check_removable(store.uri)


def test_a_picture_that_is_deleted_over_http_takes_no_documents_along(
    tmp_path: Path, photos: list[Path], mini_vision: VisionEncoder
) -> None:
    album = made_album(tmp_path, photos[:1], mini_vision)
    kept = precious(tmp_path / "documents")
    Path(album.uri, "_shards").symlink_to(tmp_path / "documents")
    (image_id,) = album.store.images()
    with serving(album) as client:
        assert client.delete(f"/api/v1/images/{image_id}").status_code == 500
        assert client.get(f"/api/v1/images/{image_id}").status_code == 200
    assert all(path.exists() for path in kept)


def test_no_manifest_behind_a_link_is_taken_for_a_torn_one(store: FeatureStore, tmp_path: Path) -> None:
    folder = Path(store.uri, "images.lance", "_versions")
    (kept,) = precious(folder.rename(tmp_path / "versions"), ["00000000000000000001.manifest"])
    folder.symlink_to(kept.parent)
    with pytest.raises(StoreError):
        FeatureStore(store.uri, create=True)
    assert kept.exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    lock, elsewhere = Path(store.uri, "writers.lock"), tmp_path / "nologin"
    lock.unlink()
    match kind:
        case "link":
            lock.symlink_to(elsewhere)
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
    code = (
        "import sys; from qsplit.store.feature_store import FeatureStore as S\n"
        "S(sys.argv[1]).remove('files', 'path', ['/1.jpg'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, store.uri], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert "StoreError" in ended.stderr
    assert "writers.lock is not a regular file" in ended.stderr
    assert not elsewhere.exists()
    assert len(FeatureStore(store.uri).files()) == 3
