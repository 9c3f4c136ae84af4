"""Stored features, answered from by a real vLLM server: as the unsplit model answers, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from models import FAMILIES, make_checkpoint, unsplit_tokens
from mutations import features_of, mutated
from object_stores import free_port
from PIL import Image
from serving import serving as client_of
from vllm_python import vllm_python

import qsplit
from benchmarks.integrations.vllm_server import ENV, serving
from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import IncompatibleFeatures, QsplitError, RemoteError
from qsplit.integrations.export import Written
from qsplit.integrations.vllm.remote_language import RemoteLanguage
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.probe import PROBE
from qsplit.models.splitting import probe, split
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.records import FeatureRow, Skipped

QUESTIONS = ("Describe the picture.", "What colours are there?")
TOKENS = 16
KEY = "a key of the server"
SHORT = Sampling(max_new_tokens=TOKENS)


@dataclass(frozen=True)
class Served:
    """A checkpoint in float32, its language half with a probe, a store of its features, and a server of it."""

    folder: Path
    language: Path
    store: Path
    url: str

    @property
    def pictures(self) -> list[Path]:
        return bundled.photos()[:3]

    def album(self, **options: Any) -> Album:
        """A fresh look at the store, whose vision half is not at hand."""
        return qsplit.open(self.store, model=str(self.language), language=self.url, **options)


@pytest.fixture(scope="module", params=["mini", *FAMILIES])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch
) -> Iterator[Served]:
    place = tmp_path_factory.mktemp(request.param)
    monkeypatch_module.setenv("QSPLIT_LANGUAGE_KEY", KEY)
    monkeypatch_module.setenv("QSPLIT_DTYPE", "float32")
    folder = (
        bundled.checkpoint()
        if request.param == "mini"
        else make_checkpoint(place / "whole", request.param, dtype="float32", wide_heads=True)
    )
    split(str(folder), place / "halves")
    probe(place / "halves")
    qsplit.open(place / "album.qsplit", model=str(folder)).index(*bundled.photos()[:3])
    options = ["--dtype", "float32", "--api-key", KEY]
    with serving(vllm_python(), folder, free_port(), place / "server.log", *options) as url:
        yield Served(folder, place / "halves" / "language", place / "album.qsplit", url)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def by_unsplit(served: Served, pictures: list[Path], question: str) -> tuple[int, ...]:
    """What the whole model generates from the pictures themselves."""
    return unsplit_tokens(served.folder, pictures, question, TOKENS)


def test_tokens_are_those_of_the_unsplit_model(served: Served) -> None:
    album = served.album()
    for picture in served.pictures:
        for question in QUESTIONS:
            (reply,) = album.ask(picture, question, sampling=SHORT)
            assert reply.tokens == by_unsplit(served, [picture], question)
            assert not reply.exact


def test_several_pictures_are_read_in_order(served: Served) -> None:
    said: list[str] = []
    pictures = served.pictures[:2]
    (reply,) = served.album().ask(pictures, QUESTIONS[0], sampling=SHORT, on_text=said.append)
    assert reply.tokens == by_unsplit(served, pictures, QUESTIONS[0])
    assert "".join(said) == reply.answer


def test_many_questions_are_answered_as_each_alone(served: Served) -> None:
    album = served.album()
    together = album.ask(served.pictures[0], QUESTIONS, sampling=SHORT)
    alone = [album.ask(served.pictures[0], one, sampling=SHORT)[0] for one in QUESTIONS]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_service_passes_its_chats_on(served: Served) -> None:
    """Whole and streamed, with chances, until the end and up to a bound; nothing is loaded."""
    expected = by_unsplit(served, served.pictures[:1], QUESTIONS[0])
    local = LanguageModel.from_pretrained(str(served.language), dtype="float32")
    features, album = held_features(served), served.album(device="cpu")
    chances = local.logits_after(local.prompt([features], QUESTIONS[0]), expected).log_softmax(-1)
    shown = {"type": "qsplit_image", "id": album.locate(served.pictures[0]).image.image_id}
    message = {"role": "user", "content": [shown, {"type": "text", "text": QUESTIONS[0]}]}
    with client_of(album, role="language") as client:
        for most in (3, TOKENS):
            body = {"messages": [message], "max_tokens": most, "logprobs": True, "top_logprobs": 2}
            whole = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            (choice,) = whole["choices"]
            said = choice["logprobs"]["content"]
            number = min(most, len(expected))
            assert whole["usage"]["completion_tokens"] == len(said) == number
            assert choice["message"]["content"] == local.text_of(expected[:number])
            assert choice["finish_reason"] == ("stop" if expected[number - 1] in local.ends else "length")
            for one, token, row in zip(said, expected, chances, strict=False):
                assert one["logprob"] == pytest.approx(float(row[token]), abs=5e-3)
                likeliest = [other["logprob"] for other in one["top_logprobs"]]
                assert likeliest == pytest.approx(row.topk(2).values.tolist(), abs=5e-3)
            streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).raise_for_status().text
            events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
            deltas = [one["choices"][0]["delta"].get("content") or "" for one in events]
            assert "".join(deltas) == choice["message"]["content"]
            assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert not album.has_loaded("language")


def test_choices_are_as_likely_as_in_the_language_half(served: Served) -> None:
    asked = [("Is there a circle?", ("yes", "no")), ("What colour is it?", ("red", "dark red", "not sure", "no"))]
    remote, local = served.album().answerer, LanguageModel.from_pretrained(str(served.language), dtype="float32")
    features = held_features(served)
    for there, here in zip(remote.choose([features], asked), local.choose([features], asked, exact=True), strict=True):
        assert there.probabilities == pytest.approx(here.probabilities, abs=5e-3)
        assert there.mass == pytest.approx(here.mass, rel=0.05)


def test_a_server_of_another_model_is_refused(served: Served, tmp_path: Path) -> None:
    """Its probe says otherwise: here the client takes the server's model for one with other language weights."""
    other = tmp_path / "language"
    other.mkdir()
    for path in served.language.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    changed = make_checkpoint(tmp_path / "other", "qwen2_vl", dtype="float32", seed=1)
    split(str(changed), tmp_path / "halves")
    (other / PROBE).write_bytes(probe(tmp_path / "halves").read_bytes())
    asked = RemoteLanguage.connect(served.url, str(other), key=KEY, dtype="float32", trust_encoder="0" * 12)
    with pytest.raises((IncompatibleFeatures, RemoteError)):
        asked.answer([held_features(served)], QUESTIONS[0])


