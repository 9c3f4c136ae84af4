"""Files go to the trash and come back with every byte, whatever happens on the way; nothing is ever overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsplit import trash
from qsplit.errors import UsageError
from qsplit.trash import Moved, Wanted

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="the FreeDesktop trash is not macOS's")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trash of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "Trash"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest(data)


def wanted(tmp_path: Path, *names: str) -> list[Wanted]:
    """Files to move, each with bytes of its own, and one to keep."""
    keep = file(tmp_path / "keep.jpg", b"kept")
    return [
        Wanted(str(tmp_path / n), file(tmp_path / n, n.encode()), "copy", str(tmp_path / "keep.jpg"), keep)
        for n in names
    ]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def move(tmp_path: Path, files: list[Wanted]) -> list[Moved]:
    return list(trash.move(tmp_path / "journal", files))


def undo(tmp_path: Path) -> list[Moved]:
    return trash.undo(tmp_path / "journal")


def test_there_and_back(tmp_path: Path, home: Path) -> None:
    files = wanted(tmp_path, "a.jpg", "sub/ü %20\n.jpg", "sub/a.jpg")
    before = tree(tmp_path)
    assert [one.state for one in move(tmp_path, files)] == ["moved"] * 3
    assert not any(Path(one.path).exists() for one in files)
    assert {path.name for path in (home / "files").iterdir()} == {"a.jpg", "a 2.jpg", "ü %20\n.jpg"}
    assert [one.state for one in undo(tmp_path)] == ["restored"] * 3
    after = tree(tmp_path)
    del after["journal"]
    assert after == before


def test_the_trash_is_that_of_the_specification(tmp_path: Path, home: Path) -> None:
    (one,) = wanted(tmp_path, "sub/ü %20.jpg")
    (moved,) = move(tmp_path, [one])
    note = ConfigParser(interpolation=None)
    note.read(home / "info" / "ü %20.jpg.trashinfo", encoding="utf-8")
    assert list(note["Trash Info"]) == ["path", "deletiondate"]
    assert unquote(note["Trash Info"]["Path"]) == one.path
    assert note["Trash Info"]["DeletionDate"][4] == "-"
    assert moved.trashed == str(home / "files" / "ü %20.jpg")
    assert home.stat().st_mode & 0o777 & (home / "info").stat().st_mode == 0o700
    undo(tmp_path)
    assert list((home / "info").iterdir()) == []


def test_what_others_have_in_the_trash_stays(tmp_path: Path, home: Path) -> None:
    file(home / "files" / "a.jpg", b"another's")
    file(home / "info" / "a 2.jpg.trashinfo", b"a note without a file")
    move(tmp_path, wanted(tmp_path, "a.jpg"))
    assert tree(home)["files/a.jpg"] == b"another's"
    assert tree(home)["files/a 3.jpg"] == b"a.jpg"
    undo(tmp_path)
    assert tree(home) == {"files/a.jpg": b"another's", "info/a 2.jpg.trashinfo": b"a note without a file"}


def changed(path: Path) -> None:
    path.write_bytes(b"other bytes")


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "keep.jpg")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (changed, "not what was indexed"),
        (lambda path: changed(path.parent / "keep.jpg"), r"The file to keep \(.*keep.jpg\) is not what was indexed"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: (path.parent / "keep.jpg").unlink(), r"The file to keep \(.*\) cannot be read"),
        (linked, "not what was indexed"),
    ],
)
def test_what_is_not_what_it_was_stays(tmp_path: Path, home: Path, act: Callable[[Path], Any], reason: str) -> None:
    one, other = wanted(tmp_path, "a.jpg", "b.jpg")
    act(tmp_path / "a.jpg")
    before = tree(tmp_path)
    (left,) = move(tmp_path, [one])
    assert left.state == "left"
    assert re.search(reason, left.reason or ""), left.reason
    assert tree(tmp_path) == before
    if (tmp_path / "keep.jpg").exists() and (tmp_path / "keep.jpg").read_bytes() == b"kept":
        assert [one.state for one in move(tmp_path, [other])] == ["moved"]


@pytest.mark.parametrize("link", ["symbolic", "to the one that is kept", "hard"])
def test_links_to_the_kept_file_stay(tmp_path: Path, link: str) -> None:
    """To move the file that a link shows would leave the link, perhaps the name that is kept, without a picture."""
    sha = file(tmp_path / "real.jpg", b"the only copy")
    other = tmp_path / "other.jpg"
    if link == "hard":
        other.hardlink_to(tmp_path / "real.jpg")
    else:
        other.symlink_to(tmp_path / "real.jpg")
    pair = (other, tmp_path / "real.jpg") if link != "to the one that is kept" else (tmp_path / "real.jpg", other)
    (left,) = move(tmp_path, [Wanted(str(pair[0]), sha, "exact", str(pair[1]), sha)])
    assert left.state == "left"
    assert (tmp_path / "real.jpg").read_bytes() == b"the only copy"


def test_nothing_is_overwritten_by_undo(tmp_path: Path, home: Path) -> None:
    move(tmp_path, wanted(tmp_path, "a.jpg", "b.jpg"))
    file(tmp_path / "a.jpg", b"a new picture")
    states = {Path(one.path).name: one.state for one in undo(tmp_path)}
    assert states == {"a.jpg": "left", "b.jpg": "restored"}
    assert (tmp_path / "a.jpg").read_bytes() == b"a new picture"
    assert tree(home)["files/a.jpg"] == b"a.jpg"
    (tmp_path / "a.jpg").unlink()
    assert [one.state for one in undo(tmp_path)] == ["restored"]
    assert (tmp_path / "a.jpg").read_bytes() == b"a.jpg"


def test_runs_are_undone_one_by_one(tmp_path: Path, home: Path) -> None:
    one, two, three = wanted(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    move(tmp_path, [one, two])
    move(tmp_path, [three])
    assert [Path(each.path).name for each in undo(tmp_path)] == ["c.jpg"]
    (home / "files" / "a.jpg").unlink()  # the trash was emptied of it
    found = undo(tmp_path)
    assert [(Path(each.path).name, each.state) for each in found] == [("b.jpg", "restored"), ("a.jpg", "left")]
    assert found[1].reason == "It is no longer in the trash."


def test_moving_again_moves_nothing(tmp_path: Path) -> None:
    files = wanted(tmp_path, "a.jpg")
    move(tmp_path, files)
    after = tree(tmp_path)
    assert [one.state for one in move(tmp_path, files)] == ["left"]
    assert tree(tmp_path) == after
    assert [one.state for one in undo(tmp_path)] == ["restored"]
    assert undo(tmp_path) == []


class Cut(BaseException):
    """The power goes."""


def cut_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the process, as it were, before or after its N-th flush, rename or unlink."""
    left = [after]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            result = real(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            return result

        return act

    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("doing", ["move", "undo"])
def test_a_crash_anywhere_loses_nothing(tmp_path: Path, home: Path, doing: str) -> None:
    """After a crash at each step: each file is whole, in its place or in the trash; an undo ends where all began."""
    steps = 0
    for after in range(1, 200):
        place = tmp_path / str(after)
        place.mkdir()
        files = wanted(place, "a.jpg", "b.jpg")
        before = tree(place)
        if doing == "undo":
            move(place, files)
        with pytest.MonkeyPatch.context() as patch:
            cut_off(patch, after)
            try:
                list(trash.move(place / "journal", files)) if doing == "move" else trash.undo(place / "journal")
            except Cut:
                steps += 1
            else:
                break
        held = [*tree(place).values(), *tree(home).values()]
        assert all(held.count(name.encode()) == 1 for name in ("a.jpg", "b.jpg")), after
        undo(place)
        after_all = tree(place)
        after_all.pop("journal", None)
        assert after_all == before, after
        assert tree(home) == {}, after
        assert undo(place) == []
    assert steps >= 12


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_journal_whose_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    move(tmp_path, wanted(tmp_path, "a.jpg"))
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert [one.state for one in undo(tmp_path)] == ["restored"]
    assert (tmp_path / "a.jpg").read_bytes() == b"a.jpg"
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'{"run": "1"}\n')
    with pytest.raises(UsageError, match="cannot be understood"):
        undo(tmp_path)


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    files = wanted(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="cannot be written"):
        list(trash.move(tmp_path / "nowhere" / "journal", files))
    assert Path(files[0].path).exists()


@given(st.lists(st.sampled_from(["move a", "move b", "undo", "rewrite a", "empty"]), max_size=12))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_done_in_whatever_order(tmp_path_factory: pytest.TempPathFactory, acts: list[str]) -> None:
    """Bytes that were there are there, until the trash is emptied by others or a file rewritten by its owner."""
    place = tmp_path_factory.mktemp("acts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(place / "data"))
        one, other = wanted(place, "a.jpg", "b.jpg")
        alive = {b"a.jpg", b"b.jpg"}
        for act in acts:
            match act:
                case "undo":
                    undo(place)
                case "rewrite a":
                    if (place / "a.jpg").exists():
                        alive.discard((place / "a.jpg").read_bytes())
                    (place / "a.jpg").write_bytes(b"new")
                    alive.add(b"new")
                case "empty":
                    for path in (place / "data").rglob("*"):
                        if path.is_file():
                            alive.discard(path.read_bytes())
                            path.unlink()
                case _:
                    move(place, [one if act.endswith("a") else other])
            assert alive <= set(tree(place).values())
