"""Policies: what they say, and where they say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsplit import bundled
from qsplit.errors import NotFound, UsageError
from qsplit.qa.policy import Check, Policy, read_policy

WHOLE = """\
# comment
name = "uploads"
system = "Answer with one word."
calibrate = true

[[check]]
name = "people"
question = "Are there people?"
choices = ["yes", "no", "not sure"]
flag = ["yes", "not sure"]
threshold = 0.7

[[check]]
name = "kind"
question = "What is it?"
choices = ["drawing", "photograph"]
"""


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def test_a_policy_is_what_its_file_says(tmp_path: Path) -> None:
    people = Check("people", "Are there people?", ("yes", "no", "not sure"), ("yes", "not sure"), 0.7)
    kind = Check("kind", "What is it?", ("drawing", "photograph"))
    assert read(tmp_path, WHOLE) == Policy("uploads", (people, kind), "Answer with one word.", calibrate=True)


def test_a_policy_is_named_by_its_file_and_flags_one_choice(tmp_path: Path) -> None:
    lines = [line for line in WHOLE.splitlines() if not line.startswith(('name = "uploads', "threshold"))]
    found = read(tmp_path, "\n".join(lines).replace('["yes", "not sure"]', '"no"'))
    assert found.name == "policy"
    assert (found.checks[0].flag, found.checks[0].threshold) == (("no",), 0.5)


@pytest.mark.parametrize("name", bundled.policies())
def test_the_policies_that_come_with_qsplit_can_be_read(name: str) -> None:
    found = read_policy(name)
    assert found.name == name
    assert len(found.checks) > 4
    assert any(check.flag for check in found.checks) == (name == "moderation")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("calibrate = true", "calibrate = 1", 4, "calibrate must be true or false, not 1"),
        ("calibrate = true", "colour = 1", 4, "colour is unknown"),
        ("threshold = 0.7", "threshold = 1.5", 11, "check 1, threshold is 1.5"),
        ("threshold = 0.7", "threshold = true", 11, "check 1, threshold must be a number"),
        ('flag = ["yes", "not sure"]', 'flag = "maybe"', 10, "check 1, flag 'maybe' is none of the choices yes, no"),
        ('choices = ["drawing", "photograph"]', 'choices = ["drawing"]', 16, "check 2, choices needs two"),
        ('choices = ["drawing", "photograph"]', 'choices = ["a", "A"]', 16, "check 2, choices has the same"),
        ('choices = ["drawing", "photograph"]', 'choices = ["a", 3]', 16, "check 2, choices has a choice that is no"),
        ('question = "What is it?"\n', "", 13, "check 2, question is missing"),
        ('name = "kind"', 'name = "people"', 14, "check 2, name 'people' is the name of two checks"),
        ('name = "kind"', 'named = "kind"', 14, "check 2, named is unknown"),
    ],
)
def test_a_policy_that_means_nothing_names_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, says: str
) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(UsageError) as caught:
        read(tmp_path, WHOLE.replace(old, new))
    assert f"policy.toml, line {line}: {says}" in str(caught.value)


@pytest.mark.parametrize("threshold", ["1", "1.0", "0.5", "1e-9"])
def test_a_threshold_is_above_0_and_at_most_1(tmp_path: Path, threshold: str) -> None:
    assert read(tmp_path, WHOLE.replace("0.7", threshold)).checks[0].threshold == float(threshold)


@pytest.mark.parametrize("threshold", ["0", "0.0", "-0.5", "1.0000001", "2", "nan", "inf"])
def test_any_other_threshold_is_refused(tmp_path: Path, threshold: str) -> None:
    with pytest.raises(UsageError, match="must be above 0 and at most 1"):
        read(tmp_path, WHOLE.replace("0.7", threshold))


@pytest.mark.parametrize("text", ["name = \nsystem = 'a'", "[[check]]\nname = 'a'\nname = 'b'\n"])
def test_what_is_no_toml_names_the_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"no TOML.*line \d"):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["", 'name = "x"', "check = []", "check = [1]"])
def test_a_policy_has_checks(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="check"):
        read(tmp_path, text)


def test_an_unknown_policy_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="album-tags, moderation"):
        read_policy("nothing")
