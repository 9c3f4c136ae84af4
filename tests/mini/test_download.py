"""The photographs to train on: what is listed, and how a package becomes pictures. No network is used."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pictures import encoded, mosaic
from PIL import Image
from PIL.ExifTags import Base

from qsplit.errors import NotFound, QsplitError, UsageError
from qsplit.mini import download
from qsplit.mini.download import (
    GARMENTS,
    Listed,
    Package,
    SourceError,
    Unpacked,
    cutout,
    fetch,
    licences,
    load_cutouts,
    load_garments,
    load_photographs,
    packages,
    photographs,
    read_idx,
    unpack,
    windows,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def package(data: bytes = b"", **changes: Any) -> Package:
    """A wheel of ours; ``data`` is what it is pinned to."""
    digest = hashlib.sha256(data).hexdigest()
    wheel = Package("pictured", "pypi", "1.0", "pictured-1.0-py3-none-any.whl", digest, len(data), "MIT", "train", 2)
    return replace(wheel, **changes)


def photo(width: int = 400, height: int = 300, colour: tuple[int, ...] = RED) -> Image.Image:
    return Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(zipfile.ZipInfo(name), data)  # of one date: two of the same files are the same bytes
    return buffer.getvalue()


# The list


def test_what_is_public() -> None:
    assert download.__all__ == [
        "Listed", "Package", "Photograph", "SourceError", "fetch", "licences", "load_cutouts", "load_garments",
        "load_photographs", "packages", "photographs",
    ]  # fmt: skip
    assert issubclass(SourceError, QsplitError)


def test_the_list_agrees_with_itself() -> None:
    names = [package.name for package in packages()]
    files = [package.file for package in packages()]
    assert (len(names), len(photographs())) == (65, 1498)
    assert len(set(names)) == len(names)
    assert len(set(files)) == len(files)
    counted = Counter(photograph.package for photograph in photographs())
    assert counted == {package.name: package.photographs for package in packages() if package.photographs}
    assert [package.name for package in packages() if not package.photographs] == [GARMENTS]
    assert [photograph.number for photograph in photographs()] == list(range(1498))
    assert len({(photograph.package, photograph.path) for photograph in photographs()}) == 1498


def test_every_package_is_pinned() -> None:
    endings = {"debian": (".deb",), "pypi": (".whl", ".zip", ".tar.gz")}
    for one in packages():
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256), one.name
        assert one.file.endswith(endings[one.registry]), one.name
        assert one.version.replace(":", "%3a") in one.file, one.name
        assert one.size > 0, one.name
        assert one.licence, one.name
    assert len({one.sha256 for one in packages()}) == 65


def test_what_is_held_out_is_in_no_package_that_is_trained_on() -> None:
    split = {one.name: one.split for one in packages()}
    assert set(split.values()) == {"train", "held-out", "both"}
    assert [name for name, value in split.items() if value == "both"] == [GARMENTS]  # it has a split of its own
    held_out = {one.package for one in photographs() if split[one.package] == "held-out"}
    assert not held_out & {one.package for one in photographs() if split[one.package] == "train"}
    assert len(held_out) == 9


def test_no_path_leads_out_of_its_package() -> None:
    for one in photographs():
        for part in one.path.split("::"):
            assert not part.startswith("/"), one.path
            assert ".." not in part.split("/"), one.path


def test_the_licences_are_a_table_of_every_package() -> None:
    lines = licences().splitlines()
    assert lines[0] == "| package | version | registry | pictures | split | licence |"
    assert len(lines) == 2 + 65
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in lines)
    version, licence = "0.0~git20200523.55506a9-1", "Expat (MIT) (debian/copyright)"
    assert lines[-1] == f"| dataset-fashion-mnist | {version} | debian | 70,000 | both | {licence} |"


# Archives


def test_unpack_a_zip(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"in/a.txt": b"one", "../out.txt": b"two"}))
    unpack(tmp_path / "a.zip", tmp_path / "a")
    assert (tmp_path / "a/in/a.txt").read_bytes() == b"one"
    assert not (tmp_path / "out.txt").exists()


def packed(path: Path, name: str, data: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return path


def test_unpack_a_tar(tmp_path: Path) -> None:
    unpack(packed(tmp_path / "a.tar.gz", "a-1/b.txt", b"one"), tmp_path / "a")
    assert (tmp_path / "a/a-1/b.txt").read_bytes() == b"one"
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(packed(tmp_path / "b.tar.gz", "../out.txt", b"two"), tmp_path / "b")
    assert not (tmp_path / "out.txt").exists()


def test_unpack_a_deb(tmp_path: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.fail("dpkg-deb is not installed: `apt-get install dpkg`, or `brew install dpkg`.")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        "Package: pictured\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/a.txt").write_text("one")
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "a.deb")], check=True, capture_output=True)
    unpack(tmp_path / "a.deb", tmp_path / "a")
    assert (tmp_path / "a/usr/share/a.txt").read_text() == "one"
    (tmp_path / "b.deb").write_bytes(b"!<arch>\nno package")
    with pytest.raises(OSError, match="dpkg-deb"):
        unpack(tmp_path / "b.deb", tmp_path / "b")


def test_unpack_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.rar is no \.deb, \.whl"):
        unpack(tmp_path / "a.rar", tmp_path / "a")


# Bundles


def rcc(files: list[tuple[str, int, bytes]], version: int = 3) -> bytes:
    """A Qt resource bundle with one folder ``in`` of (name, flags, data as it is stored)."""
    names, blobs, nodes = b"", b"", b""
    time = b"" if version == 1 else bytes(8)

    def named(name: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    nodes += struct.pack(">IHII", 0, 2, 1, 1) + time  # the root: one child, node 1
    nodes += struct.pack(">IHII", named("in"), 2, len(files), 2) + time
    for name, flags, data in files:
        nodes += struct.pack(">IHHHI", named(name), flags, 0, 1, len(blobs)) + time
        blobs += struct.pack(">I", len(data)) + data
    start = 20
    offsets = start, start + len(nodes), start + len(nodes) + len(blobs)
    return struct.pack(">4sIIII", b"qres", version, *offsets) + nodes + blobs + names


def held(root: Path, path: str) -> bytes:
    return Unpacked(root, [Listed(0, "pictured", path, up=True, cutout=False)]).read(path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_resource_bundle(tmp_path: Path, version: int) -> None:
    long = b"long " * 100
    files = [("ä.webp", 0, b"stored"), ("b", 1, struct.pack(">I", len(long)) + zlib.compress(long)), ("c", 4, b"zstd")]
    (tmp_path / "a.rcc").write_bytes(rcc(files, version))
    assert held(tmp_path, "a.rcc::in/ä.webp") == b"stored"
    assert held(tmp_path, "a.rcc::in/b") == long
    with pytest.raises(ValueError, match="in/c is packed with zstd, which is not read here"):
        held(tmp_path, "a.rcc::in/c")
    with pytest.raises(LookupError, match=r"a\.rcc has no in/d"):
        held(tmp_path, "a.rcc::in/d")


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    whole = rcc([("a", 0, b"stored")])
    for data in (b"PK\3\4" + whole[4:], whole[:4] + b"\0\0\0\4" + whole[8:]):
        (tmp_path / "a.rcc").write_bytes(data)
        with pytest.raises(ValueError, match="no Qt resource bundle of version 1 to 3"):
            held(tmp_path, "a.rcc::in/a")
    for length in (3, 25, 80):
        (tmp_path / "a.rcc").write_bytes(whole[:length])
        with pytest.raises((struct.error, LookupError, ValueError)):
            held(tmp_path, "a.rcc::in/a")


def test_a_zip_inside(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"in/a": b"one", "b": b"two"}))
    assert held(tmp_path, "a.zip::in/a") == b"one"
    with pytest.raises(LookupError, match=r"a\.zip has no c"):
        held(tmp_path, "a.zip::c")


# Normalisation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # each undoes what the EXIF asks for
    upright = mosaic(96, 64)
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    (image,) = windows(encoded(stored, "PNG", exif=exif))
    assert image.size == (96, 64)
    assert np.array_equal(np.asarray(image), np.asarray(upright))


def test_alpha_becomes_white() -> None:
    half = photo(100, 80, (255, 0, 0, 255))
    half.paste((0, 0, 255, 0), (0, 0, 50, 80))
    palette = half.quantize(4)
    grey = Image.new("LA", (100, 80), (0, 0))
    for image, right in ((half, RED), (palette, RED), (grey, WHITE)):
        (made,) = windows(encoded(image, "PNG"))
        assert made.mode == "RGB"
        assert made.getpixel((10, 40)) == WHITE
        assert made.getpixel((90, 40)) == right


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((100, 80), (100, 80)),  # small ones stay
        ((1200, 900), (384, 288)),
        ((300, 2000), (288, 1920)),  # tall ones are not cut
        ((900, 300), (864, 288)),
    ],
)
def test_the_shorter_side_is_bounded(size: tuple[int, int], made: tuple[int, int]) -> None:
    for form in ("PNG", "JPEG"):
        assert [image.size for image in windows(encoded(photo(*size), form))] == [made]


def test_a_panorama_gives_windows() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 1000).astype(np.uint8), (90, 1)))
    parts = windows(encoded(ramp, "PNG"))  # windows of 120 x 90 at 0, 440, 880
    assert [part.size for part in parts] == [(120, 90)] * 3
    assert [np.asarray(part)[0, 0, 0] for part in parts] == [np.asarray(ramp)[0, left] for left in (0, 440, 880)]
    narrow = windows(encoded(ramp.crop((0, 0, 310, 100)), "PNG"))  # 133 x 100: two fit, at 44 and 133
    assert [part.size for part in narrow] == [(133, 100)] * 2
    assert [np.asarray(part)[0, 0, 0] for part in narrow] == [np.asarray(ramp)[0, left] for left in (44, 133)]
    assert [part.size for part in windows(encoded(ramp.resize((4000, 900)), "PNG"))] == [(384, 288)] * 3


def test_what_pillow_only_warns_of_is_read() -> None:
    plain = encoded(photo(), "JPEG")
    odd = plain[:2] + b"\xff\xe2\x00\x0eMPF\0no index" + plain[2:]
    with pytest.warns(UserWarning, match="malformed MPO"):
        Image.open(io.BytesIO(odd))
    assert windows(odd)[0].size == (384, 288)


def test_a_cutout_is_trimmed() -> None:
    image = Image.new("RGBA", (900, 900), (0, 0, 0, 8))  # dust
    image.paste((255, 0, 0, 255), (100, 200, 612, 328))
    made = cutout(encoded(image, "PNG"))
    assert (made.mode, made.size) == ("RGBA", (256, 64))
    assert made.getpixel((0, 0)) == (255, 0, 0, 255)
    small = cutout(encoded(image.crop((90, 190, 140, 240)), "PNG"))
    assert small.size == (40, 40)


# Fetching


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def listing(monkeypatch: pytest.MonkeyPatch, one: Package, paths: dict[str, bool]) -> None:
    """Let ``one`` be all that is listed, with these paths (True: a cutout)."""
    entries = tuple(Listed(n, one.name, path, up=n % 2 == 0, cutout=cut) for n, (path, cut) in enumerate(paths.items()))
    monkeypatch.setattr(download, "packages", lambda: (one,))
    monkeypatch.setattr(download, "photographs", lambda: entries)


def wheel() -> bytes:
    described = b"Metadata-Version: 2.1\nName: pictured\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    nested = zipped({"Zürich, 1.jpg": encoded(photo(1000, 200), "JPEG")})
    thing = Image.new("RGBA", (64, 64))
    thing.paste((255, 0, 0, 255), (8, 8, 40, 24))
    return zipped(
        {
            "pictured/nested.zip": nested,
            "pictured/thing.png": encoded(thing, "PNG"),
            "pictured-1.0.dist-info/METADATA": described,
            "pictured-1.0.dist-info/WHEEL": tags,
            "pictured-1.0.dist-info/RECORD": b"",
        }
    )


PATHS = {"pictured/nested.zip::Zürich, 1.jpg": False, "pictured/thing.png": True}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can reach: an empty folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_becomes_pictures(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index / package().file).write_bytes(wheel())
    one = package(wheel())
    listing(monkeypatch, one, PATHS)
    heard: list[tuple[str, int, int]] = []
    fetch(cache, lambda *progress: heard.append((progress[0].name, *progress[1:])))
    assert heard == [("pictured", 1, 1)]
    made = [f"0000_pictured_Z_rich_1_w{window}.jpg" for window in range(3)]
    others = {"cutouts/0001_pictured_thing.png", "dl/pypi/pictured-1.0-py3-none-any.whl", "done/pictured.json"}
    indexes = {"train.json", "held-out.json", "cutouts.json"}
    assert set(tree(cache)) == others | indexes | {f"train/{name}" for name in made}
    assert not list(cache.glob(".*"))
    assert json.loads((cache / "train.json").read_text()) == [
        {"file": name, "package": "pictured", "path": next(iter(PATHS)), "up": True} for name in made
    ]
    loaded = load_photographs(cache, "train")
    assert [(one.name, one.up, one.package) for one in loaded] == [(name, True, "pictured") for name in made]
    assert all(one.image.shape == (200, 267, 3) and one.image.dtype == np.uint8 for one in loaded)
    assert load_photographs(cache, "held-out") == []
    (thing,) = load_cutouts(cache)
    assert (thing.image.shape, thing.up) == ((16, 32, 4), False)
    assert (thing.image == (255, 0, 0, 255)).all()


def test_what_is_there_is_not_fetched_again(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "dl/pypi").mkdir(parents=True)
    data = wheel()
    (cache / "dl/pypi" / package().file).write_bytes(data)  # put there by hand
    listing(monkeypatch, package(data), PATHS)
    fetch(cache)
    before = tree(cache)
    with monkeypatch.context() as patch:
        patch.setattr(download, "unpack", pytest.fail)
        fetch(cache)
    (cache / "cutouts/0001_pictured_thing.png").unlink()
    fetch(cache)
    assert tree(cache) == before
    listing(monkeypatch, package(data), {"pictured/thing.png": True})  # another list, another cache
    fetch(cache)
    assert [one.name for one in load_cutouts(cache)] == ["0000_pictured_thing.png"]


def test_an_absent_package_is_named(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing(monkeypatch, package(wheel()), PATHS)
    with pytest.raises(SourceError, match=r"pictured: version 1\.0 cannot be had \(ERROR: .*Put pictured-1") as caught:
        fetch(cache)
    assert caught.value.package == "pictured"
    assert tree(cache) == {}
    monkeypatch.setenv("PATH", "")
    deb = package(wheel(), registry="debian", file="pictured_1.0_all.deb")
    listing(monkeypatch, deb, PATHS)
    with pytest.raises(SourceError, match="apt-get is not installed"):
        fetch(cache)


def test_pip_refuses_what_was_not_pinned(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index / package().file).write_bytes(wheel())
    listing(monkeypatch, package(b"another"), PATHS)
    with pytest.raises(SourceError, match=r"pictured: .*DO NOT MATCH THE HASHES"):
        fetch(cache)
    assert tree(cache) == {}


def test_what_apt_brings_is_compared(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin/apt-get"  # a fake: the real one knows no folder as a mirror without being set up as root
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$3" = pictured:amd64=1:2 ] || exit 9\nprintf wrong > pictured_1%3a2_amd64.deb\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    one = package(b"right", registry="debian", version="1:2", file="pictured_1%3a2_amd64.deb")
    listing(monkeypatch, one, PATHS)
    with pytest.raises(
        SourceError, match=r"pictured: pictured_1%3a2_amd64\.deb has the sha256 [0-9a-f]{64}, and .*Do not"
    ):
        fetch(cache)
    assert tree(cache) == {}
    assert not list(cache.rglob(".*"))


def test_a_package_without_its_picture(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "dl/pypi").mkdir(parents=True)
    (cache / "dl/pypi" / package().file).write_bytes(wheel())
    for path in ("pictured/gone.jpg", "pictured/nested.zip::gone.jpg", "pictured-1.0.dist-info/WHEEL"):
        listing(monkeypatch, package(wheel()), {"pictured/thing.png": True, path: False})
        with pytest.raises(SourceError, match=rf"pictured: {re.escape(path)} cannot be read"):
            fetch(cache)
    assert sorted(tree(cache)) == ["dl/pypi/pictured-1.0-py3-none-any.whl"]


def test_an_archive_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "dl/pypi").mkdir(parents=True)
    (cache / "dl/pypi" / package().file).write_bytes(b"text")
    listing(monkeypatch, package(b"text"), PATHS)
    with pytest.raises(SourceError, match=r"any\.whl cannot be unpacked \(File is not a zip file\)"):
        fetch(cache)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("a-1.tar.gz", "--no-binary pictured"),
        ("a-1-py2.py3-none-any.whl", "--only-binary pictured"),
        (
            "a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
            (
                "--only-binary pictured --implementation cp --python-version 311 --abi cp311 "
                "--platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64"
            ),
        ),
    ],
)
def test_pip_is_asked_for_the_very_file(file: str, options: str) -> None:
    assert download._kind_of_file(package(file=file)) == options.split()


# Loading


def test_nothing_is_loaded_before_it_is_fetched(cache: Path) -> None:
    for load in (
        load_cutouts,
        lambda cache: load_photographs(cache, "train"),
        lambda cache: load_garments(cache, "test"),
    ):
        with pytest.raises(NotFound, match=r"is not there\. Call `qsplit\.mini\.download\.fetch`"):
            load(cache)
    with pytest.raises(UsageError, match=r"There is no split 'test'\. Choose from train, held-out"):
        load_photographs(cache, "test")
    with pytest.raises(UsageError, match=r"There is no split 'held-out'\. Choose from train, test"):
        load_garments(cache, "held-out")  # type: ignore[arg-type]


def idx(*shape: int, data: bytes | None = None, kind: int = 8) -> bytes:
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    return header + (bytes(range(int(np.prod(shape)))) if data is None else data)


def test_an_idx_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(idx(2, 3, 4))
    values = read_idx(tmp_path / "a")
    assert values.dtype == np.uint8
    assert np.array_equal(values, np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert values.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no idx file of bytes (begins with )"),
        (b"\0\0\x08", "no idx file of bytes"),
        (gzip.compress(idx(2), mtime=0), "no idx file of bytes (begins with 1f8b08"),
        (idx(2, kind=13), "no idx file of bytes (begins with 00000d01)"),
        (b"\0\0\x08\0", "no idx file of bytes"),
        (idx(2, 3)[:9], "no idx file of bytes"),
        (idx(2, 3)[:-1], "has 5 bytes for the shape (2, 3)"),
        (idx(2, 3) + b"\0", "has 7 bytes for the shape (2, 3)"),
    ],
)
def test_a_damaged_idx_file(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(SourceError, match=re.escape(message)):
        read_idx(tmp_path / "a")


Split = Literal["train", "test"]


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_garments(cache: Path, split: Split, prefix: str) -> None:
    images, labels = cache / f"fashion/{prefix}-images-idx3-ubyte", cache / f"fashion/{prefix}-labels-idx1-ubyte"
    images.parent.mkdir(parents=True)
    images.write_bytes(idx(3, 28, 28, data=bytes([7]) * 3 * 784))
    labels.write_bytes(idx(3, data=bytes([0, 9, 4])))
    pictures, kinds = load_garments(cache, split)
    assert pictures.shape == (3, 28, 28)
    assert (pictures == 7).all()
    assert kinds.tolist() == [0, 9, 4]
    for wrong in (idx(2, data=bytes(2)), idx(3, data=bytes([0, 10, 4])), idx(3, 1, data=bytes(3))):
        labels.write_bytes(wrong)
        with pytest.raises(SourceError, match=f"are no {split} split"):
            load_garments(cache, split)


def test_the_garments_are_unpacked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for pair in download.GARMENT_FILES.values() for name in pair]
    data = zipped({f"{download.GARMENT_FOLDER}/{name}.gz": gzip.compress(name.encode()) for name in names})
    one = package(data, name=GARMENTS, split="both")
    (cache / "dl/pypi").mkdir(parents=True)
    (cache / "dl/pypi" / one.file).write_bytes(data)
    listing(monkeypatch, one, {})
    fetch(cache)
    assert {path.name: path.read_text() for path in (cache / "fashion").iterdir()} == {name: name for name in names}
