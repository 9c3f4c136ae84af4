"""Checks: every question of a policy about every picture, once, whatever is changed afterwards."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
import rows
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import NotFound, UsageError
from qsplit.maintenance import garbage
from qsplit.maintenance.garbage import Orphans
from qsplit.media.images import NULL_PIXELS
from qsplit.models.language.model import LanguageModel
from qsplit.qa import check_reports, checks
from qsplit.qa.check_results import read_checked
from qsplit.qa.checks import Verdict
from qsplit.qa.policy import Check, Policy
from qsplit.store import lookup
from qsplit.store.records import Skipped
from qsplit.store.timeline import read_timeline

COLOURS = ("red", "green", "blue")
COLOUR = Check("colour", "What is the main colour?", COLOURS, flag=("red",))
LIGHT = Check("light", "Is it bright or dark?", ("bright", "dark"))
POLICY = Policy("colours", (COLOUR, LIGHT))


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Album:
    """Two photographs, one of them under two names, and one that nothing can read."""
    folder = tmp_path_factory.mktemp("album")
    for name, path in (("a.jpg", photos[0]), ("b.jpg", photos[1]), ("c.jpg", photos[0])):
        (folder / name).write_bytes(path.read_bytes())
    album = Album(folder / "album.qsplit")
    album.index(folder)
    return album


@pytest.fixture
def calls(album: Album, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many questions the model was asked, call by call."""
    found: list[int] = []
    choose = LanguageModel.choose

    def count(language: LanguageModel, features: Any, asked: Any, **options: Any) -> Any:
        found.append(len(asked))
        return choose(language, features, asked, **options)

    monkeypatch.setattr(LanguageModel, "choose", count)
    yield found
    if "checks" in album.store.tables():
        album.store.clear("checks")


def verdicts(album: Album, policy: Policy = POLICY, *images: str, **options: Any) -> list[Verdict]:
    found = list(album.check(policy, images, **options))
    assert not [one for one in found if isinstance(one, Skipped)]
    return [one for one in found if isinstance(one, Verdict)]


def test_each_picture_gets_a_verdict_of_each_check(album: Album, calls: list[int]) -> None:
    found = verdicts(album)
    assert [(Path(str(one.path)).name, one.check) for one in found] == [
        ("a.jpg", "colour"), ("a.jpg", "light"), ("b.jpg", "colour"), ("b.jpg", "light"),
    ]  # fmt: skip
    assert calls == [2, 2]
    features = album.store.get_features(key for (key,) in album.store.column("features", "key"))
    for one in found:
        (stored,) = (f for key, f in features.items() if key.startswith(album.store.images()[one.id].pixels_digest))
        check = COLOUR if one.check == "colour" else LIGHT
        (choice,) = album.language.choose([stored], [(check.question, check.choices)])
        assert one.probabilities == pytest.approx(choice.probabilities, rel=0.05, abs=0.01)  # in bfloat16
        assert one.answer == max(one.probabilities, key=lambda name: one.probabilities[name])
        assert one.probability == one.probabilities[one.answer]
        assert one.encoder == stored.encoder.id
        assert one.model == album.language.checkpoint.name


@pytest.mark.parametrize("flag", [("red",), ("red", "green"), COLOURS])
@pytest.mark.usefixtures("calls")
def test_a_picture_is_flagged_from_the_threshold_on(album: Album, flag: tuple[str, ...]) -> None:
    first = verdicts(album)[0]
    chance = sum(first.probabilities[choice] for choice in flag)
    told, listed = list[bool](), list[Any]()
    for threshold in (math.nextafter(chance, 0), chance, math.nextafter(chance, 2)):
        policy = replace(POLICY, checks=(replace(COLOUR, flag=flag, threshold=threshold),))
        told.append({one.id: one.flagged for one in verdicts(album, policy)}[first.id])
        results = read_checked(album.store, album.language, policy, read_timeline(album.store)).page(0, 100)
        listed += {one.flagged for one in results if one.image_id == first.id}
    assert told == listed == [True, True, False]


@pytest.mark.usefixtures("calls")
def test_a_check_without_a_flag_flags_nothing(album: Album) -> None:
    assert not any(one.flagged for one in verdicts(album, replace(POLICY, checks=(replace(COLOUR, flag=()), LIGHT))))


def test_what_was_computed_is_not_computed_again(album: Album, calls: list[int]) -> None:
    first = verdicts(album)
    assert verdicts(album) == first
    assert verdicts(Album(album.uri), POLICY, "b.jpg") == first[2:]
    other = replace(POLICY, name="other", checks=(replace(COLOUR, flag=COLOURS, threshold=0.9), LIGHT))
    assert [one.flagged for one in verdicts(album, other)] == [True, False, True, False]
    assert calls == [2, 2]
    more = replace(POLICY, checks=(*POLICY.checks, Check("kind", "Drawing or photograph?", ("drawing", "photograph"))))
    verdicts(album, more)
    assert calls == [2, 2, 1, 1]


