"""The page of duplicates stands alone, shows both pictures with what was matched, and trusts no name."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import qsplit
from qsplit.album import Album
from qsplit.duplicates import html_report
from qsplit.duplicates.html_report import write_page
from qsplit.errors import UsageError

NAME = "<script>alert(1)</script> & co.jpg"


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  # the signature is the parser's
        self._inside = False


@pytest.fixture
def album(tmp_path: Path, photos: list[Path]) -> Album:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with Image.open(photos[0]) as opened:
        rgb = opened.convert("RGB")
    rgb.save(pictures / "original.png")
    rgb.save(pictures / NAME.replace("/", "-"), quality=50)
    rgb.crop((0, 0, rgb.width // 2, rgb.height // 2)).save(pictures / "crop.jpg")
    album = qsplit.open(tmp_path / "album.qsplit")
    album.index(pictures)
    return album


def page(album: Album, tmp_path: Path) -> str:
    groups = album.duplicates(("exact", "pixels", "copy"))
    write_page(groups, tmp_path / "out.html", album.store, album.limits, title=f"Of {NAME}")
    assert [path.name for path in tmp_path.glob("*.html*")] == ["out.html"]
    return (tmp_path / "out.html").read_text()


def test_it_stands_alone_and_shows_what_was_matched(album: Album, tmp_path: Path) -> None:
    text = page(album, tmp_path)
    parsed = Parsed(text)
    assert not re.search(r"(?:src|href)=", text), "nothing is fetched"
    assert [tag for tag, _ in parsed.tags].count("figure") == 4  # two pairs
    assert sum(tag == "rect" for tag, _ in parsed.tags) >= 40
    held = json.loads(parsed.scripts[0])
    assert len(held) == 3  # each picture once
    for address in held.values():
        Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,")))).verify()
    shown = [attributes["data-of"] for tag, attributes in parsed.tags if tag == "img"]
    assert set(shown) == set(held)
    assert "patch tokens" in text
    assert "--trash would move it" in text


def test_it_says_why_a_file_stays(album: Album, tmp_path: Path) -> None:
    write_page(album.duplicates(), tmp_path / "out.html", album.store, album.limits, title="Copies")
    text = (tmp_path / "out.html").read_text()
    assert "--trash would move it" not in text
    assert text.count("--trash leaves it. Copies are moved only if the kind copy is chosen (--kind copy).") == 2


def test_only_its_own_script_runs(album: Album, tmp_path: Path) -> None:
    text = page(album, tmp_path)
    parsed = Parsed(text)
    (policy,) = (a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(parsed.scripts) == 2
    assert "alert(1)" not in "".join(parsed.scripts)


def test_a_file_that_changed_is_shown_as_it_was(album: Album, tmp_path: Path) -> None:
    Image.new("RGB", (900, 900), "red").save(tmp_path / "pictures" / "original.png")
    held = json.loads(Parsed(page(album, tmp_path)).scripts[0])
    sizes = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size for one in held.values()]
    assert (900, 900) not in sizes


def test_it_is_bounded(album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "LARGE", 1)
    monkeypatch.setattr(html_report, "SHOWN", 2)
    held = json.loads(Parsed(page(album, tmp_path)).scripts[0])
    sizes = [max(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size) for one in held.values()]
    assert len(sizes) == 2
    assert sizes[1] <= 256


def test_names_of_pages(album: Album, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.html"):
        write_page([], tmp_path / "out.pdf", album.store, album.limits, title="")
    with pytest.raises(UsageError, match="cannot be written"):
        write_page([], tmp_path / "nowhere" / "out.html", album.store, album.limits, title="")
