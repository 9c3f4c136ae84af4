"""Conditions of a search: what they mean, and that the store's expressions mean the same."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lancedb.expr import Expr

from qsplit.errors import UsageError
from qsplit.search.filters import EARTH_KM, Filters, Near, Size, moment

LATITUDES = st.floats(-90, 90) | st.sampled_from([-90.0, 90.0, 89.9999, 0.0])
LONGITUDES = st.floats(-180, 180) | st.sampled_from([-180.0, 180.0, 179.99, -179.99, 0.0])
RADII = st.floats(0.001, 25_000) | st.sampled_from([0.01, 1.0, 50.0, 10_007.5, 20_100.0])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> lancedb.table.Table:
    """Empty, with the columns that conditions name."""
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("taken_at", pa.timestamp("us", tz="UTC")),
            ("camera", pa.string()),
            ("latitude", pa.float64()),
            ("longitude", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    )
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("t", schema=schema)


def found(table: lancedb.table.Table, rows: list[dict[str, object]], where: Expr | None) -> list[str]:
    names = table.schema.names
    table.add([{name: row.get(name) for name in names} for row in rows], mode="overwrite")
    assert where is not None
    return sorted(table.search().where(where).select(["id"]).limit(None).to_arrow()["id"].to_pylist())


def distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Kilometres by the angle between two unit vectors, another way than the code's."""
    (x, y, z), (u, v, w) = (
        (math.cos(p) * math.cos(q), math.cos(p) * math.sin(q), math.sin(p))
        for p, q in ((math.radians(one), math.radians(two)) for one, two in (a, b))
    )
    cross = math.hypot(y * w - z * v, z * u - x * w, x * v - y * u)
    return EARTH_KM * math.atan2(cross, x * u + y * v + z * w)


# --- places ---


@given(LATITUDES, LONGITUDES, RADII, LATITUDES, LONGITUDES)
def test_a_circle_holds_what_is_no_further_than_its_radius(
    latitude: float, longitude: float, radius: float, north: float, east: float
) -> None:
    far = distance((latitude, longitude), (north, east))
    if abs(far - radius) > 1e-3:
        assert Near(latitude, longitude, radius).holds(north, east) == (far <= radius)


def around(near: Near) -> list[tuple[float, float]]:
    """Places at nine tenths of the radius in sixteen directions, the centre, and one over the antimeridian from it."""
    angle, lat = 0.9 * near.radius_km / EARTH_KM, math.radians(near.latitude)
    places = [(near.latitude, near.longitude), (near.latitude, math.copysign(180.0, -near.longitude))]
    for i in range(16):
        bearing = math.tau * i / 16
        sine = math.sin(lat) * math.cos(angle) + math.cos(lat) * math.sin(angle) * math.cos(bearing)
        north = math.asin(max(-1.0, min(1.0, sine)))
        east = math.radians(near.longitude) + math.atan2(
            math.sin(bearing) * math.sin(angle) * math.cos(lat), math.cos(angle) - math.sin(lat) * math.sin(north)
        )
        places.append((math.degrees(north), (math.degrees(east) + 540) % 360 - 180))
    return places


@pytest.mark.parametrize(
    "near",
    [
        Near(48.85, 2.35, 10),
        Near(0, 180, 30),
        Near(0, -180, 30),
        Near(-17, 179.95, 100),
        Near(-17, -179.95, 100),
        Near(65, 170, 1500),
        Near(89.99, 12, 5),
        Near(-89.9, 100, 50),
        Near(90, 0, 1),
        Near(80, -179, 1112),
        Near(10, 10, 12_000),
        Near(0, 0, 20_100),
        Near(51.4779, -0.0015, 0.05),
    ],
    ids=str,
)
def test_the_box_holds_the_whole_circle(table: lancedb.table.Table, near: Near) -> None:
    places = around(near)
    inside = sorted(str(i) for i, place in enumerate(places) if near.holds(*place))
    rows = [{"id": str(i), "latitude": lat, "longitude": lon} for i, (lat, lon) in enumerate(places)]
    assert len(inside) >= 17
    assert set(inside) <= set(found(table, [*rows, {"id": "nowhere"}], near.box()))


def test_the_box_leaves_out_what_is_far(table: lancedb.table.Table) -> None:
    rows = [{"id": "near", "latitude": 0.1, "longitude": -179.9}, {"id": "far", "latitude": 0.1, "longitude": 178.0}]
    rows += [{"id": "behind", "latitude": 0.0, "longitude": 0.0}, {"id": "nowhere"}]
    assert found(table, rows, Near(0, 179.9, 50).box()) == ["near"]
    assert found(table, rows, Near(0, -179.9, 50).box()) == ["near"]


