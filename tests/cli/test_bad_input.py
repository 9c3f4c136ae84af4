"""Bad input, through the front door: each is a reason in the report, and the rest of its batch goes on."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from models import make_checkpoint
from pictures import NOBODY, as_nobody
from PIL import Image

import qsplit
from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import CheckpointError, NotFound, NotIndexed, StoreError
from qsplit.models.checkpoint import resolve
from qsplit.models.export_manifest import Manifest
from qsplit.models.hub import INDEX
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder

SHORT = Sampling(max_new_tokens=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    return made


@pytest.fixture
def album(tmp_path: Path, mini_vision: VisionEncoder) -> Album:
    made = qsplit.open(tmp_path / "album.qsplit", device="cpu")
    made.__dict__["vision"] = mini_vision  # loaded once for all tests
    return made


def good(folder: Path, count: int = 2) -> None:
    """Sound pictures on both sides of whatever else is there."""
    for seed in range(count):
        values = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{'az'[seed]}.png")


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    values = np.random.default_rng(9).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A PNG of 30,000 x 30,000 pixels in a few kilobytes, of which the first rows are there."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b""))


def text(path: Path) -> None:
    path.write_text("Dear reader, this is a letter.\n")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[:-400])


def header_only(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[:20])


def too_tall(path: Path) -> None:
    Image.new("RGB", (1, 5000), "red").save(path)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "inner.png").write_bytes(b"nothing")


def floating(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(path)


REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("m.jpg", text, "is no picture in a known format"),
    ("m.jpg", empty, "m.jpg is empty"),
    ("m.jpg", truncated, "m.jpg cannot be decoded"),
    ("m.jpg", header_only, "m.jpg cannot be decoded"),
    ("m.png", bomb, "m.png is 30000x30000 pixels; the bound is 200,000,000. Set QSPLIT_MAX_IMAGE_PIXELS=900000000"),
    ("m.png", too_tall, "A picture of 1x5000 has an aspect ratio of 5000; the model takes at most 200"),
    ("m.tiff", floating, "m.tiff has floating-point pixels"),
]


@pytest.mark.parametrize(("name", "make", "reason"), REFUSED, ids=[make.__name__ for _, make, _ in REFUSED])
def test_what_cannot_be_used_is_reported(
    album: Album, folder: Path, name: str, make: Callable[[Path], None], reason: str
) -> None:
    good(folder)
    make(folder / name)
    report = album.index(folder)
    assert (report.found, report.encoded) == (3, 2)
    (skipped,) = report.unreadable
    assert skipped.path == str(folder / name)
    assert reason in skipped.reason
    assert (album.status().unreadable, album.status().skipped) == (1, [skipped])
    row = album.store.files()[skipped.path]
    assert (row.state, row.reason) == ("unreadable", skipped.reason)
    with pytest.raises(NotFound):
        album.search(like=name)
    again = album.index(folder)
    assert (again.encoded, again.unchanged, again.unreadable) == (0, 2, report.unreadable)


def test_all_at_once(album: Album, folder: Path) -> None:
    good(folder)
    for number, (name, make, _) in enumerate(REFUSED):
        make(folder / f"{number}{name}")
    report = album.index(folder)
    assert (report.found, report.encoded, len(report.unreadable)) == (2 + len(REFUSED), 2, len(REFUSED))
    for skipped, (_, _, reason) in zip(report.unreadable, REFUSED, strict=True):
        assert reason in skipped.reason
    assert album.status().images == 2


def cmyk(path: Path) -> None:
    noise("CMYK").save(path)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(path)


def palette_with_alpha(path: Path) -> None:
    palette = noise().quantize(16)
    palette.save(path, transparency=bytes(range(0, 256, 16)))


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(path)


def longest(path: Path) -> None:
    Image.new("RGB", (1, 200), "red").save(path)


def black_and_white(path: Path) -> None:
    noise("1").save(path)


def animated(path: Path) -> None:
    noise("P").save(path, save_all=True, append_images=[Image.new("P", (64, 48))])


UNUSUAL = [
    ("m.jpg", cmyk),
    ("m.png", sixteen_bits),
    ("m.png", palette_with_alpha),
    ("m.png", one_pixel),
    ("m.png", longest),
    ("m.png", black_and_white),
    ("m.gif", animated),
]


@pytest.mark.parametrize(("name", "make"), UNUSUAL, ids=[make.__name__ for _, make in UNUSUAL])
def test_what_is_unusual_is_taken(album: Album, folder: Path, name: str, make: Callable[[Path], None]) -> None:
    good(folder, 1)
    make(folder / name)
    report = album.index(folder)
    assert (report.found, report.encoded, report.unreadable) == (2, 2, [])
    assert len(album.search(like=folder / name)) == 1


def test_a_single_pixel_can_be_asked_about(album: Album, folder: Path, mini_language: object) -> None:
    one_pixel(folder / "m.png")
    album.index(folder)
    album.__dict__["language"] = mini_language
    (reply,) = album.ask(folder / "m.png", "What is it?", sampling=SHORT)
    assert 1 <= len(reply.tokens) <= 2


def test_an_empty_folder(album: Album, folder: Path) -> None:
    report = album.index(folder)
    assert (report.found, report.encoded, report.unreadable) == (0, 0, [])
    assert album.duplicates() == []
    status = album.status()
    assert (status.images, status.files, status.stale) == (0, 0, 0)
    assert album.index(folder).found == 0


def test_a_folder_that_looks_like_a_picture(album: Album, folder: Path) -> None:
    good(folder)
    a_folder(folder / "m.jpg")
    report = album.index(folder)
    assert (report.found, report.encoded) == (3, 2)
    assert [Path(skipped.path).name for skipped in report.unreadable] == ["inner.png"]


def test_a_mistyped_path_leaves_nothing_behind(album: Album, folder: Path, tmp_path: Path) -> None:
    good(folder)
    with pytest.raises(NotFound, match="There is no file or folder"):
        album.index(folder, tmp_path / "pitcures")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


# Permissions


def test_a_file_that_may_not_be_read(mini_vision: VisionEncoder) -> None:
    with TemporaryDirectory() as place:  # not below pytest's own folder, which nobody may enter
        folder = Path(place, "pictures")
        folder.mkdir()
        noise().save(folder / "m.png")
        noise().save(folder / "b.png")
        (folder / "m.png").chmod(0)
        album = qsplit.open(f"{place}/album.qsplit", device="cpu")
        album.__dict__["vision"] = mini_vision
        album.index(folder / "b.png")  # as this user, who may import what is imported late
        good(folder)
        if os.geteuid() == 0:
            for path in (Path(place), *Path(place).rglob("*")):
                if path.name != "m.png":
                    os.chown(path, NOBODY, NOBODY)
        with as_nobody():
            report = album.index(folder)
        assert (report.found, report.encoded, report.unchanged) == (4, 2, 1)
        (skipped,) = report.unreadable
        assert skipped.path == str(folder / "m.png")
        assert "may not be read. Grant this user read permission" in skipped.reason
        (folder / "m.png").chmod(0o644)
        assert album.index(folder).reused == 1


def test_a_folder_that_may_be_listed_and_not_entered(mini_vision: VisionEncoder, mini_language: LanguageModel) -> None:
    """Its pictures are still asked about, and neither features nor what was said of them is lost."""
    with TemporaryDirectory() as place:  # not below pytest's own folder, which nobody may enter
        folder, closed = Path(place, "pictures"), Path(place, "pictures", "closed")
        closed.mkdir(parents=True)
        good(folder)
        noise().save(closed / "m.png")
        album = qsplit.open(f"{place}/album.qsplit", device="cpu")
        album.__dict__.update(vision=mini_vision, language=mini_language)
        album.index(folder)
        album.decisions.keep_apart(closed / "m.png", folder / "a.png")
        (before,) = album.ask("m.png", "What is it?", sampling=SHORT)
        if os.geteuid() == 0:
            for path in (Path(place), *Path(place).rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        closed.chmod(0o444)
        with as_nobody():
            report = album.index(folder)
            assert (report.found, report.unchanged) == (3, 2)
            assert [(Path(one.path).name, one.reason) for one in report.unreadable] == [("m.png", "Permission denied")]
            (during,) = album.ask("m.png", "What is it?", sampling=SHORT)
            assert during.tokens == before.tokens
            assert len(album.compact(alone=True).orphans) == 0
        closed.chmod(0o755)
        report = album.index(folder)
        assert (report.encoded, report.reused, report.unchanged, report.unreadable) == (0, 1, 2, [])
        assert len(album.store.decisions()) == 1


# Stores and checkpoints


def test_a_store_that_is_a_file(folder: Path, tmp_path: Path) -> None:
    good(folder)
    (tmp_path / "album.qsplit").write_text("words")
    broken = qsplit.open(tmp_path / "album.qsplit")
    for use in (lambda: broken.index(folder), broken.status, broken.duplicates, lambda: broken.ask("a.png", "What?")):
        with pytest.raises(StoreError, match=r"album\.qsplit is a file; a store is a folder"):
            use()
    assert (tmp_path / "album.qsplit").read_text() == "words"


def test_a_store_that_is_missing(tmp_path: Path) -> None:
    missing = qsplit.open(tmp_path / "album.qsplit")
    for use in (missing.status, missing.duplicates, lambda: missing.ask("a.png", "What?")):
        with pytest.raises(NotFound, match="There is no store at"):
            use()
    assert list(tmp_path.iterdir()) == []


def copy_of_mini(folder: Path) -> Path:
    folder.mkdir()
    for path in bundled.checkpoint().iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


def test_a_checkpoint_that_does_not_say_how_pictures_are_prepared(folder: Path, tmp_path: Path) -> None:
    good(folder)
    model = copy_of_mini(tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    album = qsplit.open(tmp_path / "album.qsplit", model=str(model), device="cpu")
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json, so it is unknown how pictures"):
        album.index(folder)


def test_a_checkpoint_that_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    good(folder)
    for model in (str(folder), "no such model", str(tmp_path / "nothing")):
        album = qsplit.open(tmp_path / "album.qsplit", model=model, device="cpu")
        with pytest.raises(CheckpointError):
            album.index(folder)


def without_vision(model: Path) -> int:
    """Delete the shards that hold nothing of the language half; returns how many."""
    checkpoint = resolve(str(model), "vision")
    Manifest(checkpoint.fingerprint("vision"), checkpoint.fingerprint("language")).write(model)
    needed = {file for file, _ in checkpoint.tensors("language").values()}
    gone = {model / file for file in json.loads((model / INDEX).read_text())["weight_map"].values()} - needed
    for file in gone:
        file.unlink()
    return len(gone)


def test_questions_where_the_vision_half_is_absent(folder: Path, tmp_path: Path) -> None:
    """What is stored can be asked about; what is not says so, and says it before a model is loaded."""
    good(folder)
    model = make_checkpoint(tmp_path / "model", "qwen2_vl", sharded=True)
    qsplit.open(tmp_path / "album.qsplit", model=str(model), device="cpu").index(folder / "a.png")
    assert without_vision(model)
    album = qsplit.open(tmp_path / "album.qsplit", device="cpu")
    with pytest.raises(NotIndexed, match=r"z\.png is not in the store\. Run `qsplit index"):
        album.ask(folder / "z.png", "What is it?")
    assert "language" not in album.__dict__
    (reply,) = album.ask(folder / "a.png", "What is it?", sampling=SHORT)
    assert reply.exact
    assert album.index(folder / "a.png").unchanged == 1
    with pytest.raises(CheckpointError):
        album.index(folder)
    assert "vision" not in album.__dict__
    assert album.status().images == 1
