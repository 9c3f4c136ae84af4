"""Texts find pictures: by vectors that are what the trained prompts give, of one identity, made once and resumably."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import rows
from PIL import Image
from tiled import TILED

import qsplit
from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import CheckpointError, IncompatibleFeatures, UsageError
from qsplit.features.features import Features
from qsplit.maintenance import garbage
from qsplit.maintenance.status import read_status
from qsplit.maintenance.verify import verify
from qsplit.mini import questions, scenes
from qsplit.mini.evaluate import Examinee
from qsplit.mini.packing import IMAGE_PROMPT, TEXT_PROMPT
from qsplit.models.language.model import LanguageModel
from qsplit.models.retrieval_config import RETRIEVAL, Retrieval
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search import backfill, captions
from qsplit.search import semantic_vectors as semantics
from qsplit.search.semantic_vectors import Semantics, fill, known, semantic_vectors, text_vectors
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow, FileRow, VectorRow


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    rng = np.random.default_rng(1)
    return [scenes.invent(rng, *size) for size in [(168, 168)] * 10 + [(224, 168)] * 6]


@pytest.fixture(scope="module")
def seen(drawn: list[scenes.Scene], mini_vision: VisionEncoder) -> list[Features]:
    rng = np.random.default_rng(2)
    return mini_vision.encode([scenes.draw(scene, rng) for scene in drawn])


def put(store: FeatureStore, features: Sequence[Features], start: int = 0) -> str:
    """Each a picture of its own; returns the encoder's id."""
    numbers = range(start, start + len(features))
    provenance = rows.feature_row(0).provenance
    store.put_features([FeatureRow(pixels(n), one, provenance) for n, one in zip(numbers, features, strict=True)])
    store.put_images([rows.picture(n) for n in numbers])
    made = [VectorRow(rows.image_row(n), one.pooled()) for n, one in zip(numbers, features, strict=True)]
    store.put_vectors(features[0].encoder, made)
    store.put_files([FileRow(f"/{n}.jpg", image(n), 1, 1, "ok") for n in numbers])
    return features[0].encoder.id


def image(number: int) -> str:
    return rows.digest(f"image {number}")


def pixels(number: int) -> str:
    return rows.digest(f"pixels {number}")


def own_semantics(language: LanguageModel, encoder_id: str) -> Semantics:
    return Semantics(encoder_id, language.checkpoint.fingerprint("language"), language.checkpoint.retrieval)


def with_retrieval(language: LanguageModel, folder: Path, retrieval: Retrieval | None) -> LanguageModel:
    """The bundled language half in a folder that says something else of searching, or nothing."""
    shutil.copytree(bundled.checkpoint(), folder)
    (folder / RETRIEVAL).unlink()
    if retrieval is not None:
        retrieval.write(folder)
    return LanguageModel.from_pretrained(str(folder), device="cpu")


def test_the_bundled_checkpoint_says_what_it_was_trained_with() -> None:
    said = Retrieval.read(bundled.checkpoint())
    assert (said.system, said.image_prompt, said.text_prompt) == ("", IMAGE_PROMPT, TEXT_PROMPT)
    assert (said.layer, said.centred) == (-2, False)


def test_vectors_are_those_of_training(
    mini_language: LanguageModel, drawn: list[scenes.Scene], seen: list[Features]
) -> None:
    who = Examinee(bundled.checkpoint())
    way = own_semantics(mini_language, seen[0].encoder.id)
    texts = [questions.retrieval_text(scene, one, form) for scene in drawn for one in ("en", "zh") for form in (1, 3)]
    for made, wanted in (
        (semantic_vectors(mini_language, way, seen[:10]), who.image_vectors(seen[:10])),
        (text_vectors(mini_language, way, texts), who.text_vectors(texts)),
    ):
        assert (made * wanted.numpy()).sum(1).min() > 0.9995
        assert np.linalg.norm(made, axis=1) == pytest.approx(1)


