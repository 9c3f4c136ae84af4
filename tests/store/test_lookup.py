"""What a user calls a picture: never another one than was meant."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import rows
from PIL import Image

from qsplit.errors import NotFound, NotIndexed, UnreadableImage, UsageError
from qsplit.media.images import Limits, decode, read_bytes
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import absolute, locate
from qsplit.store.records import FileRow


def add(store: FeatureStore, path: Path, colour: str, limits: Limits) -> str:
    """Put a file into the store as indexing would, without a model; returns its image id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56), colour).save(path)
    content = read_bytes(path, limits)
    store.put_images([decode(content.data, name=str(path), limits=limits)])
    store.put_files([FileRow(str(path), content.image_id, content.size, content.mtime_ns, "ok")])
    return content.image_id


@pytest.fixture
def red(store: FeatureStore, tmp_path: Path, limits: Limits) -> str:
    return add(store, tmp_path / "trip" / "beach" / "red.png", "red", limits)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trip").mkdir()
    monkeypatch.chdir(tmp_path / "trip")
    monkeypatch.setenv("HOME", str(tmp_path))


def ways(tmp_path: Path) -> list[str | Path]:
    return [
        tmp_path / "trip" / "beach" / "red.png",
        str(tmp_path / "trip" / "beach" / "red.png"),
        "beach/red.png",
        "./beach/red.png",
        "beach/../beach//red.png",
        "~/trip/beach/red.png",
        Path("beach/red.png"),
    ]


