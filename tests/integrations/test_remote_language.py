"""Answers from a server: as from the language half, or refused; and nothing unsound is sent."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_checkpoint
from mutations import features_of, mutated
from remote_server import Remote, remote
from safetensors import safe_open

import qsplit
from qsplit import bundled
from qsplit.album import Album
from qsplit.cli import main
from qsplit.errors import CheckpointError, IncompatibleFeatures, QsplitError, RemoteError, UsageError
from qsplit.features.features import Features
from qsplit.integrations.vllm.embeds import image_part
from qsplit.integrations.vllm.remote_language import RemoteLanguage, Server
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.probe import PROBE, read_probe
from qsplit.models.splitting import probe, split
from qsplit.store.records import FeatureRow, Skipped

QUESTION = "What colours are there?"
SHORT = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "album.qsplit"
    qsplit.open(path).index(*bundled.photos()[:2])
    return path


@pytest.fixture
def served(mini_language: LanguageModel) -> Iterator[Remote]:
    with remote(mini_language) as found:
        yield found


@pytest.fixture(scope="module")
def features(store: Path) -> Features:
    album = qsplit.open(store)
    (head, *_) = album.store.heads([album.locate(bundled.photos()[0]).image.pixels_digest])
    return album.store.get_features([head.key])[head.key]


def album_of(store: Path, halves: Path, served: Remote) -> Album:
    return qsplit.open(store, model=str(halves / "language"), language=served.url)


def run(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    return int(ended.value.code or 0)


def connected(halves: Path, served: Remote, **options: Any) -> RemoteLanguage:
    return RemoteLanguage.connect(served.url, str(halves / "language"), **options)


def test_answers_are_those_of_the_language_half(store: Path, halves: Path, served: Remote) -> None:
    said: list[str] = []
    picture = bundled.photos()[0]
    (there,) = album_of(store, halves, served).ask(picture, QUESTION, sampling=SHORT, on_text=said.append)
    (here,) = qsplit.open(store).ask(picture, QUESTION, sampling=SHORT, exact=True)
    assert (there.answer, there.tokens, "".join(said)) == (here.answer, here.tokens, here.answer)
    assert (there.exact, here.exact) == (False, True)


def test_a_conversation_and_several_pictures_are_sent_in_order(store: Path, halves: Path, served: Remote) -> None:
    options: dict[str, Any] = {"history": [(QUESTION, "red")], "sampling": SHORT}
    pictures = bundled.photos()[:2]
    there = album_of(store, halves, served).ask(pictures, ["And which is darker?", "Why?"], **options)
    here = [qsplit.open(store).ask(pictures, one, exact=True, **options)[0] for one in ("And which is darker?", "Why?")]
    assert [one.tokens for one in there] == [one.tokens for one in here]


def test_choices_are_as_likely_as_in_the_language_half(
    halves: Path, served: Remote, features: Features, mini_language: LanguageModel
) -> None:
    asked = [("Is there a circle?", ("yes", "no")), ("What colour is it?", ("red", "dark red", "not sure", "no"))]
    there = connected(halves, served).choose([features], asked, prior=features)
    here = mini_language.choose([features], asked, exact=True, prior=features)
    for one, other in zip(there, here, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-3)
        assert not one.exact


def test_checks_and_captions_come_from_the_server(tmp_path: Path, halves: Path, served: Remote) -> None:
    qsplit.open(tmp_path / "a.qsplit").index(bundled.photos()[0])
    album = album_of(tmp_path / "a.qsplit", halves, served)
    verdicts = list(album.check("album-tags"))
    assert verdicts
    assert not any(isinstance(one, Skipped) for one in verdicts)
    assert served.chats > 0


def test_another_model_is_refused_before_anything_else_is_sent(
    tmp_path: Path, halves: Path, features: Features
) -> None:
    """Same family, same width, other weights."""
    other = LanguageModel.from_pretrained(str(make_checkpoint(tmp_path / "other", "qwen2_vl")))
    language = LanguageModel.from_pretrained(str(halves / "language"))
    with torch.no_grad():
        for parameter in language._model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert other.wanted.width != language.wanted.width
    with remote(language) as served:
        with pytest.raises(IncompatibleFeatures, match="it begins with the tokens"):
            connected(halves, served).answer([features], QUESTION)
        assert served.chats <= len(read_probe(halves / "language").answers)


def test_features_of_another_encoder_are_not_sent(tmp_path: Path, halves: Path, served: Remote) -> None:
    folder = make_checkpoint(tmp_path / "other", "qwen2_vl")
    pictures = bundled.photos()[:1]
    qsplit.open(tmp_path / "a.qsplit", model=str(folder)).index(*pictures)
    with pytest.raises(IncompatibleFeatures):
        album_of(tmp_path / "a.qsplit", halves, served).ask(pictures[0], QUESTION)
    assert served.chats == 0


def test_no_spoilt_row_reaches_the_server(halves: Path, served: Remote, features: Features, store: Path) -> None:
    asked = connected(halves, served)
    asked.answer([features], QUESTION, sampling=SHORT)  # the probe has been sent
    before = served.chats
    row = FeatureRow("0" * 64, features, qsplit.open(store).vision.provenance)
    for record in mutated(row, np.random.default_rng(0), 2000):
        with pytest.raises(QsplitError):
            asked.answer([features_of(record)], QUESTION)
    assert served.chats == before


def test_what_was_not_begun_is_sent_again(halves: Path, served: Remote, features: Features) -> None:
    served.refusals += [503, 429, 502]
    assert connected(halves, served).answer([features], QUESTION, sampling=SHORT).tokens


def test_a_server_that_is_always_busy_is_said(halves: Path, served: Remote, features: Features) -> None:
    served.refusals += [503] * 40
    with pytest.raises(RemoteError, match="503: try again"):
        connected(halves, served).answer([features], QUESTION)
    assert served.chats == 4


def test_a_refusal_is_not_sent_again(halves: Path, served: Remote, features: Features) -> None:
    served.refusals += [400]
    with pytest.raises(RemoteError, match="400"):
        connected(halves, served).answer([features], QUESTION)
    assert served.chats == 1


def test_an_answer_that_breaks_off_is_no_answer(halves: Path, served: Remote, features: Features) -> None:
    asked = connected(halves, served)
    asked.answer([features], QUESTION, sampling=SHORT)
    served.breaks = 1
    with pytest.raises(RemoteError, match="the engine ended"):
        asked.answer([features], QUESTION, sampling=SHORT)


def test_another_chat_template_is_found_out(halves: Path, served: Remote, features: Features) -> None:
    served.adds = 1
    with pytest.raises(RemoteError, match="writes chats otherwise"):
        connected(halves, served).answer([features], QUESTION)


def test_a_prompt_that_does_not_fit_is_not_sent(halves: Path, served: Remote, features: Features) -> None:
    asked = connected(halves, served)
    asked.answer([features], QUESTION, sampling=SHORT)
    before = served.chats
    with pytest.raises(UsageError, match="takes 2048"):
        asked.answer([features], QUESTION, sampling=Sampling(max_new_tokens=3000))
    assert served.chats == before


def test_a_key_is_sent_and_never_said(
    store: Path, halves: Path, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(mini_language, key="a secret") as served:
        monkeypatch.setenv("QSPLIT_LANGUAGE_KEY", "a secret")
        assert album_of(store, halves, served).ask(bundled.photos()[0], QUESTION, sampling=SHORT)
        monkeypatch.setenv("QSPLIT_LANGUAGE_KEY", "another secret")
        with pytest.raises(RemoteError, match="401") as failed:
            album_of(store, halves, served).ask(bundled.photos()[0], QUESTION)
    assert "secret" not in str(failed.value)
    assert "QSPLIT_LANGUAGE_KEY" in failed.value.fix


def test_nobody_there_is_said_with_the_next_step(halves: Path, features: Features) -> None:
    asked = RemoteLanguage.connect("http://127.0.0.1:9/v1", str(halves / "language"))
    with pytest.raises(RemoteError, match="cannot be reached") as failed:
        asked.answer([features], QUESTION)
    assert "--enable-mm-embeds" in failed.value.fix


@pytest.mark.parametrize("url", ["ftp://host/v1", "host:8000", "http://user:word@host/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        Server(url)


def test_a_half_without_a_probe_asks_for_one(tmp_path: Path, served: Remote, features: Features) -> None:
    split("qsplit-mini", tmp_path)
    with pytest.raises(CheckpointError, match=PROBE) as failed:
        connected(tmp_path, served).answer([features], QUESTION)
    assert "--probe" in failed.value.fix


def test_a_spoilt_probe_is_said(tmp_path: Path, halves: Path) -> None:
    (tmp_path / PROBE).write_bytes((halves / "language" / PROBE).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is no probe"):
        read_probe(tmp_path)


def test_the_command_line_asks_the_server(
    store: Path, halves: Path, served: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--store", str(store), "--model", str(halves / "language"), "--language", served.url]
    assert run("ask", str(bundled.photos()[0]), QUESTION, *options, "--max-new-tokens", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["exact"] is False
    assert served.chats > 0


def test_a_service_without_answers_takes_no_server(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--store", str(store), "--role", "vision", "--language", "http://127.0.0.1:9/v1") == 2
    assert "--language" in capsys.readouterr().err


def test_exported_tensors_are_those_of_the_store(
    tmp_path: Path, store: Path, features: Features, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--store", str(store), "--json"]
    assert run("export", str(tmp_path / "out"), str(bundled.photos()[0]), *options) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["tokens"], written["encoder"]) == (len(features), features.encoder.id)
    with safe_open(written["file"], framework="pt") as file:
        assert torch.equal(file.get_tensor("tokens"), features.to_torch()[0])
        assert json.loads(file.metadata()["grid_thw"]) == list(features.grid_thw)
        assert json.loads(file.metadata()["encoder"])["vision_weights"] == features.encoder.vision_weights


def test_exported_parts_hold_every_value(tmp_path: Path, store: Path, features: Features) -> None:
    everything = list(qsplit.open(store).export(tmp_path, form="vllm"))
    assert len(everything) == 2
    part = image_part(features)
    assert part in [json.loads(Path(one.file).read_text()) for one in everything if not isinstance(one, Skipped)]
    held = np.load(io.BytesIO(base64.b64decode(part["image_embeds"]["image_embeds"])))
    assert np.array_equal(held, features.float32[0])


def test_pictures_without_features_of_the_encoder_are_skipped_and_said(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "other", "qwen2_vl")
    assert run("export", str(tmp_path / "out"), "--store", str(store), "--model", str(folder)) == 1
    assert "qsplit refresh" in capsys.readouterr().err


def test_a_probe_of_another_model_is_not_sent(tmp_path: Path, halves: Path, served: Remote, features: Features) -> None:
    """Its features might end the server."""
    other = make_checkpoint(tmp_path / "other", "qwen3_vl", dtype="float32")
    split(str(other), tmp_path / "halves")
    language = tmp_path / "language"
    shutil.copytree(halves / "language", language)
    (language / PROBE).write_bytes(probe(tmp_path / "halves").read_bytes())
    with pytest.raises(IncompatibleFeatures, match="other width"):
        RemoteLanguage.connect(served.url, str(language)).answer([features], QUESTION)
    assert served.chats == 0
