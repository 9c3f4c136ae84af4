"""Duplicates: copies are found and told apart, and two different pictures are never one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base

from qsplit import dedupe
from qsplit.dedupe import find_duplicates
from qsplit.images import Limits, open_picture
from qsplit.rows import FileRow
from qsplit.store import FeatureStore


def add_file(store: FeatureStore, path: Path) -> None:
    """Put a file into the store as indexing would, without a model."""
    found = open_picture(path, Limits())
    store.put_images([found])
    store.put_files([FileRow(str(path), found.image_id, path.stat().st_size, 1, "ok")])


def add(store: FeatureStore, path: str, number: int, size: int = 1000, **facts: Any) -> None:
    """Put a made-up image into the store; equal numbers are equal bytes."""
    made = rows.picture(number, **facts)
    store.put_images([made])
    store.put_files([FileRow(path, made.image_id, size, 1, "ok")])


def hamming(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def groups(store: FeatureStore) -> list[tuple[str, list[str]]]:
    """Kind and file names of each group, the one to keep first."""
    found = find_duplicates(store)
    for group in found:
        assert group.keep == group.members[0].path
        assert group.members[0].score == 1.0
    return [(group.kind, [Path(member.path).name for member in group.members]) for group in found]


# Copies of real photographs


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> FeatureStore:
    """Every way in which people end up with the same picture twice, of six photographs."""
    folder = tmp_path_factory.mktemp("copies")
    for path in photos[:6]:
        shutil.copy(path, folder / path.name)
        shutil.copy(path, folder / f"{path.stem} exact.jpg")
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        rgb.save(folder / f"{path.stem} pixels.png")
        rgb.save(folder / f"{path.stem} q60.jpg", quality=60)
        rgb.resize((rgb.width // 2, rgb.height // 2)).save(folder / f"{path.stem} half.jpg", quality=90)
        exif = Image.Exif()
        exif[Base.Orientation] = 8
        turned = rgb.transpose(Image.Transpose.ROTATE_270)  # as a camera held upright writes it
        turned.save(folder / f"{path.stem} turned.jpg", quality=90, exif=exif)
        turned.save(folder / f"{path.stem} turned.png", exif=exif)
    store = FeatureStore(folder / "album.qsplit", create=True)
    for path in sorted(folder.glob("*.*g")):
        add_file(store, path)
    return store


def test_every_copy_is_found_and_nothing_else(copies: FeatureStore, photos: list[Path]) -> None:
    found = find_duplicates(copies)
    for kind, endings in {
        "exact": {".jpg", " exact.jpg"},
        "pixels": {".jpg", " pixels.png", " turned.png"},
        "copy": {".jpg", " q60.jpg", " half.jpg", " turned.jpg"},
    }.items():
        of_kind = [group for group in found if group.kind == kind]
        assert len(of_kind) == 6
        for path in photos[:6]:
            (group,) = (g for g in of_kind if Path(g.members[0].path).name.startswith(path.stem))
            names = [Path(member.path).name.removeprefix(path.stem) for member in group.members]
            if kind == "exact":
                assert set(names) == endings
            else:  # one of the equals stands for all of them
                assert len(names) == len(endings)
                assert {" half.jpg", " q60.jpg", " turned.jpg"} <= set(names) or kind == "pixels"


def test_kinds_are_never_mixed(copies: FeatureStore) -> None:
    images, files = copies.images(), copies.files()
    for group in find_duplicates(copies):
        ids = [member.id for member in group.members]
        pixels = [images[image_id].pixels_digest for image_id in ids]
        assert all(files[member.path].image_id == member.id for member in group.members)
        match group.kind:
            case "exact":
                assert len(set(ids)) == 1
            case "pixels":
                assert len(set(ids)) == len(ids)
                assert len(set(pixels)) == 1
            case "copy":
                assert len(set(pixels)) == len(pixels)
                bits = [hamming(images[ids[0]].phash, images[image_id].phash) for image_id in ids]
                assert max(bits) <= dedupe._LARGEST_DISTANCE
                assert [member.score for member in group.members] == pytest.approx([1 - n / 64 for n in bits], abs=1e-6)


def test_order_of_groups(copies: FeatureStore) -> None:
    kinds = [group.kind for group in find_duplicates(copies)]
    assert kinds == sorted(kinds, key=["exact", "pixels", "copy"].index)
    assert find_duplicates(copies) == find_duplicates(FeatureStore(copies.uri))


def test_two_different_photographs_are_never_one(store: FeatureStore, photos: list[Path]) -> None:
    for path in photos:
        add_file(store, path)
    assert len(store.images()) == len(photos) >= 24
    assert find_duplicates(store) == []
    hashes = [image.phash for image in store.images().values()]
    assert min(hamming(a, b) for a, b in itertools.combinations(hashes, 2)) > 2 * dedupe._LARGEST_DISTANCE


# Which is kept


BETTER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"width": 800, "height": 600}, {"width": 640, "height": 480, "camera": "X", "format": "PNG", "size": 9999}),
    ({"camera": "X"}, {"format": "PNG", "size": 9999}),
    ({"taken_at": datetime(2024, 1, 1, tzinfo=UTC)}, {"format": "TIFF"}),
    ({"latitude": 0.0, "longitude": 0.0}, {"format": "BMP"}),
    ({"format": "PNG"}, {"size": 9999}),
    ({"format": "TIFF"}, {"format": "WEBP", "size": 9999}),
    ({"size": 2000}, {"size": 1000, "path": "/a"}),
    ({"path": "/long"}, {"path": "/longer"}),
    ({"path": "/a"}, {"path": "/b"}),
]


@pytest.mark.parametrize(("better", "worse"), BETTER)
@pytest.mark.parametrize("turn", [1, -1], ids=["first", "last"])
def test_the_keeper(store: FeatureStore, better: dict[str, Any], worse: dict[str, Any], turn: int) -> None:
    """More pixels, then EXIF, then a lossless format, then more bytes, then a shorter path."""
    default = {"path": "/x", "phash": 0b1011}
    one, two = {**default, "path": "/keep", **better}, {**default, "path": "/drop", **worse}
    for number, facts in list(enumerate((one, two)))[::turn]:
        add(store, number=number, **facts)
    (group,) = find_duplicates(store)
    assert group.kind == "copy"
    assert group.keep == one["path"]
    assert [member.path for member in group.members] == [one["path"], two["path"]]


def test_of_exact_copies_the_shortest_path_is_kept(store: FeatureStore) -> None:
    for path in ("/a/b/c.jpg", "/z.jpg", "/a.jpg"):
        add(store, path, 1)
    assert groups(store) == [("exact", ["a.jpg", "z.jpg", "c.jpg"])]


# What is not a copy


def flip(phash: int, *bits: int) -> int:
    for bit in bits:
        phash ^= 1 << bit
    return phash


def test_the_bound_on_bits(store: FeatureStore) -> None:
    add(store, "/best", 0, size=9999, phash=0)
    add(store, "/six", 1, phash=flip(0, *range(6)))
    add(store, "/seven", 2, phash=flip(0, *range(20, 27)))
    assert groups(store) == [("copy", ["best", "six"])]
    assert [len(group.members) for group in find_duplicates(store, distance=7)] == [3]
    assert find_duplicates(store, distance=5) == []
    assert find_duplicates(store)[0].members[1].score == round(1 - 6 / 64, 6)


def test_no_chains(store: FeatureStore) -> None:
    """Each step is small, but the last picture is not the first: every member is near to the one that is kept."""
    for number in range(5):
        add(store, f"/{number}", number, size=1000 - number, phash=flip(0, *range(5 * number)))
    assert groups(store) == [("copy", ["0", "1"]), ("copy", ["2", "3"])]


def test_a_picture_is_in_one_group_of_a_kind(store: FeatureStore) -> None:
    add(store, "/a", 0, size=30, phash=0)
    add(store, "/between", 1, size=20, phash=flip(0, *range(5)))
    add(store, "/c", 2, size=10, phash=flip(0, *range(10)))
    assert groups(store) == [("copy", ["a", "between"])]


def test_another_shape_is_no_copy(store: FeatureStore) -> None:
    add(store, "/wide", 0, width=640, height=480, phash=5)
    add(store, "/square", 1, width=480, height=480, phash=5)
    add(store, "/wider", 2, width=640, height=440, phash=5)
    assert groups(store) == []
    add(store, "/thumbnail", 3, width=85, height=64, phash=5)  # 4:3 rounded to whole pixels
    assert groups(store) == [("copy", ["wide", "thumbnail"])]


@pytest.mark.parametrize("detail", [0.0, 3.99])
def test_nearly_blank_pictures_are_no_copies(store: FeatureStore, detail: float) -> None:
    for number in range(3):
        add(store, f"/{number}", number, phash=7, detail=detail)
    assert groups(store) == []
    for number in range(2):  # the same bytes are the same, however blank
        add(store, f"/same {number}", 0, phash=7, detail=detail)
    add(store, "/same pixels", 9, pixels_digest=rows.digest("pixels 0"), phash=7, detail=detail)
    assert [kind for kind, _ in groups(store)] == ["exact", "pixels"]


def test_blank_files(store: FeatureStore, tmp_path: Path) -> None:
    for number, colour in enumerate([(250, 250, 250), (251, 250, 250), (0, 0, 0)]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        add_file(store, tmp_path / f"{number}.png")
    assert groups(store) == []


@pytest.mark.parametrize("state", ["missing", "unreadable"])
def test_a_file_that_is_gone_is_no_duplicate(store: FeatureStore, state: Any) -> None:
    add(store, "/a", 1)
    add(store, "/b", 1)
    assert len(groups(store)) == 1
    image_id = None if state == "unreadable" else rows.digest("image 1")
    store.put_files([FileRow("/b", image_id, 1000, 1, state)])
    assert groups(store) == []


def test_an_empty_store(store: FeatureStore) -> None:
    assert find_duplicates(store) == []


# All pairs, block by block


def reference(hashes: list[int], distance: int) -> dict[int, list[tuple[int, int]]]:
    pairs: dict[int, list[tuple[int, int]]] = {}
    for i, j in itertools.combinations(range(len(hashes)), 2):
        if (bits := hamming(hashes[i], hashes[j])) <= distance:
            pairs.setdefault(i, []).append((j, bits))
    return pairs


@st.composite
def planted(draw: st.DrawFn) -> list[int]:
    """Random hashes, and near ones of some of them, anywhere."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), max_size=20))
    for _ in range(draw(st.integers(0, 15)) if hashes else 0):
        near = flip(draw(st.sampled_from(hashes)), *draw(st.sets(st.integers(0, 63), max_size=9)))
        hashes.insert(draw(st.integers(0, len(hashes))), near)
    return hashes


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@given(planted(), st.integers(0, 12))
@settings(max_examples=80, deadline=None)
def test_blocks_find_every_pair(block: int, hashes: list[int], distance: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedupe, "_BLOCK", block)
        found = list(dedupe._near_pairs(np.array(hashes, dtype=np.uint64), distance))
    assert [i for i, _, _ in found] == sorted({i for i, _, _ in found})
    as_dict = {i: list(zip(near.tolist(), bits.tolist(), strict=True)) for i, near, bits in found}
    assert as_dict == reference(hashes, distance)


