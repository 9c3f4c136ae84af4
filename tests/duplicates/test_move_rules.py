"""Which duplicates may go to the trash: nothing that a person could want of a file is lost with it."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageSequence
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from qsplit.cli import main
from qsplit.duplicates import cleanup
from qsplit.duplicates.detector import Group, Member, find_duplicates
from qsplit.duplicates.grouping import read_groups
from qsplit.duplicates.keep_rules import KeepOrder
from qsplit.duplicates.move_rules import reason_to_stay
from qsplit.media.images import Limits, open_picture
from qsplit.media.raw import is_raw
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow


def add(store: FeatureStore, *paths: Path, **facts: Any) -> None:
    """Put files into the store as indexing would, without a model."""
    for path in paths:
        found = replace(open_picture(path, Limits()), **facts)
        store.put_images([found])
        store.put_files([FileRow(str(path), found.image_id, path.stat().st_size, 1, "ok")])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    return pictures


@pytest.fixture
def photo(photos: list[Path]) -> Image.Image:
    with Image.open(photos[0]) as image:
        return image.convert("RGB").resize((240, 180))


def only_member(store: FeatureStore, kind: str, **options: Any) -> Member:
    (group,) = find_duplicates(store, kinds=[kind], **options)  # type: ignore[list-item]
    assert group.kind == kind
    return group.members[1]


# Files of the same pixels that are not the same


def frames(photo: Image.Image, shifts: tuple[int, ...]) -> list[Image.Image]:
    return [photo.crop((n, n, 160 + n, 120 + n)).quantize(64) for n in (0, *shifts)]


def animation(path: Path, made: list[Image.Image], duration: int = 120, **options: Any) -> Path:
    made[0].save(path, save_all=True, append_images=made[1:], duration=duration, **options)
    return path


def other_frames(folder: Path, photo: Image.Image) -> None:
    for name, shifts in (("one", (10, 20)), ("two", (30, 40))):
        animation(folder / f"{name}.gif", frames(photo, shifts))


def other_durations(folder: Path, photo: Image.Image) -> None:
    for name, duration in (("one", 100), ("two", 200)):
        animation(folder / f"{name}.gif", frames(photo, (10, 20)), duration)


def a_still_of_an_animation(folder: Path, photo: Image.Image) -> None:
    shots = [photo.crop((n, 0, 160 + n, 120)) for n in (0, 9)]
    animation(folder / "moving.png", shots)
    shots[0].save(folder / "still.png")


def other_pages(folder: Path, photo: Image.Image) -> None:
    for name, other in (("one", "red"), ("two", "blue")):
        photo.save(folder / f"{name}.tif", save_all=True, append_images=[Image.new("RGB", (50, 50), other)])


def layers(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "flat.tif")
    photo.save(folder / "layered.tif", tiffinfo={37724: b"Adobe Photoshop Document Data Block\0layers"})


def other_16_bit_grey(folder: Path, photo: Image.Image) -> None:
    """Of both the high byte is 0 everywhere."""
    low = np.asarray(photo.convert("L")).astype(np.uint16)
    for name, values in (("one", low), ("two", 255 - low)):
        Image.fromarray(values).save(folder / f"{name}.png")


def other_16_bit_colour(folder: Path, photo: Image.Image) -> None:
    high = np.asarray(photo).astype(np.uint16) << 8
    for name, low in (("one", 3), ("two", 200)):
        (folder / f"{name}.png").write_bytes(png_of_16_bits(high + low))


def png_of_16_bits(values: np.ndarray[Any, Any]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def white_icons(folder: Path, _photo: Image.Image) -> None:
    for name, shape in (("one", "rectangle"), ("two", "ellipse")):
        icon = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
        getattr(ImageDraw.Draw(icon), shape)((8, 8, 56, 56), fill=(255, 255, 255, 255))
        icon.save(folder / f"{name}.png")


def a_profile(folder: Path, photo: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(folder / "plain.png")
    photo.save(folder / "profile.png", icc_profile=profile)


def a_motion_photo(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "motion.jpg")
    with Image.open(folder / "motion.jpg") as still:
        still.save(folder / "still.png")
    with (folder / "motion.jpg").open("ab") as file:
        file.write(struct.pack(">I", 16) + b"ftypmp42" + bytes(4) + b"film" * 200)


def other_films_behind(folder: Path, photo: Image.Image) -> None:
    for name in ("one", "two"):
        photo.save(folder / f"{name}.jpg")
        with (folder / f"{name}.jpg").open("ab") as file:
            file.write(struct.pack(">I", 16) + b"ftypmp42" + bytes(4) + name.encode() * 200)


def two_views(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "one.jpg", quality=90)
    photo.save(folder / "two.jpg", "MPO", save_all=True, append_images=[photo.rotate(3)], quality=90)


def a_depth_map(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "plain.jpg")
    data = (folder / "plain.jpg").read_bytes()
    body = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + b"<GDepth:Data>" + b"d" * 500
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    (folder / "depth.jpg").write_bytes(data[:2] + segment + data[2:])


def grey_as_colour(folder: Path, photo: Image.Image) -> None:
    photo.convert("L").save(folder / "grey.png")
    photo.convert("L").convert("RGB").save(folder / "colour.png")


def more_behind_a_webp(folder: Path, photo: Image.Image) -> None:
    for name, behind in (("one", b""), ("two", b"secret")):
        photo.save(folder / f"{name}.webp", lossless=True)
        with (folder / f"{name}.webp").open("ab") as file:
            file.write(behind)


def other_sound(folder: Path, photo: Image.Image) -> None:
    for name, pitch in (("one", 440), ("two", 880)):
        film(folder / f"{name}.mp4", photo, pitch)


def film(path: Path, photo: Image.Image, pitch: int) -> None:
    with av.open(str(path), "w") as out:
        pictures, sound = out.add_stream("mpeg4", rate=5), out.add_stream("aac", rate=16000)
        pictures.width, pictures.height, pictures.pix_fmt = 160, 120, "yuv420p"
        for number in range(10):
            shot = av.VideoFrame.from_image(photo.crop((number, 0, 160 + number, 120)))
            out.mux(pictures.encode(shot))
        wave = np.sin(np.arange(32000) * pitch * 2 * np.pi / 16000).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            out.mux(sound.encode(frame))
        out.mux(pictures.encode())
        out.mux(sound.encode())


UNLIKE: dict[Callable[[Path, Image.Image], None], str] = {
    other_frames: "frames, pages or values as stored",
    other_durations: "durations",
    a_still_of_an_animation: "number of frames or pages",
    other_pages: "frames, pages or values as stored",
    layers: "data behind the picture",
    other_16_bit_grey: "frames, pages or values as stored",
    other_16_bit_colour: "frames, pages or values as stored",
    white_icons: "frames, pages or values as stored",
    a_profile: "colour profile",
    a_motion_photo: "data behind the picture",
    other_films_behind: "data behind the picture",
    two_views: "number of frames or pages",
    a_depth_map: "data behind the picture",
    grey_as_colour: "mode",
    more_behind_a_webp: "data behind the picture",
    other_sound: "audio",
}


@pytest.mark.parametrize("make", UNLIKE, ids=lambda make: make.__name__)
def test_files_of_the_same_pixels_that_hold_something_else_stay(
    store: FeatureStore, folder: Path, photo: Image.Image, make: Callable[[Path, Image.Image], None]
) -> None:
    make(folder, photo)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    add(store, *sorted(before))
    assert len({image.pixels_digest for image in store.images().values()}) == 1, "a model is shown the same"
    groups = find_duplicates(store)
    (member,) = groups[0].members[1:]
    assert not member.movable
    assert UNLIKE[make] in str(member.reason)
    # Whoever believes an older list is told at the move.
    listed = Group("pixels", groups[0].keep, (groups[0].members[0], replace(member, movable=True, reason=None)))
    (left,) = cleanup.move_to_trash(store, [listed])
    assert (left.state, left.reason) == ("left", member.reason)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# Files of the same pixels that are


def other_tags(folder: Path, photo: Image.Image) -> None:
    tags = Image.Exif()
    tags[Base.Make] = "Canon"
    photo.save(folder / "one.jpg")
    data = (folder / "one.jpg").read_bytes()
    body = b"Exif\0\0" + tags.tobytes().removeprefix(b"Exif\0\0")
    (folder / "two.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])


def a_png_of_a_jpeg(folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "one.jpg")
    with Image.open(folder / "one.jpg") as opened:
        opened.save(folder / "two.png")


def a_png_that_was_squeezed(folder: Path, photo: Image.Image) -> None:
    cut_out = photo.convert("RGBA")
    cut_out.putalpha(photo.convert("L"))
    cut_out.save(folder / "one.png", compress_level=0)
    cut_out.save(folder / "two.png", compress_level=9)


def a_depth_map_with_a_note(folder: Path, photo: Image.Image) -> None:
    note = PngInfo()
    note.add_text("Comment", "metres")
    values = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 201)
    values.save(folder / "one.png")
    values.save(folder / "two.png", pnginfo=note)


def an_animation_with_a_comment(folder: Path, photo: Image.Image) -> None:
    animation(folder / "one.gif", frames(photo, (10, 20)))
    with Image.open(folder / "one.gif") as opened:
        shots = [shot.copy() for shot in ImageSequence.Iterator(opened)]
    animation(folder / "two.gif", shots, comment=b"mine")


def a_motion_photo_of_other_tags(folder: Path, photo: Image.Image) -> None:
    other_tags(folder, photo)
    for path in folder.iterdir():
        with path.open("ab") as file:
            file.write(struct.pack(">I", 16) + b"ftypmp42" + bytes(4) + b"film" * 200)


@pytest.mark.parametrize(
    "make",
    [
        other_tags,
        a_png_of_a_jpeg,
        a_png_that_was_squeezed,
        a_depth_map_with_a_note,
        an_animation_with_a_comment,
        a_motion_photo_of_other_tags,
    ],
    ids=lambda make: make.__name__,
)
def test_files_of_the_same_pixels_that_hold_the_same_go(
    store: FeatureStore, folder: Path, photo: Image.Image, make: Callable[[Path, Image.Image], None]
) -> None:
    make(folder, photo)
    add(store, *sorted(folder.iterdir()))
    assert only_member(store, "pixels").movable
    (moved,) = cleanup.move_to_trash(store, find_duplicates(store))
    assert moved.state == "moved"
    assert len(list(folder.iterdir())) == 1


# Copies


@pytest.fixture
def copies(store: FeatureStore, folder: Path, photo: Image.Image) -> FeatureStore:
    photo.save(folder / "one.jpg", quality=95)
    photo.save(folder / "two.jpg", quality=60)
    add(store, folder / "one.jpg", folder / "two.jpg")
    return store


def test_copies_are_moved_only_where_their_kind_is_named(copies: FeatureStore) -> None:
    (group,) = find_duplicates(copies)
    assert group.kind == "copy"
    assert not group.members[1].movable
    assert "--kind copy" in str(group.members[1].reason)
    assert list(cleanup.move_to_trash(copies, [group])) == []
    assert only_member(copies, "copy", moved=["copy"]).movable
    (moved,) = cleanup.move_to_trash(copies, find_duplicates(copies, kinds=["copy"], moved=["copy"]))
    assert moved.state == "moved"


@pytest.mark.parametrize("apart", [timedelta(minutes=15), timedelta(hours=2), timedelta(days=1)])
def test_shots_a_multiple_of_quarter_hours_apart_are_not_moved(
    store: FeatureStore, folder: Path, photo: Image.Image, apart: timedelta
) -> None:
    first = datetime(2024, 5, 1, 12, tzinfo=UTC)
    for name, quality, taken_at in (("one.jpg", 95, first), ("two.jpg", 60, first + apart)):
        photo.save(folder / name, quality=quality)
        add(store, folder / name, taken_at=taken_at, camera="Canon R5")
    member = only_member(store, "copy", moved=["copy"])
    assert not member.movable
    assert "times differ" in str(member.reason)


@pytest.mark.parametrize(
    ("fractions", "movable"),
    [
        (("12", "87"), False),
        (("00", "37"), False),
        (("12", "120"), True),  # one instant, told in two precisions
        (("12", ""), True),  # missing sub-seconds are no evidence
        (("", ""), True),
        (("12", "x"), True),
    ],
)
def test_sub_seconds_tell_shots_of_one_second_apart(
    store: FeatureStore, folder: Path, photo: Image.Image, fractions: tuple[str, str], movable: bool
) -> None:
    for name, quality, fraction in zip(("one.jpg", "two.jpg"), (95, 60), fractions, strict=True):
        tags = Image.Exif()
        tags[Base.Model] = "Canon R5"
        inner = tags.get_ifd(IFD.Exif)
        inner[Base.DateTimeOriginal] = "2024:05:06 07:08:09"
        if fraction:
            inner[Base.SubsecTimeOriginal] = fraction
        photo.save(folder / name, quality=quality, exif=tags)
    add(store, folder / "one.jpg", folder / "two.jpg")
    assert only_member(store, "copy", moved=["copy"]).movable == movable


def test_times_do_not_keep_the_same_bytes_or_pixels(store: FeatureStore, folder: Path, photo: Image.Image) -> None:
    a_png_of_a_jpeg(folder, photo)
    add(store, folder / "one.jpg", taken_at=datetime(2024, 5, 1, tzinfo=UTC))
    add(store, folder / "two.png", taken_at=datetime(2024, 5, 2, tzinfo=UTC))
    assert only_member(store, "pixels").movable


# What is never moved


def tiff(*directories: dict[int, tuple[int, int]], order: str = "<", sub: int = -1) -> bytes:
    """A chain of directories of one-value tags (type, value), of which one, by its number, lies below the first."""
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8))
    places = []
    for directory in directories:
        places.append(len(data))
        data += struct.pack(f"{order}H", len(directory) + (sub >= 0 and len(places) == 1))
        for tag, (kind, value) in sorted(directory.items()):
            packed = struct.pack(f"{order}{'HI'[kind == 4]}", value).ljust(4, b"\0")
            data += struct.pack(f"{order}HHI", tag, kind, 1) + packed
        if sub >= 0 and len(places) == 1:
            data += struct.pack(f"{order}HHI", 330, 4, 1) + bytes(4)
        data += bytes(4)
    if sub >= 0:
        struct.pack_into(f"{order}I", data, places[0] + 2 + 12 * len(directories[0]) + 8, places[sub])
    return bytes(data)


SHORT, LONG = 3, 4
RAWS = {
    "dng": tiff({50706: (LONG, 0x104)}),
    "filter array below a preview": tiff({254: (LONG, 1)}, {262: (SHORT, 32803)}, sub=1),
    "linear raw, big-endian": tiff({254: (LONG, 0)}, {262: (SHORT, 34892)}, order=">", sub=1),
    "nikon": tiff({254: (LONG, 1)}, {259: (SHORT, 34713)}, sub=1),
    "sony": tiff({254: (LONG, 1)}, {259: (SHORT, 32767)}, sub=1),
    "preview of a camera": tiff({254: (LONG, 1), 271: (LONG, 0)}, {259: (SHORT, 7)}, sub=1),
    "big dng": b"II+\0\x08\0\0\0" + struct.pack("<QQHHQQQ", 16, 1, 50706, 1, 4, 0x104, 0),
    "big dng, big-endian": b"MM\0+\0\x08\0\0" + struct.pack(">QQHHQQQ", 16, 1, 50706, 1, 4, 0x104 << 32, 0),
    "canon 2": b"II*\0\x10\0\0\0CR\2\0" + bytes(20),
    "canon 3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "fuji": b"FUJIFILMCCD-RAW 0201",
    "olympus": b"IIRO\x08\0\0\0",
    "panasonic": b"IIU\0\x18\0\0\0",
    "canon 1": b"II\x1a\0\0\0HEAPCCDR",
}
NO_RAWS = {
    "pages": tiff({254: (LONG, 0), 259: (SHORT, 5)}, {254: (LONG, 2)}),
    "a scan with a smaller version": tiff({254: (LONG, 0)}, {254: (LONG, 1)}, sub=1),
    "big, and far away": b"II+\0\x08\0\0\0" + struct.pack("<QQHHQQQ", 16, 1, 330, 16, 1, 2**64 - 1, 2**63),
    "a big scan": b"II+\0\x08\0\0\0" + struct.pack("<QQHHQQQ", 16, 1, 254, 4, 1, 0, 0),
    "a loop": tiff({254: (LONG, 0)}, sub=0),
    "cut short": tiff({254: (LONG, 0)})[:12],
    "nothing": b"",
    "a gif": b"GIF89a" + bytes(20),
}


@pytest.mark.parametrize(
    ("data", "expected"), [(d, True) for d in RAWS.values()] + [(d, False) for d in NO_RAWS.values()]
)
def test_a_raw_is_known_by_what_it_holds(tmp_path: Path, data: bytes, expected: bool) -> None:
    (tmp_path / "scan.tif").write_bytes(data)
    assert is_raw(str(tmp_path / "scan.tif")) == expected


def test_a_raw_is_never_moved(store: FeatureStore, folder: Path, photo: Image.Image) -> None:
    photo.save(folder / "one.tif", tiffinfo={50706: b"\1\4\0\0"})
    shutil.copy(folder / "one.tif", folder / "another.tif")
    add(store, folder / "one.tif", folder / "another.tif")
    member = only_member(store, "exact", moved=["exact", "pixels", "copy"])
    assert (member.movable, member.reason) == (False, "It is a RAW file.")


@pytest.mark.parametrize(
    ("still", "film_name"),
    [
        ("IMG_1.HEIC", "IMG_1.MOV"),
        ("IMG_1.heic", "IMG_1.mov"),
        ("IMG_1.JPG", "IMG_1.Mov"),
        ("IMG_1.HEIC", "IMG_1_HEVC.MOV"),
        ("Img_1.heic", "img_1.mOv"),
    ],
)
def test_a_live_photo_stays_whole(
    store: FeatureStore, folder: Path, photo: Image.Image, still: str, film_name: str
) -> None:
    for name in ("", "copies of "):
        (folder / f"{name}phone").mkdir()
        photo.save(folder / f"{name}phone" / still, "JPEG")
        (folder / f"{name}phone" / film_name).write_bytes(b"film")
        add(store, folder / f"{name}phone" / still)
    member = only_member(store, "exact")
    assert not member.movable
    assert film_name in str(member.reason)
    (folder / "copies of phone" / film_name).unlink()
    assert only_member(store, "exact").movable == member.path.startswith(str(folder / "copies of phone"))


@pytest.mark.parametrize(
    "managed", ["@eaDir/g.jpg", "#recycle", "$RECYCLE.BIN/S-1-5", ".Trash-1000/files", ".Trashes/501"]
)
def test_nothing_goes_in_favour_of_what_another_program_empties(
    store: FeatureStore, folder: Path, photo: Image.Image, managed: str
) -> None:
    (folder / managed).mkdir(parents=True)
    photo.save(folder / "a rather long name of a picture.jpg")
    shutil.copy(folder / "a rather long name of a picture.jpg", folder / managed / "p.jpg")
    add(store, *(path for path in folder.rglob("*.jpg") if path.is_file()))
    (group,) = find_duplicates(store)
    assert group.keep == str(folder / "a rather long name of a picture.jpg"), "what is there to stay is kept"
    assert not group.members[1].movable
    (turned,) = find_duplicates(store, order=KeepOrder(protected=[str(folder / managed.partition("/")[0])]))
    assert turned.keep == str(folder / managed / "p.jpg")
    assert not turned.members[1].movable
    assert managed.partition("/")[0] in str(turned.members[1].reason)


def test_a_managed_folder_is_known_behind_a_link(store: FeatureStore, folder: Path, photo: Image.Image) -> None:
    (folder / "#recycle").mkdir()
    (folder / "link").symlink_to(folder / "#recycle")
    photo.save(folder / "a rather long name of a picture.jpg")
    shutil.copy(folder / "a rather long name of a picture.jpg", folder / "#recycle" / "p.jpg")
    add(store, folder / "a rather long name of a picture.jpg", folder / "link" / "p.jpg")
    (group,) = find_duplicates(store, order=KeepOrder(("in:*/link/*",)))
    assert group.keep == str(folder / "link" / "p.jpg")
    assert not group.members[1].movable


def test_a_file_that_is_gone_stays_out_of_it(store: FeatureStore, folder: Path, photo: Image.Image) -> None:
    a_png_of_a_jpeg(folder, photo)
    add(store, *sorted(folder.iterdir()))
    (folder / "two.png").unlink()
    member = only_member(store, "pixels")
    assert not member.movable
    assert "cannot be compared" in str(member.reason)


def test_only_known_kinds_are_moved() -> None:
    assert "another shot" in str(reason_to_stay("similar", "/a", "/b", kinds=["similar"]))
    assert reason_to_stay("exact", "/a", "/b", kinds=["pixels"]) is not None


# The ways there


def test_the_command_moves_copies_only_by_name(
    store: FeatureStore, folder: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exited:
            main.main(["duplicates", *arguments, "--store", store.uri])
        return int(exited.value.code or 0), capsys.readouterr().out

    a_png_of_a_jpeg(folder, photo)
    photo.save(folder / "poor.jpg", quality=50)
    add(store, *sorted(folder.iterdir()))
    code, out = typed("--json")
    assert code == 0
    assert '"movable": false' in out.splitlines()[1]
    assert typed("--trash")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"poor.jpg", "two.png"}
    assert typed("--kind", "exact", "--kind", "copy", "--trash")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"two.png"}


def test_known_groups_are_settled_by_the_files(store: FeatureStore, folder: Path, photo: Image.Image) -> None:
    a_motion_photo(folder, photo)
    add(store, *sorted(folder.iterdir()))
    known = read_groups(store)
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    (left,) = cleanup.move_to_trash(store, known.groups)
    assert left.state == "left", "the move itself looks at the files"
