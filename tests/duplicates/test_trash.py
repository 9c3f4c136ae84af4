"""Files go to the trash and come back with every byte, whatever happens on the way; nothing is ever overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsplit.duplicates import trash
from qsplit.duplicates.trash import Moved, Wanted
from qsplit.errors import UsageError

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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# What keeps a file from its place, one file at a time


def gone(one: Moved) -> None:
    Path(str(one.trashed)).unlink()


def place_taken(one: Moved) -> None:
    Path(one.path).write_bytes(b"a new picture")


def folder_is_a_file(one: Moved) -> None:
    Path(one.path).parent.rmdir()
    Path(one.path).parent.write_bytes(b"a file now")


def folder_below_a_file(one: Moved) -> None:
    Path(one.path).parent.rmdir()
    Path(one.path).parent.parent.rmdir()
    Path(one.path).parent.parent.write_bytes(b"a file now")


def folder_is_a_loop(one: Moved) -> None:
    Path(one.path).parent.rmdir()
    Path(one.path).parent.symlink_to(Path(one.path).parent)


def replaced_by_a_folder(one: Moved) -> None:
    gone(one)
    Path(str(one.trashed)).mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (gone, "no longer in the trash"),
        (place_taken, "Another file is at its place"),
        (folder_is_a_file, "cannot be brought back|Another file"),
        (folder_below_a_file, "cannot be brought back: Not a directory"),
        (folder_is_a_loop, "cannot be brought back: Too many levels|Another file"),
        (replaced_by_a_folder, "no longer in the trash"),
    ],
)
def test_undo_goes_on_past_a_file_that_cannot_be_brought_back(
    tmp_path: Path, home: Path, spoil: Callable[[Moved], None], reason: str
) -> None:
    moved = move(tmp_path, wanted(tmp_path, "first.jpg", "deep/er/spoilt.jpg", "last.jpg"))
    spoil(moved[1])
    found = {Path(one.path).name: one for one in undo(tmp_path)}
    assert {name: one.state for name, one in found.items()} == {
        "first.jpg": "restored", "spoilt.jpg": "left", "last.jpg": "restored"
    }  # fmt: skip
    assert re.search(reason, found["spoilt.jpg"].reason or ""), found["spoilt.jpg"].reason
    assert (tmp_path / "first.jpg").read_bytes() == b"first.jpg"
    if spoil is not gone and spoil is not replaced_by_a_folder:
        assert Path(str(moved[1].trashed)).read_bytes() == b"deep/er/spoilt.jpg"
        assert steps(tmp_path)[-1] != "restoring"


def steps(tmp_path: Path) -> list[str]:
    return [json.loads(line).get("step", "") for line in (tmp_path / "journal").read_bytes().splitlines()]


def rewrite(journal: Path, **changes: str) -> None:
    """Put other values into every line of a journal."""
    lines = [json.loads(line) | changes for line in journal.read_bytes().splitlines()]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize("changed", ["path", "trashed", "info"])
def test_undo_goes_on_past_a_name_that_is_too_long(tmp_path: Path, home: Path, changed: str) -> None:
    """An earlier version could note names that the file system refuses."""
    move(tmp_path, wanted(tmp_path, "a.jpg"))
    rewrite(tmp_path / "journal", **{changed: str(tmp_path / ("x" * 300))})
    journal = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").unlink()
    move(tmp_path, wanted(tmp_path, "b.jpg"))
    (tmp_path / "journal").write_bytes(journal + (tmp_path / "journal").read_bytes())
    states = {Path(one.path).name: one.state for one in undo(tmp_path)}
    assert states["b.jpg"] == "restored"
    if changed != "info":
        assert "left" in states.values()


def test_recovery_goes_on_past_a_name_that_is_too_long(tmp_path: Path, home: Path) -> None:
    move(tmp_path, wanted(tmp_path, "a.jpg", "b.jpg"))
    whole = (tmp_path / "journal").read_text().splitlines(keepends=True)
    long = json.loads(whole[0]) | {"run": "1", "step": "moving", "path": str(tmp_path / "long.jpg")}
    long |= {"trashed": str(home / "files" / ("x" * 250)), "info": str(home / "info" / f"{'x' * 250}.trashinfo")}
    (tmp_path / "journal").write_text(json.dumps(long) + "\n" + "".join(whole))
    assert [one.state for one in undo(tmp_path)] == ["restored", "restored"]


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder on another disk than that of the temporary folder."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == Path.home().stat().st_dev or not os.access(shared, os.W_OK):
        pytest.skip("there is no other disk here")
    made = shared / f"qsplit-test-{os.getpid()}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def test_undo_goes_on_past_a_trash_on_another_disk(tmp_path: Path, home: Path, other_disk: Path) -> None:
    (moved, _) = move(tmp_path, wanted(tmp_path, "sub/a.jpg", "b.jpg"))
    (tmp_path / "sub").rmdir()
    (tmp_path / "sub").symlink_to(other_disk)  # as when an album is moved to a larger disk
    restored, left = undo(tmp_path)
    assert (restored.state, left.state) == ("restored", "left")
    assert "on different disks" in str(left.reason)
    assert f"Move {moved.trashed} to {moved.path}" in str(left.reason)
    assert list(other_disk.iterdir()) == []
    shutil.move(str(moved.trashed), moved.path)
    assert undo(tmp_path)[0].reason == "It is no longer in the trash."


def test_a_run_of_which_nothing_is_in_the_trash_does_not_hide_the_one_before(tmp_path: Path, home: Path) -> None:
    one, two = wanted(tmp_path, "a.jpg", "b.jpg")
    move(tmp_path, [one])
    move(tmp_path, [two])
    (home / "files" / "b.jpg").unlink()
    assert [(Path(each.path).name, each.state) for each in undo(tmp_path)] == [("b.jpg", "left"), ("a.jpg", "restored")]


def test_another_file_that_went_to_the_trash_under_the_same_name_stays_there(tmp_path: Path, home: Path) -> None:
    move(tmp_path, wanted(tmp_path, "a.jpg"))
    file(home / "files" / "a.jpg", b"of another folder")
    note = b"[Trash Info]\nPath=/elsewhere/a.jpg\nDeletionDate=2026-01-01T00:00:00\n"
    (home / "info" / "a.jpg.trashinfo").write_bytes(note)
    assert [one.reason for one in undo(tmp_path)] == ["It is no longer in the trash."]
    assert tree(home) == {"files/a.jpg": b"of another folder", "info/a.jpg.trashinfo": note}


# Names


@pytest.mark.parametrize(
    "name",
    ["x" * 246 + ".jpg", "x" * 251 + ".jpg", "ü" * 120 + ".jpeg", "照" * 84 + ".b", "a." + "y" * 252, "z" * 255],
    ids=["no room", "no room at all", "two bytes a letter", "three bytes a letter", "a long suffix", "no suffix"],
)
def test_a_name_that_leaves_no_room_for_the_note_is_shortened_in_the_trash(
    tmp_path: Path, home: Path, name: str
) -> None:
    files = wanted(tmp_path, f"one/{name}", f"two/{name}", "short.jpg")
    before = tree(tmp_path)
    assert [one.state for one in move(tmp_path, files)] == ["moved"] * 3
    for path in (home / "files").iterdir():
        assert (home / "info" / f"{path.name}.trashinfo").exists()
        assert "\ufffd" not in path.name
        assert path.suffix == Path(name).suffix or len(Path(name).suffix) > 200 or path.name == "short.jpg"
    assert [one.state for one in undo(tmp_path)] == ["restored"] * 3
    after = tree(tmp_path)
    del after["journal"]
    assert after == before


def test_a_name_that_is_not_text_goes_there_and_back(tmp_path: Path, home: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    try:
        keep = file(tmp_path / "keep.jpg", b"kept")
        sha = file(tmp_path / name, b"its bytes")
    except OSError as error:
        pytest.skip(f"this file system takes text alone: {error}")
    assert [one.state for one in move(tmp_path, [Wanted(str(tmp_path / name), sha, "copy", str(tmp_path / "keep.jpg"), keep)])] == ["moved"]  # fmt: skip  # noqa: E501
    assert b"caf%E9%20%FF.jpg" in (home / "info" / f"{name}.trashinfo").read_bytes()
    assert [one.state for one in undo(tmp_path)] == ["restored"]
    assert (tmp_path / name).read_bytes() == b"its bytes"
    assert tree(home) == {}


# The trash of another disk


@pytest.mark.parametrize("whose", ["own", "new", "a link", "another user's", "its files a link"])
def test_a_trash_on_another_disk_is_used_only_if_it_is_the_users_own(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    there = other_disk / f".Trash-{os.getuid()}"
    monkeypatch.setattr(trash, "_topdir_trash", lambda _: there)  # the real top is no place for a test
    if whose == "a link":
        (other_disk / "elsewhere").mkdir()
        there.symlink_to(other_disk / "elsewhere")
    elif whose != "new":
        there.mkdir(mode=0o700)
    if whose == "its files a link":
        (other_disk / "elsewhere").mkdir()
        (there / "files").symlink_to(other_disk / "elsewhere")
    if whose == "another user's":
        if os.getuid():
            pytest.skip("only root can make a folder of another user")
        os.chown(there, 65534, 65534)
    files = wanted(other_disk, "album/a.jpg")
    (one,) = move(tmp_path, files)
    if whose in ("own", "new"):
        assert one.state == "moved"
        assert b"\nPath=album/a.jpg\n" in (there / "info" / "a.jpg.trashinfo").read_bytes()
        assert there.stat().st_mode & 0o777 == 0o700
        (one,) = undo(tmp_path)
        assert one.state == "restored"
    else:
        assert one.state == "left"
        assert "a link, or belongs to another user" in str(one.reason)
    assert Path(files[0].path).read_bytes() == b"album/a.jpg"
    assert sum(data == b"album/a.jpg" for data in tree(other_disk).values()) == 1


# The journal, and what recovery may do


def interrupted(tmp_path: Path, step: str) -> Wanted:
    """A file whose journal ends with a step that was begun."""
    (one,) = wanted(tmp_path, "a.jpg")
    move(tmp_path, [one])
    rewrite(tmp_path / "journal", step=step)
    return one


@pytest.mark.parametrize("content", [b"edited since", b"\0"])
def test_recovery_of_an_undo_leaves_a_file_that_has_content(tmp_path: Path, home: Path, content: bytes) -> None:
    one = interrupted(tmp_path, "restoring")
    Path(one.path).write_bytes(content)
    assert [each.reason for each in undo(tmp_path)] == ["Another file is at its place."]
    assert Path(one.path).read_bytes() == content
    assert tree(home)["files/a.jpg"] == b"a.jpg"


def test_recovery_of_an_undo_removes_the_name_that_was_reserved(tmp_path: Path, home: Path) -> None:
    one = interrupted(tmp_path, "restoring")
    Path(one.path).touch()
    assert [each.state for each in undo(tmp_path)] == ["restored"]
    assert Path(one.path).read_bytes() == b"a.jpg"


def test_recovery_removes_no_link(tmp_path: Path, home: Path) -> None:
    one = interrupted(tmp_path, "restoring")
    (tmp_path / "empty").touch()
    Path(one.path).symlink_to(tmp_path / "empty")
    assert [each.state for each in undo(tmp_path)] == ["left"]
    assert Path(one.path).is_symlink()
    assert (tmp_path / "empty").exists()


@pytest.mark.parametrize("note", [b"one line", b"[Trash Info]\n", b"[Trash Info]\nPath=/another\n", b"a\n\nb"])
def test_recovery_of_a_move_leaves_notes_of_others(tmp_path: Path, home: Path, note: bytes) -> None:
    interrupted(tmp_path, "moving")
    (home / "files" / "a.jpg").unlink()
    (home / "info" / "a.jpg.trashinfo").write_bytes(note)
    assert undo(tmp_path) == []
    assert tree(home) == {"info/a.jpg.trashinfo": note}
    assert steps(tmp_path)[-1] == "given up"


def test_recovery_removes_no_file_that_is_not_a_note_of_the_trash(tmp_path: Path, home: Path) -> None:
    interrupted(tmp_path, "moving")
    (home / "files" / "a.jpg").unlink()
    (tmp_path / "empty").touch()
    rewrite(tmp_path / "journal", info=str(tmp_path / "empty"))
    undo(tmp_path)
    assert (tmp_path / "empty").exists()


@pytest.mark.parametrize("step", ["moving", "restoring", "moved"])
def test_what_lies_in_a_trash_that_is_not_mounted_is_brought_back_later(tmp_path: Path, home: Path, step: str) -> None:
    one = interrupted(tmp_path, step)
    home.rename(tmp_path / "unmounted")
    assert [each.state for each in undo(tmp_path)] == ["left"] * (step == "moved")
    (tmp_path / "unmounted").rename(home)
    assert [each.state for each in undo(tmp_path)] == ["restored"]
    assert Path(one.path).read_bytes() == b"a.jpg"


@pytest.mark.parametrize("doing", ["move", "undo"])
def test_each_step_is_on_disk_before_it_is_done(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    files = wanted(tmp_path, "a.jpg", "b.jpg")
    if doing == "undo":
        move(tmp_path, files)
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flushed(handle: int) -> None:
        fsync(handle)
        if os.path.samestat(os.fstat(handle), os.stat(tmp_path / "journal")):  # noqa: PTH116
            done.append(f"journal: {steps(tmp_path)[-1]}")

    def renamed(*names: Any) -> None:
        rename(*names)
        done.append("rename")

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    move(tmp_path, files) if doing == "move" else undo(tmp_path)
    begun, ended = ("moving", "moved") if doing == "move" else ("restoring", "restored")
    assert done == [f"journal: {begun}", "rename", f"journal: {ended}"] * 2


def test_the_journal_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    move(tmp_path, wanted(tmp_path, "a.jpg"))
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder"])
def test_a_journal_that_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    files, journal = wanted(tmp_path, "a.jpg"), tmp_path / "journal"
    if kind == "fifo":
        os.mkfifo(journal)
    elif kind == "folder":
        journal.mkdir()
    else:
        journal.symlink_to(tmp_path / "target")
        if kind == "link":
            (tmp_path / "target").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be written"):
        move(tmp_path, files)
    with pytest.raises(UsageError, match="cannot be written"):
        undo(tmp_path)
    assert Path(files[0].path).exists()
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_bytes() == b""


def test_a_line_for_which_the_disk_had_no_room_does_not_spoil_the_journal(tmp_path: Path) -> None:
    one, two = wanted(tmp_path, "a.jpg", "b.jpg")
    move(tmp_path, [one])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal").stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(UsageError, match=f"cannot be written: {os.strerror(errno.EFBIG)}"):
            move(tmp_path, [two])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path(two.path).exists()
    move(tmp_path, [two])
    assert [each.state for each in undo(tmp_path)] == ["restored"]


def test_a_journal_in_which_nothing_is_written_yet_stays_with_the_run_that_made_it(tmp_path: Path) -> None:
    def others() -> Iterator[Wanted]:
        with pytest.raises(UsageError, match="in use by another process"):
            undo(tmp_path)
        yield from wanted(tmp_path, "a.jpg")

    assert [one.state for one in trash.move(tmp_path / "journal", others())] == ["moved"]
    assert [one.state for one in undo(tmp_path)] == ["restored"]


def test_a_run_that_is_under_way_is_not_taken_for_one_that_was_cut_off(tmp_path: Path, home: Path) -> None:
    running = trash.move(tmp_path / "journal", wanted(tmp_path, "a.jpg", "b.jpg"))
    assert next(running).state == "moved"
    with pytest.raises(UsageError, match="in use by another process"):
        undo(tmp_path)
    assert [one.state for one in running] == ["moved"]
    assert [one.state for one in undo(tmp_path)] == ["restored"] * 2


# Journals of before


def old_move(store: Path, home: Path, path: Path, data: bytes, changes: dict[str, str] | None = None) -> dict[str, str]:
    """Move a file as earlier versions did, which kept the journal in the store -> the last line of the journal."""
    name, changes = path.name, changes or {}
    trashed, info = home / "files" / name, home / "info" / f"{name}.trashinfo"
    sha = file(trashed, data)
    note = f"[Trash Info]\nPath={quote(changes.get('path', str(path)))}\nDeletionDate=2026-05-01T10:00:00\n"
    file(info, note.encode())
    entry = {"run": "1", "step": "moving", "path": str(path), "image_id": sha, "kind": "exact", "keep": "/kept.jpg"}
    entry |= {"trashed": str(trashed), "info": str(info), "step": "moved", **changes}
    store.mkdir(exist_ok=True)
    with (store / "trash.journal").open("a") as journal:
        for line in (entry | {"step": "moving"}, entry):
            journal.write(json.dumps(line, ensure_ascii=False) + "\n")
    return entry


def adopt(tmp_path: Path, *rows: Path) -> int:
    known = {str(path) for path in rows}
    return trash.adopt(tmp_path / "journal", tmp_path / "store" / "trash.journal", "store", known.intersection)


@pytest.mark.parametrize("step", ["moved", "moving", "restoring"])
def test_a_journal_of_before_is_taken_over(tmp_path: Path, home: Path, step: str) -> None:
    path, other = tmp_path / "album" / "ä b.jpg", tmp_path / "album" / "second.jpg"
    old_move(tmp_path / "store", home, path, b"its bytes", {"step": step})
    old_move(tmp_path / "store", home, other, b"others", {"run": "2"})
    old = (tmp_path / "store" / "trash.journal").read_bytes()
    assert adopt(tmp_path, path, other) == 0
    assert [one.path for one in undo(tmp_path)] == [str(other)]
    assert [(one.path, one.state) for one in undo(tmp_path)] == [(str(path), "restored")]
    assert path.read_bytes() == b"its bytes"
    assert (tree(home), undo(tmp_path)) == ({}, [])
    assert adopt(tmp_path, path, other) == 0, "once"
    assert undo(tmp_path) == []
    assert (tmp_path / "store" / "trash.journal").read_bytes() == old


def no_note(entry: dict[str, str]) -> None:
    Path(entry["info"]).unlink()


def note_of_another(entry: dict[str, str]) -> None:
    Path(entry["info"]).write_text(f"[Trash Info]\nPath={entry['path']}.old\nDeletionDate=2026-05-01T10:00:00\n")


def other_content(entry: dict[str, str]) -> None:
    Path(entry["trashed"]).write_bytes(b"what nobody indexed")


def a_link_in_the_trash(entry: dict[str, str]) -> None:
    Path(entry["trashed"]).rename(f"{entry['trashed']}.away")
    Path(entry["trashed"]).symlink_to(f"{entry['trashed']}.away")


@pytest.mark.parametrize(
    "change",
    [
        no_note, note_of_another, other_content, a_link_in_the_trash,
        {"path": "/etc/not/a/row.jpg"}, {"trashed": "{store}/payload.jpg"}, {"trashed": "{home}/a.jpg"},
        {"trashed": "{home}/files/../../payload.jpg"}, {"info": "{store}/a.jpg.trashinfo"},
        {"path": "{store}/../album/a.jpg"}, {"path": "album/a.jpg"},
        {"image_id": "0" * 64}, {"run": "-1"}, {"run": "9" * 5000}, {"trashed": "a\0b"},
    ],
)  # fmt: skip
def test_what_the_trash_does_not_confirm_of_a_journal_of_before_is_refused(
    tmp_path: Path, home: Path, change: Callable[[dict[str, str]], None] | dict[str, str]
) -> None:
    path, store = tmp_path / "album" / "a.jpg", tmp_path / "store"
    file(store / "payload.jpg", b"its bytes")
    file(home.parent / "payload.jpg", b"its bytes")
    changes = {} if callable(change) else {k: v.format(store=store, home=home) for k, v in change.items()}
    entry = old_move(store, home, path, b"its bytes", changes)
    if callable(change):
        change(entry)
    before = tree(tmp_path)
    known = {str(path)} if entry["path"].startswith("/etc") else {str(path), entry["path"]}
    trash.adopt(tmp_path / "journal", store / "trash.journal", "store", known.intersection)
    assert undo(tmp_path) == []
    after = tree(tmp_path)
    after.pop("journal", None)
    assert after == before


@pytest.mark.parametrize("whose", ["own", "writable by others", "another user's"])
def test_a_trash_on_another_disk_confirms_only_if_the_user_alone_writes_to_it(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    there = other_disk / f".Trash-{os.getuid()}"
    monkeypatch.setattr(trash, "_topdir_trash", lambda _: there)  # the real top is no place for a test
    path = other_disk / "album" / "a.jpg"
    entry = old_move(tmp_path / "store", there, path, b"its bytes")
    note = b"[Trash Info]\nPath=album/a.jpg\nDeletionDate=2026-05-01T10:00:00\n"
    Path(entry["info"]).write_bytes(note)
    for folder in (there, there / "files", there / "info"):
        folder.chmod(0o777 if whose == "writable by others" else 0o700)
        if whose == "another user's":
            if os.getuid():
                pytest.skip("only root can make a folder of another user")
            os.chown(folder, 65534, 65534)
    assert adopt(tmp_path, path) == (whose != "own")
    assert [one.state for one in undo(tmp_path)] == ["restored"] * (whose == "own")


@pytest.mark.parametrize("lines", [b"", b"words\n", b'{"run": "1"}\n', b'{"run": [' * 9_999, b"\xff\n[1]\n{}\n"])
def test_a_journal_of_before_that_makes_no_sense_is_passed_over(tmp_path: Path, home: Path, lines: bytes) -> None:
    path = tmp_path / "album" / "a.jpg"
    old_move(tmp_path / "store", home, path, b"its bytes")
    journal = tmp_path / "store" / "trash.journal"
    journal.write_bytes(lines + b"\n" + journal.read_bytes())
    assert adopt(tmp_path, path) == 0
    assert [one.state for one in undo(tmp_path)] == ["restored"]


def test_a_journal_of_before_that_is_not_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "trash.journal")
    with pytest.raises(OSError, match="not a regular file"):
        adopt(tmp_path)
    (tmp_path / "store" / "trash.journal").unlink()
    (tmp_path / "elsewhere").touch()
    (tmp_path / "store" / "trash.journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        adopt(tmp_path)


def test_a_journal_of_ones_own_is_taken_over_whole(tmp_path: Path, home: Path) -> None:
    moved = move(tmp_path, wanted(tmp_path, "a.jpg", "b.jpg"))
    (tmp_path / "journal").rename(tmp_path / "old")
    (home / "info" / "a.jpg.trashinfo").unlink()
    for _ in range(2):
        trash.take_over(tmp_path / "journal", tmp_path / "old", "old")
    assert [one.state for one in undo(tmp_path)] == ["restored"] * len(moved)
    trash.take_over(tmp_path / "journal", tmp_path / "old", "old")
    assert undo(tmp_path) == []