@pytest.mark.parametrize("changes", [{"system": "Answer in one word."}, {"calibrate": True}])
def test_what_decides_the_answer_decides_what_is_known(album: Album, calls: list[int], changes: Any) -> None:
    first = verdicts(album)
    before = len(calls)
    changed = verdicts(album, replace(POLICY, **changes))
    assert len(calls) > before
    assert [one.probabilities for one in changed] != [one.probabilities for one in first]
    assert verdicts(album) == first


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint with other weights in the last layer of its language half."""
    folder = tmp_path_factory.mktemp("retrained") / "model"
    shutil.copytree(bundled.checkpoint(), folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("norm.weight") and "layers" not in name and "vis" not in name)
    weights[name] *= torch.linspace(0.5, 1.5, len(weights[name])).to(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("other", ["weights", "dtype"])
def test_another_language_half_is_asked_itself(
    album: Album, calls: list[int], retrained: Path, other: Literal["weights", "dtype"]
) -> None:
    """It takes the same features, and what one says is never told as the other's."""
    first = verdicts(album)
    options: dict[str, Any] = {"model": str(retrained)} if other == "weights" else {"dtype": "float32"}
    theirs = Album(album.uri, device="cpu", **options)
    assert len(read_checked(album.store, theirs.language, POLICY, read_timeline(album.store))) == 0
    said = verdicts(theirs)
    assert calls == [2] * 4
    assert [one.encoder for one in said] == [one.encoder for one in first]
    assert all(one.probabilities != before.probabilities for one, before in zip(said, first, strict=True))
    assert (verdicts(theirs), verdicts(album)) == (said, first)
    assert calls == [2] * 4


