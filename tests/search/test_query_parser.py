"""What a user types as a query: what is torn apart, what is not, and where it is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsplit.errors import UsageError
from qsplit.search.query_parser import Term, parse, texts


def told(query: str) -> list[tuple[str, str, float]]:
    return [(term.kind, term.value, term.weight) for term in parse(query)]


@pytest.mark.parametrize(
    "text",
    [
        "red boat",
        "a black-and-white T-shirt",
        "C++ and x-ray",
        "-5 degrees",
        "train of 10:30",
        "10:30 at the station",
        "2:1",
        "facade",
        "decade",
        'a 12" record',
        'the "stop" sign',
        'a sign that says "1 + 1 - 2" in red',
        "什么-都不拆",
        "红船，白帆",
        "a/b",
        "o'clock",
        "v1.0",
    ],
)
def test_a_plain_text_is_one_text(text: str) -> None:
    assert parse(text) == (Term("text", text),)


@given(st.lists(st.text("ghij船-+'", min_size=1).filter(lambda word: word not in "+-"), min_size=1))
def test_words_without_lone_signs_are_never_torn_apart(words: list[str]) -> None:
    assert parse(" ".join(words)) == (Term("text", " ".join(words)),)


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_a_quoted_text_is_itself(text: str) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert told(quoted) == [("text", text, 1.0)]
    assert told(f"sea - 2:{quoted}") == [("text", "sea", 1.0), ("text", text, -2.0)]


def test_terms_have_weights_and_signs() -> None:
    assert told("2:red boat + ./pool.jpg - people") == [
        ("text", "red boat", 2.0),
        ("picture", "./pool.jpg", 1.0),
        ("text", "people", -1.0),
    ]
    assert told("- 0.5:people + .25: sea") == [("text", "people", -0.5), ("text", "sea", 0.25)]
    assert told('"2:red" + 3:"2:red"') == [("text", "2:red", 1.0), ("text", "2:red", 3.0)]
    assert told("+ boat") == [("text", "boat", 1.0)]


def test_positions_are_those_of_the_terms() -> None:
    assert [term.position for term in parse("  2:red boat  +  ./pool.jpg - people")] == [3, 18, 31]


@pytest.mark.parametrize(
    "name",
    ["./pool.jpg", "../a b/new york.JPG", "/tmp/x", "~/Pictures/x.png", "IMG_0412.jpg", "holiday in rome.heic"],
)
def test_pictures_are_known_by_their_names(name: str) -> None:
    assert told(name) == [("picture", name, 1.0)]
    assert told(f'"{name}"') == [("text", name, 1.0)]


def test_ids_are_pictures() -> None:
    assert told("id:facade + 0123456789ab") == [("picture", "facade", 1.0), ("picture", "0123456789ab", 1.0)]
    assert told("id:card") == [("text", "id:card", 1.0)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("red + - blue", "wanted at position 7"),
        ("red +", "wanted at position 6"),
        ("red - 2:", "The weight 2 at position 7 has nothing behind it"),
        ("red + 0:blue", "The weight 0 at position 7 must be above 0"),
        ("9" * 400 + ":blue", "must be above 0 and finite"),
        ('red "boat', "opened at position 5 and never closed"),
        ('red + ""', "The quotes at position 7 hold nothing"),
        ("+", "wanted at position 2"),
        ("- people", "only takes away"),
    ],
)
def test_errors_name_the_position(query: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as error:
        parse(query)
    assert error.value.fix


def test_a_blank_query_has_no_terms() -> None:
    assert parse(" \n ") == ()


def test_the_texts_are_those_that_are_looked_for() -> None:
    assert texts(parse("2:red boat + ./pool.jpg - people + sea")) == ["red boat", "sea"]
