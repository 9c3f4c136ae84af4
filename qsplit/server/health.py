"""Whether the service lives, whether it can answer, and its figures."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from qsplit.server.service import Held

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """That the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(service: Held) -> dict[str, str]:
    """That the store can be read; 503 while it cannot, and while the service ends."""
    service.check_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(service: Held) -> Response:
    """Figures in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
