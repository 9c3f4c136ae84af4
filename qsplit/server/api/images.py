"""One picture over HTTP: sent in, described, shown, forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from qsplit.errors import ImageError, NotFound, QueueFull, UsageError
from qsplit.server.service import Held, Service, name_of
from qsplit.store.lookup import StoredPicture
from qsplit.store.records import ImageRow
from qsplit.store.timeline import Entry

__all__ = ["ImageInfo", "info_of", "router", "sent_picture"]

router = APIRouter(prefix="/api/v1/images", tags=["images"])

_WAITING = 16  # pictures that wait to be taken in, as bytes in memory; others are turned away
_FOR_EVER = "private, max-age=31536000, immutable"  # an id is a digest: what it names never changes
_BYTES = {"type": "string", "format": "binary"}
PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BYTES}},
            },
            "image/*": {"schema": _BYTES},
        },
    }
}
_WEBP: dict[int | str, dict[str, Any]] = {200: {"content": {"image/webp": {"schema": _BYTES}}}}


class ImageInfo(BaseModel):
    """A picture, as lists show it; ``bytes`` are of its first file, and null where that is gone."""

    id: str
    name: str
    width: int
    height: int
    format: str
    taken_at: datetime | None
    camera: str | None
    lat: float | None
    lon: float | None
    caption: str | None
    bytes: int | None


class FileInfo(BaseModel):
    """A file of a picture, without where it lies."""

    name: str
    bytes: int
    modified_at: datetime


class ImageDetail(ImageInfo):
    """A picture with what its files say."""

    exif: dict[str, str]
    files: list[FileInfo]


class Added(BaseModel):
    """What became of a picture that was sent in; one that shows the pixels of a known picture goes by its id."""

    id: str
    name: str
    encoded: bool


class Gone(BaseModel):
    """What was forgotten. Pictures of indexed folders come back with the next index, unless their file is moved."""

    id: str
    features: int
    removed_files: list[str]


@router.post("", status_code=201, openapi_extra=PICTURE_BODY, responses={200: {"model": Added}})
async def add(request: Request, service: Held) -> JSONResponse:
    """Take a picture in, and encode it; 200 where it is known."""
    waiting = service.upload_threads.statistics().tasks_waiting
    if waiting >= _WAITING:
        raise QueueFull(f"{waiting} pictures wait to be taken in.", fix="Send it again in some seconds.")
    data = await sent_picture(request)
    return await to_thread.run_sync(_take_in, service, data, limiter=service.upload_threads)


def _take_in(service: Service, data: bytes) -> JSONResponse:
    upload = service.uploads.add(data)
    added = Added(id=upload.id, name=name_of(service.picture(upload.id)), encoded=upload.encoded)
    return JSONResponse(added.model_dump(), 200 if upload.known else 201)


@router.get("/{image_id}")
def describe(image_id: str, service: Held) -> ImageDetail:
    """All that is known of a picture."""
    picture = service.picture(image_id)
    files = list(_files(service, picture))
    caption = service.album.pictures.captions([picture.image.image_id]).get(picture.image.image_id)
    info = info_of(picture.image, name_of(picture), caption, files[0].bytes if files else None)
    return ImageDetail(**info.model_dump(), exif=_tags(service, picture), files=files)


@router.delete("/{image_id}")
def remove(image_id: str, service: Held) -> Gone:
    """Remove a picture from the album; its file goes too if it was sent in, and stays if it was indexed."""
    picture = service.picture(image_id)
    found = picture.image.image_id
    paths = [file.path for file in service.album.pictures.files(found)]
    forgotten = service.album.forget(found)
    removed = [Path(path).name for path in service.uploads.remove(paths)]
    return Gone(id=found, features=forgotten.features, removed_files=removed)


@router.get("/{image_id}/thumbnail", response_class=Response, responses=_WEBP)
def thumbnail(image_id: str, service: Held, if_none_match: Annotated[str, Header()] = "") -> Response:
    """A WebP of at most 256 pixels a side."""
    tag = _tag(image_id, "thumbnail")
    if len(image_id) == 64 and tag in if_none_match:
        return Response(status_code=304, headers=_cached(image_id, tag))
    found = image_id if len(image_id) == 64 else service.picture(image_id).image.image_id
    return Response(service.album.pictures.thumbnail(found), media_type="image/webp", headers=_cached(image_id, tag))


@router.get("/{image_id}/picture", response_class=Response, responses=_WEBP)
def show(image_id: str, service: Held, if_none_match: Annotated[str, Header()] = "") -> Response:
    """The picture for a screen, at most 2048 pixels a side, without metadata; 404 where no file of it is left."""
    picture = service.picture(image_id)
    tag = _tag(image_id, "picture")
    if len(image_id) == 64 and tag in if_none_match:
        return Response(status_code=304, headers=_cached(image_id, tag))
    shown = service.viewer.shown(service.album.pictures.content(picture.image.image_id))
    return Response(shown, media_type="image/webp", headers=_cached(image_id, tag))


async def sent_picture(request: Request) -> bytes:
    """The bytes of the picture that a request brings, as a form's ``file`` or as its body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise UsageError("The form has no file.", fix="Send the picture as its field `file`.")
            return await file.read()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    raise UsageError(f"A picture cannot be sent as {kind or 'nothing'!r}.", fix="Send a form, or image/jpeg.")


def info_of(image: ImageRow | Entry, name: str, caption: str | None, nbytes: int | None) -> ImageInfo:
    """What lists show of a picture."""
    return ImageInfo(
        id=image.image_id,
        name=name,
        width=image.width,
        height=image.height,
        format=image.format,
        taken_at=image.taken_at,
        camera=image.camera,
        lat=image.latitude,
        lon=image.longitude,
        caption=caption,
        bytes=nbytes,
    )


def _files(service: Service, picture: StoredPicture) -> Iterator[FileInfo]:
    for file in service.album.pictures.files(picture.image.image_id):
        when = datetime.fromtimestamp(file.mtime_ns / 1e9, UTC)
        yield FileInfo(name=Path(file.path).name, bytes=file.size, modified_at=when)


def _tags(service: Service, picture: StoredPicture) -> dict[str, str]:
    try:
        return service.viewer.tags(service.album.pictures.content(picture.image.image_id))
    except (NotFound, ImageError):
        return {}


def _tag(image_id: str, what: str) -> str:
    return f'"{image_id}-{what}"'


def _cached(image_id: str, tag: str) -> dict[str, str]:
    """Headers; the head of an id may mean another picture tomorrow."""
    return {"ETag": tag, "Cache-Control": _FOR_EVER} if len(image_id) == 64 else {"Cache-Control": "no-store"}
