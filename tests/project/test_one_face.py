"""The same call gives the same result on the command line, in Python and over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from serving import service_of, serving

from qsplit.album import Album
from qsplit.cli.main import cli
from qsplit.models.language.model import Sampling

WITHOUT_A_STORE = {"demo", "doctor", "serve", "split"}  # they make one, look at one, or hand one over
ENOUGH = 120.0  # seconds
QUESTION = "What is it?"
SHORT = Sampling(max_new_tokens=4)


@dataclass(frozen=True)
class Place:
    """A store that is put back before each call, and the folder that was indexed into it."""

    original: Path
    store: Path
    folder: Path

    def album(self) -> Album:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.original, self.store)
        return Album(self.store, device="cpu")

    def names(self, *names: str) -> list[str]:
        return [str(self.folder / name) for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Place:
    """Two photographs, one of them twice, in files of their own."""
    root = tmp_path_factory.mktemp("face")
    folder = root / "pictures"
    folder.mkdir()
    for name, photo in (("a.jpg", photos[0]), ("b.jpg", photos[1]), ("again.jpg", photos[0])):
        shutil.copy(photo, folder / name)
    original = root / "original.qsplit"
    Album(original, device="cpu").index(folder)
    return Place(original, root / "album.qsplit", folder)


Told = list[dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """One call as it is made in each of the three ways; ``http`` tells what it can of what Python gives."""

    arguments: Callable[[Place], list[str]]
    python: Callable[[Album, Place], Iterable[Any]]
    http: Callable[[TestClient, Place], Any] | None = None
    of_http: Callable[[Told], Any] | None = None


# Of two runs of one call, seconds differ, and so do sizes after a write: a table's manifest holds the time of it.
VARYING = ("seconds", "after")


def told(results: Iterable[Any]) -> Told:
    """Results as ``--json`` prints them, but for what differs from run to run."""
    found = [json.loads(json.dumps(one if isinstance(one, dict) else asdict(one), default=str)) for one in results]
    return [{name: value for name, value in one.items() if name not in VARYING} for one in found]


def got(response: Any, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def job(client: TestClient, **asked: Any) -> str:
    started = got(client.post("/api/v1/jobs", json=asked), 202)
    ended = service_of(client).jobs.wait(started["id"], ENOUGH)
    assert ended.state == "done", ended.message
    return ended.message


def counted(results: Told) -> str:
    (one,) = results
    counts = [f"{one[name]} {name}" for name in ("encoded", "reused", "unchanged", "missing")]
    return f"{one['found']} found: {', '.join(counts)}, {len(one['unreadable'])} unreadable."


def snapshots(album: Album, name: str) -> Told:
    album.snapshots.make(name)
    return [{"name": kept, "made_at": ""} for kept in album.snapshots.all()]


def http_ask(client: TestClient, place: Place) -> Any:
    image = service_of(client).album.locate(place.folder / "a.jpg").image.image_id
    shown = {"type": "qsplit_image", "id": image}
    message = {"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}
    answer = got(client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 4, "exact": True}))
    return [(answer["choices"][0]["message"]["content"], answer["qsplit"]["exact"])]


def http_search(client: TestClient, place: Place) -> Any:
    image = service_of(client).album.locate(place.folder / "a.jpg").image.image_id
    found = got(client.post("/api/v1/search", json={"like": [image]}))
    return [(one["id"], one["score"], one["kind"]) for one in found["matches"]]


def http_duplicates(client: TestClient, _: Place) -> Any:
    groups = got(client.get("/api/v1/duplicates"))["groups"]
    return [
        (one["kind"], one["keep"]["name"], [(m["id"], m["score"], m["movable"]) for m in one["members"]])
        for one in groups
    ]


def of_duplicates(groups: Told) -> Any:
    return [
        (one["kind"], Path(one["keep"]).name, [(m["id"], m["score"], m["movable"]) for m in one["members"]])
        for one in groups
    ]


STATUS = ("schema", "images", "files", "unreadable", "missing", "features", "stale", "encoders", "snapshots")


def http_status(client: TestClient, _: Place) -> Any:
    status = got(client.get("/api/v1/status"))
    return {name: status[name] for name in STATUS}


def http_forget(client: TestClient, place: Place) -> Any:
    image = service_of(client).album.locate(place.folder / "b.jpg").image.image_id
    return got(client.delete(f"/api/v1/images/{image}"))["features"]


def http_check(client: TestClient, _: Place) -> Any:
    job(client, kind="check", policy="album-tags")
    results = got(client.get("/api/v1/checks/album-tags"))["results"]
    return sorted((one["id"], one["check"], one["answer"], one["probability"]) for one in results)


CALLS = {
    "index": Call(
        lambda place: [str(place.folder)],
        lambda album, place: [album.index(place.folder)],
        lambda client, _: job(client, kind="index"),
        counted,
    ),
    "refresh": Call(
        lambda _: [], lambda album, _: [album.refresh()], lambda client, _: job(client, kind="refresh"), counted
    ),
    "ask": Call(
        lambda place: [*place.names("a.jpg"), QUESTION, "--max-new-tokens", "4", "--exact"],
        lambda album, place: album.ask(place.folder / "a.jpg", QUESTION, sampling=SHORT, exact=True),
        http_ask,
        lambda replies: [(one["answer"], one["exact"]) for one in replies],
    ),
    "check": Call(
        lambda _: ["album-tags"],
        lambda album, _: album.check("album-tags"),
        http_check,
        lambda verdicts: sorted((one["id"], one["check"], one["answer"], one["probability"]) for one in verdicts),
    ),
    "search": Call(
        lambda place: ["--like", *place.names("a.jpg")],
        lambda album, place: album.search(like=str(place.folder / "a.jpg")),
        http_search,
        lambda matches: [(one["id"], one["score"], one["kind"]) for one in matches],
    ),
    "duplicates": Call(lambda _: [], lambda album, _: album.duplicates(), http_duplicates, of_duplicates),
    "status": Call(
        lambda _: [],
        lambda album, _: [album.status()],
        http_status,
        lambda results: {name: results[0][name] for name in STATUS},
    ),
    "verify": Call(lambda _: [], lambda album, _: [album.verify()]),
    "forget": Call(
        lambda place: place.names("b.jpg"),
        lambda album, place: [album.forget(place.folder / "b.jpg")],
        http_forget,
        lambda gone: gone[0]["features"],
    ),
    "compact": Call(
        lambda _: ["--alone", "--served", "1"],
        lambda album, _: [album.compact(alone=True, served_for=timedelta(days=1))],
    ),
    "snapshot": Call(lambda _: ["before"], lambda album, _: snapshots(album, "before")),
    "export": Call(
        lambda place: [str(place.store.with_name("out"))],
        lambda album, place: album.export(place.store.with_name("out")),
    ),
}


def test_every_command_of_a_store_is_called() -> None:
    assert set(cli.commands) == set(CALLS) | WITHOUT_A_STORE


@pytest.mark.parametrize("command", CALLS)
def test_each_way_gives_the_same(place: Place, command: str) -> None:
    call = CALLS[command]
    from_python = told(call.python(place.album(), place))
    assert from_python
    place.album()
    arguments = [command, *call.arguments(place), "--store", str(place.store), "--json"]
    printed = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert printed.exception is None
    from_cli = told(json.loads(line) for line in printed.stdout.splitlines())
    if command == "snapshot":
        from_cli = [one | {"made_at": ""} for one in from_cli]  # each store is tagged at a time of its own
    assert from_cli == from_python


@pytest.mark.parametrize("command", [name for name, call in CALLS.items() if call.http])
def test_http_gives_the_same(place: Place, command: str) -> None:
    call = CALLS[command]
    assert call.http
    assert call.of_http
    expected = call.of_http(told(call.python(place.album(), place)))
    with serving(place.album(), folders=(str(place.folder),)) as client:
        assert call.http(client, place) == expected
