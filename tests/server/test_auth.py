"""Who may come in: every route with no key, a wrong one and one that only reads; host, origin, and what headers say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import KEY, READ_ONLY, made_album, serving
from starlette.routing import Mount

from qsplit.album import Album
from qsplit.errors import UsageError
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.app import create_app
from qsplit.server.config import ServeOptions
from qsplit.server.middleware import auth
from qsplit.server.middleware.auth import COOKIE

OPEN = {
    ("GET", "/"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("POST", "/api/v1/session"),
    ("DELETE", "/api/v1/session"),
}
ASKS = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/api/v1/search"),
    ("POST", "/api/v1/search/picture"),
}


def routes() -> list[tuple[str, str]]:
    """Method and path of all there is, with something in place of each parameter."""
    spec = create_app(Album("none.qsplit")).openapi()["paths"]
    found = [(method.upper(), path) for path, methods in spec.items() for method in methods]
    found += [
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("POST", "/nowhere"),
        ("GET", "/v1/no"),
    ]
    return sorted({(method, re.sub(r"\{\w+\}", "0" * 12, path)) for method, path in found})


ROUTES = routes()
GUARDED = [one for one in ROUTES if one not in OPEN]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, photos: list[Path], mini_vision: VisionEncoder) -> Album:
    return made_album(tmp_path_factory.mktemp("access"), photos[:1], mini_vision)


@pytest.fixture(scope="module")
def guarded(album: Album) -> Iterator[TestClient]:
    with serving(album, keys=(KEY,), read_only_keys=(READ_ONLY,)) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(album: Album) -> Iterator[TestClient]:
    with serving(album, hosts=("album.home",), origins=("https://friend.example",)) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_there_are_the_routes_of_the_contract() -> None:
    paths = {path for _, path in ROUTES}
    assert {"/healthz", "/readyz", "/metrics", "/api/v1/images", "/api/v1/images/000000000000/thumbnail"} <= paths


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers", [{}, bearer(""), bearer("wrong"), bearer(KEY[:-1]), {"authorization": f"Basic {KEY}"}]
)
def test_nothing_is_told_without_a_key(guarded: TestClient, method: str, path: str, headers: dict[str, str]) -> None:
    answer = guarded.request(method, path, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    envelope = answer.json()
    assert ("error" in envelope) if path.startswith("/v1/") else (envelope["title"] == "Unauthorized")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_key_that_reads_changes_nothing(guarded: TestClient, method: str, path: str) -> None:
    answer = guarded.request(method, path, headers=bearer(READ_ONLY))
    writes = method != "GET" and (method, path) not in ASKS
    assert (answer.status_code == 403) == writes, answer.text
    assert answer.status_code != 401


@pytest.mark.parametrize(("method", "path"), [one for one in GUARDED if one[0] != "GET"])
def test_a_key_that_writes_comes_in(guarded: TestClient, method: str, path: str) -> None:
    assert guarded.request(method, path, headers=bearer(KEY)).status_code not in (401, 403)


@pytest.mark.parametrize(("method", "path"), sorted(OPEN))
def test_what_is_open_is_open(guarded: TestClient, method: str, path: str) -> None:
    assert guarded.request(method, path, json={}).status_code != 401 or path == auth.SESSION


@pytest.mark.parametrize("key", [KEY, READ_ONLY])
def test_a_page_changes_its_key_for_a_cookie(album: Album, key: str) -> None:
    with serving(album, keys=(KEY,), read_only_keys=(READ_ONLY,)) as client:
        begun = client.post("/api/v1/session", json={"key": key})
        assert begun.json() == {"read_only": key == READ_ONLY}
        cookie = begun.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert key not in cookie
        assert client.get("/metrics").status_code == 200
        assert client.post("/api/v1/images").status_code == (403 if key == READ_ONLY else 400)
        client.delete("/api/v1/session")
        assert client.get("/metrics").status_code == 401
        client.cookies.set(COOKIE, "0" * 64)
        assert client.get("/metrics").status_code == 401


def test_a_wrong_key_begins_no_session(guarded: TestClient) -> None:
    answer = guarded.post("/api/v1/session", json={"key": "wrong"})
    assert (answer.status_code, "set-cookie" in answer.headers, "wrong" in answer.text) == (401, False, False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("localhost.", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7", 200),
        ("album.home:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io", 403),
        ("evil.example:8080", 403),
        ("evil.example@localhost:x", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_its_own_names_are_answered(open_client: TestClient, host: str, status: int) -> None:
    assert open_client.get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("https://friend.example", 200),
        ("http://friend.example", 403),
        ("http://localhost:9999", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("file://", 403),
    ],
)
def test_only_known_sites_may_call(open_client: TestClient, origin: str, status: int) -> None:
    assert open_client.get("/healthz", headers={"origin": origin}).status_code == status
    assert (open_client.post("/api/v1/images", headers={"origin": origin}).status_code == 403) == (status == 403)


def test_a_known_site_may_ask_beforehand(open_client: TestClient) -> None:
    headers = {"origin": "https://friend.example", "access-control-request-method": "DELETE"}
    answer = open_client.options("/api/v1/images/000000", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://friend.example")
    assert (
        open_client.options("/api/v1/images/000000", headers={**headers, "origin": "https://evil.example"}).status_code
        == 400
    )


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/nowhere", "/api/v1/images/000000", "/static/none"])
def test_every_answer_says_what_a_browser_may_do(open_client: TestClient, path: str) -> None:
    headers = open_client.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "album.home", "127.0.0.1.evil.example"])
def test_other_machines_are_served_with_a_key_only(host: str) -> None:
    with pytest.raises(UsageError, match="no key is set"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, read_only_keys=("k",)).has_keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_this_machine_is_served_without(host: str) -> None:
    assert not ServeOptions(host=host).has_keys


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer\t" + KEY, KEY, "Bearer ü", "x" * 5000])
def test_no_form_of_a_key_is_too_strange(guarded: TestClient, value: str) -> None:
    answer = guarded.get("/metrics", headers=[(b"authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert guarded.get("/metrics", headers={"authorization": f"bearer  {KEY}"}).status_code == 200


def test_a_service_whose_app_has_other_mounts_says_so() -> None:
    mounts = [route.path for route in create_app(Album("none.qsplit")).routes if isinstance(route, Mount)]
    assert set(mounts) <= {"/static"}, "what is mounted is in no schema: guard it in a test"


def test_the_app_has_no_pages_of_other_sites(open_client: TestClient) -> None:
    assert isinstance(open_client.app, FastAPI)
    assert [open_client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 404]
