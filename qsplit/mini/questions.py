"""Questions in English and Chinese with their answers: what the bundled checkpoint is taught, and asked.

A *kind* of question has several phrasings for training and some that are kept for evaluation; they stand in
``phrasings.toml``. There, Chinese carries ``|`` between words for the tokenizer's training, and loses it before anybody
is asked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np

from qsplit.mini.scenes import APART, COLOURS, SHAPES, Description, Scene, Thing, in_reading_order, pick

__all__ = [
    "CANNOT_TELL", "GARMENTS", "KINDS", "LANGUAGES", "NAMES", "SKILLS", "Asker", "Kind", "Question", "about_garment",
    "about_photograph", "about_scene", "caption", "corpus", "near_misses", "portrait", "retrieval_text",
]  # fmt: skip

LANGUAGES = ("en", "zh")
# In the order of Fashion-MNIST's labels.
GARMENTS = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five")
CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question: the skill it counts towards, and its phrasings of training and evaluation by language.

    ``first`` are the phrasings of training that the tokenizer was made from.
    """

    skill: str
    first: Mapping[str, Sequence[str]]
    trained: Mapping[str, Sequence[str]]
    held_out: Mapping[str, Sequence[str]]


def _kind(table: Mapping[str, Any]) -> Kind:
    first, later, held_out = (
        {one: tuple(table[one].get(use, ())) for one in LANGUAGES} for use in ("trained", "later", "held_out")
    )
    return Kind(table["skill"], first, {one: first[one] + later[one] for one in LANGUAGES}, held_out)


_PHRASINGS = tomllib.loads((resources.files("qsplit.mini") / "phrasings.toml").read_text(encoding="utf-8"))
KINDS = {name: _kind(table) for name, table in _PHRASINGS["kinds"].items()}
SKILLS = (*dict.fromkeys(kind.skill for kind in KINDS.values()), CANNOT_TELL)
# What a thing or an answer is called, by language.
NAMES: dict[str, dict[str, str]] = _PHRASINGS["names"]
OPENINGS: dict[str, list[str]] = _PHRASINGS["openings"]
CLOSINGS: dict[str, list[str]] = _PHRASINGS["closings"]
BETWEEN = {"en": " ", "zh": "|"}  # words of a phrasing
# All words of the phrasings of training but those that name what is asked about.
WORDS = {
    language: sorted(
        {
            word
            for kind in KINDS.values()
            for phrasing in kind.trained[language]
            for word in phrasing.split(BETWEEN[language])
            if "{" not in word
        }
    )
    for language in LANGUAGES
}
RETRIEVAL_FORMS = 3  # of describing a scene in training; one more is kept for evaluation


@dataclass(frozen=True, slots=True)
class Question:
    """``answer`` is what is to be said, word for word, in the question's language.

    ``about`` describes the things of a scene that the question names; training looks there for what was understood.
    """

    kind: str
    skill: str
    language: str
    text: str
    answer: str
    about: tuple[Description, ...] = ()


# Words


def plain(text: str) -> str:
    return text.replace("|", "")


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plural(phrase: str) -> str:
    return phrase + ("es" if phrase.endswith("s") else "s")


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def garment_with_article(garment: str) -> str:
    return garment if garment == "trousers" else article(garment)


