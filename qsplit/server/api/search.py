"""Finding pictures over HTTP, by texts, by pictures and by conditions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path, PurePosixPath
from string import hexdigits
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from qsplit.errors import UsageError
from qsplit.search.engine import By, Sort
from qsplit.search.filters import Filters, Near, Size, moment
from qsplit.search.pagination import Found, Kind
from qsplit.search.query_parser import parse
from qsplit.server.api.images import PICTURE_BODY, sent_picture
from qsplit.server.api.timeline import Limit
from qsplit.server.service import Held, Service

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/search", tags=["search"])

_MOST = 1000  # matches of a page
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Words = Annotated[str, Field(max_length=500)]
_Least = Annotated[int, Field(ge=0, le=2**31 - 1)]  # pixels


class Place(BaseModel):
    """A circle on the globe: degrees, north and east positive."""

    model_config = ConfigDict(extra="forbid")

    latitude: _Finite
    longitude: _Finite
    km: _Finite


class Where(BaseModel):
    """What every match must fulfil.

    Dates are ``2024``, ``2024-05`` or ``2024-05-31``. ``camera`` is a part of its name. ``path`` is the name of a file
    or a folder, or a glob over the last parts of paths: ``holiday/*.jpg``.
    """

    model_config = ConfigDict(extra="forbid")

    since: _Words = ""
    until: _Words = ""
    camera: _Words = ""
    near: Place | None = None
    path: _Words = ""
    min_width: _Least = 0
    min_height: _Least = 0
    min_pixels: _Least = 0

    def filters(self) -> Filters:
        """Raises `UsageError` for what is no date, no place or no path."""
        return Filters(
            since=moment(self.since) if self.since else None,
            until=moment(self.until, end=True) if self.until else None,
            camera=self.camera,
            near=Near(self.near.latitude, self.near.longitude, self.near.km) if self.near else None,
            min_size=Size(pixels=self.min_pixels) if self.min_pixels else None,
            path=_ending(self.path),
            min_width=self.min_width,
            min_height=self.min_height,
        )


class SearchRequest(BaseModel):
    """What is searched for.

    ``text`` may have several terms between spaced + and -, with weights, as in ``2:red boat - people``; what stands in
    double quotes is text. ``like`` are ids of pictures of the album. ``after`` is the ``next`` of the page before.
    ``rerank`` asks the language half about so many of the best. ``everything`` also shows what is no good match.
    """

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", max_length=2000)
    like: list[str] = Field(default_factory=list, max_length=16)
    where: Where = Field(default_factory=Where)
    limit: int = Field(20, ge=1, le=_MOST)
    after: str = Field("", max_length=2**20)
    sort: Sort = "relevance"
    by: By = "meaning"
    rerank: int = Field(0, ge=0, le=100)
    everything: bool = False


class MatchInfo(BaseModel):
    """A picture that was found; ``score`` is 1 at best, and ``kind`` says what it measures."""

    id: str
    score: float
    kind: Kind
    name: str
    width: int
    height: int
    taken_at: datetime | None


class Matches(BaseModel):
    """A page of matches, the best first; ``is_cut`` says of an empty one that nothing is a good match."""

    matches: list[MatchInfo]
    next: str | None
    is_cut: bool


@router.post("")
async def search(asked: SearchRequest, service: Held) -> Matches:
    """Pictures of the album that are what a text says, or like others, or fulfil conditions."""
    return await to_thread.run_sync(_search, service, asked, limiter=service.vector_threads)


def _search(service: Service, asked: SearchRequest) -> Matches:
    found = service.album.search(
        _with_whole_ids(asked.text, service),
        like=[service.picture(image_id).image.image_id for image_id in asked.like],
        limit=asked.limit,
        after=asked.after,
        where=asked.where.filters(),
        sort=asked.sort,
        by=asked.by,
        rerank=asked.rerank,
        everything=asked.everything,
    )
    return _matches(service, found)


@router.post("/picture", openapi_extra=PICTURE_BODY)
async def search_picture(request: Request, service: Held, limit: Limit = 20) -> Matches:
    """Pictures of the album that are like one that is sent, which is not kept."""
    data = await sent_picture(request)
    form = await request.form()  # as it was read
    how_many = _limit(form.get("limit"), limit)
    return await to_thread.run_sync(_like, service, data, how_many, limiter=service.look_threads)


def _limit(sent: object, other: int) -> int:
    """What a form says of how many are wanted, if it does."""
    if sent is None:
        return other
    if isinstance(sent, str) and sent.isdecimal() and 1 <= int(sent[:9]) <= _MOST:
        return int(sent)
    raise UsageError(f"The limit must be from 1 to {_MOST}.")


def _like(service: Service, data: bytes, limit: int) -> Matches:
    if service.options.role == "language":
        fix = "Ask the service that has the vision half."
        raise UsageError("This service cannot look at pictures: it has no vision half.", fix=fix)
    return _matches(service, service.album.search(like=service.decoder.picture(data).rgb, limit=limit))


def _matches(service: Service, found: Found) -> Matches:
    images = service.album.pictures.images(match.id for match in found)
    matches = [
        MatchInfo(
            id=match.id,
            score=match.score,
            kind=match.kind,
            name=Path(match.path or match.id[:12]).name,
            width=images[match.id].width,
            height=images[match.id].height,
            taken_at=images[match.id].taken_at,
        )
        for match in found
        if match.id in images  # one that was forgotten meanwhile is not
    ]
    return Matches(matches=matches, next=found.after or None, is_cut=found.is_cut)


def _with_whole_ids(text: str, service: Service) -> str:
    """A query whose pictures are named by whole ids of the album.

    On the command line a picture may be a path; here that is refused with a `UsageError`.
    """
    for term in reversed(parse(text)):
        if term.kind != "picture":
            continue
        if not set(term.value) <= set(hexdigits):
            fix = "Name pictures by their ids; text that ends like a file stands in double quotes."
            raise UsageError(f"{term.value!r} is no picture's id, and no paths are taken here.", fix=fix)
        before, rest = text[: term.position - 1], text[term.position - 1 :]
        text = before + rest.replace(term.value, service.picture(term.value).image.image_id, 1)
    return text


def _ending(path: str) -> str:
    """A glob that files in any folder may match; raises `UsageError` for what says where on the server it begins."""
    if path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
        raise UsageError(f"The path {path!r} leads out of the album.", fix="Give the last parts of a path.")
    if not path or set(path) & set("*?["):
        return path
    return f"*/{path}" if PurePosixPath(path).suffix else f"*/{path.rstrip('/')}/*"
