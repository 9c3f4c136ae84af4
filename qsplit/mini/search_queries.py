"""What somebody may search drawn scenes for, with what fits it: short queries, and whole descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsplit.mini import questions, scenes
from qsplit.mini.questions import LANGUAGES, NUMBERS
from qsplit.mini.scenes import APART, COLOURS, SHAPES, Description, Scene, pick

__all__ = ["KINDS", "Query", "Wanted", "album", "descriptions", "invent", "queries", "wanted"]

KINDS = ("thing", "things", "beside", "over", "count")  # of short queries
_SIDES = {"beside": (("left of", "左边"), ("right of", "右边")), "over": (("above", "上面"), ("below", "下面"))}
_TRIES = 2000
_CHINESE_NUMBERS = ("零", "一", "两", "三", "四", "五")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query in both languages, by language, with the things that it names and how they lie.

    ``side`` is 0 where the first is left of or above the second, 1 for the other way round; ``number`` is that of a
    count.
    """

    kind: str
    texts: dict[str, str]
    first: Description
    second: Description = ("", "")
    side: int = 0
    number: int = 0

    def fits(self, scene: Scene) -> bool | None:
        """Whether a scene is what is wanted; None where people would not agree."""
        if self.kind == "thing":
            return scene.count(self.first) > 0
        if self.kind == "things":
            return scene.count(self.first) > 0 and scene.count(self.second) > 0
        if self.kind == "count":
            return scene.count(self.first) == self.number
        along = [
            (b.x - a.x if self.kind == "beside" else b.y - a.y) * (-1 if self.side else 1)
            for a in scene.things
            for b in scene.things
            if a is not b and a.fits(self.first) and b.fits(self.second)
        ]
        if any(by >= APART for by in along):
            return True
        return None if any(by > 0 for by in along) else False


@dataclass(frozen=True, slots=True)
class Query:
    """A text, and the numbers of the scenes that fit it or may be thought to: none where nothing does."""

    kind: str
    language: str
    text: str
    right: frozenset[int]


def invent(rng: np.random.Generator, kind: str) -> Wanted:
    """A short query of a kind: a thing, two things, how two lie, or how many there are."""
    first, second = _thing(rng), _thing(rng)
    while second == first:
        second = _thing(rng)
    if kind == "thing":
        return Wanted(kind, {one: _called(first, one) for one in LANGUAGES}, first)
    if kind == "count":
        number = int(rng.integers(2, 4))
        described = pick(rng, [first, ("", first[1]), (first[0], "")])
        english = f"{NUMBERS[number]} {questions.plural(questions.call(described, 'en'))}"
        chinese = f"{_CHINESE_NUMBERS[number]}个{questions.plain(questions.call(described, 'zh'))}"
        return Wanted(kind, {"en": english, "zh": chinese}, described, number=number)
    a, b = ({one: _called(described, one) for one in LANGUAGES} for described in (first, second))
    if kind == "things":
        return Wanted(kind, {"en": f"{a['en']} and {b['en']}", "zh": f"{a['zh']}和{b['zh']}"}, first, second)
    side = int(rng.integers(2))
    english, chinese = _SIDES[kind][side]
    texts = {"en": f"{a['en']} {english} {b['en']}", "zh": f"{a['zh']}在{b['zh']}的{chinese}"}
    return Wanted(kind, texts, first, second, side)


def wanted(rng: np.random.Generator, made: Sequence[Scene], kind: str, number: int, *, there: bool) -> list[Wanted]:
    """So many queries of a kind that some scene fits, or that none does by anybody's judgement; fewer where there are
    hardly any.
    """
    found: dict[str, Wanted] = {}
    for _ in range(_TRIES):
        one = invent(rng, kind)
        fitting = [one.fits(scene) for scene in made]
        if any(fitting) if there else not any(fits or fits is None for fits in fitting):
            found[one.texts["en"]] = one
            if len(found) == number:
                break
    return list(found.values())


def queries(made: Sequence[Scene], rng: np.random.Generator, each: int) -> list[Query]:
    """So many queries of each kind and language for what some of the scenes show, and so many for what none does."""
    found = []
    known = {questions.caption(scene, "en") for scene in made}
    others = [scene for scene in album(rng, 2 * each) if questions.caption(scene, "en") not in known][:each]
    for language in LANGUAGES:
        described = descriptions(made[:each], language)
        found += [Query("whole", language, text, frozenset([i])) for i, text in enumerate(described)]
        found += [Query("whole", language, text, frozenset()) for text in descriptions(others, language)]
    for kind in KINDS:
        for there in (True, False):
            for one in wanted(rng, made, kind, each, there=there):
                right = frozenset(i for i, scene in enumerate(made) if one.fits(scene) is not False)
                found += [Query(kind, language, one.texts[language], right) for language in LANGUAGES]
    return found


def album(rng: np.random.Generator, number: int) -> list[Scene]:
    """Scenes of which no two are described alike."""
    made: dict[str, Scene] = {}
    while len(made) < number:
        scene = scenes.invent(rng, 168, 168)
        made.setdefault(questions.caption(scene, "en"), scene)
    return list(made.values())


def descriptions(made: Sequence[Scene], language: str) -> list[str]:
    """Of each scene, phrased as training never did."""
    return [questions.retrieval_text(scene, language, questions.RETRIEVAL_FORMS) for scene in made]


def _thing(rng: np.random.Generator) -> Description:
    return pick(rng, COLOURS), pick(rng, SHAPES)


def _called(described: Description, language: str) -> str:
    called = questions.plain(questions.call(described, language))
    return questions.article(called) if language == "en" else called
