"""What a match must be beside alike: taken when, with what and where, how large, and lying where.

Conditions reach the store as typed expressions, never as text, so no value can change what is asked. Expressions know
no trigonometry: a place becomes a box there, and `Near.holds` decides who is in the circle. What they cannot tell goes
by the ids of images.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_

from lancedb.expr import Expr, col, func

from qsplit.errors import UsageError
from qsplit.store.feature_store import FeatureStore
from qsplit.store.tables.vectors import Vectors

__all__ = ["EARTH_KM", "Filters", "Hit", "Near", "Scope", "Size", "moment", "scope_of"]

EARTH_KM = 6371.0088  # the mean radius
_MARGIN = 1e-6  # degrees, a tenth of a metre, that the box is wider: rounding must not cost what lies on the edge
_GLOB = re.compile(r"[*?\[]")
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?")
_SIZE = re.compile(r"(?:(\d+)\s*[xX×]\s*(\d+)|(\d+(?:\.\d+)?)\s*MP)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Near:
    """A circle on the globe: its centre in degrees, north and east positive, and its radius in kilometres.

    >>> Near(0.0, 179.9, 50.0).holds(0.0, -179.9)
    True
    """

    latitude: float
    longitude: float
    radius_km: float

    def __post_init__(self) -> None:
        if not (abs(self.latitude) <= 90 and abs(self.longitude) <= 180):
            raise UsageError(
                f"There is no place {self.latitude:g},{self.longitude:g}.",
                fix="Latitudes go from -90 to 90, longitudes from -180 to 180.",
            )
        if not 0 < self.radius_km < math.inf:
            raise UsageError(f"The radius is {self.radius_km:g} km, but must be above 0.")

    @classmethod
    def read(cls, text: str) -> Near:
        """From ``LAT,LON,RADIUS_KM``."""
        try:
            latitude, longitude, radius_km = map(float, text.split(","))
        except ValueError as error:
            raise UsageError(
                f"{text!r} is no place with a radius.", fix="Write LAT,LON,RADIUS_KM: 48.85,2.35,10."
            ) from error
        return cls(latitude, longitude, radius_km)

    def holds(self, latitude: float | None, longitude: float | None) -> bool:
        """Whether a place lies in the circle, by the great circle between it and the centre."""
        if latitude is None or longitude is None:
            return False
        here, there = math.radians(self.latitude), math.radians(latitude)
        across = math.sin(math.radians(longitude - self.longitude) / 2) ** 2  # the same the short way and the long way
        half = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * across
        return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, half))) <= self.radius_km

    def box(self) -> Expr:
        """What a place in the circle fulfils, and few others."""
        reach = math.degrees(self.radius_km / EARTH_KM) + _MARGIN
        south, north = self.latitude - reach, self.latitude + reach
        within = (col("latitude") >= south) & (col("latitude") <= north)
        if south <= -90 or north >= 90:  # a pole is inside, and with it every longitude
            return within
        # The circle touches its outermost meridians nearer the pole than its centre lies.
        wide = math.degrees(math.asin(min(1.0, math.sin(math.radians(reach)) / math.cos(math.radians(self.latitude)))))
        west, east = self.longitude - wide - _MARGIN, self.longitude + wide + _MARGIN
        if east - west >= 360:
            return within
        from_west = col("longitude") >= (west if west > -180 else west + 360)
        to_east = col("longitude") <= (east if east < 180 else east - 360)
        crosses = west <= -180 or east >= 180
        return within & ((from_west | to_east) if crosses else (from_west & to_east))


@dataclass(frozen=True, slots=True)
class Size:
    """The least that a picture must have: its longer and shorter side, whichever is its width, or its pixels."""

    longer: int = 0
    shorter: int = 0
    pixels: int = 0

    @classmethod
    def read(cls, text: str) -> Size:
        """From ``1920x1080``, in either direction, or ``2MP``.

        >>> Size.read("1080x1920"), Size.read("2.5MP").pixels
        (Size(longer=1920, shorter=1080, pixels=0), 2500000)
        """
        found = _SIZE.fullmatch(text.strip())
        if not found:
            raise UsageError(f"{text!r} is no size.", fix="Write 1920x1080 or 2MP.")
        if found[3]:
            return cls(pixels=math.ceil(float(found[3]) * 1e6))
        a, b = int(found[1]), int(found[2])
        return cls(max(a, b), min(a, b))

    def where(self) -> Expr:
        width, height = col("width"), col("height")
        upright = (width >= self.shorter) & (height >= self.longer)
        across = (width >= self.longer) & (height >= self.shorter)
        # As numbers that hold the product: two sides of 50,000 pixels are more than an int32.
        return (upright | across) & (width.cast("float64") * height.cast("float64") >= float(self.pixels))


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that must all hold; a picture that does not say when, where or with what it was taken fulfils none of
    these.

    ``since`` is the first moment and ``until`` the first no more; ``camera`` is part of its name in any case;
    ``min_width`` and ``min_height`` are pixels, where ``min_size`` does not ask which side is which; ``path`` is a
    folder, a file, the beginning of a path, or a glob over whole paths (over their ends where it does not begin with a
    slash), whose ``*`` also goes through folders.

    >>> bool(Filters()), bool(Filters(camera="iPhone"))
    (False, True)
    """

    since: datetime | None = None
    until: datetime | None = None
    camera: str = ""
    near: Near | None = None
    min_size: Size | None = None
    path: str = ""
    min_width: int = 0
    min_height: int = 0

    @classmethod
    def read(
        cls, *, since: str = "", until: str = "", camera: str = "", near: str = "", min_size: str = "", path: str = ""
    ) -> Filters:
        """From what a user types, each as `moment`, `Near.read` and `Size.read` say; empty is no condition.

        Raises `UsageError`, also for a time that ends before it begins.
        """
        return cls(
            since=moment(since) if since else None,
            until=moment(until, end=True) if until else None,
            camera=camera,
            near=Near.read(near) if near else None,
            min_size=Size.read(min_size) if min_size else None,
            path=path,
        )

    def __post_init__(self) -> None:
        if self.since and self.until and _utc(self.since) >= _utc(self.until):
            raise UsageError(f"Nothing is taken since {self.since} and before {self.until}.")

    def __bool__(self) -> bool:
        return self != Filters()

    def where(self) -> Expr | None:
        """What the columns of a vectors table must fulfil; of a place, the box around it. None where all may be."""
        conditions = []
        if self.since:
            conditions.append(col("taken_at") >= _utc(self.since))
        if self.until:
            conditions.append(col("taken_at") < _utc(self.until))
        if self.camera:
            conditions.append(func("lower", col("camera")).contains(self.camera.lower()))
        if self.near:
            conditions.append(self.near.box())
        if self.min_size:
            conditions.append(self.min_size.where())
        for side, least in (("width", self.min_width), ("height", self.min_height)):
            if least:
                conditions.append(col(side) >= least)
        return reduce(and_, conditions) if conditions else None

    def takes(self, path: str) -> bool:
        """Whether a file's path, as the store keeps it, is one that is asked for.

        >>> Filters(path="*.png").takes("/home/me/a.png"), Filters(path="/home/me").takes("/home/me/a.png")
        (True, True)
        """
        if not self.path:
            return True
        if not _GLOB.search(self.path):
            return path.startswith(os.path.abspath(os.path.expanduser(self.path)))  # noqa: PTH100, PTH111  # as kept
        pattern = os.path.expanduser(self.path)  # noqa: PTH111  # a glob is no path
        return fnmatch.fnmatchcase(path, pattern if pattern.startswith("/") else f"*/{pattern.removeprefix('./')}")


