"""Search and the timeline over HTTP: what is found, a page at a time, and that no path of the server is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import made_album, serving

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder

PHOTOS = 7


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory,
    photos: list[Path],
    mini_vision: VisionEncoder,
    mini_language: LanguageModel,
) -> Album:
    album = made_album(tmp_path_factory.mktemp("search"), photos[:PHOTOS], mini_vision, mini_language)
    album.refresh(semantic=True, captions=True)
    return album


@pytest.fixture(scope="module")
def client(album: Album) -> Iterator[TestClient]:
    with serving(album) as client:
        yield client


def found(client: TestClient, **asked: Any) -> dict[str, Any]:
    response = client.post("/api/v1/search", json=asked)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [match["id"] for match in page["matches"]]


def refused(client: TestClient, status: int = 400, **asked: Any) -> str:
    response = client.post("/api/v1/search", json=asked)
    assert response.status_code == status, response.text
    return str(response.json()["detail"])


def test_a_picture_of_the_album(client: TestClient, album: Album) -> None:
    first, *_ = album.store.images()
    page = found(client, like=[first], limit=5)
    expected = album.search(like=first, limit=5)
    assert [(one["id"], one["score"]) for one in page["matches"]] == [(one.id, one.score) for one in expected]
    image = album.store.images()[page["matches"][0]["id"]]
    assert page["matches"][0].keys() == {"id", "score", "kind", "name", "width", "height", "taken_at"}
    assert (page["matches"][0]["width"], page["matches"][0]["height"]) == (image.width, image.height)
    assert page["matches"][0]["name"] == Path(str(expected[0].path)).name
    assert ids(found(client, like=[first[:12]], limit=5)) == ids(page)


def test_pages_follow_each_other(client: TestClient, album: Album) -> None:
    asked: dict[str, Any] = {"text": "a photograph", "everything": True, "limit": 3}
    pages = [found(client, **asked)]
    while pages[-1]["next"]:
        pages.append(found(client, **asked, after=pages[-1]["next"]))
    assert [len(ids(page)) for page in pages] == [3, 3, 1]
    assert {one for page in pages for one in ids(page)} == set(album.store.images())
    assert "cursor" in refused(client, text="another", after=pages[0]["next"])


def test_texts_words_and_both(client: TestClient, album: Album) -> None:
    for by in ("meaning", "words", "hybrid"):
        expected = album.search("a photograph", by=by, everything=True, limit=3)
        assert ids(found(client, text="a photograph", by=by, everything=True, limit=3)) == [one.id for one in expected]
    asked = found(client, text="a photograph", rerank=3, everything=True)
    assert {one["kind"] for one in asked["matches"]} == {"probability"}


def test_conditions(client: TestClient, album: Album) -> None:
    rows = album.store.images().values()
    wide = {row.image_id for row in rows if row.width >= 500}
    assert set(ids(found(client, where={"min_width": 500}, limit=100))) == wide
    high = {row.image_id for row in rows if row.height >= 500}
    assert set(ids(found(client, where={"min_height": 500}, limit=100))) == high
    large = {row.image_id for row in rows if row.width * row.height >= 300_000}
    assert set(ids(found(client, where={"min_pixels": 300_000}, limit=100))) == large
    path = next(iter(album.store.files()))
    image_id = album.store.files()[path].image_id
    assert ids(found(client, where={"path": Path(path).name})) == [image_id]
    assert len(ids(found(client, where={"path": Path(path).parent.name}, limit=100))) == PHOTOS
    assert len(ids(found(client, where={"path": "*.jpg"}, limit=100))) == PHOTOS
    assert ids(found(client, where={"path": "elsewhere"})) == []
    here = {"latitude": 0.0, "longitude": 0.0, "km": 1.0}
    assert ids(found(client, where={"near": here, "since": "2020", "until": "2021", "camera": "none"})) == []


def test_terms_may_be_ids_and_no_paths(client: TestClient, album: Album, photos: list[Path]) -> None:
    first, second, *_ = album.store.images()
    page = found(client, text=f"2:id:{first[:12]} + id:{second[:8]} - a drawing", everything=True, limit=50)
    assert set(ids(page)) == set(album.store.images()) - {first, second}
    for text in (str(photos[0]), "./pool.jpg", "~/pool.jpg", "pool.jpg", "a boat + /etc/passwd"):
        assert "no paths are taken" in refused(client, text=text)
    assert found(client, text='"pool.jpg"', everything=True)["matches"]
    for path in ("/home", "~/x", "../*", "a/../../b"):
        assert "leads out" in refused(client, where={"path": path})


def test_nothing_good_is_an_answer(client: TestClient, album: Album) -> None:
    page = found(client, text="zzz qqq", by="words")
    assert (page["matches"], page["next"], page["is_cut"]) == ([], None, False)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 400),
        ({"text": "+"}, 400),
        ({"like": ["abcdef123456"]}, 404),
        ({"like": ["/etc/passwd"]}, 404),
        ({"text": "a", "limit": 0}, 422),
        ({"text": "a", "limit": 10**6}, 422),
        ({"text": "a", "by": "colour"}, 422),
        ({"text": "a", "where": {"since": "yesterday"}}, 400),
        ({"where": {"near": {"latitude": 91, "longitude": 0, "km": 1}}}, 400),
        ({"where": {"near": {"latitude": 1, "longitude": 0, "km": 0}}}, 400),
        ({"where": {"wher": 1}}, 422),
        ({"text": "a", "after": "no cursor"}, 400),
        ({"by": "words", "where": {"camera": "x"}}, 400),
    ],
)
def test_what_cannot_be_searched_for(client: TestClient, asked: dict[str, Any], status: int) -> None:
    refused(client, status, **asked)


def test_a_picture_that_is_sent(client: TestClient, album: Album, photos: list[Path]) -> None:
    data, kind = photos[0].read_bytes(), {"content-type": "image/jpeg"}
    form = client.post("/api/v1/search/picture", files={"file": ("x.jpg", data)}, data={"limit": "4"})
    assert form.status_code == 200, form.text
    first = form.json()["matches"][0]
    assert (first["name"], round(first["score"], 3)) == (photos[0].name, 1.0)
    assert len(form.json()["matches"]) == 4
    raw = client.post("/api/v1/search/picture?limit=2", content=data, headers=kind)
    assert ids(raw.json()) == ids(form.json())[:2]
    assert album.store.count("images") == PHOTOS, "it is not kept"
    for limit in ("0", "many", "10000"):
        wrong = client.post("/api/v1/search/picture", files={"file": ("x.jpg", data)}, data={"limit": limit})
        assert wrong.status_code == 400
    assert client.post("/api/v1/search/picture", content=b"nothing", headers=kind).status_code == 415


def test_without_the_vision_half_no_picture_is_looked_at(album: Album, photos: list[Path]) -> None:
    with serving(album, role="language") as client:
        answer = client.post("/api/v1/search/picture", files={"file": ("x.jpg", photos[0].read_bytes())})
        assert answer.status_code == 400
        assert "no vision half" in answer.json()["detail"]


def test_the_list_and_the_timeline_tell_the_same(client: TestClient, album: Album) -> None:
    months = client.get("/api/v1/timeline").json()
    assert months["total"] == PHOTOS == sum(one["count"] for one in months["months"])
    whole = client.get("/api/v1/images").json()
    assert whole["total"] == PHOTOS
    parts = [client.get(f"/api/v1/images?offset={n}&limit=5").json()["images"] for n in range(0, 20, 5)]
    assert [one for part in parts for one in part] == whole["images"]
    for month in months["months"]:
        some = whole["images"][month["offset"] : month["offset"] + month["count"]]
        assert {one["taken_at"] and one["taken_at"][:7] for one in some} == {month["month"]}
    first = whole["images"][0]
    one = client.get(f"/api/v1/images/{first['id']}").json()
    assert {name: one[name] for name in first} == first
    assert first["caption"]
    assert "/" not in first["name"]


@pytest.mark.parametrize("query", ["offset=-1", "limit=0", "limit=1001", "offset=x"])
def test_what_no_page_is(client: TestClient, query: str) -> None:
    assert client.get(f"/api/v1/images?{query}").status_code == 422
