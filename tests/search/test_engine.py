"""Search by picture: copies first, the picture itself never, and a full list while there is anything to list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qsplit
from qsplit.album import Album
from qsplit.errors import NotFound, UnreadableImage, UsageError
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search.engine import Match, nearest
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, VectorRow

ENCODER = rows.encoder()


def put(store: FeatureStore, vectors: dict[int, int], *, gone: tuple[int, ...] = ()) -> None:
    """Images by number, each with the unit vector of a seed; of those ``gone`` no file is left."""
    store.put_images([rows.picture(number) for number in vectors])
    store.put_vectors(ENCODER, [VectorRow(rows.image_row(n), rows.unit(seed)) for n, seed in vectors.items()])
    store.put_files([FileRow(f"/{n}.jpg", image_id(n), 1, 1, "missing" if n in gone else "ok") for n in vectors])


def image_id(number: int) -> str:
    return rows.digest(f"image {number}")


def cosine(a: int, b: int) -> float:
    return float(rows.unit(a) @ rows.unit(b))


def numbers(matches: list[Match]) -> list[int]:
    return [int(str(match.path).removeprefix("/").removesuffix(".jpg")) for match in matches]


@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.sets(st.integers(0, 29), max_size=25),
    st.sets(st.integers(0, 29), max_size=5),
)
@settings(max_examples=settings().max_examples // 2)
def test_it_is_the_sorted_list_cut_off(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, gone: set[int], without: set[int]
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("search") / "album.qsplit", create=True)
    put(store, {number: number for number in range(count)}, gone=tuple(gone))
    found = nearest(store, ENCODER.id, rows.unit(99), limit=limit, without={image_id(n) for n in without})
    there = [number for number in range(count) if number not in gone | without]
    expected = sorted(there, key=lambda number: -cosine(number, 99))[:limit]
    assert numbers(found) == expected
    assert [match.score for match in found] == pytest.approx([cosine(n, 99) for n in expected], abs=2e-6)


def test_the_limit_is_filled_past_images_without_files(store: FeatureStore) -> None:
    """The forty best are gone; what is left is found all the same."""
    best = sorted(range(60), key=lambda number: -cosine(number, 99))
    put(store, {number: number for number in range(60)}, gone=tuple(best[:40]))
    assert numbers(nearest(store, ENCODER.id, rows.unit(99), limit=5)) == best[40:45]
    assert numbers(nearest(store, ENCODER.id, rows.unit(99), limit=50)) == best[40:]


def test_equal_scores_are_in_order_of_their_ids(tmp_path: Path) -> None:
    """Wherever the limit cuts, and in whatever order they were put."""
    for order in (list(range(12)), list(reversed(range(12)))):
        store = FeatureStore(tmp_path / f"{order[0]}.qsplit", create=True)
        for number in order:
            put(store, {number: 1 if number < 9 else 2})
        equal = sorted(image_id(number) for number in range(9))
        for limit in range(1, 10):
            assert [match.id for match in nearest(store, ENCODER.id, rows.unit(1), limit=limit)] == equal[:limit]
        assert len(nearest(store, ENCODER.id, rows.unit(1), limit=20)) == 12


def test_the_first_path_of_an_image_names_it(store: FeatureStore) -> None:
    put(store, {1: 1})
    store.put_files([FileRow(path, image_id(1), 1, 1, "ok") for path in ("/z.jpg", "/0.jpg")])
    (match,) = nearest(store, ENCODER.id, rows.unit(1), limit=5)
    assert match == Match(image_id(1), "/0.jpg", 1.0, "cosine")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(store: FeatureStore, limit: int) -> None:
    put(store, {1: 1})
    with pytest.raises(UsageError, match=f"limit is {limit}, but must be at least 1"):
        nearest(store, ENCODER.id, rows.unit(1), limit=limit)


def test_a_store_without_vectors_finds_nothing(store: FeatureStore) -> None:
    assert nearest(store, ENCODER.id, rows.unit(1), limit=5) == []


# With real features of real pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """Four photographs, small, one of them three times."""
    made = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(photos[:4]):
        with Image.open(path) as image:
            image.resize((112, 84)).save(made / f"{number}.png")
    with Image.open(made / "2.png") as image:
        image.save(made / "2 again.bmp")
        image.save(made / "2 worse.jpg", quality=80)
    return made


@pytest.fixture(scope="module")
def album(folder: Path, tmp_path_factory: pytest.TempPathFactory, mini_vision: VisionEncoder) -> Album:
    made = qsplit.open(tmp_path_factory.mktemp("search") / "album.qsplit", device="cpu")
    made.__dict__["vision"] = mini_vision  # loaded once for all tests
    assert made.index(folder).found == 6
    return made


def test_copies_come_first_and_the_picture_itself_not(album: Album, folder: Path) -> None:
    found = album.search(like=folder / "2.png")
    assert [Path(str(match.path)).name for match in found[:2]] == ["2 again.bmp", "2 worse.jpg"]
    assert len(found) == 5
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    assert found[0].score == pytest.approx(1.0, abs=1e-6)
    assert found[1].score > found[2].score
    assert album.search(like=folder / "2.png", limit=1) == found[:1]
    assert album.search(like=folder / "2.png") == found


def test_a_picture_outside_the_album(album: Album, folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "2.png") as image:
        image.resize((224, 168)).save(tmp_path / "outside.png")
        by_image = album.search(like=image.resize((224, 168)), limit=3)
    by_path = album.search(like=tmp_path / "outside.png", limit=3)
    assert by_path == by_image
    assert {Path(str(match.path)).stem[0] for match in by_path} == {"2"}
    assert len(album.search(like=tmp_path / "outside.png")) == 6


def test_a_search_by_picture_needs_no_model(album: Album, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopened = qsplit.open(album.uri)
    monkeypatch.setattr(VisionEncoder, "from_pretrained", pytest.fail)
    assert reopened.search(like=folder / "2.png") == album.search(like=folder / "2.png")
    assert reopened.search(like="2.png", limit=2) == album.search(like=folder / "2.png", limit=2)


def test_an_image_whose_file_is_gone_is_not_found(album: Album, folder: Path, tmp_path: Path) -> None:
    rows_before = {row.path: row for row in album.store.files().values()}
    row = rows_before[str(folder / "2 again.bmp")]
    album.store.put_files([replace(row, state="missing")])
    try:
        found = [Path(str(match.path)).name for match in album.search(like=folder / "2.png", limit=4)]
        assert found[0] == "2 worse.jpg"
        assert len(found) == 4
    finally:
        album.store.put_files([row])


def test_what_cannot_be_searched_for(album: Album, tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("words")
    with pytest.raises(UnreadableImage):
        album.search(like=tmp_path / "words.jpg")
    with pytest.raises(NotFound):
        album.search(like="nowhere.jpg")
    with pytest.raises(UsageError):
        album.search(like="2.png", limit=0)


def test_the_score_is_the_cosine_of_the_mean_tokens(album: Album, folder: Path, mini_vision: VisionEncoder) -> None:
    (match,) = (m for m in album.search(like=folder / "0.png") if str(m.path).endswith("/1.png"))
    a, b = (mini_vision.encode([Image.open(folder / f"{n}.png").convert("RGB")])[0].float32[0] for n in (0, 1))
    means = [t.mean(axis=0, dtype=np.float64) for t in (a, b)]
    cosine_of_means = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert match.score == pytest.approx(float(cosine_of_means), abs=1e-5)
