"""Policies: named questions with choices, which of them are flagged, and from which probability on; read from TOML.

name = "uploads"
system = "Answer with one word."   # optional, as is calibrate = true
[[check]]
name = "people"
question = "Are there people in the picture?"
choices = ["yes", "no"]
flag = "yes"                       # or a list; without it nothing is flagged
threshold = 0.7                    # of the flagged choices together; 0.5 if left out
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsplit import bundled
from qsplit.errors import NotFound, UsageError

__all__ = ["Check", "Policy", "read_policy"]

_OF_POLICY: Mapping[str, type] = {"name": str, "system": str, "calibrate": bool, "check": list}
_OF_CHECK: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "question": str, "choices": list, "flag": (str, list), "threshold": (int, float),
}  # fmt: skip
_NEEDED = ("name", "question", "choices")
_KINDS = {
    str: "a text",
    bool: "true or false",
    list: "a list",
    (str, list): "a text or a list",
    (int, float): "a number",
}
_HEADER = re.compile(r"\s*\[\[\s*check\s*]]")


@dataclass(frozen=True, slots=True)
class Check:
    """One question of a policy; ``flag`` are those of its ``choices`` that flag a picture at ``threshold``."""

    name: str
    question: str
    choices: tuple[str, ...]
    flag: tuple[str, ...] = ()
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Policy:
    """Checks that are made together; ``calibrate`` weighs answers by those for a picture that shows nothing."""

    name: str
    checks: tuple[Check, ...]
    system: str = ""
    calibrate: bool = False


def read_policy(name: str | Path) -> Policy:
    """The policy in a file, or one that comes with qsplit by its name.

    Raises `NotFound`, and `UsageError` that names the line and the key for a policy that means nothing.
    """
    path = Path(name)
    if not path.is_file():
        path = bundled.policy(str(name))
    if not path.is_file():
        raise NotFound(
            f"There is no policy {str(name)!r}.", fix=f"Give a TOML file, or one of {', '.join(bundled.policies())}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        return _Reader(str(name), text).policy(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} is no TOML: {error}.") from error


class _Reader:
    """Reads one policy, and tells where in its text something is wrong."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines = text.splitlines()

    def policy(self, table: dict[str, Any]) -> Policy:
        self._check_keys(table, _OF_POLICY, None)
        rows = table.get("check", [])
        if not rows:
            raise self._wrong("has no [[check]]", None, "check")
        checks: list[Check] = []
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self._wrong("is no table: write [[check]]", None, "check")
            checks.append(self._check(row, number))
            if [check.name for check in checks].count(checks[-1].name) > 1:
                raise self._wrong(f"{checks[-1].name!r} is the name of two checks", number, "name")
        name = table.get("name", Path(self._name).stem)
        return Policy(name, tuple(checks), table.get("system", ""), table.get("calibrate", False))

    def _check(self, row: dict[str, Any], number: int) -> Check:
        self._check_keys(row, _OF_CHECK, number)
        for key in _NEEDED:
            if not row.get(key):
                raise self._wrong("is missing or empty", number, key)
        choices = tuple(row["choices"])
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise self._wrong("has a choice that is no text, or empty", number, "choices")
        if len(choices) < 2:
            raise self._wrong("needs two or more", number, "choices")
        if len({choice.lower() for choice in choices}) < len(choices):
            raise self._wrong("has the same choice twice", number, "choices")
        flag = row.get("flag", ())
        flag = (flag,) if isinstance(flag, str) else tuple(flag)
        for one in flag:
            if one not in choices:
                raise self._wrong(f"{one!r} is none of the choices {', '.join(choices)}", number, "flag")
        threshold = float(row.get("threshold", 0.5))
        if not 0 < threshold <= 1:
            raise self._wrong(f"is {threshold}, but must be above 0 and at most 1", number, "threshold")
        return Check(row["name"], row["question"], choices, flag, threshold)

    def _check_keys(self, table: dict[str, Any], known: Mapping[str, Any], number: int | None) -> None:
        for key, value in table.items():
            if key not in known:
                raise self._wrong(f"is unknown; known are {', '.join(known)}", number, key)
            kind = known[key]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise self._wrong(f"must be {_KINDS[kind]}, not {value!r}", number, key)

    def _wrong(self, what: str, number: int | None, key: str) -> UsageError:
        check = "" if number is None else f"check {number + 1}, "
        return UsageError(
            f"{self._name}, line {self._line(number, key)}: {check}{key} {what}.",
            fix="The README shows what a policy looks like.",
        )

    def _line(self, number: int | None, key: str) -> int:
        """The line of a key: of the file's head, or of the ``number``-th check; without the key, where it would be."""
        here, at = None, 1
        for n, line in enumerate(self._lines, 1):
            if _HEADER.match(line):
                here = 0 if here is None else here + 1
                if here == number:
                    at = n
            if here == number and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return n
        return at
