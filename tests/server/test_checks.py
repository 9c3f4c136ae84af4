"""Policies and what their checks found, over HTTP: read from the store, the flagged first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import made_album, serving

from qsplit import bundled
from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.qa.check_results import read_checked
from qsplit.qa.checks import Verdict
from qsplit.qa.policy import Check, Policy, read_policy
from qsplit.store.records import Skipped
from qsplit.store.timeline import read_timeline

NAME = "moderation"
PHOTOS = 3


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory,
    photos: list[Path],
    mini_vision: VisionEncoder,
    mini_language: LanguageModel,
) -> Album:
    return made_album(tmp_path_factory.mktemp("checks"), photos[:PHOTOS], mini_vision, mini_language)


@pytest.fixture(scope="module")
def verdicts(album: Album) -> list[Verdict]:
    return checked(album, read_policy(NAME))


@pytest.fixture(scope="module")
def client(album: Album, verdicts: list[Verdict]) -> Iterator[TestClient]:
    with serving(album) as client:
        yield client


def checked(album: Album, policy: Policy) -> list[Verdict]:
    found = list(album.check(policy))
    assert not any(isinstance(one, Skipped) for one in found)
    return [one for one in found if isinstance(one, Verdict)]


def listed(client: TestClient, query: str = "") -> dict[str, Any]:
    response = client.get(f"/api/v1/checks/{NAME}{query}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_policies_that_there_are(client: TestClient) -> None:
    found = client.get("/api/v1/policies").json()["policies"]
    assert [one["name"] for one in found] == bundled.policies()
    assert all(one["checks"][0].keys() == {"name", "question", "choices", "flag", "threshold"} for one in found)


def test_results_are_the_verdicts_flagged_first(client: TestClient, verdicts: list[Verdict]) -> None:
    found = listed(client)
    assert found["total"] == len(verdicts) == len(found["results"])
    assert found["flagged"] == sum(one.flagged for one in verdicts)
    marks = [one["flagged"] for one in found["results"]]
    assert marks == sorted(marks, reverse=True)
    expected = {(one.id, one.check): one for one in verdicts}
    for one in found["results"]:
        verdict = expected[one["id"], one["check"]]
        assert (one["answer"], one["flagged"]) == (verdict.answer, verdict.flagged)
        assert one["probability"] == pytest.approx(verdict.probability, rel=1e-6)
        assert one["name"] == Path(str(verdict.path)).name


def test_pages_of_results(client: TestClient) -> None:
    whole = listed(client)["results"]
    parts = [listed(client, f"?offset={n}&limit=4")["results"] for n in range(0, len(whole) + 4, 4)]
    assert [one for part in parts for one in part] == whole
    assert parts[-1] == []


def test_nothing_is_asked_to_list_them(client: TestClient, album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "choose", lambda *_, **__: pytest.fail("the model was asked"))
    found = client.get("/api/v1/checks/album-tags").json()
    assert found == {"total": 0, "flagged": 0, "results": []}
    before = listed(client)
    album.store.put_files([])
    assert listed(client) == before


@pytest.mark.parametrize("policy", ["nothing", "..%2F..%2Fetc%2Fpasswd", "moderation.toml"])
def test_unknown_policies(client: TestClient, policy: str) -> None:
    assert client.get(f"/api/v1/checks/{policy}").status_code == 404


def test_results_need_the_language_half(album: Album) -> None:
    with serving(album, role="vision") as client:
        assert client.get(f"/api/v1/checks/{NAME}").status_code == 400
        assert client.get("/api/v1/policies").status_code == 200


def test_every_verdict_of_any_policy_is_known(album: Album) -> None:
    """Flags of several choices, thresholds, and checks that flag nothing; another threshold takes no model."""
    colours = ("red", "green", "blue")
    asked = (
        Check("colour", "What is the main colour?", colours, flag=("red", "green"), threshold=0.6),
        Check("light", "Is it bright or dark?", ("bright", "dark")),
    )
    policy = Policy("colours", asked)
    expected = {(one.id, one.check): one for one in checked(album, policy)}
    found = read_checked(album.store, album.language, policy, read_timeline(album.store))
    assert len(found) == len(expected)
    for one in found.page(0, 100):
        verdict = expected[one.image_id, one.check]
        assert (one.answer, one.flagged, one.path) == (verdict.answer, verdict.flagged, verdict.path)
    other = Policy("colours", (asked[0],), system="Answer with one word.")
    assert len(read_checked(album.store, album.language, other, read_timeline(album.store))) == 0