def listed(words: Sequence[str], language: str) -> str:
    if language == "zh":
        return "，".join(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def call(description: Description, language: str) -> str:
    """What the things that fit a description are called; one that nothing is said about is a "shape"."""
    colour, shape = description
    names = NAMES[language]
    if language == "en":
        return f"{colour} {shape or 'shape'}".strip()
    kind = names[shape] if shape else "图形"
    return f"{names[colour]}|的|{kind}" if colour else kind


def forms(a: Description, b: Description | None, language: str) -> dict[str, str]:
    """What fills the slots of a phrasing about one thing or two."""
    first = call(a, language)
    english = language == "en"  # Chinese knows neither articles nor plurals, nor does it ask for them
    return {
        "a": first,
        "b": call(b, language) if b else "",
        "an": article(first) if english else "",
        "s": plural(first) if english else "",
    }


# Asking


@dataclass(frozen=True, slots=True)
class Asker:
    """Phrases questions in one language, with ``rng`` choosing among the phrasings of training or of evaluation.

    ``slips`` is the share of questions in which a few words are lost or wrong. What is learnt from phrasings as they
    stand hangs on their first words, and a question that begins in another way is then not understood at all.

    >>> Asker(np.random.default_rng(1), "en", held_out=True)("sharpness", "blurred").answer
    'blurred'
    """

    rng: np.random.Generator
    language: str
    held_out: bool = field(default=False, kw_only=True)
    slips: float = field(default=0.0, kw_only=True)

    def __call__(self, kind: str, answer: str, **slots: str) -> Question:
        """A question whose answer is among `NAMES`."""
        skill = CANNOT_TELL if answer == CANNOT_TELL else KINDS[kind].skill
        return Question(kind, skill, self.language, self._phrased(kind, slots), NAMES[self.language][answer])

    def thing(self, kind: str, answer: str, a: Description, b: Description | None = None) -> Question:
        """A question about a thing, or about one and another."""
        return replace(self(kind, answer, **forms(a, b, self.language)), about=(a, b) if b else (a,))

    def shape_of(self, answer: str, colour: str) -> Question:
        """A question about the shape of the one thing of a colour."""
        return replace(self("shape", answer, c=self.name(colour)), about=((colour, ""),))

    def open(self, kind: str, answer: str) -> Question:
        """A question whose answer is said as it is given."""
        return Question(kind, KINDS[kind].skill, self.language, self._phrased(kind, {}), plain(answer))

    def name(self, word: str) -> str:
        return NAMES[self.language][word]

    def _phrased(self, kind: str, slots: Mapping[str, str]) -> str:
        phrasings = KINDS[kind].held_out if self.held_out else KINDS[kind].trained
        text = pick(self.rng, phrasings[self.language])
        if self.rng.random() < self.slips:
            text = slipped(text, self.language, self.rng)
        text = text.format_map(slots)
        if not self.held_out and self.rng.random() < 0.25:
            if self.rng.random() < 0.5:
                text = pick(self.rng, OPENINGS[self.language]) + text
            else:
                text += pick(self.rng, CLOSINGS[self.language])
        return plain(text)


def slipped(phrasing: str, language: str, rng: np.random.Generator) -> str:
    """A phrasing with one to three of its words lost, replaced by or parted by words of other phrasings.

    Slots stay: what is asked about is always said.

    >>> slipped("Is the {a} left or right of the {b}?", "en", np.random.default_rng(0)).count("{")
    2
    """
    between = BETWEEN[language]
    words = phrasing.split(between)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(words)))
        other = pick(rng, WORDS[language])
        change = "add" if "{" in words[at] or len(words) == 1 else pick(rng, ("lose", "add", "replace", "replace"))
        words[at : at + 1] = {"lose": [], "add": [other, words[at]], "replace": [other]}[change]
    return between.join(words)


# Scenes


def _colour(scene: Scene, ask: Asker) -> Question | None:
    options = [(thing, described) for thing, described in scene.named() if not described[0]]
    if not options:
        return None
    thing, described = pick(ask.rng, options)
    return ask.thing("colour", thing.colour, described)


def _background(scene: Scene, ask: Asker) -> Question:
    return ask("background", scene.background)


def _shape(scene: Scene, ask: Asker) -> Question | None:
    options = [thing for thing, described in scene.named() if not described[1]]
    if not options:
        return None
    thing = pick(ask.rng, options)
    return ask.shape_of(thing.shape, thing.colour)


def _count(scene: Scene, ask: Asker) -> Question:
    thing = pick(ask.rng, scene.things)
    both, shape, colour = thing.descriptions
    described = pick(ask.rng, [("", ""), ("", ""), shape, colour, both])
    return ask.thing("count", NUMBERS[scene.count(described)], described)


