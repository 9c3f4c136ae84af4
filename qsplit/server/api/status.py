"""What the album holds, and what this service may do with it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from qsplit.maintenance.status import EncoderStatus, Status
from qsplit.server.config import Role
from qsplit.server.service import Held, without_paths
from qsplit.store.records import Skipped

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/status", tags=["status"])


class Halves(BaseModel):
    """Which halves of the model are loaded here by now."""

    vision: bool
    language: bool


class ServiceStatus(BaseModel):
    """What ``qsplit status --json`` prints, with files by their names, and how this service may be used."""

    store: str
    model: str
    images: int
    files: int
    unreadable: int
    missing: int
    features: int
    stale: int
    bytes: dict[str, int]
    encoders: list[EncoderStatus]
    skipped: list[Skipped]
    lacking: list[str]
    snapshots: list[str]
    schema_version: int = Field(serialization_alias="schema")
    models: Halves
    role: Role
    read_only: bool
    uploads: bool


@router.get("")
def status(service: Held, request: Request) -> ServiceStatus:
    """Counts, encoders, and what could not be read."""
    found = _without_paths(service.status.of(service.album.store))
    said: dict[str, Any] = asdict(found)
    return ServiceStatus(
        **{"schema_version": said.pop("schema"), **said},
        models=Halves(vision=service.album.has_loaded("vision"), language=service.album.has_loaded("language")),
        role=service.options.role,
        read_only=not request.state.may_write,
        uploads=service.uploads.are_taken,
    )


def _without_paths(status: Status) -> Status:
    """Whatever lies in a folder goes by its name: a model, too."""
    return replace(
        status,
        store=_name(status.store),
        model=_name(status.model),
        encoders=[replace(one, models=list(map(_name, one.models))) for one in status.encoders],
        skipped=[Skipped(_name(one.path), without_paths(one.reason, one.path)) for one in status.skipped],
        lacking=list(map(_name, status.lacking)),
    )


def _name(path: str) -> str:
    """The last part of an absolute path; what is none, as a hub id, stays."""
    return Path(path).name if path.startswith(("/", "file://")) or "://" in path else path
