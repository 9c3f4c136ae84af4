"""Whether the service lives, whether it can answer, and its figures: told whatever else takes its threads."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from qsplit.server.service import Held

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """That the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(service: Held) -> dict[str, str]:
    """That the store can be read and requests are answered; 503 while not, and while the service ends."""
    await to_thread.run_sync(service.check_ready, limiter=service.health_threads)
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(service: Held) -> Response:
    """Figures in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
