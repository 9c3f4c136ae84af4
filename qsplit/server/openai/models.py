"""The model that answers here, as OpenAI's clients list them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from qsplit.server.service import Held

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["openai"])


class ModelInfo(BaseModel):
    """``created`` is unknown: weights do not say."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "qsplit"


class Models(BaseModel):
    """There is one, or none where this service has no language half."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


@router.get("")
def models(service: Held) -> Models:
    """What answers here."""
    return Models(data=[ModelInfo(id=service.engine.model)] if service.engine.answers else [])


@router.get("/{name:path}")
def model(name: str, service: Held) -> ModelInfo:
    """The model of a name; 404 for another."""
    service.engine.check_model(name)
    return ModelInfo(id=service.engine.model)