def _presence(scene: Scene, ask: Asker) -> Question:
    thing = pick(ask.rng, scene.things)
    if ask.rng.random() < 0.5:
        return ask.thing("presence", "yes", pick(ask.rng, thing.descriptions))
    options = [described for described in _tempting(scene, ask.rng) if not scene.count(described)]
    weights = [3.0 if colour and shape else 0.4 for colour, shape in options]
    return ask.thing("presence", "no", pick(ask.rng, options, weights))


def _tempting(scene: Scene, rng: np.random.Generator) -> list[Description]:
    """What might be there: the scene's colours on its other shapes, a new colour or shape, and single words.

    The background's colour by itself is no option: "is there a white shape" is unclear before white.
    """
    found: list[Description] = []
    for colour in (*sorted(scene.colours), pick(rng, COLOURS)):
        found += [(colour, shape) for shape in (*sorted(scene.shapes), pick(rng, SHAPES))]
    found += [("", shape) for shape in SHAPES]
    return found + [(colour, "") for colour in COLOURS if colour != scene.background]


def _beside(scene: Scene, ask: Asker) -> Question | None:
    return _compared("beside", scene, ask, lambda thing: thing.x, ("left", "right"))


def _over(scene: Scene, ask: Asker) -> Question | None:
    return _compared("over", scene, ask, lambda thing: thing.y, ("above", "below"))


def _compared(
    kind: str, scene: Scene, ask: Asker, along: Callable[[Thing], float], answers: tuple[str, str]
) -> Question | None:
    named = scene.named()
    pairs = [(a, b) for a in named for b in named if abs(along(a[0]) - along(b[0])) >= APART]
    if not pairs:
        return None
    (a, a_described), (b, b_described) = pick(ask.rng, pairs)
    before, after = answers
    return ask.thing(kind, before if along(a) < along(b) else after, a_described, b_described)


def _where(scene: Scene, ask: Asker) -> Question | None:
    named = scene.named()
    if not named:
        return None
    thing, described = pick(ask.rng, named)
    return ask.thing("where", thing.place, described)


def _shapes(scene: Scene, ask: Asker) -> Question:
    return ask.open("shapes", listed([ask.name(shape) for shape in SHAPES if shape in scene.shapes], ask.language))


def _colours(scene: Scene, ask: Asker) -> Question:
    return ask.open("colours", listed([ask.name(one) for one in COLOURS if one in scene.colours], ask.language))


def _drawing(scene: Scene, ask: Asker) -> Question:  # noqa: ARG001  # as the others of the table
    return ask("kind", "drawing")


def _caption(scene: Scene, ask: Asker) -> Question:
    return ask.open("caption", caption(scene, ask.language))


def _unanswerable(scene: Scene, ask: Asker) -> Question:
    rng = ask.rng
    shape = pick(rng, [shape for shape in SHAPES if shape not in scene.shapes])
    colour = pick(rng, [one for one in COLOURS if one not in scene.colours and one != scene.background])
    kind = pick(rng, ("colour", "shape", "where", "beside", "over", "garment", "turned", "sharpness"))
    if kind == "shape":
        return ask.shape_of(CANNOT_TELL, colour)
    if kind in ("beside", "over"):
        absent, present = ("", shape), pick(rng, scene.things).descriptions[0]
        pair = (present, absent) if rng.random() < 0.5 else (absent, present)
        return ask.thing(kind, CANNOT_TELL, *pair)
    return ask.thing(kind, CANNOT_TELL, ("", shape))


_ABOUT_SCENE: dict[str, Callable[[Scene, Asker], Question | None]] = {
    "colour": _colour,
    "background": _background,
    "shape": _shape,
    "count": _count,
    "presence": _presence,
    "beside": _beside,
    "over": _over,
    "where": _where,
    "shapes": _shapes,
    "colours": _colours,
    "kind": _drawing,
    "caption": _caption,
    CANNOT_TELL: _unanswerable,
}


