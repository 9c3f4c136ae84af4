"""`qsplit duplicates` as a user types it: nothing moves unless it is asked for, and all of it comes back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qsplit import cli
from qsplit.comparing import Evidence
from qsplit.dedupe import Group, Member
from qsplit.trash import Moved


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Typed:
    """Runs `qsplit duplicates` on one album."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: object, command: str = "duplicates") -> Result:
        given = [command, *map(str, arguments), "--store", str(self.folder.with_suffix(".qsplit"))]
        with pytest.raises(SystemExit) as exited:
            cli.main(given)
        captured = self._capsys.readouterr()
        return Result(int(exited.value.code or 0), captured.out, captured.err)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


@pytest.fixture
def qsplit(
    tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Typed:
    """A photograph, the same again, a copy of it saved badly, and another photograph."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(photos[0], folder / "one.jpg")
    shutil.copy(photos[0], folder / "one again.jpg")
    shutil.copy(photos[1], folder / "other.jpg")
    with Image.open(photos[0]) as opened:
        opened.convert("RGB").save(folder / "small.jpg", quality=40)
    typed = Typed(folder, capsys)
    assert typed(folder, command="index").code == 0
    return typed


def named(fields_of: type[Any]) -> set[str]:
    return {field.name for field in fields(fields_of)}


def test_groups_are_listed_with_their_evidence(qsplit: Typed) -> None:
    before = qsplit.files()
    exact, copy = qsplit("--json").lines
    assert exact.keys() == copy.keys() == named(Group)
    assert (exact["kind"], copy["kind"]) == ("exact", "copy")
    assert copy["members"][1].keys() == named(Member)
    assert copy["members"][1]["evidence"].keys() == named(Evidence)
    assert exact["members"][1]["evidence"] is None
    assert exact["members"][1]["movable"]
    assert not copy["members"][1]["movable"]
    (named_copy,) = qsplit("--kind", "copy", "--json").lines
    assert named_copy["members"][1]["movable"]
    plain = qsplit()
    assert plain.code == 0
    assert "patches" in plain.out
    assert "of pixels agree" in plain.out
    assert qsplit.files() == before


def test_kinds_are_chosen(qsplit: Typed) -> None:
    assert [line["kind"] for line in qsplit("--kind", "copy", "--json").lines] == ["copy"]
    assert qsplit("--kind", "pixels").code == 5
    assert qsplit("--kind", "near").code == 2


ALL = ("--kind", "exact", "--kind", "pixels", "--kind", "copy")


def test_trash_and_undo(qsplit: Typed) -> None:
    before = qsplit.files()
    moved = qsplit("--trash", *ALL, "--json")
    assert moved.code == 0
    assert [line.keys() for line in moved.lines] == [named(Moved)] * 2
    assert {line["state"] for line in moved.lines} == {"moved"}
    assert qsplit.files().keys() == {"one.jpg", "other.jpg"}
    again = qsplit("--trash", *ALL)
    assert (again.code, again.err) == (5, "There is nothing to move.\n")
    back = qsplit("--undo")
    assert back.out.count("restored: ") == 2
    assert qsplit.files() == before
    assert qsplit("--undo").code == 5


def test_what_cannot_be_moved_is_said(qsplit: Typed) -> None:
    (qsplit.folder / "small.jpg").write_bytes(b"edited meanwhile")
    result = qsplit("--trash", *ALL)
    assert result.code == 1
    assert "left: " in result.out
    assert "index it again" in result.out
    assert (qsplit.folder / "small.jpg").read_bytes() == b"edited meanwhile"


def test_keep_and_protect(qsplit: Typed) -> None:
    (copy,) = qsplit("--kind", "copy", "--keep", "in:*/small.jpg", "--json").lines
    assert copy["keep"].endswith("small.jpg")
    assert qsplit("--protect", qsplit.folder, "--trash").code == 5
    wrong = qsplit("--keep", "nicest", "--json")
    assert wrong.code == 2
    assert "no rule 'nicest'" in wrong.lines[0]["error"]["message"]


def test_not_duplicates_stays_said(qsplit: Typed) -> None:
    assert qsplit("--not", qsplit.folder / "one.jpg", qsplit.folder / "small.jpg").code == 0
    assert [line["kind"] for line in qsplit("--json").lines] == ["exact"]
    assert qsplit(qsplit.folder, command="index").code == 0
    assert [line["kind"] for line in qsplit("--json").lines] == ["exact"]
    same = qsplit("--not", qsplit.folder / "one.jpg", qsplit.folder / "one again.jpg")
    assert same.code == 2
    assert "--protect" in same.err
    assert qsplit("--unsay", qsplit.folder / "small.jpg", qsplit.folder / "one.jpg").code == 0
    assert [line["kind"] for line in qsplit("--json").lines] == ["exact", "copy"]
    assert qsplit("--unsay", qsplit.folder / "small.jpg", qsplit.folder / "one.jpg").code == 5


def test_the_report(qsplit: Typed, tmp_path: Path) -> None:
    assert qsplit("--report", tmp_path / "out.html").code == 0
    text = (tmp_path / "out.html").read_text()
    assert "2 groups" in text
    assert qsplit("--report", tmp_path / "out.txt").code == 2


def test_one_thing_at_a_time(qsplit: Typed) -> None:
    assert qsplit("--trash", "--undo").code == 2


def test_a_snapshot_is_no_place_to_move_from(qsplit: Typed) -> None:
    assert qsplit("before", command="snapshot").code == 0
    assert [line["kind"] for line in qsplit("--at", "before", "--json").lines] == ["exact", "copy"]
    result = qsplit("--at", "before", "--trash")
    assert result.code == 2
    assert "--at" in result.err
