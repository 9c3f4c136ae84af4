"""A real vLLM server that is sent pictures and finds their features in a store: it answers as if it had looked."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from models import FAMILIES, make_checkpoint, unsplit_tokens
from object_stores import free_port
from PIL import Image
from vllm_python import vllm_python

import qsplit
from benchmarks.integrations.vllm_server import serving
from qsplit import bundled
from qsplit.features.features import SERVED
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

QUESTION = "Describe the picture."
TOKENS = 16
PATIENCE = 60.0  # seconds until a picture is kept


@dataclass(frozen=True)
class Server:
    """A vLLM server whose encoder cache is a store; ``log`` is what it says."""

    folder: Path
    store: Path
    url: str
    log: Path

    def answer(self, picture: Path) -> tuple[int, ...]:
        url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0}
        asked["return_token_ids"] = True
        reply = httpx.post(f"{self.url}/chat/completions", json=asked, timeout=300)
        reply.raise_for_status()
        return tuple(reply.json()["choices"][0]["token_ids"])

    def unsplit(self, picture: Path) -> tuple[int, ...]:
        """What the whole model generates."""
        return unsplit_tokens(self.folder, [picture], QUESTION, TOKENS)

    def said(self, what: str) -> int:
        """How often it said so in its log."""
        return self.log.read_text().count(what)

    def put(self) -> list[str]:
        """The keys of rows that a server put."""
        store = FeatureStore(self.store)
        return [key for key, compute in store.column("features", "key", "compute") if compute == SERVED]


@contextmanager
def served(folder: Path, store: Path, log: Path, role: str = "ec_both") -> Iterator[Server]:
    transfer = {
        "ec_connector": "StoreConnector",
        "ec_role": role,
        "ec_connector_module_path": "qsplit.encoder_cache",
        "ec_connector_extra_config": {"store": str(store)},
    }
    options = ["--dtype", "float32", "--ec-transfer-config", json.dumps(transfer)]
    with serving(vllm_python(), folder, free_port(), log, *options) as url:
        yield Server(folder, store, url, log)


@pytest.fixture(scope="module", params=["mini", *FAMILIES])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose store holds two pictures, and under the patches of a third the features of the first."""
    place = tmp_path_factory.mktemp(request.param)
    folder = (
        bundled.checkpoint()
        if request.param == "mini"
        else make_checkpoint(place / "whole", request.param, dtype="float32", wide_heads=True)
    )
    mistaken = place / "mistaken.png"
    drawn = Image.new("RGB", (512, 512), "white")
    drawn.paste("red", (100, 100, 300, 300))
    drawn.save(mistaken)
    album = qsplit.open(place / "album.qsplit", model=str(folder), dtype="float32")
    album.index(*bundled.photos()[:2])
    vision = VisionEncoder.from_pretrained(str(folder), dtype="float32")
    shown = vision.prepare(drawn).shown
    with Image.open(bundled.photos()[0]) as known:
        (features,) = vision.encode([known])
    album.store.put_features([FeatureRow(shown, features, vision.provenance, shown=shown)])
    with served(folder, place / "album.qsplit", place / "server.log") as one:
        yield one


def test_what_was_indexed_is_found_and_answered_from(server: Server) -> None:
    for number, picture in enumerate(bundled.photos()[:2], 1):
        assert server.answer(picture) == server.unsplit(picture)
        assert server.said("A picture is found") == number
    assert server.put() == []


def test_the_vision_half_does_not_look_at_what_is_found(server: Server) -> None:
    """Or it would see this picture, and not what the store says of it."""
    first, mistaken = bundled.photos()[0], server.store.parent / "mistaken.png"
    assert server.unsplit(mistaken) != server.unsplit(first)
    assert server.answer(mistaken) == server.unsplit(first)


def test_what_was_computed_is_kept_and_found_by_the_next_server(server: Server, tmp_path: Path) -> None:
    new = bundled.photos()[4]
    answer = server.answer(new)
    assert answer == server.unsplit(new)
    until = time.monotonic() + PATIENCE
    while not server.put() and time.monotonic() < until:
        time.sleep(0.2)
    assert len(server.put()) == 1
    album = qsplit.open(server.store)
    assert album.verify().sound
    assert not album.compact(alone=True).orphans.features
    if server.folder == bundled.checkpoint():  # starting one takes minutes
        with served(server.folder, server.store, tmp_path / "next.log", "ec_consumer") as later:
            assert later.answer(new) == answer
            assert (later.said("A picture is found"), later.said("A picture is computed")) == (1, 0)
            assert later.answer(bundled.photos()[5])
            assert later.said("A picture is computed") == 1
    assert len(server.put()) == 1