def test_a_vector_does_not_depend_on_what_shares_its_pass(mini_language: LanguageModel, seen: list[Features]) -> None:
    way = own_semantics(mini_language, seen[0].encoder.id)
    together = semantic_vectors(mini_language, way, seen)
    alone = np.concatenate([semantic_vectors(mini_language, way, [one]) for one in seen])
    assert (together * alone).sum(1).min() > 0.9999
    texts = ["a red star", "一个红色的星星，背景是蓝色的。", "a"]
    each = np.concatenate([text_vectors(mini_language, way, [text]) for text in texts])
    assert (text_vectors(mini_language, way, texts) * each).sum(1).min() > 0.9999


def test_texts_find_their_pictures(
    store: FeatureStore, mini_language: LanguageModel, drawn: list[scenes.Scene], seen: list[Features]
) -> None:
    encoder_id = put(store, seen)
    assert known(store, mini_language, encoder_id) is None
    told: list[tuple[int, int]] = []
    assert fill(store, mini_language, encoder_id, on_progress=lambda *one: told.append(one)).images == len(seen)
    assert told[-1] == (len(seen), len(seen))
    way = known(store, mini_language, encoder_id)
    assert way is not None
    vectors = store.vectors(encoder_id, way.id)
    for one in ("en", "zh"):
        texts = text_vectors(mini_language, way, [questions.retrieval_text(scene, one, 0) for scene in drawn])
        first = [vectors.nearest("semantic", text, 1)[0][0] for text in texts]
        assert sum(found == image(n) for n, found in enumerate(first)) >= len(drawn) - 1
    assert verify(store).corrupt == []
    (status,) = read_status(store).encoders
    assert status.semantic == {way.id: len(seen)}


