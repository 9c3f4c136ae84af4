"""Searches by text, words, conditions and dates, page by page; the store is real, and so is the bundled checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qsplit
from qsplit.album import Album
from qsplit.errors import NotIndexed, UsageError
from qsplit.media.images import Limits
from qsplit.mini import scenes
from qsplit.mini.scenes import Scene, Thing
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search import engine
from qsplit.search.engine import Request, _Search, search
from qsplit.search.filters import Filters, scope_of
from qsplit.search.pagination import Found
from qsplit.search.query_parser import parse
from qsplit.search.query_vector import Halves, Target
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, VectorRow

ENCODER = rows.encoder()
NO_HALVES = Halves(pytest.fail, pytest.fail, Limits())
MEANING = "an identity"
JUNE = datetime(2024, 6, 1, tzinfo=UTC)


def put(store: FeatureStore, *numbers: int, **changes: Any) -> None:
    """Images by number, with vectors of their own, each in a file of its name."""
    pictures = {number: rows.picture(number, **changes) for number in numbers}
    store.put_images(list(pictures.values()))
    made = [VectorRow(rows.image_row(number, **changes), rows.unit(number)) for number in numbers]
    store.put_vectors(ENCODER, made)
    store.put_files([FileRow(f"/all/{n % 2}/{n}.jpg", image_id(n), 1, 1, "ok") for n in numbers])


def image_id(number: int) -> str:
    return rows.digest(f"image {number}")


def numbers(found: Found) -> list[int]:
    return [int(Path(str(match.path)).stem) for match in found]


def like(store: FeatureStore, number: int, **options: Any) -> Found:
    return search(store, ENCODER.id, Request(like=(image_id(number),), **options), NO_HALVES)


def order(store: FeatureStore, number: int, those: list[int]) -> list[int]:
    return sorted((n for n in those if n != number), key=lambda n: -float(rows.unit(number) @ rows.unit(n)))


def describe(store: FeatureStore, captions: dict[int, str]) -> None:
    vectors = store.vectors(ENCODER.id)
    vectors.put_captions("captions", {image_id(n): text for n, text in captions.items()})
    vectors.tend()


def by_meaning(store: FeatureStore, text: str, vector: np.ndarray, **options: Any) -> Found:
    target = Target("semantic", vector, MEANING)
    request = Request(parse(text), **options)
    return _Search(store, ENCODER.id, request, NO_HALVES, target).by_meaning(target)


def test_a_path_is_looked_for_behind_any_number_of_nearer_pictures(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is ranked, up to a bound, are the pictures that lie there, and not the nearest of all."""
    put(store, *range(40))
    monkeypatch.setattr(engine, "DEEP", 5)
    far = order(store, 0, list(range(40)))[-4:]
    for number in far:
        where = Filters(path=f"/all/{number % 2}/{number}.jpg")
        assert numbers(like(store, 0, where=where, sort="date")) == [number]
    assert scope_of(store, store.vectors(ENCODER.id), Filters(path="/all/1")).only == frozenset(
        image_id(number) for number in range(1, 40, 2)
    )


# --- pages ---


def pages(ask: Callable[[str], Found], between: Callable[[int], None]) -> list[Found]:
    found = [ask("")]
    while found[-1].after and len(found) < 60:
        between(len(found))
        found.append(ask(found[-1].after))
    return found