def test_a_wrong_key_is_said_and_never_shown(served: Served) -> None:
    asked = RemoteLanguage.connect(served.url, str(served.language), key="another", dtype="float32")
    with pytest.raises(RemoteError, match="401") as failed:
        asked.answer([held_features(served)], QUESTIONS[0])
    assert "QSPLIT_LANGUAGE_KEY" in failed.value.fix
    assert "another" not in str(failed.value)


def test_no_spoilt_row_reaches_the_server(served: Served) -> None:
    asked = served.album().answerer
    features = held_features(served)
    asked.answer([features], QUESTIONS[0], sampling=SHORT)  # the probe has been sent
    before = requests_of(served)
    row = FeatureRow("0" * 64, features, qsplit.open(served.store, model=str(served.folder)).vision.provenance)
    for record in mutated(row, np.random.default_rng(0), 2000):
        with pytest.raises(QsplitError):
            asked.answer([features_of(record)], QUESTIONS[0])
    assert requests_of(served) == before
    asked.answer([features], QUESTIONS[0], sampling=SHORT)


def test_exported_features_answer_in_vllm_alone(served: Served, tmp_path: Path) -> None:
    """With its own Python interface, from safetensors that `qsplit export` wrote."""
    album = qsplit.open(served.store, model=str(served.folder))
    written = list(album.export(tmp_path / "out", served.pictures))
    chat = LanguageModel.from_pretrained(str(served.language), dtype="float32").chat
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    prompt = chat.text([{"role": "user", "content": content}])
    (tmp_path / "prompt.json").write_text(json.dumps([prompt, TOKENS]))
    script = str(Path(__file__).with_name("offline.py"))
    done = subprocess.run(
        [vllm_python(), script, str(served.folder), str(tmp_path / "prompt.json"), *map(file_of, written)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ENV},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    found = [tuple(tokens) for tokens in json.loads(line.removeprefix("TOKENS "))]
    assert found == [by_unsplit(served, [picture], QUESTIONS[0]) for picture in served.pictures]


def test_an_exported_part_is_what_the_server_takes(served: Served, tmp_path: Path) -> None:
    """Whoever has another client puts the file's object into a chat."""
    album = qsplit.open(served.store, model=str(served.folder))
    (written,) = album.export(tmp_path, served.pictures[:1], form="vllm")
    part = json.loads(Path(file_of(written)).read_text())
    content = [part, {"type": "text", "text": QUESTIONS[0]}]
    body = {
        "model": str(served.folder),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{served.url}/chat/completions", json=body, headers=headers, timeout=120).json()
    assert tuple(reply["choices"][0]["token_ids"]) == by_unsplit(served, served.pictures[:1], QUESTIONS[0])


def file_of(one: Written | Skipped) -> str:
    assert isinstance(one, Written), one
    return one.file


def held_features(served: Served) -> Any:
    vision = VisionEncoder.from_pretrained(str(served.folder), dtype="float32")
    (found,) = vision.encode([Image.open(served.pictures[0])])
    return found


def requests_of(served: Served) -> float:
    """How many requests the server says to have finished."""
    told = httpx.get(f"{served.url.removesuffix('/v1')}/metrics", timeout=30).text
    return sum(float(line.split()[-1]) for line in told.splitlines() if line.startswith("vllm:request_success_total"))