def test_only_what_lacks_them_is_made(
    store: FeatureStore, mini_language: LanguageModel, seen: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder_id = put(store, seen[:4])
    fill(store, mini_language, encoder_id)
    put(store, seen[4:6], start=4)
    store.put_vectors(seen[0].encoder, [VectorRow(rows.image_row(99, pixels_digest=pixels(4)), seen[4].pooled())])
    read: list[int] = []
    states = LanguageModel.states

    def counted(self: LanguageModel, prompts: Any, layer: int) -> Any:
        read.append(len(prompts))
        return states(self, prompts, layer)

    monkeypatch.setattr(LanguageModel, "states", counted)
    assert fill(store, mini_language, encoder_id).images == 3  # two pictures, one of them in two files
    assert sum(read) == 2
    assert fill(store, mini_language, encoder_id).images == 0
    assert sum(read) == 2


def test_what_was_made_before_a_crash_stays(
    store: FeatureStore, mini_language: LanguageModel, seen: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder_id = put(store, seen[:8])
    monkeypatch.setattr(backfill, "_FETCHED", 2)
    monkeypatch.setattr(backfill, "_COMMIT_IMAGES", 2)

    def cut_off(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(store, mini_language, encoder_id, on_progress=cut_off)
    way = known(store, mini_language, encoder_id)
    assert way is not None
    assert store.vectors(encoder_id, way.id).count("semantic") == 4
    assert fill(store, mini_language, encoder_id).images == 4
    assert store.vectors(encoder_id, way.id).count("semantic") == 8


def test_another_prompt_is_another_identity_and_replaces_what_was(
    store: FeatureStore, mini_language: LanguageModel, seen: list[Features], tmp_path: Path
) -> None:
    encoder_id = put(store, seen[:4])
    fill(store, mini_language, encoder_id)
    old = known(store, mini_language, encoder_id)
    asked = replace(mini_language.checkpoint.retrieval, image_prompt="What is it?")
    other = with_retrieval(mini_language, tmp_path / "other", asked)
    assert known(store, other, encoder_id) is None
    assert fill(store, other, encoder_id).images == 4
    new = known(store, other, encoder_id)
    assert old is not None
    assert new is not None
    assert store.vectors(encoder_id, old.id).count("semantic") == 0
    assert store.vectors(encoder_id, new.id).count("semantic") == 4
    assert verify(store).orphans.semantics == [old.id]
    garbage.compact(store, alone=True)
    assert [row.key for row in store.semantics(encoder_id)] == [new.id]
    with_cut = with_retrieval(mini_language, tmp_path / "cut", replace(asked, cut={"share": 0.5}))
    assert known(store, with_cut, encoder_id).id == new.id  # type: ignore[union-attr]  # where matches end is no part of a vector


def test_without_a_word_from_the_checkpoint_means_are_taken_off_once_there_is_enough_to_measure(
    store: FeatureStore, mini_language: LanguageModel, seen: list[Features], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = with_retrieval(mini_language, tmp_path / "plain", None)
    monkeypatch.setattr(semantics, "_FEWEST", 6)
    encoder_id = put(store, seen[:4])
    assert fill(store, plain, encoder_id).images == 4
    few = known(store, plain, encoder_id)
    assert few is not None
    assert len(few.image_mean) == 0
    put(store, seen[4:], start=4)
    assert fill(store, plain, encoder_id).images == len(seen)  # those of before among them
    way = known(store, plain, encoder_id)
    assert way is not None
    held = store.vectors(encoder_id, way.id).get("semantic", [image(n) for n in range(len(seen))])
    assert np.abs(np.mean(list(held.values()), axis=0)).max() < np.abs(way.image_mean).max() / 4
    again = semantic_vectors(plain, way, seen)
    assert min(float(held[image(n)] @ again[n]) for n in range(len(seen))) > 0.999
    put(store, seen[:1], start=50)
    fill(store, plain, encoder_id)
    assert known(store, plain, encoder_id).id == way.id  # type: ignore[union-attr]  # a mean is fixed when first made
    assert verify(store).corrupt == []


@pytest.mark.parametrize("family", models.by_tier([*models.FAMILIES, *models.OTHERS, *TILED]))
def test_every_family_makes_vectors(tmp_path: Path, family: str) -> None:
    folder = models.make_checkpoint(tmp_path / family, family)
    vision, language = VisionEncoder.from_pretrained(str(folder)), LanguageModel.from_pretrained(str(folder))
    colours = ("red", "green", "blue")
    features = vision.encode([Image.new("RGB", (112, 112 + 56 * n), colour) for n, colour in enumerate(colours)])
    way = own_semantics(language, features[0].encoder.id)
    together = semantic_vectors(language, way, features)
    assert together.shape == (3, vision.encoder.width)
    alone = np.concatenate([semantic_vectors(language, way, [one]) for one in features])
    assert (together * alone).sum(1).min() > 0.98  # bfloat16 of random weights
    assert abs(float(alone[0] @ alone[1])) < 1 - 1e-4
    texts = text_vectors(language, way, ["a boat", "船"])
    assert abs(float(texts[0] @ texts[1])) < 1 - 1e-4


def test_features_of_another_model_are_refused(
    store: FeatureStore, mini_language: LanguageModel, tmp_path: Path
) -> None:
    folder = models.make_checkpoint(tmp_path / "other", "qwen2_vl")
    features = VisionEncoder.from_pretrained(str(folder)).encode([Image.new("RGB", (112, 112), "red")])
    encoder_id = put(store, features)
    for make in (fill, captions.fill):
        with pytest.raises(IncompatibleFeatures):
            make(store, mini_language, encoder_id)


def test_a_picture_that_does_not_fit_is_skipped_with_the_reason(
    store: FeatureStore, mini_language: LanguageModel, mini_vision: VisionEncoder, seen: list[Features],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    large = mini_vision.encode([Image.new("RGB", (560, 560), "red")])
    encoder_id = put(store, [seen[0], *large, seen[1]])
    longest = mini_language.prompt([seen[0]], "", ending=IMAGE_PROMPT).input_ids.shape[1] + 10
    text_config = mini_language._model.config.get_text_config()
    monkeypatch.setattr(text_config, "max_position_embeddings", longest)
    done = fill(store, mini_language, encoder_id)
    assert done.images == 2
    assert [(one.path, "tokens" in one.reason) for one in done.skipped] == [("/1.jpg", True)]


def test_an_empty_text_is_refused(mini_language: LanguageModel) -> None:
    way = own_semantics(mini_language, "e" * 64)
    for text in ("", " \n"):
        with pytest.raises(UsageError, match="empty"):
            text_vectors(mini_language, way, ["a boat", text])
    with pytest.raises(UsageError, match="stands for an image"):
        text_vectors(mini_language, way, ["a <|image_pad|>"])


@pytest.mark.parametrize("text", ["[]", '{"layers": 3}', "{"])
def test_a_checkpoint_that_says_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RETRIEVAL).write_text(text)
    with pytest.raises(CheckpointError, match="does not say how to search"):
        Retrieval.read(tmp_path)


def test_what_a_folder_says_is_read_as_written(tmp_path: Path) -> None:
    assert Retrieval.read(tmp_path) == Retrieval()
    said = Retrieval("", "图？", "x", layer=-3, centred=False, caption_prompts=("a", "乙"), cut={"share": 0.5})
    said.write(tmp_path)
    assert Retrieval.read(tmp_path) == said
    assert json.loads((tmp_path / RETRIEVAL).read_text())["caption_prompts"] == ["a", "乙"]


def test_captions_are_in_the_languages_asked_for_and_found(
    store: FeatureStore, mini_language: LanguageModel, drawn: list[scenes.Scene], seen: list[Features]
) -> None:
    encoder_id = put(store, seen[:3])
    assert captions.fill(store, mini_language, encoder_id).images == 3
    assert captions.fill(store, mini_language, encoder_id).images == 0
    vectors = store.vectors(encoder_id)
    vectors.tend()
    held = vectors.rows([image(0)], ["caption"])[image(0)]["caption"].splitlines()
    assert len(held) == 2
    colour = questions.NAMES["zh"][drawn[0].background]
    assert drawn[0].background in held[0]
    assert colour in held[1]
    assert image(0) in dict(vectors.matching(colour, 3))
    assert verify(store).corrupt == []
    (status,) = read_status(store).encoders
    assert status.captions == 3
    assert captions.fill(store, mini_language, encoder_id, prompts=["What colour is the background?"]).images == 3
    assert len(vectors.rows([image(0)], ["caption"])[image(0)]["caption"].splitlines()) == 1


def test_damage_is_found(store: FeatureStore, mini_language: LanguageModel, seen: list[Features]) -> None:
    encoder_id = put(store, seen[:4])
    fill(store, mini_language, encoder_id)
    way = known(store, mini_language, encoder_id)
    assert way is not None
    vectors = store.vectors(encoder_id, way.id)
    vectors.put_semantic([image(1)], 2 * vectors.get("semantic", [image(1)])[image(1)][None])
    store.vectors(encoder_id, "nobody's").put_semantic([image(2)], seen[2].pooled()[None])
    found = {(one.table.partition("-")[0], one.key) for one in verify(store).corrupt}
    assert found == {("vectors", image(1)), ("vectors", image(2))}


def test_what_is_forgotten_is_gone(store: FeatureStore, mini_language: LanguageModel, seen: list[Features]) -> None:
    encoder_id = put(store, seen[:3])
    fill(store, mini_language, encoder_id)
    store.vectors(encoder_id).put_captions("asked", {image(n): "a boat" for n in range(3)})
    store.vectors(encoder_id).tend()
    garbage.forget(store, [image(0), image(1)])
    way = known(store, mini_language, encoder_id)
    assert way is not None
    vectors = store.vectors(encoder_id, way.id)
    assert [one for one, _ in vectors.nearest("semantic", seen[0].pooled(), 5)] == [image(2)]
    assert [one for one, _ in vectors.matching("boat", 5)] == [image(2)]


def test_an_album_makes_them_on_request(tmp_path: Path, photos: list[Path]) -> None:
    album: Album = qsplit.open(tmp_path / "album.qsplit", device="cpu")
    report = album.index(*photos[:3])
    assert (report.semantic, report.captions) == (0, 0)
    report = album.refresh(semantic=True, captions=True, caption_prompts=["What is it?"])
    assert (report.semantic, report.captions, report.encoded, report.unsearchable) == (3, 3, 0, [])
    told: list[str] = []
    report = album.index(
        *photos[:5], semantic=True, captions=True, on_progress=lambda progress: told.append(progress.what)
    )
    assert (report.semantic, report.captions, report.encoded) == (2, 2, 2)
    assert list(dict.fromkeys(told)) == ["files", "semantic vectors", "captions"]
    assert album.store.settings().caption_prompts == "What is it?"
    (status,) = album.status().encoders
    assert (sum(status.semantic.values()), status.captions) == (5, 5)
    assert album.verify().sound
