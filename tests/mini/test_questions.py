"""What is asked is grammatical, answerable and true, as an independent reader of the text and the scene finds."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.mini.questions import (
    CANNOT_TELL,
    CLOSINGS,
    GARMENTS,
    KINDS,
    LANGUAGES,
    NAMES,
    NUMBERS,
    OPENINGS,
    RETRIEVAL_FORMS,
    SKILLS,
    Asker,
    Question,
    about_garment,
    about_photograph,
    about_scene,
    caption,
    corpus,
    forms,
    near_misses,
    plain,
    portrait,
    retrieval_text,
    slipped,
)
from qsplit.mini.scenes import APART, COLOURS, SHAPES, Scene, Thing, invent

SCENE_KINDS = (
    "colour", "background", "shape", "count", "presence", "beside", "over", "where", "shapes", "colours", "kind",
    "caption", CANNOT_TELL,
)  # fmt: skip
PHOTO_KINDS = ("main colour", "brightness", "sharpness", "greyness", "turned", "kind", "caption", CANNOT_TELL)
GARMENT_KINDS = ("garment", "is garment", "greyness", "kind", "caption", CANNOT_TELL)
LABELS = {
    "main colour": "green", "brightness": "dark", "sharpness": "sharp", "greyness": "colour", "turned": "upright",
}  # fmt: skip

SEEDS = st.integers(0, 2**32 - 1)
ASKERS = st.builds(
    lambda seed, language, held_out: Asker(np.random.default_rng(seed), language, held_out=held_out),
    SEEDS, st.sampled_from(LANGUAGES), st.booleans(),
)  # fmt: skip
SCENES = st.builds(
    lambda seed, size: invent(np.random.default_rng(seed), *size),
    SEEDS, st.sampled_from([(168, 168), (196, 140), (140, 196)]),
)  # fmt: skip

CIRCLE = Thing("circle", "red", 0.2, 0.2, 0.1)
STAR = Thing("star", "blue", 0.8, 0.5, 0.1)
PAIR = Scene((CIRCLE, STAR), "white", 168, 168)

Mention = tuple[str, str]  # (colour, shape), either perhaps empty


def asker(language: str = "en", seed: int = 0, *, held_out: bool = False) -> Asker:
    return Asker(np.random.default_rng(seed), language, held_out=held_out)


# An independent reader


def in_english(word: str, language: str, among: tuple[str, ...]) -> str:
    (found,) = [name for name in among if NAMES[language][name] == word]
    return found


def mentions(question: Question) -> list[tuple[int, Mention]]:
    """Where a text speaks of a thing, and what it says of it."""
    names = NAMES[question.language]
    colours, shapes = "|".join(names[c] for c in COLOURS), "|".join(names[s] for s in SHAPES)
    english = question.language == "en"
    of, anything = (" ", "shape") if english else ("的", "图形")
    found = []
    for match in re.finditer(rf"(?:({colours}){of})?({shapes}|{anything})", question.text):
        colour = in_english(match[1], question.language, COLOURS) if match[1] else ""
        shape = "" if match[2] == anything else in_english(match[2], question.language, SHAPES)
        found.append((match.start(), (colour, shape)))
    return found


def only_mention(question: Question) -> Mention:
    ((_, mention),) = mentions(question)
    return mention


def subject_and_reference(question: Question) -> tuple[Mention, Mention]:
    """Of "is A left of B": A and B, in whichever order the text has them."""
    (start, first), (_, second) = mentions(question)
    before = question.text[:start]
    if question.language == "zh":
        turned_round = before.endswith("和")  # "compared with B, A"
    else:
        turned_round = before.endswith(("of the ", "below the ", "than the ", "from the "))
    return (second, first) if turned_round else (first, second)


def fitting(scene: Scene, mention: Mention) -> list[Thing]:
    colour, shape = mention
    return [t for t in scene.things if colour in ("", t.colour) and shape in ("", t.shape)]


def the_colour_in(question: Question) -> str:
    (colour,) = [c for c in COLOURS if re.search(rf"\b{c}\b|{NAMES['zh'][c]}", question.text)]
    return colour


def answer_in_english(question: Question, among: tuple[str, ...]) -> str:
    return in_english(question.answer, question.language, among)


# Slips


@given(SEEDS, st.sampled_from([*KINDS]), st.sampled_from(LANGUAGES))
def test_a_slip_keeps_what_is_asked_about(seed: int, kind: str, language: str) -> None:
    for phrasing in KINDS[kind].trained[language]:
        text = slipped(phrasing, language, np.random.default_rng(seed))
        assert re.findall(r"\{\w+\}", text) == re.findall(r"\{\w+\}", phrasing)
        assert text.strip()


def test_slips_are_as_many_as_asked_for_and_only_then() -> None:
    whole = {plain(text) for text in KINDS["turned"].trained["en"]}
    ends = [*OPENINGS["en"], *CLOSINGS["en"]]

    def share(slips: float) -> float:
        ask = Asker(np.random.default_rng(3), "en", slips=slips)
        asked = [ask("turned", "upright").text for _ in range(400)]
        return sum(not any(one in text for one in whole) for text in asked if not any(e in text for e in ends)) / 400

    assert share(0.0) == 0.0
    assert 0.1 < share(0.25) < 0.3


# The phrasings


def filled(kind: str, language: str, use: str) -> set[str]:
    """Each phrasing with some descriptions of every form and every colour's name."""
    descriptions = [("", shape) for shape in SHAPES] + [(colour, "star") for colour in COLOURS] + [("red", "")]
    return {
        plain(phrasing.format(c=NAMES[language][colour], **forms(a, b, language)))
        for phrasing in getattr(KINDS[kind], use)[language]
        for a, b in zip(descriptions, descriptions[1:] + descriptions[:1], strict=True)
        for colour in (a[0] or "pink", "orange")
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", ["trained", "held_out"])
def test_a_filled_phrasing_is_one_clean_line(kind: str, language: str, use: str) -> None:
    texts = filled(kind, language, use)
    assert texts
    for text in texts:
        assert not re.search(r"[{}|\n]|  |^\s|\s$|\ba [aeiou]|\ban [^aeiou]", text), text
        assert text[-1] in (".?" if language == "en" else "。？")
        assert text.isascii() == (language == "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_of_evaluation_was_trained(language: str) -> None:
    trained = set().union(*(filled(kind, language, "trained") for kind in KINDS))
    trained |= {plain(opening) + text for opening in OPENINGS[language] for text in trained} | {
        text + plain(closing) for closing in CLOSINGS[language] for text in trained
    }
    held_out = set().union(*(filled(kind, language, "held_out") for kind in KINDS))
    assert not trained & held_out
    assert not {plain(line) for line in corpus()} & held_out


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_is_of_one_kind(language: str) -> None:
    owners = Counter(
        text for kind in KINDS for text in filled(kind, language, "trained") | filled(kind, language, "held_out")
    )
    assert max(owners.values()) == 1


def test_the_file_of_phrasings_repeats_none() -> None:
    for kind in KINDS.values():
        for language in LANGUAGES:
            both = (*kind.trained[language], *kind.held_out[language])
            assert len(set(both)) == len(both)


def test_the_kinds_and_the_skills() -> None:
    assert set(KINDS) == {*SCENE_KINDS, *PHOTO_KINDS, *GARMENT_KINDS} - {CANNOT_TELL}
    assert SKILLS == (
        "colour", "shape", "count", "presence", "position", "lists", "main colour", "brightness", "sharpness",
        "colour or grey", "upright or turned", "garment", "kind", "caption", "cannot tell",
    )  # fmt: skip


def test_both_languages_name_the_same() -> None:
    assert NAMES["en"].keys() == NAMES["zh"].keys()
    assert {*COLOURS, *SHAPES, *GARMENTS, *NUMBERS, *LABELS.values(), CANNOT_TELL} <= NAMES["en"].keys()


def test_a_name_means_one_thing_among_its_like() -> None:
    for language in LANGUAGES:
        for group in (COLOURS, SHAPES, GARMENTS, NUMBERS):
            assert len({NAMES[language][name] for name in group}) == len(group)


def test_the_corpus_parts_chinese_words_and_leaves_no_slot() -> None:
    lines = list(corpus())
    assert not [line for line in lines if "{" in line or "}" in line or not line]
    phrased = [line for line in lines if line.endswith("？")]
    assert phrased
    assert all("|" in line for line in phrased)


def test_the_file_lies_beside_the_code() -> None:
    assert (resources.files("qsplit.mini") / "phrasings.toml").is_file()


# Asking


def all_questions(scene: Scene, ask: Asker) -> list[Question]:
    found = [about_scene(scene, ask, kind) for kind in SCENE_KINDS]
    found += [about_photograph(LABELS, ask, kind) for kind in PHOTO_KINDS]
    found += [about_garment(label, ask, kind) for label in range(len(GARMENTS)) for kind in GARMENT_KINDS]
    return [question for question in found if question]


@given(SCENES, ASKERS)
def test_questions_and_answers_are_clean_single_lines(scene: Scene, ask: Asker) -> None:
    for question in all_questions(scene, ask):
        assert question.language == ask.language
        assert question.skill in SKILLS
        for text in (question.text, question.answer):
            assert text
            assert not re.search(r"[{}|\n]|^\s|\s$", text), text


@given(SCENES, ASKERS)
def test_the_skill_is_cannot_tell_just_where_the_answer_is(scene: Scene, ask: Asker) -> None:
    for question in all_questions(scene, ask):
        cannot = question.answer == NAMES[ask.language][CANNOT_TELL]
        assert question.skill == (CANNOT_TELL if cannot else KINDS[question.kind].skill)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_quarter_of_the_questions_of_training_have_words_around_them(language: str) -> None:
    ask = asker(language)
    bare = {plain(text) for text in KINDS["background"].trained[language]}
    texts = [ask("background", "red").text for _ in range(2000)]
    begun = sum(text.startswith(tuple(map(plain, OPENINGS[language]))) for text in texts)
    ended = sum(text.endswith(tuple(map(plain, CLOSINGS[language]))) for text in texts)
    assert begun + ended == sum(text not in bare for text in texts)
    assert 200 < begun < 300
    assert 200 < ended < 300


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrasing_is_used_and_no_other(language: str, held_out: bool) -> None:
    ask = asker(language, held_out=held_out)
    own, other = KINDS["turned"].trained[language], KINDS["turned"].held_out[language]
    if held_out:
        own, other = other, own
    texts = {ask("turned", "upright").text for _ in range(200)}
    assert {plain(text) for text in own} <= texts
    assert not {plain(text) for text in other} & texts


def test_the_same_seed_asks_the_same() -> None:
    first, second = (all_questions(PAIR, asker("zh", seed=7)) for _ in range(2))
    assert first == second


# Truths about scenes


@given(SCENES, ASKERS)
def test_colour(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "colour")
    shapes = Counter(thing.shape for thing in scene.things)
    assert (question is None) == (1 not in shapes.values())
    if question:
        colour, shape = only_mention(question)
        assert not colour
        (thing,) = fitting(scene, ("", shape))
        assert answer_in_english(question, COLOURS) == thing.colour


@given(SCENES, ASKERS)
def test_shape(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "shape")
    colours = Counter(thing.colour for thing in scene.things)
    assert (question is None) == (1 not in colours.values())
    if question:
        (thing,) = fitting(scene, (the_colour_in(question), ""))
        assert answer_in_english(question, SHAPES) == thing.shape


@given(SCENES, ASKERS)
def test_background(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "background")
    assert question
    assert answer_in_english(question, COLOURS) == scene.background


@given(SCENES, ASKERS)
def test_count(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "count")
    assert question
    assert answer_in_english(question, NUMBERS) == NUMBERS[len(fitting(scene, only_mention(question)))]


@given(SCENES, ASKERS)
def test_presence(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "presence")
    assert question
    mention = only_mention(question)
    assert answer_in_english(question, ("yes", "no")) == ("yes" if fitting(scene, mention) else "no")
    assert mention != (scene.background, "")


def test_presence_is_asked_both_ways() -> None:
    ask = asker()
    questions = [question for _ in range(400) if (question := about_scene(PAIR, ask, "presence"))]
    answers = Counter(question.answer for question in questions)
    assert not [question for question in questions if "white shape" in question.text]  # before white, who could say
    assert answers.keys() == {"yes", "no"}
    assert 150 < answers["yes"] < 250


@pytest.mark.parametrize(
    ("kind", "axis", "answers"), [("beside", "x", ("left", "right")), ("over", "y", ("above", "below"))]
)
@given(scene=SCENES, ask=ASKERS)
def test_beside_and_over(kind: str, axis: str, answers: tuple[str, str], scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, kind)
    if question is None:
        return
    subject, reference = subject_and_reference(question)
    (a,), (b,) = fitting(scene, subject), fitting(scene, reference)
    distance = getattr(a, axis) - getattr(b, axis)
    assert abs(distance) >= APART
    assert answer_in_english(question, answers) == answers[0 if distance < 0 else 1]


@pytest.mark.parametrize("kind", ["beside", "over"])
def test_nothing_is_compared_within_the_margin(kind: str) -> None:
    near = Scene((CIRCLE, Thing("star", "blue", 0.2 + APART - 0.01, 0.2 + APART - 0.01, 0.1)), "white", 168, 168)
    far = Scene((CIRCLE, Thing("star", "blue", 0.2 + APART + 0.01, 0.2 + APART + 0.01, 0.1)), "white", 168, 168)
    assert about_scene(near, asker(), kind) is None
    assert about_scene(far, asker(), kind) is not None


@given(SCENES, ASKERS)
def test_where(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, "where")
    if question is None:
        assert max(Counter((t.colour, t.shape) for t in scene.things).values()) > 1
        return
    (thing,) = fitting(scene, only_mention(question))
    row = "top" if thing.y < 1 / 3 else "bottom" if thing.y > 2 / 3 else ""
    column = "left" if thing.x < 1 / 3 else "right" if thing.x > 2 / 3 else ""
    assert question.answer == NAMES[ask.language][f"{row} {column}".strip() or "middle"]


@pytest.mark.parametrize(("kind", "attribute", "among"), [("shapes", "shape", SHAPES), ("colours", "colour", COLOURS)])
@given(scene=SCENES, ask=ASKERS)
def test_lists(kind: str, attribute: str, among: tuple[str, ...], scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, kind)
    assert question
    words = re.split("，|, | and ", question.answer)
    listed = [in_english(word, ask.language, among) for word in words]
    assert Counter(listed) == Counter({getattr(thing, attribute) for thing in scene.things})


@given(SCENES, ASKERS)
def test_cannot_tell_just_of_what_is_absent(scene: Scene, ask: Asker) -> None:
    question = about_scene(scene, ask, CANNOT_TELL)
    assert question
    assert question.answer == NAMES[ask.language][CANNOT_TELL]
    if question.kind == "shape":
        colour = the_colour_in(question)
        assert colour != scene.background
        assert not fitting(scene, (colour, ""))
    elif question.kind in ("colour", "where"):
        assert not fitting(scene, only_mention(question))
    elif question.kind in ("beside", "over"):
        found = sorted(bool(fitting(scene, mention)) for _, mention in mentions(question))
        assert found == [False, True]
    else:
        assert question.kind in ("garment", "turned", "sharpness")


def test_a_scene_has_no_main_colour() -> None:
    with pytest.raises(KeyError, match="main colour"):
        about_scene(PAIR, asker(), "main colour")


# Photographs and garments


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", LABELS)
def test_a_photograph_is_asked_about_what_is_certain(kind: str, language: str) -> None:
    question = about_photograph(LABELS, asker(language), kind)
    assert question
    assert question.answer == NAMES[language][LABELS[kind]]
    without = {name: value for name, value in LABELS.items() if name != kind}
    assert about_photograph(without, asker(language), kind) is None


@given(ASKERS)
def test_a_photograph_cannot_tell_about_shapes(ask: Asker) -> None:
    question = about_photograph({}, ask, CANNOT_TELL)
    assert question
    assert question.answer == NAMES[ask.language][CANNOT_TELL]
    if question.kind in ("beside", "over"):
        subject, reference = subject_and_reference(question)
        assert subject[1] != reference[1]


@given(ASKERS, st.integers(0, len(GARMENTS) - 1))
def test_garments(ask: Asker, label: int) -> None:
    names = NAMES[ask.language]
    name = names[GARMENTS[label]]
    assert about_garment(label, ask, "garment").answer == name
    asked = about_garment(label, ask, "is garment")
    mentioned = max((names[one] for one in GARMENTS if names[one] in asked.text), key=len)  # "T-shirt" has a "shirt"
    assert asked.answer == names["is" if mentioned == name else "is not"]
    assert about_garment(label, ask, CANNOT_TELL).kind not in ("garment", "is garment")


def test_both_answers_are_given_about_garments() -> None:
    ask = asker()
    answers = Counter(about_garment(3, ask, "is garment").answer for _ in range(400))
    assert answers.keys() == {"yes", "no"}
    assert 150 < answers["yes"] < 250


def test_garments_have_their_articles() -> None:
    captions = [about_garment(label, asker(), "caption").answer for label in (0, 1, 3, 9)]
    assert captions == [
        "A grey picture of a T-shirt.", "A grey picture of trousers.", "A grey picture of a dress.",
        "A grey picture of an ankle boot.",
    ]  # fmt: skip


# Descriptions


def test_captions() -> None:
    assert caption(PAIR, "en") == "A red circle at the top left and a blue star at the right, on a white background."
    assert caption(PAIR, "zh") == "白色背景，左上角有红色的圆形，右边有蓝色的星形。"
    assert portrait({}, "en") == "A photograph."
    assert portrait(LABELS, "en") == "A dark sharp upright colour photograph, mainly green."
    assert portrait(LABELS, "zh") == "一张彩色照片，昏暗，清晰，正的，主要是绿色。"


def test_retrieval_texts() -> None:
    assert [retrieval_text(PAIR, "en", form) for form in range(RETRIEVAL_FORMS + 1)] == [
        caption(PAIR, "en"),
        "red circle, top left; blue star, right; white background",
        "Background: white; top left: red circle; right: blue star.",
        "The picture shows a red circle at the top left and a blue star at the right on a white background.",
    ]
    assert [retrieval_text(PAIR, "zh", form) for form in range(RETRIEVAL_FORMS + 1)] == [
        caption(PAIR, "zh"),
        "红色的圆形在左上角，蓝色的星形在右边，背景是白色。",
        "背景：白色；左上角：红色的圆形；右边：蓝色的星形。",
        "图片里左上角是红色的圆形，右边是蓝色的星形，白色背景。",
    ]


@given(SCENES, st.sampled_from(LANGUAGES), st.integers(0, RETRIEVAL_FORMS))
def test_a_retrieval_text_tells_all_things_in_order(scene: Scene, language: str, form: int) -> None:
    text = retrieval_text(scene, language, form)
    described = mentions(Question("caption", "caption", language, text, ""))
    assert [mention for _, mention in described] == [(thing.colour, thing.shape) for thing in scene.things]


def attributes(scene: Scene) -> Counter[tuple[str, ...]]:
    return Counter([(t.shape, t.colour, t.place) for t in scene.things] + [("background", scene.background)])


@given(SCENES, SEEDS)
def test_a_near_miss_differs_in_one_thing_and_its_texts_say_so(scene: Scene, seed: int) -> None:
    for miss in near_misses(scene, np.random.default_rng(seed), 4):
        gone, come = attributes(scene) - attributes(miss), attributes(miss) - attributes(scene)
        assert gone.total() == 1
        assert come.total() == 1 - (len(miss.things) < len(scene.things))
        if come:
            (old,), (new,) = gone, come
            assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
        assert miss.things
        for language in LANGUAGES:
            for form in range(RETRIEVAL_FORMS + 1):
                assert retrieval_text(miss, language, form) != retrieval_text(scene, language, form)


def test_near_misses_are_of_every_sort() -> None:
    misses = near_misses(PAIR, np.random.default_rng(0), 100)
    assert any(len(miss.things) == 1 for miss in misses)
    assert any(miss.background != "white" for miss in misses)
    for change in ("shape", "colour", "place"):
        before = sorted(getattr(thing, change) for thing in PAIR.things)
        changed = [m for m in misses if len(m.things) == 2 and sorted(getattr(t, change) for t in m.things) != before]
        assert changed, change
