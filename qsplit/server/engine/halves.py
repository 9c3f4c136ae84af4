"""The halves of the model in a service: loaded when they are first needed, and asked by many at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock

from qsplit.album import Album
from qsplit.errors import NotFound, QueueFull
from qsplit.integrations.vllm.remote_language import RemoteLanguage
from qsplit.models.language.model import LanguageModel
from qsplit.server.config import ServeOptions
from qsplit.server.engine.remote_scheduler import Relay
from qsplit.server.engine.scheduler import Together

__all__ = ["Engine"]

_ENDING_S = 10.0  # that a pass of the model has to end in, once the service ends


class Engine:
    """Who answers, under which name, and for how many at a time."""

    def __init__(self, album: Album, options: ServeOptions) -> None:
        self._album, self._options = album, options
        self._beginning, self._counting = Lock(), Lock()  # to load takes long, and nobody counts as long
        self._preparing = 0

    @property
    def answers(self) -> bool:
        """Whether this service has the language half."""
        return self._options.role != "vision"

    @property
    def language(self) -> LanguageModel:
        """Raises `UsageError` where this service has no language half."""
        return self._album.language

    @property
    def answerer(self) -> LanguageModel | RemoteLanguage:
        """Who answers chats: the language half, or the server that runs it."""
        return self._album.answerer

    @property
    def together(self) -> Together | Relay:
        with self._beginning:
            return self._together

    @cached_property
    def _together(self) -> Together | Relay:
        answerer, queue = self.answerer, self._options.queue
        if isinstance(answerer, RemoteLanguage):
            return Relay(answerer, queue=queue)
        return Together(answerer, queue=queue)

    @cached_property
    def model(self) -> str:
        """What the model is called towards clients: a folder goes by its name, without where it lies."""
        name = self._album.checkpoint("language").name
        return Path(name).name if Path(name).is_absolute() else name

    def check_model(self, name: str) -> None:
        """Raises `NotFound` for the name of another model than this one; an empty name is this one."""
        if not self.answers or name not in ("", self.model):
            raise NotFound(f"There is no model {name!r} here.", fix="`GET /v1/models` lists what there is.")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While a request is prepared; raises `QueueFull` if as many are prepared or waiting as may wait."""
        with self._counting:
            if self._preparing + self.n_waiting >= self._options.queue:
                raise QueueFull(f"{self._options.queue} requests are waiting already.", fix="Ask again in a while.")
            self._preparing += 1
        try:
            yield
        finally:
            with self._counting:
                self._preparing -= 1

    @property
    def n_waiting(self) -> int:
        return self._together.n_waiting if "_together" in self.__dict__ else 0

    @property
    def n_running(self) -> int:
        return self._together.n_running if "_together" in self.__dict__ else 0

    def check_alive(self) -> None:
        """Raises `NotReady` where what answers has begun and died."""
        if "_together" in self.__dict__:
            self._together.check_alive()

    def end_by(self, deadline: float) -> None:
        """Have every answer end by then where it is; ``deadline`` is of the monotonic clock."""
        if "_together" in self.__dict__:
            self._together.end_by(deadline)

    def close(self) -> None:
        """After the last request: nobody waits for what may still be computed."""
        if "_together" in self.__dict__:
            self._together.close(_ENDING_S)
