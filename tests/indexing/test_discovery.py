"""Which files an index takes: what is named as it is, what lies in folders by its suffix, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsplit.errors import NotFound
from qsplit.indexing.discovery import find_files


def names(*paths: str | Path) -> list[str]:
    return [Path(path).name for path in find_files(paths)]


def test_a_folder_gives_its_pictures(tmp_path: Path) -> None:
    taken = ["a.jpg", "b.PNG", "c.webp", "sub/d.heic", "sub/deep/e.TIFF", "f.gif"]
    left = ["notes.txt", "raw.nef", "noname", ".hidden.jpg", ".cache/g.jpg", "album.qsplit/h.jpg", "sub/x.qsplit/i.png"]
    for name in taken + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(find_files([tmp_path])) == sorted(str(tmp_path / name) for name in taken)


def test_what_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden", "[1].jpg", "a?.jpg"):
        (tmp_path / name).touch()
        assert names(tmp_path / name) == [name]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "c.jpg", "b.jpg"]),
        ("**/c.*", ["c.jpg"]),
        ("s*", ["b.jpg", "c.jpg"]),
        ("[ab].*", ["a.jpg"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a.jpg", "a.txt", "sub/b.jpg", "sub/b/c.jpg", "sub/b/c.txt", ".hidden/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(names(f"{tmp_path}/{pattern}")) == sorted(expected)


@pytest.mark.parametrize("pattern", ["*.bmp", "none/**/*.jpg", "none", "none.jpg"])
def test_a_name_of_nothing_is_an_error(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(NotFound, match="There is no file or folder"):
        names(tmp_path, f"{tmp_path}/{pattern}")


def test_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ["sub/b.jpg", ".", str(tmp_path), "sub/../a.jpg", "~/a.jpg", "*.jpg", "sub", "./sub//b.jpg"]
    assert list(find_files(ways)) == [str(tmp_path / "sub/b.jpg"), str(tmp_path / "a.jpg")]