def greedy(images: list[tuple[int, float]]) -> Iterator[list[int]]:
    """What a group of copies is, written as plainly as can be; images are (hash, aspect), best first."""
    taken: set[int] = set()
    for i, (phash, aspect) in enumerate(images):
        if i in taken:
            continue
        near = [
            j
            for j in range(i + 1, len(images))
            if j not in taken and hamming(phash, images[j][0]) <= 6 and abs(images[j][1] / aspect - 1) <= 0.03
        ]
        if near:
            taken.update(near)
            yield [i, *near]


@pytest.mark.parametrize("block", [2, 5])
@given(planted(), st.data())
@settings(max_examples=15, deadline=None)
def test_groups_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, block: int, hashes: list[int], data: st.DataObject
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("groups") / "album.qsplit", create=True)
    widths = [data.draw(st.sampled_from([480, 640])) for _ in hashes]
    widths.sort(reverse=True)  # numbers are ranks
    for_store = [rows.picture(n, phash=phash, width=widths[n]) for n, phash in enumerate(hashes)]
    store.put_images(for_store)
    store.put_files([FileRow(f"/{n:02}", picture.image_id, 9, 1, "ok") for n, picture in enumerate(for_store)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedupe, "_BLOCK", block)
        found = [[int(name) for name in names] for _, names in groups(store)]
    assert found == list(greedy([(phash, widths[n] / 480) for n, phash in enumerate(hashes)]))