@given(st.integers(2, 25), st.integers(1, 7), st.booleans())
@settings(max_examples=settings().max_examples // 2)
def test_pages_do_not_repeat_when_pictures_come_in_between(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, by_date: bool
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("pages") / "album.qsplit", create=True)
    for number in range(count):
        put(store, number, taken_at=JUNE + timedelta(days=number % 5) if number % 3 else None)
    options: dict[str, Any] = {"limit": limit, "sort": "date" if by_date else "relevance"}
    whole = numbers(like(store, 0, **(options | {"limit": 1000})))
    found = pages(lambda after: like(store, 0, after=after, **options), lambda page: put(store, 1000 + page))
    seen = [number for page in found for number in numbers(page)]
    assert len(seen) == len(set(seen))
    assert [number for number in seen if number < 1000] == whole
    assert all(len(page) == limit for page in found[:-1])
    assert all(not match.after for page in found for match in page[:-1])


@pytest.mark.parametrize("by", ["hybrid", "words"])
def test_pages_of_a_relative_ranking_do_not_repeat_either(store: FeatureStore, by: str) -> None:
    """New pictures that are better than all before change the scores of all before."""
    put(store, *range(30))
    ids = [image_id(n) for n in range(30)]
    store.vectors(ENCODER.id, MEANING).put_semantic(ids, np.stack([rows.unit(n) for n in range(30)]))
    describe(store, {n: f"boat {'red ' * (n % 4)} number{n}" for n in range(30)})

    def come(page: int) -> None:
        put(store, 1000 + page)
        better = np.stack([rows.unit(99)])
        store.vectors(ENCODER.id, MEANING).put_semantic([image_id(1000 + page)], better)
        describe(store, {1000 + page: "red red red boat"})

    options: dict[str, Any] = {"by": by, "limit": 7, "everything": True}

    def ask(after: str) -> Found:
        if by == "words":
            return search(store, ENCODER.id, Request(parse("red boat"), after=after, **options), NO_HALVES)
        return by_meaning(store, "red boat", rows.unit(99), after=after, **options)

    found = pages(ask, come)
    seen = [number for page in found for number in numbers(page)]
    assert len(seen) == len(set(seen))
    assert set(range(30)) <= set(seen)
    assert {match.kind for page in found for match in page} == {by}
    assert all(0 < match.score <= 1 for page in found for match in page)


def test_a_cursor_is_for_its_own_search(store: FeatureStore) -> None:
    put(store, *range(6))
    after = like(store, 0, limit=2).after
    assert numbers(like(store, 0, limit=3, after=after)) == order(store, 0, list(range(6)))[2:5], (
        "a limit is no other search"
    )
    for other in ({"where": Filters(camera="x")}, {"sort": "date"}):
        with pytest.raises(UsageError, match="another search"):
            like(store, 0, limit=2, after=after, **other)
    with pytest.raises(UsageError, match="another search"):
        like(store, 1, limit=2, after=after)


# --- conditions ---


@pytest.fixture
def journey(store: FeatureStore) -> FeatureStore:
    put(store, 0)
    put(store, 1, taken_at=JUNE, camera="Apple iPhone 15", latitude=0.0, longitude=179.95, width=4000, height=3000)
    put(store, 2, taken_at=JUNE + timedelta(days=40), camera="Canon", latitude=0.0, longitude=-179.95)
    put(store, 3, taken_at=JUNE - timedelta(days=40), latitude=0.3, longitude=179.95)
    return store


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"since": "2024-06"}, {1, 2}),
        ({"until": "2024-06"}, {1, 3}),
        ({"camera": "iphone"}, {1}),
        ({"near": "0,180,20"}, {1, 2}),
        ({"near": "0.3,-179.9,30"}, {3}),
        ({"min_size": "12MP"}, {1}),
        ({"path": "/all/1"}, {1, 3}),
        ({"path": "[02].jpg"}, {2}),
        ({"path": "/all/1", "near": "0,180,20"}, {1}),
        ({"path": "/nowhere"}, set()),
    ],
)
def test_conditions_are_kept(journey: FeatureStore, given_: dict[str, str], expected: set[int]) -> None:
    where = Filters.read(**given_)
    assert set(numbers(like(journey, 0, where=where))) == expected
    listed = search(journey, ENCODER.id, Request(where=where), NO_HALVES)
    assert set(numbers(listed)) - {0} == expected
    assert all(match.kind == "date" and match.score == 1 for match in listed)


def test_without_a_text_the_newest_come_first(journey: FeatureStore) -> None:
    found = search(journey, ENCODER.id, Request(sort="date"), NO_HALVES)
    assert numbers(found) == [2, 1, 3, 0]
    first = search(journey, ENCODER.id, Request(sort="date", limit=3), NO_HALVES)
    rest = search(journey, ENCODER.id, Request(sort="date", limit=3, after=first.after), NO_HALVES)
    assert numbers(first) + numbers(rest) == [2, 1, 3, 0]


def test_the_path_that_is_shown_is_one_that_was_asked_for(store: FeatureStore) -> None:
    put(store, 0, 1)
    store.put_files(
        [FileRow("/aaa/1.jpg", image_id(1), 1, 1, "ok"), FileRow("/all/1/x.jpg", image_id(1), 1, 1, "missing")]
    )
    assert [match.path for match in like(store, 0)] == ["/aaa/1.jpg"]
    assert [match.path for match in like(store, 0, where=Filters(path="/all"))] == ["/all/1/1.jpg"]


# --- words ---


def test_words_find_captions_and_say_when_none_holds_all(store: FeatureStore) -> None:
    put(store, *range(4))
    with pytest.raises(NotIndexed, match="no captions"):
        search(store, ENCODER.id, Request(parse("boat"), by="words"), NO_HALVES)
    describe(store, {0: "A red boat on a lake.", 1: "A blue boat.", 2: "红色的小船", 3: "A dog."})

    def found(text: str, **options: Any) -> Found:
        return search(store, ENCODER.id, Request(parse(text), by="words", **options), NO_HALVES)

    assert numbers(found("red boat")) == [0]
    assert set(numbers(found("boats"))) == {0, 1}
    assert numbers(found("小船")) == [2]
    assert found("red boat")[0].score == 1
    assert found("red dog").is_cut
    assert not found("red dog")
    assert set(numbers(found("red dog", everything=True))) == {0, 3}
    assert not found("castle").is_cut


