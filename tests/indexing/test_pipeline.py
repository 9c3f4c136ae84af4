"""Indexing: what is new is encoded once, what is known is left alone, and what stops a run costs nothing twice."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lance
import numpy as np
import pytest
import rows
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import make_checkpoint
from pictures import dated, exif_block, year
from PIL import Image

from qsplit.concurrency import THREADS
from qsplit.errors import NotFound
from qsplit.features.features import Features
from qsplit.indexing import pipeline
from qsplit.indexing.pipeline import IndexReport
from qsplit.maintenance import garbage
from qsplit.media import images
from qsplit.media.images import Limits, Picture
from qsplit.models.checkpoint import resolve
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.models.vision.preprocessing import Prepared
from qsplit.progress import Progress
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import locate
from qsplit.store.timeline import read_timeline

PUTS = ("put_features", "put_images", "put_vectors", "put_files")


@dataclass
class Indexer:
    """A store, a folder of pictures, and a count of what the vision half was given."""

    store: FeatureStore
    folder: Path
    vision: VisionEncoder
    encoded: list[str] = field(default_factory=list)  # pixels digests, in order
    limits: Limits = field(default_factory=Limits)

    def index(self, *paths: str | Path, **options: Any) -> IndexReport:
        report = pipeline.index(
            self.store, paths or [self.folder], self.vision.encoder, lambda: self.vision, limits=self.limits, **options
        )
        assert report.found == report.encoded + report.reused + report.unchanged + len(report.unreadable)
        return replace(report, seconds=0.0)

    def content(self) -> dict[str, Any]:
        """What the store holds, without when and in which order it was put."""
        store, encoder_id = self.store, self.vision.encoder.id
        heads = store.heads(image.pixels_digest for image in store.images().values())
        keys = [row["key"] for row in store._scan("features", ["key"])]
        assert len(keys) == len(set(keys))
        found = store.get_features(keys)
        vectors = {image_id: vector_bytes(store, encoder_id, image_id) for image_id in store.vector_ids(encoder_id)}
        return {
            "files": store.files(),
            "images": store.images(),
            "features": {key: one.to_payload() for key, one in found.items()},
            "heads": {head.key: asdict(head) for head in heads},
            "vectors": vectors,
        }

    def versions(self) -> dict[str, int]:
        return {path.name: lance.dataset(str(path)).version for path in Path(self.store.uri).glob("*.lance")}


def vector_bytes(store: FeatureStore, encoder_id: str, image_id: str) -> bytes:
    return store.vectors(encoder_id).get("pooled", [image_id])[image_id].tobytes()


@pytest.fixture
def indexer(
    store: FeatureStore, tmp_path: Path, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> Indexer:
    (tmp_path / "pictures").mkdir()
    made = Indexer(store, tmp_path / "pictures", mini_vision)
    prepare, encode = VisionEncoder.prepare, VisionEncoder.encode_prepared
    digests: dict[int, str] = {}

    def named(self: VisionEncoder, image: Picture | Image.Image) -> Prepared:
        prepared = prepare(self, image)
        if isinstance(image, Picture):
            digests[id(prepared)] = image.pixels_digest
        return prepared

    def counted(self: VisionEncoder, prepared: Iterable[Prepared]) -> list[Features]:
        given = list(prepared)
        features = encode(self, given)
        made.encoded += [digests[id(one)] for one in given if id(one) in digests]
        return features

    monkeypatch.setattr(VisionEncoder, "prepare", named)
    monkeypatch.setattr(VisionEncoder, "encode_prepared", counted)
    return made


def draw(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def save(path: Path, seed: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(seed).save(path, **options)
    return path


# Once, and not again


def test_the_second_run_does_nothing(indexer: Indexer) -> None:
    for seed in range(3):
        save(indexer.folder / f"{seed}.png", seed)
    assert indexer.index() == IndexReport(found=3, encoded=3)
    before, content = indexer.versions(), indexer.content()
    assert len(before) == 4
    assert indexer.index() == IndexReport(found=3, unchanged=3)
    assert indexer.versions() == before
    assert indexer.content() == content
    assert len(indexer.encoded) == 3


def test_nothing_to_encode_loads_no_model(indexer: Indexer) -> None:
    save(indexer.folder / "a.png", 1)
    indexer.index()
    shutil.copy(indexer.folder / "a.png", indexer.folder / "b.png")
    report = pipeline.index(
        indexer.store, [indexer.folder], indexer.vision.encoder, lambda: pytest.fail("loaded"), limits=Limits()
    )
    assert (report.reused, report.unchanged) == (1, 1)


def test_what_is_stored_is_what_the_model_made(indexer: Indexer, photos: list[Path], limits: Limits) -> None:
    indexer.index(photos[0])
    (image,) = indexer.store.images().values()
    (head,) = indexer.store.heads([image.pixels_digest])
    (made,) = indexer.vision.encode([Image.open(photos[0]).convert("RGB")])
    assert rows.same_bits(indexer.store.get_features([head.key])[head.key], made)
    assert vector_bytes(indexer.store, made.encoder.id, image.image_id) == made.pooled().tobytes()
    assert head.provenance.model_id == "qsplit-mini"
    assert head.provenance.torch == torch.__version__.split("+")[0] or head.provenance.torch == torch.__version__


def moved(folder: Path) -> None:
    (folder / "a.png").rename(folder / "renamed.png")


def moved_away(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.png").rename(folder / "deep" / "er" / "a.png")


def copied(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "copy.png")


def touched(folder: Path) -> None:
    os.utime(folder / "a.png", ns=(1, 1))


def saved_otherwise(folder: Path) -> None:
    draw(1).save(folder / "a.bmp")


@pytest.mark.parametrize(
    ("change", "unchanged", "missing"),
    [(moved, 1, 1), (moved_away, 1, 1), (copied, 2, 0), (touched, 1, 0), (saved_otherwise, 2, 0)],
)
def test_a_known_picture_is_not_encoded_again(
    indexer: Indexer, change: Callable[[Path], None], unchanged: int, missing: int
) -> None:
    save(indexer.folder / "a.png", 1)
    save(indexer.folder / "b.png", 2)
    indexer.index()
    change(indexer.folder)
    assert indexer.index() == IndexReport(1 + unchanged, reused=1, unchanged=unchanged, missing=missing)
    assert len(indexer.encoded) == 2
    assert indexer.index() == IndexReport(1 + unchanged, unchanged=1 + unchanged)
    here = {str(path): "ok" for path in indexer.folder.rglob("*.*")}
    states = {path: row.state for path, row in indexer.store.files().items()}
    assert states == here | dict.fromkeys(states.keys() - here.keys(), "missing")


@pytest.mark.parametrize("same_size", [True, False])
def test_an_edit_in_place_is_encoded(indexer: Indexer, same_size: bool) -> None:
    path = indexer.folder / "a.bmp"
    draw(1).save(path)
    indexer.index()
    size = path.stat().st_size
    draw(2, (56, 56) if same_size else (84, 56)).save(path)
    os.utime(path, ns=(10**18, 10**18))
    assert (path.stat().st_size == size) == same_size
    assert indexer.index() == IndexReport(1, encoded=1)
    assert len(set(indexer.encoded)) == 2
    row = indexer.store.files()[str(path)]
    assert (row.mtime_ns, row.size) == (10**18, path.stat().st_size)
    image = indexer.store.images()[str(row.image_id)]
    assert image.pixels_digest == indexer.encoded[-1]
    assert indexer.store.count("images") == 2  # of the old content the features are kept


def test_the_same_pixels_are_encoded_once(indexer: Indexer) -> None:
    for name in ("a.png", "b.bmp", "c.png", "d.tiff"):
        draw(1).save(indexer.folder / name)
    assert indexer.index() == IndexReport(4, encoded=1, reused=3)
    assert [indexer.store.count(table) for table in ("files", "images", "features")] == [4, 3, 1]
    assert len(indexer.store.vector_ids(indexer.vision.encoder.id)) == 3
    assert len(indexer.encoded) == 1


def test_the_same_pixels_in_different_chunks_and_batches(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        save(indexer.folder / f"{seed}.png", seed)
        save(indexer.folder / f"z{seed}.bmp", seed)
    monkeypatch.setattr(pipeline, "_CHUNK", 2)
    monkeypatch.setattr(pipeline, "_BATCH_FILES", 4)
    assert indexer.index() == IndexReport(10, encoded=5, reused=5)
    assert len(indexer.encoded) == 5
    assert len(indexer.content()["vectors"]) == 10


# Files that come and go


def test_a_deleted_file_is_missing_until_it_is_back(indexer: Indexer, tmp_path: Path) -> None:
    path = save(indexer.folder / "a.png", 1)
    save(indexer.folder / "b.png", 2)
    indexer.index()
    path.rename(tmp_path / "aside.png")
    assert indexer.index() == IndexReport(1, unchanged=1, missing=1)
    row = indexer.store.files()[str(path)]
    assert row.state == "missing"
    assert row.image_id in indexer.store.images()
    assert indexer.index() == IndexReport(1, unchanged=1)  # missing is said once
    (tmp_path / "aside.png").rename(path)
    assert indexer.index() == IndexReport(2, reused=1, unchanged=1)
    assert indexer.store.files()[str(path)] == replace(row, state="ok")
    assert len(indexer.encoded) == 2


def test_only_what_was_looked_through_can_be_missing(indexer: Indexer) -> None:
    here, there = save(indexer.folder / "here" / "a.png", 1), save(indexer.folder / "here2" / "a.png", 2)
    indexer.index()
    here.unlink()
    there.unlink()
    assert indexer.index(indexer.folder / "here").missing == 1
    assert {path: row.state for path, row in indexer.store.files().items()} == {
        str(here): "missing",
        str(there): "ok",
    }


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_looked_into_proves_nothing(
    indexer: Indexer, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    path = save(indexer.folder / "drive" / "a.png", 1)
    indexer.index()
    scan, lstat = os.scandir, os.lstat

    def fails(name: Any, work: Callable[[Any], Any]) -> Any:
        if "drive" in str(name):
            raise type(error)(error.errno, error.strerror, str(name))
        return work(name)

    monkeypatch.setattr(os, "scandir", lambda name: fails(name, scan))
    monkeypatch.setattr(os, "lstat", lambda name: fails(name, lstat))
    monkeypatch.setattr(Path, "lstat", lambda name: fails(name, lstat))
    report = indexer.index()
    assert (report.found, report.missing) == (1, 0)
    assert [skipped.reason for skipped in report.unreadable] == [
        f"The folder cannot be looked through: {error.strerror}."
    ]
    assert indexer.store.files()[str(path)].state == "ok"


def test_an_absent_root_is_an_error_and_loses_nothing(indexer: Indexer, tmp_path: Path) -> None:
    path = save(indexer.folder / "drive" / "a.png", 1)
    other = save(indexer.folder / "b.png", 2)
    indexer.index()
    before, content = indexer.versions(), indexer.content()
    (indexer.folder / "drive").rename(tmp_path / "unplugged")
    for paths in ([path.parent], [path], [other, path.parent]):
        with pytest.raises(NotFound, match="There is no file or folder"):
            indexer.index(*paths)
    assert indexer.versions() == before
    (tmp_path / "unplugged").rename(indexer.folder / "drive")
    assert indexer.index() == IndexReport(2, unchanged=2)
    assert indexer.content() == content


def test_what_cannot_be_read_is_listed_and_tried_again(indexer: Indexer) -> None:
    broken = indexer.folder / "broken.png"
    broken.write_bytes(b"no picture at all")
    save(indexer.folder / "a.png", 1)
    for unchanged in (0, 1, 1):
        report = indexer.index()
        assert (report.found, report.unchanged) == (2, unchanged)
        (skipped,) = report.unreadable
        assert skipped.path == str(broken)
        assert "is no picture in a known format" in skipped.reason
        row = indexer.store.files()[str(broken)]
        assert (row.state, row.image_id, row.reason) == ("unreadable", None, skipped.reason)
    draw(2).save(broken)
    assert indexer.index() == IndexReport(2, encoded=1, unchanged=1)
    row = indexer.store.files()[str(broken)]
    assert (row.state, row.reason) == ("ok", None)
    assert indexer.index() == IndexReport(2, unchanged=2)


def test_a_picture_that_was_sound_and_is_broken(indexer: Indexer) -> None:
    path = save(indexer.folder / "a.png", 1)
    indexer.index()
    path.write_bytes(path.read_bytes()[:60])
    assert len(indexer.index().unreadable) == 1
    assert indexer.store.files()[str(path)].state == "unreadable"


# Times that no 64 bits of nanoseconds hold


@pytest.fixture
def anywhen(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is a file system there: it keeps all times, where that of a disk ends at 2446."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("when", [year(2300), year(1600), year(9999), 2**63, -(2**63) - 1])
def test_a_file_of_any_time_is_indexed_once(indexer: Indexer, anywhen: Path, when: int) -> None:
    a, b = save(anywhen / "a.png", 1), dated(save(anywhen / "b.png", 2), when)
    assert indexer.index(a, b) == IndexReport(2, encoded=2)
    assert indexer.index(a, b) == IndexReport(2, unchanged=2)
    assert locate(indexer.store, b, Limits()).path == str(b)
    assert {image.month for image in read_timeline(indexer.store).months} == {None}
    dated(b, year(2000))
    assert indexer.index(a, b) == IndexReport(2, reused=1, unchanged=1)
    dated(b, when)
    b.write_bytes(b.read_bytes()[:50])
    dated(b, when)
    for _ in range(2):
        assert [skipped.path for skipped in indexer.index(a, b).unreadable] == [str(b)]


def test_a_file_of_any_time_is_added_and_refreshed(indexer: Indexer, tmp_path: Path) -> None:
    path = dated(save(indexer.folder / "a.png", 1), year(2300))
    picture = images.open_picture(path, Limits())
    assert pipeline.add(
        indexer.store, picture, str(path), indexer.vision.encoder, lambda: indexer.vision, limits=Limits()
    )
    assert indexer.index() == IndexReport(1, unchanged=1)
    other = VisionEncoder.from_pretrained(str(make_checkpoint(tmp_path / "model", "qwen2_vl")), device="cpu")
    for encoded in (1, 0):
        assert pipeline.refresh(indexer.store, other.encoder, lambda: other, limits=Limits()).encoded == encoded


@pytest.mark.parametrize(
    ("stamp", "taken_at"),
    [
        ("9999:12:31 23:59:59", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("0001:01:01 00:00:00", datetime(1, 1, 1, tzinfo=UTC)),
        ("0000:01:01 00:00:00", None),
        ("10000:01:01 00:00:00", None),
    ],
)
def test_a_picture_taken_at_any_time_is_indexed(indexer: Indexer, stamp: str, taken_at: datetime | None) -> None:
    save(indexer.folder / "a.jpg", 1, exif=exif_block(DateTimeOriginal=stamp, OffsetTimeOriginal="+00:00"))
    assert indexer.index() == IndexReport(1, encoded=1)
    assert [image.taken_at for image in indexer.store.images().values()] == [taken_at]
    assert [entry.taken_at for entry in read_timeline(indexer.store).page(0, 9)] == [taken_at]


# One failed read is not the end of a picture

Failing = Callable[[Indexer, Path, pytest.MonkeyPatch], AbstractContextManager[None]]


@contextmanager
def unmounted(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the link leads to is away with its drive."""
    drive = link.readlink().parent
    drive.rename(drive.with_name("away"))
    yield
    drive.with_name("away").rename(drive)


