"""Duplicates: copies are found and told apart, and two different pictures are never one."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from PIL.ExifTags import Base

import qsplit
from qsplit.album import Album
from qsplit.duplicates import cleanup, detector
from qsplit.duplicates.detector import KINDS, Group, find_duplicates, keep_apart, let_together
from qsplit.duplicates.keep_rules import KeepOrder, Kept
from qsplit.duplicates.matching.comparison import compare
from qsplit.errors import NotFound, UsageError
from qsplit.maintenance.garbage import snapshot
from qsplit.media.images import Limits, open_picture
from qsplit.progress import Progress
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, ImageRow


def add_file(store: FeatureStore, path: Path, **facts: Any) -> ImageRow:
    """Put a file into the store as indexing would, without a model."""
    found = open_picture(path, Limits())
    found = replace(found, **facts)
    store.put_images([found])
    store.put_files([FileRow(str(path), found.image_id, path.stat().st_size, 1, "ok")])
    return ImageRow(**{name: getattr(found, name) for name in ImageRow.__slots__})


def names(groups: list[Group]) -> list[tuple[str, set[str]]]:
    """Kind and file names of each group."""
    for group in groups:
        assert group.keep == group.members[0].path
        assert group.members[0].score == 1.0
        assert not group.members[0].movable
    return [(group.kind, {Path(member.path).name for member in group.members}) for group in groups]


def photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def written(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((10, image.height * 0.7), "SUMMER 1998", fill="yellow", font_size=image.height / 14)
    return image


def framed(image: Image.Image) -> Image.Image:
    screen = Image.new("RGB", (int(image.width * 1.2), image.height * 2), (250, 250, 250))
    screen.paste(image, (image.width // 10, image.height // 2))
    return screen


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((image.width, int(image.height * 0.8))),
    "crop": lambda image: image.crop((0, 0, int(image.width * 0.7), int(image.height * 0.7))),
    "border": lambda image: ImageOps.expand(image, image.width // 10, "red"),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.7),
    "written": written,
    "screenshot": framed,
    "turned": lambda image: image.rotate(20, Image.Resampling.BICUBIC, expand=True),
    "on its side": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> FeatureStore:
    """Every way in which people end up with the same picture twice, of three photographs."""
    folder = tmp_path_factory.mktemp("copies")
    for path in photos[:3]:
        shutil.copy(path, folder / path.name)
        shutil.copy(path, folder / f"{path.stem} exact.jpg")
        rgb = photograph(path)
        rgb.save(folder / f"{path.stem} pixels.png")
        rgb.save(folder / f"{path.stem} q30.jpg", quality=30)
        exif = Image.Exif()
        exif[Base.Orientation] = 8
        rgb.transpose(Image.Transpose.ROTATE_270).save(folder / f"{path.stem} exif.jpg", quality=90, exif=exif)
        for name, change in CHANGES.items():
            change(rgb).save(folder / f"{path.stem} {name}.jpg", quality=85)
        ImageOps.mirror(rgb).save(folder / f"{path.stem} mirrored.jpg", quality=90)
    for path in photos[3:9]:
        shutil.copy(path, folder / path.name)
    store = FeatureStore(folder / "album.qsplit", create=True)
    for path in sorted(folder.glob("*.*g")):
        add_file(store, path)
    return store


def test_every_copy_is_found_and_nothing_else(copies: FeatureStore, photos: list[Path]) -> None:
    found = names(find_duplicates(copies))
    assert [kind for kind, _ in found] == ["exact"] * 3 + ["pixels"] * 3 + ["copy"] * 3
    for path in photos[:3]:
        of_photo = {kind: files for kind, files in found if any(name.startswith(path.stem) for name in files)}
        assert of_photo["exact"] == {path.name, f"{path.stem} exact.jpg"}
        assert of_photo["pixels"] & {path.name, f"{path.stem} exact.jpg"}
        assert f"{path.stem} pixels.png" in of_photo["pixels"]
        left = {f"{path.stem} {name}.jpg" for name in (*CHANGES, "q30", "exif")} - of_photo["copy"]
        assert left == set(), left
        assert all(name.startswith(path.stem) for name in of_photo["copy"])
        assert f"{path.stem} mirrored.jpg" not in of_photo["copy"]


def test_copies_in_a_mirror_are_found_on_request(copies: FeatureStore, photos: list[Path]) -> None:
    groups = [group for group in find_duplicates(copies, mirrored=True) if group.kind == "copy"]
    for path in photos[:3]:
        (group,) = (one for one in groups if Path(one.keep).name.startswith(path.stem))
        (member,) = (one for one in group.members if one.path.endswith("mirrored.jpg"))
        assert member.evidence
        assert member.evidence.mirrored


def test_the_evidence_says_how_one_lies_over_the_other(copies: FeatureStore, photos: list[Path]) -> None:
    found = find_duplicates(copies, order=KeepOrder(("path",)))  # the original has the shortest
    (group,) = (one for one in found if one.kind == "copy" and Path(one.keep).name == photos[0].name)
    evidence = {Path(one.path).stem.rpartition(" ")[2]: one.evidence for one in group.members[1:]}
    assert all(one and one.landmarks >= 4 and one.agreement > 0.6 for one in evidence.values())
    crop, half, turned, screen = (evidence[name] for name in ("crop", "half", "turned", "screenshot"))
    assert crop
    assert half
    assert turned
    assert screen
    assert crop.covers == pytest.approx(0.49, abs=0.02)
    assert crop.covered > 0.97
    assert crop.scale == pytest.approx(1, abs=0.02)
    assert half.scale == pytest.approx(0.5, abs=0.01)
    assert turned.turn == pytest.approx(-20, abs=0.5)
    assert screen.covers > 0.97
    assert screen.covered < 0.5
    assert screen.beyond_other < 0.1
    for x, y, to_x, to_y in crop.patches:  # the crop is of the upper left
        assert to_x == pytest.approx(x / 0.7, abs=0.05)
        assert to_y == pytest.approx(y / 0.7, abs=0.05)


def test_each_member_matches_the_keeper(copies: FeatureStore) -> None:
    """No chains, no file in two groups of a kind, and the kinds are never mixed."""
    images = copies.images()
    for kind in KINDS:
        groups = find_duplicates(copies, kinds=[kind])
        assert {group.kind for group in groups} <= {kind}
        paths = [member.path for group in groups for member in group.members]
        assert len(paths) == len(set(paths))
        for group in groups:
            keep, *others = (images[member.id] for member in group.members)
            for member, image in zip(group.members[1:], others, strict=True):
                assert (image.image_id == keep.image_id) == (kind == "exact")
                assert (image.pixels_digest == keep.pixels_digest) == (kind in ("exact", "pixels"))
                assert (member.evidence is not None) == (kind in ("copy", "similar"))
                assert member.score >= 0.5 or kind == "similar"


def test_the_whole_picture_is_kept(copies: FeatureStore, photos: list[Path]) -> None:
    """Not the larger canvas of a turned or framed copy, and not a crop."""
    groups = find_duplicates(copies, kinds=["copy"], moved=["copy"])
    assert len(groups) == 3
    for group in groups:
        name = Path(group.keep).name
        assert not any(name.endswith(f"{change}.jpg") for change in ("border", "screenshot", "turned", "crop", "half"))
        movable = {Path(one.path).stem.rpartition(" ")[2] for one in group.members if one.movable}
        assert {"q30", "half", "crop", "border", "grey"} <= movable


def test_a_crop_does_not_send_its_original_away(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    """A crop that was enlarged has more pixels; the original shows more all the same."""
    rgb = photograph(photos[0])
    rgb.save(tmp_path / "original.png")
    small = rgb.crop((0, 0, rgb.width // 2, rgb.height // 2))
    small.resize((rgb.width * 2, rgb.height * 2), Image.Resampling.BICUBIC).save(tmp_path / "crop.png")
    for name in ("original.png", "crop.png"):
        add_file(store, tmp_path / name)
    for order in (KeepOrder(), KeepOrder(("resolution",))):
        (group,) = find_duplicates(store, order=order)
        assert all(not one.movable for one in group.members), "each holds what the other does not"
    assert cleanup.movable([group]) == []


def test_two_different_photographs_are_never_one(store: FeatureStore, photos: list[Path]) -> None:
    for path in photos:
        add_file(store, path)
    assert len(store.images()) == len(photos) >= 24
    assert find_duplicates(store, kinds=KINDS, mirrored=True) == []


# Similar shots


def test_exposures_of_a_burst_are_similar_and_no_copies(
    store: FeatureStore, tmp_path: Path, photos: list[Path]
) -> None:
    """Even if nothing has moved: their cameras say that they are two."""
    rgb = photograph(photos[0])
    rgb.save(tmp_path / "one.jpg", quality=95)
    rgb.save(tmp_path / "two.jpg", quality=90)
    times = [datetime(2024, 5, 1, 12, 0, second, tzinfo=UTC) for second in (0, 2)]
    for name, taken_at in zip(("one.jpg", "two.jpg"), times, strict=True):
        add_file(store, tmp_path / name, taken_at=taken_at)
    assert find_duplicates(store) == []
    (group,) = find_duplicates(store, kinds=KINDS)
    assert group.kind == "similar"
    assert not any(member.movable for member in group.members)
    assert cleanup.movable([group]) == []


def test_a_clock_put_right_makes_no_second_exposure(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    rgb = photograph(photos[0])
    rgb.save(tmp_path / "one.jpg", quality=95)
    rgb.save(tmp_path / "two.jpg", quality=90)
    for name, hour in (("one.jpg", 12), ("two.jpg", 14)):
        add_file(store, tmp_path / name, taken_at=datetime(2024, 5, 1, hour, 0, 7, tzinfo=UTC))
    assert names(find_duplicates(store)) == [("copy", {"one.jpg", "two.jpg"})]


# What a person says


def test_pictures_that_are_kept_apart_stay_apart(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    rgb = photograph(photos[0])
    rgb.save(tmp_path / "a.png")
    rgb.save(tmp_path / "b.jpg", quality=80)
    rgb.save(tmp_path / "c.jpg", quality=60)
    a, b, _ = (add_file(store, tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg"))
    assert names(find_duplicates(store)) == [("copy", {"a.png", "b.jpg", "c.jpg"})]
    keep_apart(store, b, a)
    assert names(find_duplicates(store)) == [("copy", {"a.png", "c.jpg"})]
    shutil.move(tmp_path / "b.jpg", tmp_path / "moved.jpg")  # by the picture, wherever it lies and whoever looks
    store.put_files([FileRow(str(tmp_path / "b.jpg"), b.image_id, 1, 1, "missing")])
    add_file(store, tmp_path / "moved.jpg")
    again = FeatureStore(store.uri)
    assert names(find_duplicates(again, encoder_id="f" * 64)) == [("copy", {"a.png", "c.jpg"})]
    keep_apart(store, a, b)
    assert len(store.decisions()) == 1


def test_pictures_that_were_kept_apart_can_be_let_together(
    store: FeatureStore, tmp_path: Path, photos: list[Path]
) -> None:
    rgb = photograph(photos[0])
    rgb.save(tmp_path / "a.png")
    rgb.save(tmp_path / "b.jpg", quality=80)
    a, b = (add_file(store, tmp_path / name) for name in ("a.png", "b.jpg"))
    with pytest.raises(NotFound, match="Nobody said"):
        let_together(store, a, b)
    keep_apart(store, a, b)
    assert find_duplicates(store) == []
    let_together(FeatureStore(store.uri), b, a)
    assert names(find_duplicates(store)) == [("copy", {"a.png", "b.jpg"})]
    with pytest.raises(NotFound, match="Nobody said"):
        let_together(store, a, b)


def test_equal_pixels_are_kept_apart_by_their_bytes(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    rgb = photograph(photos[0])
    for name in ("a.png", "b.bmp", "c.tif"):
        rgb.save(tmp_path / name)
    a, b, _ = (add_file(store, tmp_path / name) for name in ("a.png", "b.bmp", "c.tif"))
    assert names(find_duplicates(store)) == [("pixels", {"a.png", "b.bmp", "c.tif"})]
    keep_apart(store, a, b)
    (found,) = names(find_duplicates(store))
    assert not {"a.png", "b.bmp"} <= found[1]
    with pytest.raises(UsageError, match="the same bytes"):
        keep_apart(store, a, a)


# One after the other, or all at once


def test_a_new_picture_is_compared_with_the_album_alone(
    store: FeatureStore, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = photograph(photos[0])
    for path in photos[:6]:
        add_file(store, path)
    rgb.save(tmp_path / "copy.jpg", quality=70)
    assert find_duplicates(store) == []
    compared: list[object] = []

    def counted(*given: Any, **options: Any) -> Any:
        compared.append(given)
        return compare(*given, **options)

    monkeypatch.setattr(detector, "compare", counted)
    add_file(store, tmp_path / "copy.jpg")
    assert names(find_duplicates(store)) == [("copy", {photos[0].name, "copy.jpg"})]
    assert 1 <= len(compared) <= 5
    compared.clear()
    assert len(find_duplicates(FeatureStore(store.uri))) == 1
    assert compared == []


@given(st.permutations(range(6)), st.integers(1, 6))
@settings(max_examples=settings().max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_arrival_changes_nothing(
    copies: FeatureStore, tmp_path_factory: pytest.TempPathFactory, order: list[int], some: int
) -> None:
    paths = sorted(row.path for row in copies.files().values())
    chosen = [paths[i] for i in (0, 1, 3, 5, 16, 20)]
    whole = FeatureStore(tmp_path_factory.mktemp("whole") / "a.qsplit", create=True)
    bit_by_bit = FeatureStore(tmp_path_factory.mktemp("bits") / "a.qsplit", create=True)
    for path in chosen:
        add_file(whole, Path(path))
    for number, i in enumerate(order):
        add_file(bit_by_bit, Path(chosen[i]))
        if number % some == 0:
            find_duplicates(bit_by_bit)
    assert find_duplicates(bit_by_bit) == find_duplicates(whole)


SCRIPT = """
from qsplit.duplicates import detector
from qsplit.store.feature_store import FeatureStore
detector._MANY, detector.cpu_count = 1, lambda: 2
print(detector.find_duplicates(FeatureStore({uri!r})))
"""


def test_processes_find_what_one_finds(copies: FeatureStore, tmp_path: Path) -> None:
    """Also for a script that does not ask whether it is the main module, as `multiprocessing` would have it."""
    paths = sorted(row.path for row in copies.files().values())[:9]
    stores = [FeatureStore(tmp_path / f"{name}.qsplit", create=True) for name in ("alone", "together")]
    for store, path in itertools.product(stores, paths):
        add_file(store, Path(path))
    (tmp_path / "script.py").write_text(SCRIPT.format(uri=stores[1].uri))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(find_duplicates(stores[0]))), done.stderr
    assert done.stderr == ""


def test_a_run_that_is_stopped_goes_on_where_it_was(
    copies: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(row.path for row in copies.files().values())
    chosen = paths[:9]
    stores = [FeatureStore(tmp_path / f"{name}.qsplit", create=True) for name in ("whole", "stopped")]
    for store, path in itertools.product(stores, chosen):
        add_file(store, Path(path))
    whole, stopped = stores
    expected = find_duplicates(whole)
    monkeypatch.setattr(detector, "_AT_ONCE", 2)
    told: list[Progress] = []

    def stop(progress: Progress) -> None:
        told.append(progress)
        if progress.what == "pairs" and progress.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_duplicates(stopped, on_progress=stop)
    done = FeatureStore(stopped.uri).compared(detector._made("", mirrored=False))
    assert 0 < len(done) < len(chosen)
    total = told[-1].total
    told.clear()
    assert find_duplicates(FeatureStore(stopped.uri), on_progress=told.append) == expected
    pairs = [one for one in told if one.what == "pairs"]
    assert [one.done for one in pairs] == list(range(1, pairs[-1].total + 1))
    assert pairs[-1].total < total


def test_a_snapshot_is_compared_and_nothing_written(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    rgb = photograph(photos[0])
    for quality in (90, 60):
        rgb.save(tmp_path / f"{quality}.jpg", quality=quality)
        add_file(store, tmp_path / f"{quality}.jpg")
    snapshot(store, "then")
    then = FeatureStore(store.uri, snapshot="then")
    assert names(find_duplicates(then)) == [("copy", {"90.jpg", "60.jpg"})]
    assert "pairs" not in store.tables()


# Which is kept


BETTER: list[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
    ((), {"whole": True}, {"whole": False, "width": 9999}),
    ((), {"width": 800, "height": 600}, {"camera": "X", "format": "PNG", "size": 9999}),
    ((), {"camera": "X"}, {"format": "PNG", "size": 9999}),
    ((), {"latitude": 0.0, "longitude": 0.0}, {"format": "BMP"}),
    ((), {"format": "PNG"}, {"size": 9999}),
    ((), {"size": 2000}, {"size": 1000, "path": "/a"}),
    ((), {"path": "/long"}, {"path": "/longer"}),
    ((), {"path": "/a"}, {"path": "/b"}),
    (("bytes",), {"size": 2000}, {"width": 9999}),
    (("format", "path"), {"format": "PNG"}, {"path": "/a"}),
    (("oldest",), {"taken_at": datetime(2001, 1, 1, tzinfo=UTC)}, {"taken_at": datetime(2002, 1, 1, tzinfo=UTC)}),
    (("oldest",), {"taken_at": datetime(2001, 1, 1, tzinfo=UTC)}, {"width": 9999}),
    (("in:*/raw/*",), {"path": "/p/raw/1.png"}, {"width": 9999}),
    (("not:*/export/*",), {"path": "/long/path.png"}, {"path": "/export/a", "width": 9999}),
]


def kept(number: int, facts: dict[str, Any]) -> Kept:
    own = {name: facts[name] for name in ("path", "size", "whole") if name in facts}
    image = rows.image_row(number, **{name: value for name, value in facts.items() if name not in own})
    return Kept(image, **{"path": "/x", "size": 1000, **own})


@pytest.mark.parametrize(("rules", "better", "worse"), BETTER)
def test_the_keeper(rules: tuple[str, ...], better: dict[str, Any], worse: dict[str, Any]) -> None:
    order = KeepOrder(rules)
    assert order.rank(kept(1, {"path": "/keep", **better})) < order.rank(kept(2, {"path": "/drop", **worse}))
    protecting = KeepOrder(rules, protected=["/safe"])
    assert protecting.rank(kept(1, better)) > protecting.rank(kept(2, {**worse, "path": "/safe/it"}))


def test_protected_folders() -> None:
    order = KeepOrder(protected=["/safe", "/also/"])
    assert [order.is_protected(path) for path in ("/safe/a", "/also/b/c", "/safer/a", "/b")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_protected_file_is_never_moved(store: FeatureStore, tmp_path: Path, photos: list[Path]) -> None:
    for name in ("safe/a.jpg", "safe/b.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos[0], tmp_path / name)
        add_file(store, tmp_path / name)
    groups = find_duplicates(store, order=KeepOrder(protected=[str(tmp_path / "safe")]))
    assert groups[0].keep == str(tmp_path / "safe/a.jpg")
    assert [one.path for one in cleanup.movable(groups)] == [str(tmp_path / "c.jpg")]


def test_an_unknown_rule() -> None:
    with pytest.raises(UsageError, match="There is no rule 'smallest'"):
        KeepOrder(("smallest",))


# What is no copy


def test_blank_files(store: FeatureStore, tmp_path: Path) -> None:
    for number, colour in enumerate([(250, 250, 250), (251, 250, 250), (0, 0, 0)]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        add_file(store, tmp_path / f"{number}.png")
    Image.effect_noise((300, 200), 3).convert("RGB").save(tmp_path / "noise.png")
    Image.effect_noise((300, 200), 3).convert("RGB").save(tmp_path / "other.png")
    for name in ("noise.png", "other.png"):
        add_file(store, tmp_path / name)
    assert find_duplicates(store, kinds=KINDS) == []


@pytest.mark.parametrize("state", ["missing", "unreadable"])
def test_a_file_that_is_gone_is_no_duplicate(
    store: FeatureStore, tmp_path: Path, photos: list[Path], state: Any
) -> None:
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photos[0], tmp_path / name)
        image = add_file(store, tmp_path / name)
    assert len(find_duplicates(store)) == 1
    store.put_files([FileRow(str(tmp_path / "b.jpg"), image.image_id if state == "missing" else None, 1, 1, state)])
    assert find_duplicates(store) == []


def test_an_empty_store(store: FeatureStore) -> None:
    assert find_duplicates(store, kinds=KINDS) == []


# With a model, to the trash and back


@pytest.fixture
def album(tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> Album:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in photos[:3]:
        shutil.copy(path, pictures)
        photograph(path).save(pictures / f"{path.stem} again.jpg", quality=40)
    shutil.copy(photos[0], pictures / "the same.jpg")
    album = qsplit.open(tmp_path / "album.qsplit")
    album.index(pictures)
    return album


def test_tokens_speak_for_copies_too(album: Album) -> None:
    copies = album.duplicates(["copy"])
    assert len(copies) == 3
    for group in copies:
        (evidence,) = (one.evidence for one in group.members[1:])
        assert evidence
        assert evidence.tokens >= 20


def test_to_the_trash_and_back(album: Album, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    groups = album.duplicates(("exact", "pixels", "copy"))
    assert {path: path.read_bytes() for path in (tmp_path / "pictures").iterdir()} == before
    moved = album.trash.move(groups)
    assert [one.state for one in moved] == ["moved"] * 4
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {Path(g.keep).name for g in groups}
    assert album.duplicates() == []
    assert album.trash.move(album.duplicates()) == []
    assert [one.state for one in album.trash.bring_back()] == ["restored"] * 4
    assert {path: path.read_bytes() for path in (tmp_path / "pictures").iterdir()} == before
    assert album.duplicates(("exact", "pixels", "copy")) == groups
    assert album.trash.bring_back() == []
    assert album.verify().sound


def test_a_keeper_that_changed_keeps_its_copies(album: Album, tmp_path: Path) -> None:
    groups = album.duplicates(["copy"])
    keep = Path(groups[0].keep)
    keep.write_bytes(keep.read_bytes() + b"edited")
    states = {one.keep: one.state for one in album.trash.move(groups)}
    assert states.pop(str(keep)) == "left"
    assert set(states.values()) == {"moved"}


def test_forgetting_a_picture_forgets_what_was_found_of_it(album: Album) -> None:
    group = album.duplicates(["copy"])[0]
    one, other = group.members[:2]
    album.decisions.keep_apart(one.path, other.path)
    album.forget(one.path)
    assert all(one.id not in str(row) for table in ("pairs", "decisions") for row in album.store.column(table, "key"))
    assert album.verify().orphans.comparisons == []
    digest = album.store.images()[other.id].pixels_digest
    assert any(row[0] == digest for row in album.store.column("compared", "pixels_digest"))
