"""Jobs over HTTP, over a real album: what they do, what they tell, and that no path of the server is among it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import KEY, READ_ONLY, made_album, service_of, serving

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.progress import Progress
from qsplit.store import schema

ENOUGH = 60.0  # seconds


@dataclass(frozen=True)
class Place:
    """A service over an empty album and a folder of three pictures, one of which nothing can read."""

    client: TestClient
    album: Album
    folder: Path

    def start(self, **asked: Any) -> dict[str, Any]:
        response = self.client.post("/api/v1/jobs", json=asked)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    def ended(self, **asked: Any) -> dict[str, Any]:
        job = self.start(**asked)
        service_of(self.client).jobs.wait(job["id"], ENOUGH)
        found: dict[str, Any] = self.client.get(f"/api/v1/jobs/{job['id']}").json()
        return found


@pytest.fixture
def place(
    tmp_path: Path, photos: list[Path], mini_vision: VisionEncoder, mini_language: LanguageModel
) -> Iterator[Place]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, photo in (("a.jpg", photos[0]), ("b.jpg", photos[1])):
        shutil.copy(photo, folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    album = made_album(tmp_path, (), mini_vision, mini_language)
    with serving(album, folders=(str(folder),)) as client:
        yield Place(client, album, folder)


def test_an_index_and_what_it_survives(place: Place) -> None:
    job = place.ended(kind="index")
    assert (job["state"], job["kind"]) == ("done", "index")
    assert "3 found: 2 encoded" in job["message"]
    assert (job["failed"], [one["name"] for one in job["failures"]]) == (1, ["broken.jpg"])
    assert str(place.folder) not in str(job)
    assert place.client.get("/api/v1/images").json()["total"] == 2
    again = place.ended(kind="index")
    assert "2 unchanged" in again["message"]
    assert [one["id"] for one in place.client.get("/api/v1/jobs").json()["jobs"]] == [again["id"], job["id"]]


def test_uploads_are_indexed_too_and_a_folder_that_is_gone_is_told(place: Place, photos: list[Path]) -> None:
    uploads = service_of(place.client).uploads.folder
    uploads.mkdir()
    shutil.copy(photos[2], uploads / "sent.jpg")
    shutil.rmtree(place.folder)
    job = place.ended(kind="index")
    assert job["state"] == "done"
    assert "1 encoded" in job["message"]
    assert job["failures"] == [{"name": "pictures", "reason": "The folder is not there."}]
    shutil.rmtree(uploads)
    assert place.ended(kind="index")["message"] == "There is no folder to index."


def test_all_kinds_one_after_the_other(place: Place) -> None:
    job = place.ended(kind="index", semantic=True, captions=True)
    assert "2 semantic vectors and 2 captions made" in job["message"]
    assert job["what"] == "captions"
    assert "0 encoded" in place.ended(kind="refresh", semantic=True)["message"]
    assert place.ended(kind="duplicates")["message"] == "0 groups of duplicates."
    assert place.client.get("/api/v1/duplicates").json()["scanned_at"]
    checked = place.ended(kind="check", policy="album-tags")
    assert checked["state"] == "done"
    assert (checked["done"], checked["total"], checked["what"]) == (2, 2, "pictures")
    captions = {one["caption"] for one in place.client.get("/api/v1/images").json()["images"]}
    assert None not in captions


def test_cancelled_keeps_what_was_encoded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is held is given up; the next one goes on behind it."""
    told, go = threading.Event(), threading.Event()
    index = Album.index

    def slowly(album: Album, *paths: str, on_progress: Any, **options: Any) -> Any:
        def tell(progress: Progress) -> None:
            if progress.done == 1:
                told.set()
                assert go.wait(ENOUGH)
            on_progress(progress)

        return index(album, *paths, on_progress=tell, **options)

    monkeypatch.setattr(Album, "index", slowly)
    monkeypatch.setattr("qsplit.indexing.pipeline._CHUNK", 1)
    job = place.start(kind="index")
    assert told.wait(ENOUGH)
    assert place.client.post(f"/api/v1/jobs/{job['id']}/pause").json()["state"] == "paused"
    go.set()
    assert place.client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 200
    assert service_of(place.client).jobs.wait(job["id"], ENOUGH).state == "cancelled"
    assert place.client.get("/api/v1/images").json()["total"] == 1
    assert "1 encoded, 0 reused, 1 unchanged" in place.ended(kind="index")["message"]
    ended = place.client.post(f"/api/v1/jobs/{job['id']}/resume")
    assert (ended.status_code, ended.json()["type"]) == (400, "urn:qsplit:UsageError")


