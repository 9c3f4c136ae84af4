"""What pictures are asked about a text, and that the answers tell which of them it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rows
from PIL import Image

from qsplit import bundled
from qsplit.errors import CheckpointError, NotIndexed
from qsplit.mini import scenes
from qsplit.mini.rerank_questions import QUESTIONS
from qsplit.mini.scenes import Scene, Thing
from qsplit.models.language.model import LanguageModel
from qsplit.models.retrieval_config import RETRIEVAL
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search.rerank import ANY, Form, RerankQuestion, asked_of, forms_of, probabilities, probability
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

FORMS = tuple(Form(**{**one, "choices": tuple(one["choices"])}) for one in QUESTIONS)


def asked(text: str) -> list[tuple[str, str]]:
    return [(one.question, one.wanted) for one in asked_of([text], FORMS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red star", [("Is there a red star in the picture?", "yes")]),
        ("an orange ring", [("Is there an orange ring in the picture?", "yes")]),
        ("two red crosses", [("How many red crosses are there?", "two")]),
        (
            "a red star left of a ring",
            [
                ("Is there a red star in the picture?", "yes"),
                ("Is there a ring in the picture?", "yes"),
                ("Is the red star left or right of the ring?", "left"),
            ],
        ),
        (
            "A star below a blue ring, on a White background.",
            [
                ("Is there A star in the picture?", "yes"),
                ("Is there a blue ring in the picture?", "yes"),
                ("What colour is the background?", "white"),
                ("Is the star above or below the blue ring?", "below"),
            ],
        ),
        ("三个红色的圆形", [("图片里有红色的圆形吗？", "有"), ("图片里有几个红色的圆形？", "三个")]),
        (
            "红色的星形在圆环的右边",
            [
                ("图片里有红色的星形吗？", "有"),
                ("图片里有圆环吗？", "有"),
                ("红色的星形在圆环的左边还是右边？", "右边"),
            ],
        ),
        ("白色背景", [("背景是什么颜色？", "白色")]),
        ("a star at the top left", [("Is there a star in the picture?", "yes"), ("Where is the star?", "top left")]),
        ("Red ring, top; ", [("Where is the Red ring?", "top")]),
        ("左上角是星形", [("图片里有星形吗？", "有"), ("星形在哪里？", "左上角")]),
        ("a warm T-shirt", [("What garment is this?", "T-shirt")]),
        ("a pair of trousers", [("What garment is this?", "trousers")]),
        ("一条裤子", [("这是什么衣服？", "裤子")]),
        ("a dog", [("Does the picture show this: a dog? Answer yes or no.", "yes")]),
        ("{0} {text}", [("Does the picture show this: {0} {text}? Answer yes or no.", "yes")]),
    ],
)
def test_a_text_is_asked_as_the_checkpoint_was_taught(text: str, expected: list[tuple[str, str]]) -> None:
    assert asked(text) == expected


def test_a_question_is_asked_once() -> None:
    assert asked_of(["a star", "a star and a ring"], FORMS) == [
        RerankQuestion("Is there a star in the picture?", ("yes", "no"), "yes"),
        RerankQuestion("Is there a ring in the picture?", ("yes", "no"), "yes"),
    ]


def test_other_words_for_an_answer_are_replaced() -> None:
    form = Form("(?P<n>two|a pair of) cats", "How many cats?", ("one", "two"), "{n}", {"a pair of": "two"})
    assert [one.wanted for one in form.asked("A pair of cats, two cats")] == ["two", "two"]


def test_the_bundled_checkpoint_is_asked_what_it_was_taught(mini_language: LanguageModel) -> None:
    assert forms_of(mini_language) == FORMS


@pytest.mark.parametrize("question", [{"pattern": "("}, {"pattern": "x", "choices": 3}, {"nothing": 1}])
def test_questions_that_are_none_are_refused(mini_language: LanguageModel, question: dict[str, object]) -> None:
    given = {"pattern": "x", "question": "x?", "choices": ["a", "b"], "wanted": "a", **question}
    checkpoint = mini_language.checkpoint
    kept = checkpoint.retrieval
    checkpoint.__dict__["retrieval"] = replace(kept, questions=(given,))
    try:
        with pytest.raises(CheckpointError, match=RETRIEVAL):
            forms_of(mini_language)
    finally:
        checkpoint.__dict__["retrieval"] = kept


def drawn(*things: Thing) -> Image.Image:
    return scenes.draw(Scene(things, "white", 168, 168), np.random.default_rng(0))


def test_answers_tell_which_picture_is_meant(
    store: FeatureStore, mini_vision: VisionEncoder, mini_language: LanguageModel
) -> None:
    """A red star left of a blue ring, the other way round, and neither: by the order of their probabilities."""
    star, ring = Thing("star", "red", 0.2, 0.5, 0.15), Thing("ring", "blue", 0.8, 0.5, 0.15)
    pictures = {
        "fits": drawn(star, ring),
        "turned": drawn(replace(ring, x=0.2), replace(star, x=0.8)),
        "other": drawn(Thing("square", "green", 0.5, 0.5, 0.15)),
    }
    features = mini_vision.encode(list(pictures.values()))
    store.put_features(
        [
            FeatureRow(rows.digest(name), one, mini_vision.provenance)
            for name, one in zip(pictures, features, strict=True)
        ]
    )
    encoder_id = features[0].encoder.id
    for text in ("a red star left of a blue ring", "红色的星形在蓝色的圆环的左边"):
        found = probability(store, mini_language, encoder_id, {name: rows.digest(name) for name in pictures}, [text])
        assert list(found) == list(pictures)
        assert found["fits"] > 0.9
        assert max(found["turned"], found["other"]) < 0.5
        (fits, *_) = features
        each = probabilities(mini_language, fits, asked_of([text], FORMS))
        assert found["fits"] == pytest.approx(float(np.prod(each)))
    with pytest.raises(NotIndexed, match="has no features"):
        probability(store, mini_language, rows.encoder().id, {"fits": rows.digest("fits")}, ["a star"])


def test_retrieval_json_holds_the_questions_and_the_cut() -> None:
    held = json.loads((Path(bundled.checkpoint()) / RETRIEVAL).read_text(encoding="utf-8"))
    assert held["questions"] == json.loads(json.dumps(QUESTIONS))
    assert held["cut"]["asks"] > 0
    assert ANY.asked("anything")