# --- what makes no sense ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to search for"),
        ({"terms": parse("a"), "limit": 0}, "limit is 0"),
        ({"terms": parse("a"), "rerank": -1}, "rerank is -1"),
        ({"terms": parse("a"), "sort": "size"}, "sort is 'size'"),
        ({"terms": parse("a"), "by": "luck"}, "by is 'luck'"),
        ({"like": ("x",), "rerank": 5}, "none"),
        ({"like": ("x",), "by": "hybrid"}, "none"),
        ({"terms": parse("a - b"), "by": "words"}, "have no words"),
        ({"terms": parse("a"), "like": ("x",), "by": "words"}, "have no words"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**options)


# --- by meaning, with the bundled checkpoint ---

STAR, RING = Thing("star", "red", 0.2, 0.2, 0.14), Thing("ring", "blue", 0.8, 0.8, 0.14)
SQUARE = Thing("square", "green", 0.5, 0.5, 0.15)
DRAWN = {
    "star and ring": (STAR, RING),
    "ring and star": (replace(RING, x=0.2, y=0.2), replace(STAR, x=0.8, y=0.8)),
    "square": (SQUARE,),
    "two squares": (replace(SQUARE, x=0.2), replace(SQUARE, x=0.8)),
}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, mini_vision: VisionEncoder, mini_language: LanguageModel) -> Album:
    """The drawn pictures, and twenty more that show none of their things."""
    folder = tmp_path_factory.mktemp("meaning")
    rng = np.random.default_rng(5)
    for name, things in DRAWN.items():
        scenes.draw(Scene(things, "white", 168, 168), rng).save(folder / f"{name}.png")
    for i in range(20):
        things = (Thing(("cross", "triangle")[i % 2], ("black", "orange", "pink")[i % 3], 0.1 + 0.04 * i, 0.5, 0.15),)
        scenes.draw(Scene(things, "grey", 168, 168), rng).save(folder / f"other {i}.png")
    made = qsplit.open(folder / "album.qsplit", device="cpu")
    made.__dict__ |= {"vision": mini_vision, "language": mini_language}  # loaded once for all tests
    assert made.index(folder, semantic=True).found == 24
    return made


def stems(found: Found) -> list[str]:
    return [Path(str(match.path)).stem for match in found]


DESCRIBED = "A red star at the top left and a blue ring at the bottom right, on a white background."


def test_a_text_finds_its_picture(album: Album) -> None:
    """The vectors of two pictures that differ in places alone are hard to tell apart; answers tell them."""
    for text in (DESCRIBED, "白色背景，左上角有红色的星形，右下角有蓝色的圆环。"):
        found = album.search(text)
        assert set(stems(found)[:2]) == {"star and ring", "ring and star"}
        assert {match.kind for match in found} == {"semantic"}
        assert not found.is_cut
        assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
        assert stems(album.search(text, rerank=5)) == ["star and ring"]


def test_a_text_that_nothing_fits_finds_nothing_unless_all_are_asked_for(album: Album) -> None:
    text = "a brown diamond at the bottom left, on a yellow background"
    found = album.search(text)
    assert (list(found), found.is_cut) == ([], True)
    nearest = album.search(text, everything=True, limit=100)
    assert len(nearest) == 24
    assert not nearest.is_cut


def test_the_best_are_asked(album: Album) -> None:
    found = album.search("a red star below a blue ring", rerank=10)
    assert stems(found) == ["ring and star"]
    assert found[0].kind == "probability"
    assert stems(album.search("two squares", rerank=24))[:1] == ["two squares"]
    assert len(album.search("two squares", rerank=10, everything=True)) == 10
    assert album.search("a brown diamond", rerank=24).is_cut


def test_a_picture_may_be_mixed_with_texts(album: Album, tmp_path: Path) -> None:
    assert "square" not in stems(album.search("square.png + a green square", everything=True))
    less = album.search("square.png - a green square", everything=True)
    more = album.search("square.png + 0.5:a green square", everything=True)
    assert stems(more)[0] == "two squares"
    assert dict(zip(stems(less), less, strict=True))["two squares"].score < more[0].score
    outside = tmp_path / "outside.png"
    scenes.draw(Scene((SQUARE,), "white", 168, 168), np.random.default_rng(6)).save(outside)
    assert stems(album.search(f"{outside} + a green square", everything=True))[0] == "square"
    with Image.open(outside) as image:
        by_image = album.search("a green square", like=image.convert("RGB"), everything=True)
    assert by_image == album.search("a green square", like=outside, everything=True)
    with pytest.raises(UsageError, match="cancel each other out"):
        album.search("red - red")


def test_a_text_needs_vectors_that_were_made(tmp_path: Path, album: Album) -> None:
    shutil.copy(str(album.search(like="square.png")[0].path), tmp_path)
    bare = qsplit.open(tmp_path / "bare.qsplit", device="cpu")
    bare.__dict__ |= {"vision": album.vision, "language": album.language}
    bare.index(tmp_path)
    with pytest.raises(NotIndexed, match="qsplit refresh --semantic"):
        bare.search("a red star")


def test_by_date_only_good_matches_are_sorted(album: Album) -> None:
    assert set(stems(album.search(DESCRIBED, sort="date"))) == set(stems(album.search(DESCRIBED, limit=100)))