def test_a_failed_job_says_why_without_paths(place: Place) -> None:
    place.ended(kind="index")
    (Path(place.album.uri) / "images.lance" / "_versions").rename(place.folder / "away")
    job = place.ended(kind="duplicates")
    assert job["state"] == "failed"
    assert "The log of the server says why" in job["message"]
    assert str(place.folder.parent) not in job["message"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"kind": "delete"}, 422),
        ({"kind": "index", "paths": ["/etc"]}, 422),
        ({"kind": "check", "policy": "/etc/passwd"}, 404),
        ({"kind": "check"}, 404),
        ({}, 422),
    ],
)
def test_what_cannot_be_asked(place: Place, asked: dict[str, Any], status: int) -> None:
    response = place.client.post("/api/v1/jobs", json=asked)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert place.client.get("/api/v1/jobs").json() == {"jobs": []}


def test_unknown_jobs(place: Place) -> None:
    assert place.client.get("/api/v1/jobs/nothing").status_code == 404
    for what in ("pause", "resume", "cancel"):
        assert place.client.post(f"/api/v1/jobs/nothing/{what}").status_code == 404


@pytest.mark.parametrize(
    ("role", "refused"),
    [
        ("vision", [{"kind": "check", "policy": "moderation"}, {"kind": "index", "semantic": True}]),
        ("language", [{"kind": "index"}, {"kind": "refresh"}]),
    ],
)
def test_a_half_that_is_not_here(tmp_path: Path, photos: list[Path], role: str, refused: list[dict[str, Any]]) -> None:
    with serving(made_album(tmp_path, photos[:1]), role=role) as client:
        for asked in refused:
            response = client.post("/api/v1/jobs", json=asked)
            assert response.status_code == 400
            assert "half" in response.json()["detail"]


def test_a_key_that_only_reads_starts_nothing(tmp_path: Path, photos: list[Path]) -> None:
    with serving(made_album(tmp_path, photos[:1]), keys=(KEY,), read_only_keys=(READ_ONLY,)) as client:
        headers = {"authorization": f"Bearer {READ_ONLY}"}
        assert client.get("/api/v1/jobs", headers=headers).status_code == 200
        assert client.post("/api/v1/jobs", headers=headers, json={"kind": "duplicates"}).status_code == 403
        assert client.get("/api/v1/status", headers=headers).json()["read_only"] is True
        mine = client.get("/api/v1/status", headers={"authorization": f"Bearer {KEY}"}).json()
        assert mine["read_only"] is False


def test_the_status_of_the_album(place: Place) -> None:
    before = place.client.get("/api/v1/status").json()
    assert (before["images"], before["role"], before["uploads"]) == (0, "all", True)
    place.ended(kind="index", semantic=True)
    found = place.client.get("/api/v1/status").json()
    assert (found["images"], found["files"], found["unreadable"], found["schema"]) == (2, 2, 1, schema.VERSION)
    assert found["models"] == {"vision": True, "language": True}
    assert sum(found["encoders"][0]["semantic"].values()) == 2
    assert [one["path"] for one in found["skipped"]] == ["broken.jpg"]
    assert str(place.folder.parent) not in str(found)
    assert found.keys() >= place.album.status().__dataclass_fields__.keys()