def test_by_its_path(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    for name in ways(tmp_path):
        found = locate(store, name, limits)
        assert (found.image.image_id, found.path) == (red, str(tmp_path / "trip/beach/red.png"))


def test_by_its_path_when_the_file_is_gone(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    (tmp_path / "trip/beach/red.png").unlink()
    for name in ways(tmp_path):
        found = locate(store, name, limits)
        assert (found.image.image_id, found.path) == (red, str(tmp_path / "trip/beach/red.png"))


def test_a_whole_id_needs_no_paths(
    store: FeatureStore, tmp_path: Path, limits: Limits, red: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureStore, "files", lambda *_: pytest.fail("every path was read"))
    assert locate(store, red, limits).path == str(tmp_path / "trip/beach/red.png")


def test_a_known_path_is_not_read_again(
    store: FeatureStore, tmp_path: Path, limits: Limits, red: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsplit.store.lookup.read_bytes", pytest.fail)
    assert locate(store, tmp_path / "trip/beach/red.png", limits).image.image_id == red


@pytest.mark.parametrize("name", ["red.png", "beach/red.png", "./beach/red.png", "trip/beach/red.png"])
def test_by_the_end_of_its_path(
    store: FeatureStore, limits: Limits, red: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert locate(store, name, limits).image.image_id == red


@pytest.mark.parametrize(
    "name",
    ["ed.png", "each/red.png", "/red.png", "../red.png", "beach", "~/red.png", "", ".", "..", "/", "*.png", "red"],
)
def test_no_other_picture_than_was_named(store: FeatureStore, limits: Limits, red: str, name: str) -> None:
    """A whole part of the path has to fit, and a name that says where it begins fits nowhere else."""
    with pytest.raises(NotFound, match="There is no picture"):
        locate(store, name, limits)


def test_hidden_names_keep_their_dot(store: FeatureStore, tmp_path: Path, limits: Limits) -> None:
    hidden = add(store, tmp_path / "a" / ".cover.png", "blue", limits)
    shown = add(store, tmp_path / "a" / "cover.png", "green", limits)
    assert locate(store, ".cover.png", limits).image.image_id == hidden
    assert locate(store, "cover.png", limits).image.image_id == shown


def test_by_an_id_prefix(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    for digits in (6, 12, 64):
        found = locate(store, red[:digits], limits)
        assert (found.image.image_id, found.path) == (red, str(tmp_path / "trip/beach/red.png"))
    for prefix in (red[:5], red + "0", red[:8].upper() + "X", red[:10] + ("0" if red[10] != "0" else "1")):
        with pytest.raises(NotFound):
            locate(store, prefix, limits)


def test_an_id_of_which_no_file_is_left(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    row = store.files()[str(tmp_path / "trip/beach/red.png")]
    store.put_files([FileRow(row.path, row.image_id, row.size, row.mtime_ns, "missing")])
    assert locate(store, red[:12], limits).path is None


def test_an_ambiguous_prefix(store: FeatureStore, limits: Limits) -> None:
    store.put_images([rows.picture(i, image_id="abcdef" + str(i) * 58) for i in range(2)])
    with pytest.raises(UsageError, match=r"2 image ids begin with abcdef\. Give more digits"):
        locate(store, "abcdef", limits)
    assert locate(store, "abcdef1", limits).image.image_id == "abcdef" + "1" * 58


def test_a_file_comes_before_an_id(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    Image.new("RGB", (56, 56), "blue").save(tmp_path / "trip" / red[:8], "PNG")
    with pytest.raises(NotIndexed, match=f"/trip/{red[:8]} is not in the store"):
        locate(store, red[:8], limits)


def test_an_ambiguous_end(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    add(store, tmp_path / "other" / "red.png", "darkred", limits)
    with pytest.raises(
        UsageError, match=r"'red\.png' fits 2 pictures: .*/other/red\.png, .*/beach/red\.png.*Give more"
    ):
        locate(store, "red.png", limits)
    assert locate(store, "beach/red.png", limits).image.image_id == red


def test_copies_are_not_ambiguous(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    """The same bytes twice: the path given is one at which there is a file."""
    for folder in ("a", "z"):
        (tmp_path / folder).mkdir()
        shutil.copy2(tmp_path / "trip/beach/red.png", tmp_path / folder)
    row = store.files()[str(tmp_path / "trip/beach/red.png")]
    for folder, state in (("z", "ok"), ("a", "missing")):
        store.put_files([FileRow(f"{tmp_path}/{folder}/red.png", red, row.size, row.mtime_ns, state)])  # type: ignore[arg-type]
    found = locate(store, "red.png", limits)
    assert (found.image.image_id, found.path) == (red, str(tmp_path / "trip/beach/red.png"))


@pytest.mark.parametrize("keep", [True, False])
def test_a_moved_or_copied_file_by_its_content(
    store: FeatureStore, tmp_path: Path, limits: Limits, red: str, keep: bool
) -> None:
    old, new = tmp_path / "trip/beach/red.png", tmp_path / "new name.png"
    shutil.copy(old, new) if keep else old.rename(new)
    found = locate(store, new, limits)
    assert (found.image.image_id, found.path) == (red, str(new))


def test_changed_in_place(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    """It is not what was indexed, even if its size is: an answer would be about another picture."""
    path = tmp_path / "trip/beach/red.png"
    size = path.stat().st_size
    Image.new("RGB", (56, 56), "blue").save(path)
    path.write_bytes(path.read_bytes()[:size].ljust(size))  # what follows the end of a PNG is not read
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    with pytest.raises(NotIndexed, match=r"red\.png is not in the store\. Run `qsplit index .*red\.png`"):
        locate(store, path, limits)
    assert locate(store, red[:12], limits).image.image_id == red


def test_only_touched(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    os.utime(tmp_path / "trip/beach/red.png", ns=(1, 1))
    assert locate(store, tmp_path / "trip/beach/red.png", limits).image.image_id == red


def test_a_file_that_was_never_indexed(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    Image.new("RGB", (56, 56), "blue").save(tmp_path / "blue.png")
    with pytest.raises(NotIndexed, match=r"blue\.png is not in the store\. Run `qsplit index"):
        locate(store, tmp_path / "blue.png", limits)


def test_a_path_that_was_never_readable(store: FeatureStore, tmp_path: Path, limits: Limits) -> None:
    store.put_files([FileRow(str(tmp_path / "broken.png"), None, 1, 1, "unreadable", "why")])
    with pytest.raises(NotFound):
        locate(store, tmp_path / "broken.png", limits)
    (tmp_path / "broken.png").touch()
    with pytest.raises(UnreadableImage, match="is empty"):
        locate(store, tmp_path / "broken.png", limits)


@pytest.mark.parametrize(
    "name", ["nothing.png", "deadbeef", "what is it? " * 40, "a\0b", "' OR 1=1 --", "/nowhere/red.png"]
)
def test_what_is_unknown(store: FeatureStore, limits: Limits, red: str, name: str) -> None:
    with pytest.raises(NotFound):
        locate(store, name, limits)


def test_a_name_that_is_no_utf8(store: FeatureStore, tmp_path: Path, limits: Limits, red: str) -> None:
    """The store cannot keep such a path, but knows the picture by its content."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    with pytest.raises(NotFound):
        locate(store, path, limits)
    shutil.copy(tmp_path / "trip/beach/red.png", path)
    assert locate(store, path, limits).image.image_id == red
    path.write_bytes(b"other")
    with pytest.raises(NotIndexed):
        locate(store, path, limits)


def test_links_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert absolute(tmp_path / "link" / "a.png") == f"{tmp_path}/link/a.png"
