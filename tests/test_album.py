"""The façade: what it remembers between runs."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from models import make_checkpoint
from PIL import Image

import qsplit
from qsplit.album import Album
from qsplit.errors import CheckpointError, IncompatibleFeatures, UsageError
from qsplit.features.sizing import Resize
from qsplit.indexing import pipeline
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.progress import Progress

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
    assert qsplit.open(store).index(pictures).encoded == 2  # what was encoded until then stays
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


# Codecs


@pytest.mark.parametrize(("codec", "exact"), [("raw", True), ("planes-zstd", True), ("int8", False)])
def test_an_answer_tells_whether_its_features_were_kept_with_loss(
    tmp_path: Path, pictures: Path, codec: str, exact: bool
) -> None:
    qsplit.open(tmp_path / "raw.qsplit").index(pictures)
    (expected,) = qsplit.open(tmp_path / "raw.qsplit").ask("red.png", "What colour is it?", sampling=SHORT)
    album = qsplit.open(tmp_path / "album.qsplit", codec=codec)
    album.index(pictures)
    (reply,) = qsplit.open(tmp_path / "album.qsplit").ask("red.png", "What colour is it?", sampling=SHORT)
    assert reply.exact == exact
    assert reply.tokens == expected.tokens
    (encoder,) = album.status().encoders
    assert encoder.codecs == {codec: 3}
    assert album.verify().sound


def test_the_codec_is_remembered_and_may_change(tmp_path: Path, pictures: Path) -> None:
    store = tmp_path / "album.qsplit"
    qsplit.open(store, codec="int8").index(pictures / "red.png")
    qsplit.open(store).index(pictures / "green.png")
    qsplit.open(store, codec="planes-zstd").index(pictures)
    (encoder,) = qsplit.open(store).status().encoders
    assert encoder.codecs == {"int8": 2, "planes-zstd": 1}


def test_an_unknown_codec_leaves_no_store(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match="codec 'zip'"):
        qsplit.open(tmp_path / "album.qsplit", codec="zip").index(pictures)
    assert not (tmp_path / "album.qsplit").exists()


# Upkeep


def test_refresh_encodes_what_the_new_model_has_not_seen_and_nothing_else(tmp_path: Path, pictures: Path) -> None:
    store = tmp_path / "album.qsplit"
    qsplit.open(store).index(pictures)
    model = str(make_checkpoint(tmp_path / "model", "qwen2_vl"))
    qsplit.open(store, model=model).index(pictures / "red.png")
    status = qsplit.open(store).status()
    assert (status.stale, status.lacking) == (2, [str(pictures / "blue.png"), str(pictures / "green.png")])
    report = qsplit.open(store).refresh()
    assert (report.found, report.encoded) == (2, 2)
    assert qsplit.open(store).refresh().found == 0
    assert qsplit.open(store).status().lacking == []
    assert qsplit.open(store).status().features == 6


def test_refresh_tells_what_is_gone_and_keeps_its_old_features(tmp_path: Path, pictures: Path) -> None:
    store = tmp_path / "album.qsplit"
    qsplit.open(store).index(pictures)
    (pictures / "red.png").unlink()
    (pictures / "green.png").write_bytes(b"no picture")
    model = str(make_checkpoint(tmp_path / "model", "qwen2_vl"))
    album = qsplit.open(store, model=model)
    report = album.refresh(drop_old=True)
    assert (report.found, report.encoded, report.missing) == (2, 1, 1)
    assert [skipped.path for skipped in report.unreadable] == [str(pictures / "green.png")]
    status = album.status()
    assert status.stale == 2
    assert sorted(encoder.features for encoder in status.encoders) == [1, 2]


def test_drop_old_leaves_one_encoder(tmp_path: Path, pictures: Path) -> None:
    store = tmp_path / "album.qsplit"
    qsplit.open(store).index(pictures)
    qsplit.open(store, dtype="float32").refresh(drop_old=True)
    (encoder,) = qsplit.open(store).status().encoders
    assert (encoder.dtype, encoder.features) == ("float32", 3)
    assert qsplit.open(store).verify().sound


def test_a_refresh_that_was_cut_off_goes_on(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_BATCH_FILES", 1)
    monkeypatch.setattr(pipeline, "_CHUNK", 1)
    store = tmp_path / "album.qsplit"
    qsplit.open(store).index(pictures)

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qsplit.open(store, dtype="float32").refresh(on_progress=stop)
    done = 3 - qsplit.open(store).status().stale
    assert 0 < done < 3
    assert qsplit.open(store).refresh().encoded == 3 - done


def test_no_drift_on_the_machine_that_encoded(tmp_path: Path, pictures: Path) -> None:
    album = qsplit.open(tmp_path / "album.qsplit")
    album.index(pictures)
    (pictures / "red.png").unlink()
    Image.new("RGB", (60, 60), "white").save(pictures / "green.png")
    drift = album.verify(drift=10).drift
    assert drift is not None
    assert (drift.pictures, drift.equal, drift.equal_answers) == (1, 1, 1)
    assert (drift.largest, drift.mean, drift.largest_logit) == (0, 0, 0)
    assert drift.cosine == pytest.approx(1)
    assert [Path(skipped.path).name for skipped in drift.skipped] == ["green.png", "red.png"]


def test_drift_measures_how_far_numbers_are(tmp_path: Path, pictures: Path) -> None:
    album = qsplit.open(tmp_path / "album.qsplit", codec="int8")
    album.index(pictures)
    drift = album.verify(drift=2).drift
    assert drift is not None
    assert (drift.pictures, drift.equal) == (2, 0)
    assert 0 < drift.mean <= drift.largest < 1
    assert 0.99 < drift.cosine < 1
    assert drift.largest_logit > 0


def test_forget_by_path_and_a_snapshot_of_before(tmp_path: Path, pictures: Path) -> None:
    store = tmp_path / "album.qsplit"
    album = qsplit.open(store)
    album.index(pictures)
    album.snapshots.make("before")
    assert album.forget(pictures / "red.png").images == 1
    assert album.status().images == 2
    assert qsplit.open(store, snapshot="before").status().images == 3
    (reply,) = qsplit.open(store, snapshot="before").ask("red.png", "What?", sampling=SHORT)
    assert reply.exact
    with pytest.raises(UsageError, match="read-only"):
        qsplit.open(store, snapshot="before").index(pictures)
    album.snapshots.restore("before")
    assert (album.status().images, list(album.snapshots.all())) == (3, ["before"])
    album.snapshots.delete("before")
    assert album.compact(alone=True).orphans.features == []
    assert album.verify().sound


def test_a_half_is_loaded_once_for_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Python 3.12 on, where nothing else keeps two threads from computing a cached property."""
    album = qsplit.open(tmp_path / "album.qsplit")
    loaded: list[LanguageModel] = []
    load = LanguageModel.from_pretrained

    def counted(*args: Any, **options: Any) -> LanguageModel:
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(LanguageModel, "from_pretrained", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(vars(Album)["language"].func, [album] * 4))
    assert len(loaded) == 1
    assert all(one is loaded[0] for one in found)
    assert album.has_loaded("language")
    assert not album.has_loaded("vision")
