"""The façade: what it remembers between runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import make_checkpoint
from PIL import Image

import qsplit
from qsplit.errors import CheckpointError, IncompatibleFeatures
from qsplit.indexing import Progress
from qsplit.language import Sampling
from qsplit.resize import Resize

SHORT = Sampling(max_new_tokens=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (60, 60), name).save(folder / f"{name}.png")
    return folder


def test_an_interrupted_index_remembers_its_model(tmp_path: Path, pictures: Path) -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    model = make_checkpoint(tmp_path / "model", "qwen2_vl")
    store = tmp_path / "album.qsplit"
    with pytest.raises(KeyboardInterrupt):
        qsplit.open(store, model=str(model), dtype="float32").index(pictures, on_progress=stop)
    assert qsplit.open(store).index(pictures).encoded == 3
    (encoder,) = qsplit.open(store).status().encoders
    assert (encoder.dtype, encoder.models) == ("float32", [str(model)])


def test_a_relative_path_names_the_same_model(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "model", "qwen2_vl")
    monkeypatch.chdir(tmp_path)
    qsplit.open("album.qsplit", model="model", resize=Resize(max_pixels=4000)).index(pictures)
    monkeypatch.chdir(pictures)
    (reply,) = qsplit.open("../album.qsplit", model="../model").ask("red.png", "What?", sampling=SHORT)
    assert reply.exact


def test_a_model_that_cannot_be_used_leaves_no_store(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(CheckpointError):
        qsplit.open(tmp_path / "album.qsplit", model=str(pictures)).index(pictures)
    assert not (tmp_path / "album.qsplit").exists()


def test_another_model_beside_the_first(tmp_path: Path, pictures: Path) -> None:
    """Its features stand beside the old ones; the store remembers the last, and neither is ever mixed up."""
    store = tmp_path / "album.qsplit"
    qsplit.open(store).index(pictures)
    model = str(make_checkpoint(tmp_path / "model", "qwen3_vl"))
    with pytest.raises(IncompatibleFeatures):
        qsplit.open(store, model=model).ask(pictures / "red.png", "What?")
    assert qsplit.open(store, model=model).index(pictures).encoded == 3
    status = qsplit.open(store).status()
    assert [encoder.features for encoder in status.encoders] == [3, 3]
    assert (status.model, status.stale) == (model, 0)
    for name in ("", "qsplit-mini"):
        (reply,) = qsplit.open(store, model=name).ask("red.png", "What?", sampling=SHORT)
        assert (reply.model, reply.exact) == (name or model, True)
        assert len(qsplit.open(store, model=name).search(like="red.png")) == 2


def test_a_picture_of_the_album_is_asked_about_without_any_file(tmp_path: Path, pictures: Path) -> None:
    album = qsplit.open(tmp_path / "album.qsplit")
    album.index(pictures)
    shutil.rmtree(pictures)
    (reply,) = album.ask(pictures / "red.png", "What?", sampling=SHORT)
    assert reply.images[0].path == str(pictures / "red.png")