def moment(text: str, *, end: bool = False) -> datetime:
    """The beginning of a year, a month, a day or a time that a text names, or with ``end`` the first moment after it.

    A time without an offset is in UTC, as the store keeps it. Raises `UsageError`.

    >>> moment("2024-05").isoformat(), moment("2024-05", end=True).isoformat()
    ('2024-05-01T00:00:00+00:00', '2024-06-01T00:00:00+00:00')
    """
    try:
        if date := _DATE.fullmatch(text.strip()):
            return _edge(*(int(part) if part else 0 for part in date.groups()), end=end)
        return _utc(datetime.fromisoformat(text.strip())) + timedelta(seconds=1 if end else 0)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is no date: {error}.", fix="Write 2024, 2024-05, 2024-05-31 or 2024-05-31T18:30."
        ) from error


def _edge(year: int, month: int, day: int, *, end: bool) -> datetime:
    """Where a year, month (0: the whole year) or day (0: the whole month) begins, or ends."""
    begin = datetime(year, month or 1, day or 1, tzinfo=UTC)
    if not end:
        return begin
    if day:
        return begin + timedelta(days=1)
    return begin.replace(year=year + (month in (0, 12)), month=month % 12 + 1 if month else 1)


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


_IDS = 10_000  # values in one expression

Hit = tuple[str, float]  # image id and score


@dataclass(frozen=True)
class Scope:
    """An expression over the rows of a vectors table, and where that does not say all, the ids that may match."""

    where: Expr | None = None
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    filters: Filters = field(default_factory=Filters)

    def less(self, image_ids: Collection[str]) -> Scope:
        """Without some images, that the query names."""
        return replace(self, without=self.without | frozenset(image_ids))

    def of(self, hits: Iterable[Hit]) -> list[Hit]:
        """Those that may match."""
        return [hit for hit in hits if hit[0] not in self.without and (self.only is None or hit[0] in self.only)]

    def paths(self, store: FeatureStore, image_ids: Iterable[str]) -> dict[str, str]:
        """Image id -> the first path that is asked for, of those that are still there."""
        found = {one: next(filter(self.filters.takes, paths), "") for one, paths in store.paths_of(image_ids).items()}
        return {one: path for one, path in found.items() if path}


def scope_of(store: FeatureStore, vectors: Vectors, filters: Filters) -> Scope:
    """What fulfils the conditions among the images of a vectors table."""
    where, only = filters.where(), None
    if filters.near:
        rows = vectors.rows(None, ["latitude", "longitude"], where)
        only = {one for one, row in rows.items() if filters.near.holds(row["latitude"], row["longitude"])}
    if filters.path:
        files = store.column("files", "path", "image_id", "state")
        lying = {image_id for path, image_id, state in files if state == "ok" and filters.takes(path)}
        only = lying if only is None else only & lying
    if only is None:
        return Scope(where, filters=filters)
    if len(only) <= _IDS:  # a filter leaves the store nothing to skip over in vain
        where = col("image_id").isin(sorted(only) or [""])
    return Scope(where, frozenset(only), filters=filters)
