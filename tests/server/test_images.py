"""Pictures over HTTP: sent in once, described without paths, shown without metadata, forgotten."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from fastapi.testclient import TestClient
from listening import until
from patience import PATIENCE
from PIL import Image
from PIL.ExifTags import Base
from serving import made_album, service_of, serving

from qsplit.album import Album
from qsplit.media.images import Limits, open_picture
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.api import images
from qsplit.server.uploads import uploads
from qsplit.store.compaction import tend

OLYMPUS = 1  # which of the sample's photographs has EXIF


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def album(folder: Path, photos: list[Path], mini_vision: VisionEncoder) -> Album:
    return made_album(folder, photos[:3], mini_vision)


@pytest.fixture(scope="module")
def client(album: Album) -> Iterator[TestClient]:
    with serving(album, max_upload_bytes=1_000_000, max_pixels=1_000_000) as client:
        yield client


def drawn(colour: str = "red", form: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    data = io.BytesIO()
    exif = Image.Exif()
    exif[Base.Make] = "nobody's"
    Image.new("RGB", size, colour).save(data, form, exif=exif)
    return data.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def send(client: TestClient, data: bytes, *, as_form: bool = True) -> tuple[int, dict[str, object]]:
    if as_form:
        answer = client.post("/api/v1/images", files={"file": ("../../etc/passwd", data, "image/png")})
    else:
        answer = client.post("/api/v1/images", content=data, headers={"content-type": "image/png"})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("as_form", [True, False])
def test_what_is_sent_in_is_encoded_once(client: TestClient, album: Album, *, as_form: bool) -> None:
    data = drawn("red" if as_form else "orange")
    assert send(client, data, as_form=as_form) == (
        201,
        {"id": digest(data), "name": f"{digest(data)}.png", "encoded": True},
    )
    version = album.store.bytes()
    status, again = send(client, data, as_form=as_form)
    assert (status, again["id"], again["encoded"]) == (200, digest(data), False)
    assert album.store.bytes() == version
    kept = service_of(client).uploads.folder / f"{digest(data)}.png"
    assert kept.read_bytes() == data
    assert album.store.images()[digest(data)] == album.locate(kept).image


def test_what_was_sent_in_equals_what_index_makes_of_it(
    client: TestClient, album: Album, tmp_path: Path, mini_vision: VisionEncoder
) -> None:
    data = drawn("green", "JPEG")
    assert send(client, data)[0] == 201
    path = tmp_path / "green.jpg"
    path.write_bytes(data)
    other = made_album(tmp_path, [path], mini_vision)
    assert other.store.images() == {digest(data): album.store.images()[digest(data)]}
    assert other.store.thumbnail(digest(data)) == album.store.thumbnail(digest(data))
    keys = [head.key for head in other.store.heads([other.store.images()[digest(data)].pixels_digest])]
    (made,), (sent,) = other.store.get_features(keys).values(), album.store.get_features(keys).values()
    assert made.digest() == sent.digest()
    assert album.index(service_of(client).uploads.folder).encoded == 0


def test_the_same_pixels_go_by_the_id_that_is_known(client: TestClient, album: Album) -> None:
    first, again = drawn("blue"), drawn("blue", "BMP")
    assert send(client, first)[0] == 201
    images, files = album.store.count("images"), sorted(service_of(client).uploads.folder.iterdir())
    status, answer = send(client, again)
    assert (status, answer["id"], answer["encoded"]) == (200, digest(first), False)
    assert (album.store.count("images"), sorted(service_of(client).uploads.folder.iterdir())) == (images, files)


def test_no_half_of_a_file_is_left(client: TestClient) -> None:
    assert not [path for path in service_of(client).uploads.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 415, "empty"),
        (b"not a picture", 415, "no picture in a known format"),
        (drawn("red", size=(1001, 1000)), 413, "1001x1000 pixels; the bound is 1,000,000"),
        (b"\x89PNG" + bytes(1_000_001), 413, "1,000,005 bytes; this service takes 1,000,000"),
        (bytes(1_100_000), 413, "at most 1,065,536 bytes"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(80), 415, "is a video"),
        (drawn("red", size=(1, 1000)), 415, "ratio"),
    ],
)
def test_what_is_no_picture_is_refused(client: TestClient, album: Album, data: bytes, status: int, said: str) -> None:
    before = album.store.count("files"), sorted(service_of(client).uploads.folder.iterdir())
    answer = client.post("/api/v1/images", files={"file": ("a.png", data)})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert (album.store.count("files"), sorted(service_of(client).uploads.folder.iterdir())) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"files": {"other": ("a.png", b"x")}},
        {"data": {"file": "text"}},
        {"json": {"file": "text"}},
        {"content": b"x"},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    ],
    ids=str,
)
def test_what_brings_no_picture_is_refused(client: TestClient, arguments: dict[str, object]) -> None:
    answer = client.post("/api/v1/images", **arguments)  # type: ignore[arg-type]  # what httpx takes
    assert answer.status_code == 400, answer.text


def test_a_picture_is_described_without_its_path(client: TestClient, photos: list[Path]) -> None:
    path = photos[OLYMPUS]
    picture = open_picture(path, Limits())
    answer = client.get(f"/api/v1/images/{picture.image_id[:12]}")
    found = answer.json()
    assert (found["id"], found["name"], found["width"]) == (picture.image_id, path.name, picture.width)
    assert (found["bytes"], found["files"][0]["name"]) == (path.stat().st_size, path.name)
    assert found["exif"]["Make"] == "OLYMPUS OPTICAL CO.,LTD"
    assert str(path.parent) not in answer.text


@pytest.mark.parametrize(
    "name", ["0" * 12, "f" * 64, "abc", "/etc/passwd", "%2Fetc%2Fpasswd", "..%2Fa", "album.qsplit"]
)
@pytest.mark.parametrize("what", ["", "/thumbnail", "/picture"])
def test_what_is_no_id_is_not_found(client: TestClient, name: str, what: str) -> None:
    assert client.get(f"/api/v1/images/{name}{what}").status_code == 404


@pytest.mark.parametrize("what", ["thumbnail", "picture"])
def test_what_is_shown_is_kept_by_browsers_and_tells_nothing_else(
    client: TestClient, photos: list[Path], what: str
) -> None:
    picture = open_picture(photos[OLYMPUS], Limits())
    answer = client.get(f"/api/v1/images/{picture.image_id}/{what}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert "immutable" in answer.headers["cache-control"]
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.format == "WEBP"
    assert not shown.getexif()
    assert max(shown.size) == (256 if what == "thumbnail" else max(picture.width, picture.height))
    again = client.get(f"/api/v1/images/{picture.image_id}/{what}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    short = client.get(f"/api/v1/images/{picture.image_id[:10]}/{what}")
    assert (short.content, short.headers["cache-control"]) == (answer.content, "no-store")


def test_a_large_picture_is_made_smaller_to_be_shown(tmp_path: Path, mini_vision: VisionEncoder) -> None:
    path = tmp_path / "wide.png"
    path.write_bytes(drawn("red", size=(4096, 1024)))
    with serving(made_album(tmp_path, [path], mini_vision)) as client:
        shown = client.get(f"/api/v1/images/{digest(path.read_bytes())}/picture")
        assert Image.open(io.BytesIO(shown.content)).size == (2048, 512)


def test_a_file_that_is_gone_or_another_is_not_shown(tmp_path: Path, mini_vision: VisionEncoder) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(drawn("red"))
    image_id = digest(path.read_bytes())
    with serving(made_album(tmp_path, [path], mini_vision)) as client:
        path.write_bytes(drawn("blue"))
        assert client.get(f"/api/v1/images/{image_id}/picture").status_code == 404
        path.unlink()
        answer = client.get(f"/api/v1/images/{image_id}/picture")
        assert (answer.status_code, str(tmp_path) in answer.text) == (404, False)
        assert client.get(f"/api/v1/images/{image_id}").json()["exif"] == {}
        assert client.get(f"/api/v1/images/{image_id}/thumbnail").status_code == 200


def test_what_is_removed_takes_its_upload_along_and_no_file_of_the_user(
    tmp_path: Path, mini_vision: VisionEncoder
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(drawn("red"))
    with serving(made_album(tmp_path, [own], mini_vision)) as client:
        sent = drawn("blue")
        assert send(client, sent)[0] == 201
        gone = client.delete(f"/api/v1/images/{digest(sent)}")
        assert gone.json() == {"id": digest(sent), "features": 1, "removed_files": [f"{digest(sent)}.png"]}
        assert list(service_of(client).uploads.folder.iterdir()) == []
        assert client.get(f"/api/v1/images/{digest(sent)}").status_code == 404
        assert client.delete(f"/api/v1/images/{digest(own.read_bytes())}").json()["removed_files"] == []
        assert own.exists()
        assert send(client, sent)[0] == 201
        other = service_of(client).uploads.folder / "thesis.doc"  # as a row of somebody else's may have it
        other.write_text("precious")
        assert service_of(client).uploads.remove([str(other), str(other.parent / "..")]) == []
        assert other.exists()


def test_more_than_may_wait_are_turned_away(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service, held = service_of(client), Event()
    add = service.uploads.add
    monkeypatch.setattr(images, "_WAITING", 3)
    monkeypatch.setattr(service.uploads, "add", lambda data: held.wait(PATIENCE) and add(data))
    with ThreadPoolExecutor(5) as pool:
        sent = [pool.submit(send, client, drawn("black")) for _ in range(5)]
        until(lambda: service.upload_threads.statistics().tasks_waiting == 3)
        status, problem = send(client, drawn("black"))
        assert client.get("/healthz").status_code == 200
        held.set()
    assert (status, problem["detail"]) == (429, "3 pictures wait to be taken in.")
    assert sorted(one.result()[0] for one in sent) == [200, 200, 200, 200, 201]


def test_uploads_go_on_where_housekeeping_is_refused(
    tmp_path: Path, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A link below the store's tables: nothing may be removed there, and pictures are taken all the same."""
    monkeypatch.setattr(uploads, "_TENDED", 1)
    monkeypatch.setattr(uploads, "tend", partial(tend, many=0))
    album = made_album(tmp_path, (), mini_vision)
    with serving(album) as client:
        assert send(client, drawn())[0] == 201
        (tmp_path / "elsewhere").mkdir()
        (Path(album.uri) / "images.lance" / "_indices").symlink_to(tmp_path / "elsewhere")
        assert send(client, drawn("blue"))[0] == 201
        assert "Housekeeping after uploads failed" in caplog.text
        assert album.store.images().keys() == {digest(drawn()), digest(drawn("blue"))}


def test_an_album_begins_with_what_is_sent_in(tmp_path: Path, mini_vision: VisionEncoder) -> None:
    with serving(made_album(tmp_path, vision=mini_vision), uploads=str(tmp_path / "sent")) as client:
        assert client.get("/readyz").status_code == 200
        assert send(client, drawn("red"))[0] == 201
        assert [path.suffix for path in (tmp_path / "sent").iterdir()] == [".png"]


def test_a_service_of_the_language_half_takes_no_new_picture(album: Album, photos: list[Path]) -> None:
    with serving(album, role="language") as client:
        answer = client.post("/api/v1/images", files={"file": ("a.png", drawn("purple"))})
        assert (answer.status_code, "no vision half" in answer.json()["detail"]) == (400, True)
        known = client.post("/api/v1/images", files={"file": ("a.jpg", photos[0].read_bytes())})
        assert known.status_code == 200
