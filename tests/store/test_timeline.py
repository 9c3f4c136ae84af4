"""The order of all pictures: by time, the same however it is made, and made again when something changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsplit.store.derived_cache import Kept
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow
from qsplit.store.timeline import TABLES, Month, Timeline, read_timeline

NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)


def put(store: FeatureStore, seed: int, taken_at: datetime | None = None, *, mtime: int = 0, paths: int = 1) -> str:
    picture = rows.picture(seed, taken_at=taken_at)
    store.put_images([picture])
    names = (f"/pictures/{seed:03d}{'b' * n}.jpg" for n in range(paths))
    store.put_files([FileRow(name, picture.image_id, 1000 + seed, mtime, "ok") for name in names])
    return picture.image_id


def ids(timeline: Timeline) -> list[str]:
    return [entry.image_id for entry in timeline.page(0, 1000)]


def test_the_newest_first_and_those_without_a_time_last(store: FeatureStore) -> None:
    june = put(store, 1, NOON + timedelta(days=1))
    undated = put(store, 2, mtime=5)
    later = put(store, 3, mtime=6)
    may = put(store, 4, NOON)
    found = read_timeline(store)
    assert ids(found) == [june, may, later, undated]
    assert found.months == (Month("2024-06", 1, 0), Month("2024-05", 1, 1), Month(None, 2, 2))
    assert len(found) == 4


def test_an_entry_tells_of_the_first_file(store: FeatureStore) -> None:
    put(store, 7, NOON, paths=2)
    (entry,) = read_timeline(store).page(0, 10)
    assert (entry.path, entry.bytes, entry.taken_at) == ("/pictures/007.jpg", 1007, NOON)
    assert (entry.width, entry.height, entry.format) == (640, 480, "JPEG")


def test_a_picture_without_a_file_is_not_there(store: FeatureStore) -> None:
    image_id = put(store, 1)
    put(store, 2)
    store.put_files([FileRow("/pictures/001.jpg", image_id, 1, 1, "missing")])
    store.put_files([FileRow("/pictures/broken.jpg", None, 1, 1, "unreadable", "Why.")])
    assert image_id not in ids(read_timeline(store))
    assert len(read_timeline(store)) == 1


def test_of_nothing(store: FeatureStore) -> None:
    found = read_timeline(store)
    assert (len(found), found.months, found.page(0, 10), found.page(7, 10)) == (0, (), [], [])


TIMES = st.none() | st.integers(0, 40).map(lambda weeks: NOON + timedelta(weeks=weeks))


@settings(max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TIMES, st.integers(0, 3)), max_size=12))
def test_pages_and_months_tell_the_same(store: FeatureStore, made: list[tuple[datetime | None, int]]) -> None:
    for table in ("images", "files"):
        store.clear(table)
    for seed, (taken_at, mtime) in enumerate(made):
        put(store, seed, taken_at, mtime=mtime)
    found = read_timeline(store)
    whole = found.page(0, 100)
    assert [entry for offset in range(0, len(made), 5) for entry in found.page(offset, 5)] == whole
    assert sum(month.count for month in found.months) == len(whole) == len(made)
    for month in found.months:
        some = whole[month.offset : month.offset + month.count]
        assert {f"{one.taken_at:%Y-%m}" if one.taken_at else None for one in some} == {month.month}
    times = [entry.taken_at for entry in whole if entry.taken_at]
    assert times == sorted(times, reverse=True)


def test_it_is_kept_until_something_changes(store: FeatureStore) -> None:
    put(store, 1)
    made: list[Timeline] = []

    def make(opened: FeatureStore) -> Timeline:
        made.append(read_timeline(opened))
        return made[-1]

    kept = Kept(make, *TABLES)
    assert len(kept.of(store)) == len(kept.of(store)) == 1
    assert len(made) == 1
    put(FeatureStore(store.uri), 2)  # by another process, as good as
    assert len(kept.of(store)) == 2
    store.put_decisions([])
    assert len(kept.of(FeatureStore(store.uri))) == 2
    assert len(made) == 2


def test_what_is_made_of_all_tables_changes_with_each(store: FeatureStore) -> None:
    made: list[int] = []
    kept = Kept(lambda opened: made.append(opened.count("images")), *())
    kept.of(store)
    put(store, 1)
    kept.of(store)
    kept.of(store)
    store.put_checks([rows.check_row(1)])
    kept.of(store)
    assert made == [0, 1, 1]
