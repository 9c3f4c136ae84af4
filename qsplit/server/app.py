"""The app: who may come in, what routes there are, and how it starts and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from qsplit import __version__
from qsplit.album import Album
from qsplit.server.api import checks, duplicates, health, images, jobs, search, status, timeline
from qsplit.server.config import ServeOptions
from qsplit.server.middleware import problems, sessions
from qsplit.server.middleware.auth import Access
from qsplit.server.middleware.body_limit import Bodies
from qsplit.server.middleware.request_log import Observed
from qsplit.server.openai import chat, embeddings, models
from qsplit.server.service import Service
from qsplit.server.web import page

__all__ = ["create_app"]

ROUTERS = tuple(  # one a noun
    noun.router
    for noun in (
        health,
        sessions,
        page,
        models,
        chat,
        embeddings,
        status,
        timeline,
        images,
        search,
        duplicates,
        checks,
        jobs,
    )
)


def create_app(album: Album, options: ServeOptions | None = None) -> FastAPI:
    """The service of an album as an ASGI app; nothing is read or loaded before it starts."""
    options = options or ServeOptions()
    app = FastAPI(
        title="qsplit",
        version=__version__,
        lifespan=_lifespan,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its scripts come from another site
        redoc_url=None,
    )
    service = app.state.service = Service(album, options)
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router, responses=problems.responses(router.prefix))
    app.mount("/static", page.static)
    # A request passes these from the last to the first.
    app.add_middleware(Bodies, max_picture=options.max_upload_bytes)
    app.add_middleware(Access, options=options)
    if options.origins:
        headers = ["Authorization", "Content-Type", "X-Request-ID"]
        told = ["X-Request-ID", "X-Qsplit-Reused", "X-Qsplit-Semantics"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.origins,
            allow_methods=["*"],
            allow_headers=headers,
            expose_headers=told,
        )
    app.add_middleware(Observed, metrics=service.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        service.close()
