"""A service in this process, over the album of a test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.app import create_app
from qsplit.server.config import ServeOptions
from qsplit.server.service import Service

KEY, READ_ONLY = "a-key-that-writes", "a-key-that-reads"


def made_album(
    folder: Path,
    photos: Iterable[Path] = (),
    vision: VisionEncoder | None = None,
    language: LanguageModel | None = None,
) -> Album:
    """An album of some photographs, whose halves were loaded once for all tests."""
    album = Album(folder / "album.qsplit", device="cpu")
    halves = {"vision": vision, "language": language}
    album.__dict__ |= {name: half for name, half in halves.items() if half is not None}
    if photos := list(photos):
        album.index(*photos)
    return album


@contextmanager
def serving(album: Album, **options: Any) -> Iterator[TestClient]:
    """A client of a service that has started; defects are answers, as they are to any client."""
    app = create_app(album, ServeOptions(**options))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def service_of(client: TestClient) -> Service:
    assert isinstance(client.app, FastAPI)
    service: Service = client.app.state.service
    return service