def about_scene(scene: Scene, ask: Asker, kind: str) -> Question | None:
    """A question of this kind about a scene, or none where the scene has nothing to ask it about.

    The kind `CANNOT_TELL` stands for a question of any kind that the scene has no answer to. Raises `KeyError` for a
    kind that is not asked about scenes.
    """
    return _ABOUT_SCENE[kind](scene, ask)


# Photographs and garments


def _unanswerable_by_photograph(ask: Asker, kinds: Sequence[str]) -> Question:
    """A question about drawn shapes: a photograph has none."""
    rng = ask.rng
    kind = pick(rng, kinds)
    if kind == "shape":
        return ask.shape_of(CANNOT_TELL, pick(rng, COLOURS))
    first, second = (str(shape) for shape in rng.choice(SHAPES, 2, replace=False))
    colour = pick(rng, COLOURS) if rng.random() < 0.4 and kind != "colour" else ""
    return ask.thing(kind, CANNOT_TELL, (colour, first), ("", second))


_NOT_OF_GARMENTS = ("colour", "shape", "where", "beside", "over", "count")
_NOT_OF_PHOTOGRAPHS = ("colour", "shape", "where", "beside", "over", "garment", "count")


def about_photograph(labels: Mapping[str, str], ask: Asker, kind: str) -> Question | None:
    """A question about a photograph whose ``labels`` hold the attributes that are certain; none about the others."""
    if kind == CANNOT_TELL:
        return _unanswerable_by_photograph(ask, _NOT_OF_PHOTOGRAPHS)
    if kind == "kind":
        return ask(kind, "photograph")
    if kind == "caption":
        return ask.open(kind, portrait(labels, ask.language))
    return ask(kind, labels[kind]) if kind in labels else None


def about_garment(label: int, ask: Asker, kind: str) -> Question:
    """A question about a grey picture of a garment, by its Fashion-MNIST label.

    Raises `KeyError` for a kind that is not asked about garments.
    """
    garment = GARMENTS[label]
    if kind == "is garment":
        return _is_garment(garment, ask)
    if kind == "caption":
        return ask.open(kind, _garment_caption(garment, ask.language))
    if kind == CANNOT_TELL:
        return _unanswerable_by_photograph(ask, _NOT_OF_GARMENTS)
    return ask(kind, {"garment": garment, "greyness": "grey", "kind": "photograph"}[kind])


def _is_garment(garment: str, ask: Asker) -> Question:
    if ask.rng.random() < 0.5:
        return ask("is garment", "is", a=ask.name(garment), an=garment_with_article(garment))
    other = pick(ask.rng, [one for one in GARMENTS if one != garment])
    return ask("is garment", "is not", a=ask.name(other), an=garment_with_article(other))


def _garment_caption(garment: str, language: str) -> str:
    if language == "zh":
        return f"一张{NAMES['zh'][garment]}的灰色图片。"
    return f"A grey picture of {garment_with_article(garment)}."


# Descriptions


def placed(thing: Thing, language: str) -> str:
    called = call(thing.descriptions[0], language)
    if language == "zh":
        return f"{NAMES['zh'][thing.place]}有{called}"
    return f"{article(called)} {'in' if thing.place == 'middle' else 'at'} the {thing.place}"


def caption(scene: Scene, language: str) -> str:
    """All that a scene shows, in reading order.

    >>> caption(Scene((Thing("star", "red", 0.5, 0.5, 0.2),), "white", 168, 168), "en")
    'A red star in the middle, on a white background.'
    """
    things = listed([placed(thing, language) for thing in scene.things], language)
    background = NAMES[language][scene.background]
    if language == "zh":
        return plain(f"{background}背景，{things}。")
    return sentence(f"{things}, on {article(background)} background")