@pytest.mark.parametrize(
    "text", ["48.85", "48.85,2.35", "a,b,c", "91,0,1", "0,181,1", "0,0,0", "0,0,-1", "nan,0,1", "0,0,inf"]
)
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        Near.read(text)


# --- times ---


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2024", "2024-01-01T00:00:00", "2025-01-01T00:00:00"),
        ("2024-12", "2024-12-01T00:00:00", "2025-01-01T00:00:00"),
        ("2024-2", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
        ("2024-02-29", "2024-02-29T00:00:00", "2024-03-01T00:00:00"),
        ("2024-05-01T18:30", "2024-05-01T18:30:00", "2024-05-01T18:30:01"),
        ("2024-05-01T18:30+08:00", "2024-05-01T10:30:00", "2024-05-01T10:30:01"),
    ],
)
def test_a_date_begins_and_ends(text: str, begin: str, end: str) -> None:
    assert moment(text) == datetime.fromisoformat(begin).replace(tzinfo=UTC)
    assert moment(text, end=True) == datetime.fromisoformat(end).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "2023-02-29", "2024-13", "24", "0000"])
def test_dates_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="no date"):
        moment(text)


def test_a_time_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UsageError, match="Nothing is taken"):
        Filters.read(since="2024-05", until="2024-04")
    assert Filters.read(since="2024-05", until="2024-05")


# --- all of them, in the store ---

LAST = datetime(2024, 5, 31, 23, 59, 59, 999_999, UTC)
NEXT = datetime(2024, 6, 1, tzinfo=UTC)
ROWS: list[dict[str, object]] = [
    {"id": "a", "taken_at": LAST, "camera": "Apple iPhone 15", "width": 4000, "height": 3000},
    {"id": "b", "taken_at": NEXT, "camera": "Canon EOS' OR 1=1", "width": 1080, "height": 1920},
    {"id": "c", "width": 50_000, "height": 50_000},
]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"since": "2024-06"}, "b"),
        ({"until": "2024-05"}, "a"),
        ({"since": "2024", "until": "2024"}, "ab"),
        ({"camera": "iphone"}, "a"),
        ({"camera": "EOS' OR 1=1"}, "b"),
        ({"camera": "x' OR 1=1 --"}, ""),
        ({"camera": "%"}, ""),
        ({"min_size": "1920x1080"}, "abc"),
        ({"min_size": "1921x1080"}, "ac"),
        ({"min_size": "12MP"}, "ac"),
        ({"min_size": "12.1MP"}, "c"),
        ({"camera": "apple", "since": "2024-06"}, ""),
    ],
)
def test_the_store_decides_as_is_meant(table: lancedb.table.Table, given_: dict[str, str], expected: str) -> None:
    assert found(table, ROWS, Filters.read(**given_).where()) == list(expected)


def test_a_width_is_no_height(table: lancedb.table.Table) -> None:
    for least in (1, 1080, 1081, 1920, 50_000):
        wide = [row["id"] for row in ROWS if int(str(row["width"])) >= least]
        assert found(table, ROWS, Filters(min_width=least).where()) == wide
        high = [row["id"] for row in ROWS if int(str(row["height"])) >= least]
        assert found(table, ROWS, Filters(min_height=least).where()) == high


@pytest.mark.parametrize("text", ["big", "1920", "1920x", "MP", "-1x5"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        Size.read(text)


@pytest.mark.parametrize(
    ("pattern", "path", "taken"),
    [
        ("", "/a/b.jpg", True),
        ("/a", "/a/b.jpg", True),
        ("/a/b", "/a/b.jpg", True),
        ("/b", "/a/b.jpg", False),
        ("/A", "/a/b.jpg", False),
        ("*.jpg", "/a/b.jpg", True),
        ("b.*", "/a/b.jpg", True),
        ("2024/*.jpg", "/home/2024/rome/b.jpg", True),
        ("/home/*/rome/*", "/home/2024/rome/b.jpg", True),
        ("/rome/*", "/home/2024/rome/b.jpg", False),
        ("IMG_[0-4]?.png", "/x/IMG_31.png", True),
    ],
)
def test_paths(pattern: str, path: str, taken: bool) -> None:
    assert Filters(path=pattern).takes(path) == taken


def test_a_relative_folder_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert Filters(path="sub").takes(f"{tmp_path}/sub/a.jpg")
    assert Filters(path="~/Pictures").takes("/home/me/Pictures/a.jpg")
    assert Filters(path="~/*.jpg").takes("/home/me/Pictures/a.jpg")


def test_no_condition_asks_nothing() -> None:
    assert Filters().where() is None
    assert Filters(path="x").where() is None
    assert not Filters()
