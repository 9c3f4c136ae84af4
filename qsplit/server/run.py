"""A service on a socket, until it is told to end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from qsplit.album import Album
from qsplit.server.app import create_app
from qsplit.server.config import ServeOptions
from qsplit.server.engine.halves import Engine
from qsplit.server.middleware import logs
from qsplit.server.service import Service

__all__ = ["DRAIN_S", "Served", "run"]

DRAIN_S = 20  # seconds that requests have to end in, once the service is told to
_LAST_S = 3  # of these, for what was written of an answer to reach its client


@dataclass(frozen=True, slots=True)
class Served:
    """Where a service listens, and what it serves."""

    url: str
    store: str
    role: str


def run(album: Album, options: ServeOptions, on_start: Callable[[Served], None]) -> None:
    """Serve until SIGTERM or SIGINT: no request is taken from then on, and those that run have `DRAIN_S` to end in;
    answers that would go on for longer end where they are.

    ``on_start`` is told where, once requests are taken.
    """
    logs.configure(as_json=options.log_json)
    app = create_app(album, options)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,  # `qsplit.server.middleware.request_log` writes it
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    bound = config.bind_socket()
    host = f"[{options.host}]" if ":" in options.host else options.host
    served = Served(f"http://{host}:{bound.getsockname()[1]}", album.uri, options.role)
    service: Service = app.state.service
    _Server(config, lambda: on_start(served), service.engine).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when it has started, and has answers end in time once it is told to end."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], engine: Engine) -> None:
        super().__init__(config)
        self._on_start, self._engine = on_start, engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.end_by(time.monotonic() + DRAIN_S - _LAST_S)
        await super().shutdown(sockets)