def portrait(labels: Mapping[str, str], language: str) -> str:
    """All that is certain about a photograph.

    >>> portrait({"turned": "upright", "greyness": "colour", "main colour": "green"}, "en")
    'An upright colour photograph, mainly green.'
    """
    names = NAMES[language]
    words = [names[labels[key]] for key in ("brightness", "sharpness", "turned") if key in labels]
    grey = names[labels["greyness"]] if "greyness" in labels else ""
    main = names[labels["main colour"]] if "main colour" in labels else ""
    if language == "zh":
        return "，".join([f"一张{grey}照片", *words, *([f"主要是{main}"] if main else [])]) + "。"
    phrase = " ".join(word for word in (*words, grey, "photograph") if word)
    return sentence(article(phrase) + (f", mainly {main}" if main else ""))


def retrieval_text(scene: Scene, language: str, form: int) -> str:
    """A description to search by, in one of four forms; the last is kept for evaluation."""
    background = NAMES[language][scene.background]
    pairs = [(plain(call(t.descriptions[0], language)), NAMES[language][t.place]) for t in scene.things]
    if language == "zh":
        return (
            caption(scene, language),
            "，".join(f"{called}在{place}" for called, place in pairs) + f"，背景是{background}。",
            f"背景：{background}；" + "；".join(f"{place}：{called}" for called, place in pairs) + "。",
            "图片里" + "，".join(f"{place}是{called}" for called, place in pairs) + f"，{background}背景。",
        )[form]
    shown = listed([placed(thing, "en") for thing in scene.things], "en")
    return (
        caption(scene, language),
        "; ".join(f"{called}, {place}" for called, place in pairs) + f"; {background} background",
        f"Background: {background}; " + "; ".join(f"{place}: {called}" for called, place in pairs) + ".",
        f"The picture shows {shown} on {article(background)} background.",
    )[form]


def near_misses(scene: Scene, rng: np.random.Generator, number: int) -> list[Scene]:
    """Scenes that differ from this one in a single colour, shape, place or thing: hard to tell apart by a text."""
    return [_near_miss(scene, rng) for _ in range(number)]


def _near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    i = int(rng.integers(len(scene.things)))
    thing, others = scene.things[i], (*scene.things[:i], *scene.things[i + 1 :])
    change = pick(rng, ("colour", "shape", "place", "thing", "background"))
    if change == "background":
        return replace(scene, background=pick(rng, [one for one in COLOURS if one != scene.background]))
    if change == "thing" and others:
        return replace(scene, things=others)
    if change == "colour":
        thing = replace(thing, colour=pick(rng, [one for one in COLOURS if one != thing.colour]))
    elif change == "shape":
        thing = replace(thing, shape=pick(rng, [one for one in SHAPES if one != thing.shape]))
    else:
        thing = _elsewhere(thing, rng)
    return replace(scene, things=in_reading_order((*others, thing)))


def _elsewhere(thing: Thing, rng: np.random.Generator) -> Thing:
    """The thing in the middle of another ninth of the picture."""
    places = [(column, row) for column in range(3) for row in range(3) if (column, row) != (thing.column, thing.row)]
    column, row = pick(rng, places)
    return replace(thing, x=(column + 0.5) / 3, y=(row + 0.5) / 3)


# The tokenizer's lines


def corpus() -> Iterator[str]:
    """Every first phrasing of training filled with every colour, shape and garment in turn, words parted by ``|``.

    The bundled tokenizer was made from these lines in this order.
    """
    for kind in KINDS.values():
        for language in LANGUAGES:
            for phrasing in kind.first[language]:
                for i, colour in enumerate(COLOURS):
                    shape, other = SHAPES[i % len(SHAPES)], SHAPES[(i + 3) % len(SHAPES)]
                    slots = forms((colour if i % 2 else "", shape), (colour, other), language)
                    yield phrasing.format(c=NAMES[language][colour], **slots)
    for language in LANGUAGES:
        for _ in range(8):
            yield from (*OPENINGS[language], *CLOSINGS[language], *NAMES[language].values())