@contextmanager
def looping(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looking at the file fails with another error than that it is not there."""
    target = link.readlink()
    link.unlink()
    link.symlink_to(link)
    yield
    link.unlink()
    link.symlink_to(target)


def holding(data: bytes | None) -> Failing:
    """The file has other content, or where that is None, half of its own."""

    @contextmanager
    def failing(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
        whole = link.read_bytes()
        link.write_bytes(whole[: len(whole) // 2] if data is None else data)
        yield
        link.write_bytes(whole)

    return failing


@contextmanager
def a_lower_bound(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    os.utime(link, ns=(1, 1))
    indexer.limits = Limits(max_bytes=link.stat().st_size - 1)
    yield
    indexer.limits = Limits()


def refused(number: int, *, touched: bool) -> Failing:
    """The drive answers with an error: when the file is looked at, or, if it was touched, when it is opened."""

    @contextmanager
    def failing(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
        owner, call = (Path, "open") if touched else (os, "stat")
        work = getattr(owner, call)

        def fails(name: Any, *args: Any, **options: Any) -> Any:
            if str(name) == str(link):
                raise OSError(number, os.strerror(number), str(name))
            return work(name, *args, **options)

        if touched:
            os.utime(link, ns=(1, 1))
        with patch.context() as context:
            context.setattr(owner, call, fails)
            yield

    return failing


@contextmanager
def never_at_rest(indexer: Indexer, link: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    os.utime(link, ns=(1, 1))
    with patch.context() as context:
        context.setattr(images, "_read_unchanged", lambda *_: None)
        yield


FAILING: dict[str, Failing] = {
    "unmounted": unmounted,
    "looping": looping,
    "half written": holding(None),
    "emptied": holding(b""),
    "another kind of file": holding(b"Dear reader, this is a letter."),
    "a lower bound": a_lower_bound,
    "EIO": refused(errno.EIO, touched=False),
    "ESTALE": refused(errno.ESTALE, touched=True),
    "never at rest": never_at_rest,
}


@pytest.fixture
def link(indexer: Indexer, tmp_path: Path) -> Path:
    """A link among the pictures, to one that lies elsewhere; another picture lies beside it."""
    made = indexer.folder / "a.png"
    made.symlink_to(save(tmp_path / "drive" / "a.png", 1))
    save(indexer.folder / "b.png", 2)
    return made


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_a_picture_whose_file_cannot_be_read_is_still_known(
    indexer: Indexer, link: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    indexer.index()
    content, known = indexer.content(), indexer.store.files()[str(link)]
    with failing(indexer, link, monkeypatch):
        report = indexer.index()
        (skipped,) = report.unreadable
        assert replace(report, unreadable=[]) == IndexReport(2, unchanged=1)
        row = indexer.store.files()[str(link)]
        assert row == replace(known, state="unreadable", reason=skipped.reason)
        assert len(garbage.find_orphans(indexer.store, grace=timedelta(0))) == 0
        before = indexer.versions()
        assert indexer.index().unreadable == [skipped]  # tried again, and not written again
        assert indexer.versions() == before
        garbage.compact(indexer.store, alone=True)
        assert indexer.store.images() == content["images"]
    report = indexer.index()
    assert (report.encoded, report.reused + report.unchanged) == (0, 2)
    assert indexer.store.files()[str(link)].state == "ok"
    assert len(indexer.encoded) == 2
    files = {path: replace(row, mtime_ns=0) for path, row in content.pop("files").items()}
    assert {path: replace(row, mtime_ns=0) for path, row in indexer.store.files().items()} == files
    assert {name: value for name, value in indexer.content().items() if name != "files"} == content
    assert indexer.index() == IndexReport(2, unchanged=2)


@pytest.mark.parametrize("failing", [unmounted, looping, FAILING["EIO"]], ids=["unmounted", "looping", "EIO"])
def test_a_picture_whose_file_cannot_be_read_is_found_by_its_path(
    indexer: Indexer, link: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    indexer.index()
    known = indexer.store.files()[str(link)]
    with failing(indexer, link, monkeypatch):
        indexer.index()
        for name in (link, "a.png", str(known.image_id)[:12]):
            assert locate(indexer.store, name, indexer.limits).image.image_id == known.image_id


def test_only_a_picture_that_was_read_takes_the_place_of_another(
    indexer: Indexer, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexer.index()
    known = indexer.store.files()[str(link)]
    with unmounted(indexer, link, monkeypatch):
        indexer.index()
        link.unlink()
        assert indexer.index().missing == 1
        assert indexer.store.files()[str(link)] == replace(known, state="missing")
        link.symlink_to(link)
        assert len(indexer.index().unreadable) == 1
        assert indexer.store.files()[str(link)].image_id == known.image_id
        link.unlink()
        draw(3).save(link)
        assert indexer.index() == IndexReport(2, encoded=1, unchanged=1)
    row = indexer.store.files()[str(link)]
    assert (row.state, row.reason) == ("ok", None)
    assert row.image_id != known.image_id
    assert garbage.find_orphans(indexer.store, grace=timedelta(0)).images == [known.image_id]


def test_a_file_that_could_not_be_read_is_refreshed_when_it_is_back(
    indexer: Indexer, link: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another encoder, whose run came by while the drive was away; what was never a picture is left alone."""
    (indexer.folder / "c.png").write_text("no picture")
    indexer.index()
    other = VisionEncoder.from_pretrained(str(make_checkpoint(tmp_path / "model", "qwen2_vl")), device="cpu")

    def refresh() -> IndexReport:
        made = pipeline.refresh(indexer.store, other.encoder, lambda: other, limits=Limits())
        return replace(made, seconds=0.0)

    with unmounted(indexer, link, monkeypatch):
        report = refresh()
        assert (report.found, report.encoded) == (2, 1)
        assert [skipped.path for skipped in report.unreadable] == [str(link)]
    assert refresh() == IndexReport(1, encoded=1)
    assert refresh() == IndexReport()


def test_every_file_of_a_picture_that_the_model_refuses_is_listed(indexer: Indexer) -> None:
    """Two files, the same pixels: each is named, whether or not they meet in one chunk."""
    for name in ("a.png", "b.bmp", "z.png"):
        Image.new("RGB", (1, 300), "red").save(indexer.folder / name)
    for seed in range(8):
        save(indexer.folder / f"c{seed}.png", seed)
    report = indexer.index()
    assert (report.found, report.encoded) == (11, 8)
    assert [Path(skipped.path).name for skipped in report.unreadable] == ["a.png", "b.bmp", "z.png"]
    assert all("aspect ratio of 300" in skipped.reason for skipped in report.unreadable)
    assert {row.state for row in indexer.store.files().values()} == {"ok", "unreadable"}
    assert indexer.store.count("images") == 8


def test_a_name_that_is_no_utf8(indexer: Indexer) -> None:
    save(indexer.folder / "a.png", 1)
    bad = os.fsencode(indexer.folder) + b"/\xff\xfe.png"
    Path(os.fsdecode(bad)).write_bytes((indexer.folder / "a.png").read_bytes())
    for unchanged in (0, 1):
        report = indexer.index()
        assert (report.found, report.unchanged) == (2, unchanged)
        (skipped,) = report.unreadable
        assert skipped.reason == "Its name is not valid UTF-8; rename it."
        skipped.path.encode()  # can be printed
    assert list(indexer.store.files()) == [str(indexer.folder / "a.png")]


def test_a_file_that_changes_while_it_is_read(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is of the content that was encoded, so the next run sees that it changed."""
    path = save(indexer.folder / "a.png", 1)
    read = images.read_bytes

    def slow(name: str, limits: Limits) -> Any:
        draw(2, (84, 84)).save(path)  # after the walk saw it
        content = read(name, limits)
        draw(3, (112, 112)).save(path)  # and again
        return content

    monkeypatch.setattr(pipeline, "read_bytes", slow)
    assert indexer.index().encoded == 1
    monkeypatch.undo()
    (image,) = indexer.store.images().values()
    assert (image.width, image.height) == (84, 84)
    report = pipeline.index(
        indexer.store, [indexer.folder], indexer.vision.encoder, lambda: indexer.vision, limits=Limits()
    )
    assert (report.encoded, report.unchanged) == (1, 0)
    assert {image.width for image in indexer.store.images().values()} == {84, 112}


def test_a_file_that_never_rests_is_unreadable(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(indexer.folder / "restless.png", 1)
    save(indexer.folder / "z.png", 2)
    count = itertools.count(10**18)
    stat = os.stat

    def changing(name: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(name) == str(path):
            os.utime(path, ns=(1, next(count)))
        return stat(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", changing)
        report = indexer.index()
    assert [skipped.reason.split(". ")[0] for skipped in report.unreadable] == [f"{path} changed while it was read"]
    assert report.encoded == 1
    assert indexer.index().encoded == 1


# Which files


def test_a_picture_of_any_suffix_is_indexed(indexer: Indexer) -> None:
    path = save(indexer.folder / "picture.txt", 1, format="PNG")
    assert indexer.index().found == 0
    assert indexer.index(path) == IndexReport(1, encoded=1)


def test_a_symbolic_link_is_a_file_of_its_own(indexer: Indexer) -> None:
    target = save(indexer.folder / "a.png", 1)
    (indexer.folder / "link.png").symlink_to(target)
    (indexer.folder / "dangling.png").symlink_to(indexer.folder / "nothing.png")
    (indexer.folder / "loop").symlink_to(indexer.folder)
    report = indexer.index()
    assert (report.found, report.encoded, report.reused) == (3, 1, 1)
    assert [Path(skipped.path).name for skipped in report.unreadable] == ["dangling.png"]


# The order does not matter


@given(st.randoms(use_true_random=False))
@settings(max_examples=settings().max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_files_does_not_matter(
    indexer: Indexer, tmp_path_factory: pytest.TempPathFactory, rng: random.Random
) -> None:
    """Nor how they are spread over runs, nor the sizes of chunks and batches."""
    paths = [save(indexer.folder / f"{seed}.png", seed) for seed in range(3)]
    paths += [save(indexer.folder / "b.bmp", 0), indexer.folder / "broken.jpg", indexer.folder / "copy.png"]
    paths[4].write_bytes(b"nothing")
    shutil.copy(paths[1], paths[5])
    for path in paths:
        os.utime(path, ns=(1, 1))
    indexer.store = FeatureStore(tmp_path_factory.mktemp("ordered") / "album.qsplit", create=True)
    indexer.index(*paths)
    expected = indexer.content()

    rng.shuffle(paths)
    indexer.store = FeatureStore(tmp_path_factory.mktemp("shuffled") / "album.qsplit", create=True)
    cut = rng.randint(0, len(paths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_CHUNK", rng.randint(1, 4))
        patch.setattr(pipeline, "_BATCH_FILES", rng.randint(1, 4))
        for part in (paths[:cut], paths[cut:]):
            if part:
                indexer.index(*part)
    assert indexer.content() == expected


# Interruption


class Stop(KeyboardInterrupt):
    pass


def fill(indexer: Indexer) -> None:
    for seed in range(4):
        save(indexer.folder / f"{seed}.png", seed)
    save(indexer.folder / "x.bmp", 1)
    (indexer.folder / "y.png").write_bytes(b"nothing")
    for path in indexer.folder.iterdir():
        os.utime(path, ns=(1, 1))


def undisturbed(indexer: Indexer, folder: Path) -> dict[str, Any]:
    other = replace(indexer, store=FeatureStore(folder / "other.qsplit", create=True), encoded=[])
    other.index()
    return other.content()


@pytest.mark.parametrize(("moment", "which"), [("after", 1), ("before", 2)])
@pytest.mark.parametrize("put", PUTS)
def test_an_interrupted_run_is_taken_up_again(
    indexer: Indexer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: str, moment: str, which: int
) -> None:
    fill(indexer)
    expected = undisturbed(indexer, tmp_path)
    original, calls = getattr(FeatureStore, put), itertools.count(1)

    def stopping(*args: Any) -> Any:
        stop = next(calls) == which
        if stop and moment == "before":
            raise Stop
        done = original(*args)
        if stop:
            raise Stop
        return done

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_CHUNK", 2)
        patch.setattr(pipeline, "_BATCH_FILES", 2)
        patch.setattr(FeatureStore, put, stopping)
        with pytest.raises(Stop):
            indexer.index()
    stored = indexer.store.encoded_pixels(indexer.vision.encoder.id)
    trusted = [row for row in indexer.store.files().values() if row.state == "ok"]
    for row in trusted:  # a reader trusts files: what it names is there whole
        assert indexer.store.images()[str(row.image_id)].pixels_digest in stored
        assert row.image_id in indexer.store.vector_ids(indexer.vision.encoder.id)
    indexer.encoded.clear()
    report = indexer.index()
    assert not stored & set(indexer.encoded)
    assert report.unchanged == len(trusted)
    assert indexer.content() == expected
    assert indexer.index().unchanged == 5


def test_a_run_stopped_by_its_watcher(indexer: Indexer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(indexer)
    expected = undisturbed(indexer, tmp_path)
    monkeypatch.setattr(pipeline, "_CHUNK", 2)
    monkeypatch.setattr(pipeline, "_BATCH_FILES", 2)

    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise Stop

    with pytest.raises(Stop):
        indexer.index(on_progress=stop)
    stored = indexer.store.encoded_pixels(indexer.vision.encoder.id)
    assert stored
    indexer.encoded.clear()
    indexer.index()
    assert not stored & set(indexer.encoded)
    assert indexer.content() == expected


def test_progress(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(indexer)
    monkeypatch.setattr(pipeline, "_CHUNK", 2)
    heard: list[Progress] = []
    indexer.index(on_progress=heard.append)
    assert [(progress.done, progress.total) for progress in heard][-1] == (6, 6)
    assert [progress.done for progress in heard] == sorted({progress.done for progress in heard})
    assert [progress.seconds for progress in heard] == sorted(progress.seconds for progress in heard)
    heard.clear()
    indexer.index(on_progress=heard.append)
    assert [(progress.done, progress.total) for progress in heard] == [(1, 1)]  # the unreadable one, again


def test_progress_rate() -> None:
    halfway = Progress(done=20, total=60, seconds=10.0)
    assert (halfway.rate, halfway.remaining) == (2.0, 20.0)
    assert (Progress(0, 5, 0.0).rate, Progress(0, 5, 0.0).remaining) == (0.0, 0.0)


def test_memory_is_bounded_by_what_is_read_ahead(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared pictures are large: beside the one that is encoded, never are more begun than there are threads."""
    for seed in range(12):
        save(indexer.folder / f"{seed:02}.png", seed)
    loaded, decode = itertools.count(), images.decode
    begun: list[int] = []

    def counted(*args: Any, **options: Any) -> Picture:
        begun.append(next(loaded) + 1 - len(indexer.encoded))
        return decode(*args, **options)

    monkeypatch.setattr(pipeline, "decode", counted)
    assert indexer.index().encoded == 12
    assert 1 < max(begun) <= THREADS + 1


def test_what_waits_is_prepared_and_holds_no_pixels(indexer: Indexer) -> None:
    save(indexer.folder / "a.png", 1)
    run = pipeline._Run(indexer.store, indexer.vision.encoder, lambda: indexer.vision, Limits(), "raw", None)
    run._known = run._look_up()
    loaded = run._load(pipeline._File(str(indexer.folder / "a.png"), 0, 0))
    assert loaded.picture is not None
    assert (loaded.picture.rgb.size, loaded.picture.clip) == ((1, 1), None)
    assert loaded.patches == 16


def test_pictures_of_files_share_a_pass(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the budget; a known picture between them, and one that cannot be read, share what is around them."""
    for seed in range(6):
        save(indexer.folder / f"{seed}.png", seed)
    indexer.index(indexer.folder / "2.png")
    shutil.copy(indexer.folder / "2.png", indexer.folder / "2 again.png")
    (indexer.folder / "3 broken.png").write_bytes(b"nothing")
    passes: list[int] = []
    forward = VisionEncoder._forward

    def counted(self: VisionEncoder, pack: Sequence[Prepared]) -> list[Features]:
        passes.append(len(pack))
        return forward(self, pack)

    monkeypatch.setattr(VisionEncoder, "_forward", counted)
    monkeypatch.setattr(indexer.vision, "budget", 48)  # three pictures of 16 patches
    report = indexer.index()
    assert (report.encoded, report.reused, report.unchanged, len(report.unreadable)) == (5, 1, 1, 1)
    assert passes == [3, 2]


# Another model


def test_another_encoder_encodes_everything_beside_the_old(indexer: Indexer, tmp_path: Path) -> None:
    for seed in range(2):
        save(indexer.folder / f"{seed}.png", seed)
    save(indexer.folder / "0.bmp", 0)
    indexer.index()
    old_vision, old = indexer.vision, indexer.content()
    folder = make_checkpoint(tmp_path / "model", "qwen2_vl")
    indexer.vision = VisionEncoder.from_pretrained(str(folder), device="cpu")
    assert indexer.vision.encoder == resolve(str(folder), "vision").encoder()
    assert indexer.index() == IndexReport(3, encoded=2, reused=1)
    assert indexer.index() == IndexReport(3, unchanged=3)
    new = indexer.content()
    assert indexer.store.count("features") == 4
    assert indexer.store.count("images") == 3
    assert {key: new["features"][key] for key in old["features"]} == old["features"]
    assert indexer.store.encoded_pixels(indexer.vision.encoder.id) == indexer.store.encoded_pixels(
        old_vision.encoder.id
    )
    assert len(indexer.store.encoders()) == 2
    indexer.vision = old_vision  # and back
    assert indexer.index() == IndexReport(3, unchanged=3)
    assert len(indexer.encoded) == 4


def test_what_waits_to_be_written_holds_no_pixels(indexer: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 512 photographs would else take tens of gigabytes."""
    for name in "abc":
        draw(ord(name)).save(indexer.folder / f"{name}.png")
    waiting: list[tuple[int, int]] = []
    put = FeatureStore.put_images

    def watched(store: FeatureStore, pictures: Any) -> int:
        waiting.extend(one.rgb.size for one in pictures)
        return put(store, pictures)

    monkeypatch.setattr(FeatureStore, "put_images", watched)
    assert indexer.index().encoded == 3
    assert waiting == [(1, 1)] * 3


def test_a_file_that_stays_unreadable_is_tried_again_and_not_written_again(indexer: Indexer) -> None:
    save(indexer.folder / "a.png", 1)
    (indexer.folder / "b.png").write_text("no picture")
    first = indexer.index()
    versions = indexer.versions()
    second = indexer.index()
    assert second.unreadable == first.unreadable
    assert indexer.versions() == versions