@pytest.mark.usefixtures("calls")  # which leaves no results behind
def test_calibrating_takes_the_vision_half_once(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated = replace(POLICY, calibrate=True)
    first = verdicts(album, calibrated, exact=True)
    assert NULL_PIXELS in album.store.encoded_pixels(album.language.wanted.id)
    assert album.verify().orphans == Orphans()
    monkeypatch.setattr(Album, "vision", property(lambda _: pytest.fail("the vision half was loaded")))
    again = Album(album.uri)
    album.store.clear("checks")
    assert verdicts(again, calibrated, exact=True) == first
    null = album.store.get_features([f"{NULL_PIXELS}:{album.language.wanted.id}"])
    (prior,) = album.language.choose([*null.values()], [(COLOUR.question, COLOURS)], exact=True)
    (plain,) = (one for one in verdicts(album, exact=True)[:1])
    ratios = {name: plain.probabilities[name] / prior.probabilities[name] for name in COLOURS}
    assert first[0].probabilities == pytest.approx({n: r / sum(ratios.values()) for n, r in ratios.items()})


def test_pictures_whose_encoder_never_saw_the_null_picture_are_skipped(tmp_path: Path, photos: list[Path]) -> None:
    album = Album(tmp_path / "album.qsplit")
    album.index(photos[0], photos[1])
    calibrated = replace(POLICY, calibrate=True)
    found = list(checks.check(album.store, album.language, calibrated, lookup.everything(album.store)))
    reasons = [one.reason for one in found if isinstance(one, Skipped)]
    assert len(reasons) == len(found) == 2
    assert all("qsplit refresh" in reason for reason in reasons)


def test_an_exact_result_is_another_one(album: Album, calls: list[int]) -> None:
    assert not any(one.exact for one in verdicts(album))
    assert all(one.exact for one in verdicts(album, exact=True))
    assert calls == [2, 2, 2, 2]


def test_a_run_that_is_cut_off_goes_on(album: Album, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PICTURES_AT_ONCE", 1)
    running = album.check(POLICY)
    next(running)
    assert calls == [2]
    seen: list[tuple[int, int]] = []
    assert len(verdicts(album, on_progress=lambda done, of: seen.append((done, of)))) == 4
    assert calls == [2, 2]
    assert seen == [(1, 2), (2, 2)]


def test_a_picture_that_cannot_be_asked_about_is_skipped(tmp_path: Path, photos: list[Path]) -> None:
    album = Album(tmp_path / "album.qsplit")
    album.index(photos[0], photos[1])
    (gone,) = (key for key, image in album.store.images().items() if str(photos[0]) in album.store.paths_of([key])[key])
    album.store.remove("features", "pixels_digest", [album.store.images()[gone].pixels_digest])
    found = list(album.check(POLICY))
    (skipped,) = (one for one in found if isinstance(one, Skipped))
    assert skipped.path == str(photos[0])
    assert "no features" in skipped.reason
    assert len(found) == 3


def test_results_go_with_their_picture(tmp_path: Path, photos: list[Path]) -> None:
    album = Album(tmp_path / "album.qsplit")
    album.index(photos[0], photos[1])
    assert len(verdicts(album)) == 4
    assert album.verify().sound
    album.forget(photos[0])
    assert len(album.store.column("checks", "key")) == 2
    album.store.put_checks([rows.check_row(1)])
    assert album.verify().orphans.checks == [rows.check_row(1).key]
    album.compact()
    assert len(album.store.column("checks", "key")) == 2
    assert album.verify().orphans.checks == []


def test_a_snapshot_holds_the_results(tmp_path: Path, photos: list[Path]) -> None:
    album = Album(tmp_path / "album.qsplit")
    album.index(photos[0])
    album.snapshots.make("before")
    verdicts(album)
    album.snapshots.make("after")
    assert len(Album(album.uri, snapshot="after").store.column("checks", "key")) == 2
    before = Album(album.uri, snapshot="before")
    assert "checks" not in before.store.tables()
    with pytest.raises(UsageError, match="read-only"):
        list(before.check(POLICY))
    assert len(verdicts(Album(album.uri, snapshot="after"))) == 2
    garbage.restore(album.store, "before")
    assert album.store.column("checks", "key") == []


# --- reports ---


def verdict(name: str, *, flagged: bool = False) -> Verdict:
    chances = {"yes": 0.75, "no": 0.25}
    return Verdict(rows.digest(name), name, "a check", "yes", 0.75, flagged, chances, 0.9, True, "m", "e")


def thumbnail(_: str) -> bytes:
    return b"WEBP"


@pytest.mark.parametrize("ending", check_reports.FORMATS)
def test_each_format_holds_each_verdict(tmp_path: Path, ending: str) -> None:
    given = [verdict("a.jpg"), verdict("<b>&.jpg", flagged=True)]
    path = tmp_path / f"out{ending}"
    check_reports.write(given, path, title="t", thumbnail=thumbnail)
    match ending:
        case ".jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(one) for one in given]
        case ".csv":
            read = list(csv.DictReader(path.read_text().splitlines()))
            assert [one["path"] for one in read] == ["a.jpg", "<b>&.jpg"]
            assert [one["flagged"] for one in read] == ["False", "True"]
            assert json.loads(read[0]["probabilities"]) == given[0].probabilities
        case ".parquet":
            table = pq.read_table(path).to_pylist()
            assert [one["flagged"] for one in table] == [False, True]
            assert [one["probability"] for one in table] == [0.75, 0.75]
        case ".html":
            text = path.read_text()
            assert "1 of 2 pictures flagged" in text
            assert text.index("&lt;b&gt;&amp;.jpg") < text.index("a.jpg")
            assert "<b>" not in text
            assert text.count("data:image/webp;base64,V0VCUA==") == 2
            assert "http" not in text
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_page_needs_no_thumbnail(tmp_path: Path) -> None:
    def none(_: str) -> bytes:
        raise NotFound("gone")

    check_reports.write([verdict("a.jpg")], tmp_path / "a.html", title="t", thumbnail=none)
    assert "<img" not in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize("ending", check_reports.FORMATS)
def test_a_report_is_not_written_through_a_link(tmp_path: Path, ending: str) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / f".out{ending}.part").symlink_to(victim)
    check_reports.write([verdict("a.jpg")], tmp_path / f"out{ending}", title="t", thumbnail=thumbnail)
    assert victim.read_text() == "precious"
    assert not (tmp_path / f"out{ending}").is_symlink()


@pytest.mark.parametrize("name", ["out.txt", "out", "missing/out.csv"])
def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="out"):
        check_reports.write([verdict("a.jpg")], tmp_path / name, title="t", thumbnail=thumbnail)


def test_a_page_is_what_a_browser_can_read(album: Album, calls: list[int], tmp_path: Path) -> None:
    check_reports.write(verdicts(album), tmp_path / "r.html", title="t", thumbnail=album.store.thumbnail)
    text = (tmp_path / "r.html").read_text()
    assert text.count("<article>") == 2
    assert text.count('src="data:image/webp;base64,') == 2
    assert calls
    shown = base64.b64decode(text.split("base64,")[1].split('"')[0])
    assert Image.open(io.BytesIO(shown)).format == "WEBP"
