"""Which questions the bundled checkpoint was taught, as `qsplit.search.rerank.Form` has them: for its
``retrieval.json``.

It never learnt whether a description fits a picture, but what is there, where, how many, and in which colour. So of a
text that says some of that, each part is asked by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qsplit.mini.questions import CANNOT_TELL, GARMENTS, NAMES, NUMBERS
from qsplit.mini.scenes import COLOURS, PLACES, SHAPES

__all__ = ["QUESTIONS"]


def _either(words: Sequence[str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


def _english() -> Iterator[dict[str, Any]]:
    colour, shape = _either(COLOURS), _either(SHAPES)
    thing = f"(?:{colour} )?{shape}"
    yield {
        "pattern": rf"\b(?P<thing>an? {thing})\b",
        "question": "Is there {thing} in the picture?",
        "choices": ["yes", "no"],
        "wanted": "yes",
    }
    for pattern in (rf"\b(?P<colour>{colour}) background\b", rf"\bbackground: (?P<colour>{colour})\b"):
        yield {
            "pattern": pattern,
            "question": "What colour is the background?",
            "choices": list(COLOURS),
            "wanted": "{colour}",
        }
    yield {
        "pattern": rf"\b(?P<number>{_either(NUMBERS)}) (?P<things>(?:{colour} )?(?:{shape}|shape)(?:es|s))\b",
        "question": "How many {things} are there?",
        "choices": list(NUMBERS),
        "wanted": "{number}",
    }
    for sides, between in ((("left", "right"), " of"), (("above", "below"), "")):
        yield {
            "pattern": rf"\ban? (?P<a>{thing}) (?P<side>{_either(sides)}){between} an? (?P<b>{thing})\b",
            "question": f"Is the {{a}} {sides[0]} or {sides[1]}{between} the {{b}}?",
            "choices": list(sides),
            "wanted": "{side}",
        }
    places = [place for row in PLACES for place in row]
    yield {
        "pattern": rf"\b(?:an? )?(?P<a>{thing})(?:,| at the| in the) (?P<place>{_either(places)})\b(?! of)",
        "question": "Where is the {a}?",
        "choices": places,
        "wanted": "{place}",
    }
    yield {
        "pattern": rf"\b(?P<garment>{_either(GARMENTS)})(?:e?s)?\b",
        "question": "What garment is this?",
        "choices": [*GARMENTS, CANNOT_TELL],
        "wanted": "{garment}",
        "means": {"t-shirt": "T-shirt"},
    }


def _chinese() -> Iterator[dict[str, Any]]:
    names = NAMES["zh"]
    colour, shape = _either([names[one] for one in COLOURS]), _either([names[one] for one in SHAPES])
    thing = f"(?:{colour}的)?{shape}"
    yield {
        "pattern": f"(?P<thing>{thing})",
        "question": "图片里有{thing}吗？",
        "choices": [names["yes"], names["no"]],
        "wanted": names["yes"],
    }
    for pattern in (f"(?P<colour>{colour})背景", f"背景(?:是|：)(?P<colour>{colour})"):
        yield {
            "pattern": pattern,
            "question": "背景是什么颜色？",
            "choices": [names[one] for one in COLOURS],
            "wanted": "{colour}",
        }
    numbers = [names[one] for one in NUMBERS]
    yield {
        "pattern": f"(?P<number>{_either(numbers)})(?P<thing>(?:{colour}的)?(?:{shape}|图形))",
        "question": "图片里有几个{thing}？",
        "choices": numbers,
        "wanted": "{number}",
    }
    for sides in (("left", "right"), ("above", "below")):
        first, second = (names[side] for side in sides)
        yield {
            "pattern": f"(?P<a>{thing})在(?P<b>{thing})的(?P<side>{first}|{second})",
            "question": f"{{a}}在{{b}}的{first}还是{second}？",
            "choices": [first, second],
            "wanted": "{side}",
        }
    places = [names[place] for row in PLACES for place in row]
    for pattern in (
        f"(?P<a>{thing})在(?P<place>{_either(places)})",
        f"(?P<place>{_either(places)})(?:有|是|：)(?P<a>{thing})",
    ):
        yield {"pattern": pattern, "question": "{a}在哪里？", "choices": places, "wanted": "{place}"}
    garments = [names[one] for one in GARMENTS]
    yield {
        "pattern": f"(?P<garment>{_either(garments)})",
        "question": "这是什么衣服？",
        "choices": [*garments, names[CANNOT_TELL]],
        "wanted": "{garment}",
        "means": {garments[0].lower(): garments[0]},
    }


QUESTIONS = (*_english(), *_chinese())
