"""All pictures of the album in order, a page at a time, and where each month begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from qsplit.server.api.images import ImageInfo, info_of
from qsplit.server.service import Held
from qsplit.store.timeline import Month

__all__ = ["Limit", "Offset", "router"]

router = APIRouter(prefix="/api/v1", tags=["images"])

Offset = Annotated[int, Query(ge=0, le=2**31, description="How many come before the first.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many to list at most.")]


class Pictures(BaseModel):
    """A page of the pictures, of ``total``."""

    total: int
    images: list[ImageInfo]


class Months(BaseModel):
    """The months of all pictures, the newest first; those that do not say when they were taken come last."""

    total: int
    months: list[Month]


@router.get("/images")
def list_images(service: Held, offset: Offset = 0, limit: Limit = 100) -> Pictures:
    """Pictures of which a file is left, the newest first."""
    timeline = service.timeline.of(service.album.store)
    page = timeline.page(offset, limit)
    captions = service.album.pictures.captions([one.image_id for one in page])
    infos = [info_of(one, Path(one.path).name, captions.get(one.image_id), one.bytes) for one in page]
    return Pictures(total=len(timeline), images=infos)


@router.get("/timeline")
def list_months(service: Held) -> Months:
    """Where in the list of pictures each month begins."""
    timeline = service.timeline.of(service.album.store)
    return Months(total=len(timeline), months=list(timeline.months))
