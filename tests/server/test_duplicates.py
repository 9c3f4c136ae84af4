"""Duplicates over HTTP: what is listed, what a person says stays said, and nothing is lost on the way to the trash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import made_album, service_of, serving
from strangers import strangers_journal

from qsplit.album import Album
from qsplit.duplicates.detector import KINDS, settled
from qsplit.duplicates.grouping import read_groups
from qsplit.models.vision.encoder import VisionEncoder

ENOUGH = 60.0  # seconds


@dataclass(frozen=True)
class Place:
    client: TestClient
    album: Album
    folder: Path

    def listed(self, kinds: str = "") -> dict[str, Any]:
        response = self.client.get("/api/v1/duplicates", params={"kinds": kinds} if kinds else {})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def groups(self, kinds: str = "") -> list[dict[str, Any]]:
        return list(self.listed(kinds)["groups"])

    def scan(self) -> None:
        job = self.client.post("/api/v1/jobs", json={"kind": "duplicates"}).json()
        assert service_of(self.client).jobs.wait(job["id"], ENOUGH).state == "done"

    def trash(self, **accepted: Any) -> list[dict[str, Any]]:
        response = self.client.post("/api/v1/duplicates/trash", json=accepted)
        assert response.status_code == 200, response.text
        return list(response.json()["moved"])

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*.jpg")}


@pytest.fixture
def place(
    tmp_path: Path, photos: list[Path], mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A photograph, the same under the same name in another folder, a copy saved badly, and another photograph."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    shutil.copy(photos[0], folder / "one.jpg")
    shutil.copy(photos[0], folder / "more" / "one.jpg")
    shutil.copy(photos[1], folder / "other.jpg")
    with Image.open(photos[0]) as opened:
        opened.convert("RGB").save(folder / "small.jpg", quality=40)
    album = made_album(tmp_path, (), mini_vision)
    album.index(folder)
    with serving(album, folders=(str(folder),)) as client:
        yield Place(client, album, folder)


def test_groups_are_listed_without_paths(place: Place) -> None:
    before = place.listed()
    assert before["scanned_at"] is None
    assert [group["kind"] for group in before["groups"]] == ["exact"], "what takes no comparing"
    place.scan()
    found = place.listed()
    assert found["scanned_at"]
    assert found["total"] == 2
    exact, copy = found["groups"]
    assert (exact["kind"], copy["kind"]) == ("exact", "copy")
    assert exact["keep"] == {"id": exact["members"][0]["id"], "name": "one.jpg"}
    assert exact["members"][0]["file"] != exact["members"][1]["file"]
    assert copy["members"][1]["name"] == "small.jpg"
    assert copy["members"][1]["evidence"]["agreement"] > 0.5
    assert copy["members"][1]["bytes"] == (place.folder / "small.jpg").stat().st_size
    assert str(place.folder) not in str(found)
    assert [group["kind"] for group in place.groups("copy")] == ["copy"]
    assert place.groups("similar") == []


def test_listing_is_what_a_scan_finds_and_survives_a_restart(place: Place) -> None:
    place.scan()
    known = read_groups(place.album.store)
    assert [settled(group, known.images, KINDS) for group in known.groups] == place.album.duplicates(KINDS)
    with serving(Album(place.album.uri)) as client:
        again = client.get("/api/v1/duplicates").json()
    assert again["groups"] == place.groups()
    assert again["scanned_at"] is not None


def test_whole_groups_go_and_come_back(place: Place) -> None:
    place.scan()
    before = place.files()
    moved = place.trash(groups=[group["id"] for group in place.groups()], kinds=["exact", "pixels", "copy"])
    assert [(one["name"], one["moved"]) for one in moved] == [("one.jpg", True), ("small.jpg", True)]
    assert place.files().keys() == {"one.jpg", "other.jpg"}
    assert place.groups() == []
    back = place.client.post("/api/v1/duplicates/undo").json()["restored"]
    assert {(one["name"], one["restored"]) for one in back} == {("one.jpg", True), ("small.jpg", True)}
    assert place.files() == before
    assert len(place.groups()) == 2
    assert place.client.post("/api/v1/duplicates/undo").json() == {"restored": []}


def test_copies_are_moved_only_where_their_kind_is_named(place: Place) -> None:
    place.scan()
    before = place.files()
    exact, copy = place.groups()
    assert exact["members"][1]["movable"]
    assert not copy["members"][1]["movable"]
    assert place.groups("copy")[0]["members"][1]["movable"]
    best, other = copy["members"]
    for accepted in (
        {"groups": [copy["id"]]},
        {"keep": best["id"], "trash": [{"id": other["id"], "name": "small.jpg"}]},
    ):
        (one,) = place.trash(**accepted)
        assert not one["moved"]
        assert "kind copy" in one["reason"]
    assert place.files() == before
    assert [one["moved"] for one in place.trash(groups=[exact["id"], copy["id"]])] == [True, False]


def test_a_person_may_keep_another_one(place: Place) -> None:
    place.scan()
    (copy,) = place.groups("copy")
    best, other = copy["members"]
    moved = place.trash(keep=other["id"], trash=[{"id": best["id"], "name": best["name"]}], kinds=["copy"])
    assert moved == [{"id": best["id"], "name": "one.jpg", "moved": True, "reason": None}]
    assert (place.folder / "small.jpg").exists()
    assert len(place.files()) == 3


def test_of_files_that_are_called_the_same(place: Place) -> None:
    (exact,) = place.groups("exact")
    kept, other = exact["members"]
    unwanted = {"id": kept["id"], "name": "one.jpg", "file": kept["file"]}
    assert [one["moved"] for one in place.trash(keep=kept["id"], keep_file=other["file"], trash=[unwanted])] == [True]
    assert set(place.files()) == {"more/one.jpg", "small.jpg", "other.jpg"}
    place.client.post("/api/v1/duplicates/undo")
    place.trash(keep=kept["id"], trash=[{"id": kept["id"], "name": "one.jpg"}])
    assert set(place.files()) == {"one.jpg", "small.jpg", "other.jpg"}, "the best is kept where nobody says which"


def test_what_changed_meanwhile_stays(place: Place) -> None:
    place.scan()
    (place.folder / "small.jpg").write_bytes(b"edited meanwhile")
    groups = [group["id"] for group in place.groups("copy")]
    (one,) = place.trash(groups=groups, kinds=["copy"])
    assert (one["moved"], one["name"]) == (False, "small.jpg")
    assert "not what was indexed" in one["reason"]
    assert str(place.folder) not in one["reason"]
    assert (place.folder / "small.jpg").read_bytes() == b"edited meanwhile"


def test_not_duplicates_stays_said(place: Place) -> None:
    place.scan()
    (copy,) = place.groups("copy")
    one, other = (member["id"] for member in copy["members"])
    assert place.client.post("/api/v1/duplicates/decisions", json={"one": one, "other": other}).status_code == 204
    assert place.groups("copy") == []
    place.scan()
    assert place.groups("copy") == []
    same = place.client.post("/api/v1/duplicates/decisions", json={"one": one, "other": one})
    assert same.status_code == 400
    stale = place.client.post("/api/v1/duplicates/trash", json={"groups": [copy["id"]]})
    assert stale.status_code == 404
    kept = {"keep": one, "trash": [{"id": other, "name": "small.jpg"}]}
    assert place.client.post("/api/v1/duplicates/trash", json=kept).status_code == 404
    assert len(place.files()) == 4
    taken_back = place.client.delete("/api/v1/duplicates/decisions", params={"one": other, "other": one})
    assert taken_back.status_code == 204
    assert place.groups("copy") == [copy]
    assert place.client.delete("/api/v1/duplicates/decisions", params={"one": one, "other": other}).status_code == 404


@pytest.mark.parametrize(
    ("what", "asked", "status"),
    [
        ("trash", {}, 422),
        ("trash", {"groups": ["x"], "keep": "y", "trash": [{"id": "z", "name": "n"}]}, 422),
        ("trash", {"keep": "y"}, 422),
        ("trash", {"groups": ["0123456789abcdef"]}, 404),
        ("trash", {"keep": "a" * 64, "trash": [{"id": "b" * 64, "name": "../../etc/passwd"}]}, 404),
        ("decisions", {"one": "a" * 64, "other": "b" * 64}, 404),
        ("decisions", {"one": "/etc/passwd", "other": "b" * 64}, 404),
        ("decisions", {"one": "a" * 64}, 422),
    ],
)
def test_what_cannot_be_said(place: Place, what: str, asked: dict[str, Any], status: int) -> None:
    before = place.files()
    assert place.client.post(f"/api/v1/duplicates/{what}", json=asked).status_code == status
    assert place.client.get("/api/v1/duplicates?kinds=near").status_code == 400
    assert place.files() == before


def test_a_journal_in_a_strangers_store_moves_and_removes_nothing(place: Place, tmp_path: Path) -> None:
    own = tmp_path / "own"
    strangers_journal(Path(place.album.uri), own)
    files = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    assert place.client.post("/api/v1/duplicates/undo").json() == {"restored": []}
    place.scan()
    groups = [group["id"] for group in place.groups()]
    assert all(one["moved"] for one in place.trash(groups=groups, kinds=["exact", "pixels", "copy"]))
    back = place.client.post("/api/v1/duplicates/undo").json()["restored"]
    assert {one["name"] for one in back} == {"one.jpg", "small.jpg"}
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == files


def test_undo_tells_each_file_that_stays_without_its_place(place: Place, tmp_path: Path) -> None:
    place.scan()
    place.trash(groups=[group["id"] for group in place.groups()], kinds=["exact", "pixels", "copy"])
    (tmp_path / "data" / "Trash" / "files" / "one.jpg").unlink()
    (place.folder / "small.jpg").write_bytes(b"a new picture")
    back = {one["name"]: one for one in place.client.post("/api/v1/duplicates/undo").json()["restored"]}
    assert {name: one["restored"] for name, one in back.items()} == {"one.jpg": False, "small.jpg": False}
    assert back["one.jpg"]["reason"] == "It is no longer in the trash."
    assert back["small.jpg"]["reason"] == "Another file is at its place."
    assert str(tmp_path) not in str(back)
