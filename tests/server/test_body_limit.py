"""How much a request may bring: counted as it is read, whatever it says of its length."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from serving import made_album, serving

from qsplit.server.middleware import body_limit

PICTURE = 100_000  # bytes, the largest
BOUNDS = {
    "/api/v1/images": PICTURE + body_limit._FORM,
    "/api/v1/search/picture": PICTURE + body_limit._FORM,
    "/api/v1/search": 1 << 20,
    "/api/v1/jobs": 1 << 20,
    "/api/v1/session": 1 << 20,
    "/v1/chat/completions": 4 * PICTURE,
    "/v1/embeddings": 4 * PICTURE,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(made_album(tmp_path_factory.mktemp("bodies")), max_upload_bytes=PICTURE) as client:
        yield client


def pieces(body: bytes) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]


@pytest.mark.parametrize("path", BOUNDS)
@pytest.mark.parametrize("says", ["its length", "nothing"])
def test_a_body_has_at_most_what_its_path_takes(client: TestClient, path: str, says: str) -> None:
    whole = json.dumps({"none": "x" * (BOUNDS[path] - 12)}).encode()
    refused = []
    for body in (whole, whole + b" "):
        content = pieces(body) if says == "nothing" else body
        kind = "image/png" if path in body_limit.PICTURES else "application/json"
        request = client.build_request("POST", path, content=content, headers={"content-type": kind})
        assert ("content-length" in request.headers) == (says == "its length")
        answer = client.send(request)
        assert answer.status_code in (400, 401, 413, 415, 422)
        refused.append(f"A request has at most {BOUNDS[path]:,} bytes here." in answer.text)
    assert len(whole) == BOUNDS[path]
    assert refused == [False, True]
    assert answer.status_code == 413
