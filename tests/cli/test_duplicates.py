"""`qsplit duplicates` as a user types it: nothing moves unless it is asked for, and all of it comes back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lance
import pytest
from PIL import Image
from strangers import strangers_journal

from qsplit.cli import main
from qsplit.duplicates.detector import Group, Member
from qsplit.duplicates.matching.comparison import Evidence
from qsplit.duplicates.trash import Moved
from qsplit.store.feature_store import FeatureStore


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

    def __call__(self, *arguments: object, command: str = "duplicates", store: object = None) -> Result:
        given = [command, *map(str, arguments), "--store", str(store or self.folder.with_suffix(".qsplit"))]
        with pytest.raises(SystemExit) as exited:
            main.main(given)
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


# The journal


def test_the_journal_lies_in_the_users_own_folder(qsplit: Typed, tmp_path: Path) -> None:
    store = qsplit.folder.with_suffix(".qsplit")
    assert qsplit("--trash").code == 0
    assert [path.name for path in store.iterdir() if path.suffix != ".lance"] == ["writers.lock"]
    (journal,) = (tmp_path / "data" / "qsplit").rglob("trash.journal")
    assert journal.parent.name == FeatureStore(store).id
    assert [one.stat().st_mode & 0o777 for one in (journal, *journal.parents[:2])] == [0o600, 0o700, 0o700]


@pytest.mark.parametrize("form", ["moved", "another form", "a link"])
def test_the_journal_is_found_wherever_the_store_is(qsplit: Typed, tmp_path: Path, form: str) -> None:
    before = qsplit.files()
    assert qsplit("--trash").code == 0
    store = qsplit.folder.with_suffix(".qsplit")
    there: object = tmp_path / "elsewhere.qsplit"
    if form == "another form":
        there = store.as_uri()
    elif form == "a link":
        (tmp_path / "elsewhere.qsplit").symlink_to(store)
    else:
        store.rename(tmp_path / "elsewhere.qsplit")
    assert qsplit("--undo", store=there).code == 0
    assert qsplit.files() == before


@pytest.mark.parametrize("option", ["--undo", "--trash"])
def test_a_journal_in_a_strangers_store_moves_and_removes_nothing(qsplit: Typed, tmp_path: Path, option: str) -> None:
    own = tmp_path / "own"
    store = qsplit.folder.with_suffix(".qsplit")
    (qsplit.folder / "one again.jpg").unlink()
    (qsplit.folder / "small.jpg").unlink()
    assert qsplit(qsplit.folder, command="index").code == 0
    lines = strangers_journal(store, own)
    files = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    result = qsplit(option)
    assert (result.code, result.out) == (5, "")
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == files
    assert (store / "payload.bin").exists()
    assert (store / "trash.journal").read_bytes() == lines
    assert "Traceback" not in result.err


def test_a_journal_of_an_earlier_version_is_undone(qsplit: Typed, tmp_path: Path) -> None:
    """Earlier versions kept the journal in the store, and stores had no id."""
    before = qsplit.files()
    store, moved, data = (
        qsplit.folder.with_suffix(".qsplit"),
        qsplit.folder / "one again.jpg",
        tmp_path / "data" / "Trash",
    )
    for name in ("files", "info"):
        (data / name).mkdir(parents=True)
    entry = {"run": "1", "step": "moving", "path": str(moved), "kind": "exact", "keep": str(qsplit.folder / "one.jpg")}
    entry |= {"image_id": hashlib.sha256(moved.read_bytes()).hexdigest(), "trashed": str(data / "files" / moved.name)}
    entry |= {"info": str(data / "info" / f"{moved.name}.trashinfo")}
    Path(entry["info"]).write_text(
        f"[Trash Info]\nPath={str(moved).replace(' ', '%20')}\nDeletionDate=2026-05-01T10:00:00\n"
    )
    moved.rename(entry["trashed"])
    written = "".join(json.dumps(entry | {"step": step}) + "\n" for step in ("moving", "moved"))
    (store / "trash.journal").write_text(written)
    without_id(store)
    back = qsplit("--undo")
    assert (back.code, back.out) == (0, f"restored: {moved}\n")
    assert qsplit.files() == before
    assert list((data / "info").iterdir()) == []
    assert qsplit("--undo").code == 5
    assert (store / "trash.journal").read_text() == written


def without_id(store: Path) -> None:
    """Make a store as it was before stores had ids."""
    files = lance.dataset(str(store / "files.lance"))
    held = {key.decode(): value.decode() for key, value in files.schema.metadata.items()}
    del held["qsplit.id"]
    files.update_schema_metadata(held, replace=True)
    assert FeatureStore(store).id == ""


def test_there_is_nothing_to_undo_in_a_store_without_an_id(qsplit: Typed, tmp_path: Path) -> None:
    store = qsplit.folder.with_suffix(".qsplit")
    without_id(store)
    assert qsplit("--undo").code == 5
    assert FeatureStore(store).id == ""
    assert not (tmp_path / "data" / "qsplit").exists()


def test_undo_tells_each_file_that_stays(qsplit: Typed, tmp_path: Path) -> None:
    moved = {Path(line["path"]).name: Path(line["trashed"]) for line in qsplit("--trash", *ALL, "--json").lines}
    moved["one again.jpg"].unlink()
    back = qsplit("--undo")
    assert back.code == 1
    assert f"restored: {qsplit.folder / 'small.jpg'}\n" in back.out
    assert f"left: {qsplit.folder / 'one again.jpg'}: It is no longer in the trash.\n" in back.out
    assert back.err == ""


def test_a_long_name_is_moved_and_comes_back(qsplit: Typed) -> None:
    os.rename(qsplit.folder / "one again.jpg", qsplit.folder / ("x" * 246 + ".jpg"))  # noqa: PTH104
    assert qsplit(qsplit.folder, command="index").code == 0
    before = qsplit.files()
    assert qsplit("--trash").code == 0
    assert qsplit("--undo").code == 0
    assert qsplit.files() == before
    assert qsplit("--trash").code == 0
