"""Work on threads beside whoever asks for it: ahead of its reader in order, or behind it as far as it keeps up.

What waits is large, so a reader is never run far ahead of; what a thread behind does not keep up with is left undone.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import Empty, Full, Queue
from threading import Thread
from typing import Generic, TypeVar

__all__ = ["THREADS", "Behind", "ahead"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

THREADS = max(2, min(8, (os.cpu_count() or 1) // 2))  # the model's own threads need the cores, too


def ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS) -> Iterator[tuple[T, Future[R]]]:
    """Each item with the future of its result, in order; while one is looked at, ``threads`` more are worked on.

    >>> [(item, future.result()) for item, future in ahead(abs, [-3, 1, -2])]
    [(-3, 3), (1, 1), (-2, 2)]
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


class Behind(Generic[T]):
    """Calls ``work`` with what was put, at most ``together`` at a time, in order; at most ``waiting`` wait.

    What ``work`` raises is written to the log, as whoever gave it has gone on, and so does this.

    >>> done = []
    >>> behind = Behind(done.extend)
    >>> [behind.put(number) for number in range(3)]
    [True, True, True]
    >>> behind.close()
    True
    >>> done
    [0, 1, 2]
    """

    def __init__(self, work: Callable[[list[T]], object], *, waiting: int = 256, together: int = 64) -> None:
        self._work, self._together = work, together
        self._waiting: Queue[tuple[T] | None] = Queue(waiting)
        self._thread = Thread(target=self._run, name="behind", daemon=True)
        self._thread.start()

    def put(self, item: T) -> bool:
        """Whether there was room for it; never waits."""
        try:
            self._waiting.put_nowait((item,))
        except Full:
            return False
        return True

    def close(self, timeout: float = 60.0) -> bool:
        """Do what waits; whether it was all done in so many seconds. Nothing may be put after it."""
        try:
            self._waiting.put(None, timeout=timeout)
        except Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            some = list(islice(self._due(), self._together))
            items = [one[0] for one in some if one is not None]
            if items:
                self._do(items)
            if len(items) < len(some):
                return

    def _do(self, items: list[T]) -> None:
        try:
            self._work(items)
        except BaseException:  # noqa: BLE001  # whatever it is, what comes later is done
            _LOG.exception("Work that was left behind failed")

    def _due(self) -> Iterator[tuple[T] | None]:
        """What waits, and if nothing does, what comes next; None, for the end, is the last."""
        one = self._waiting.get()
        yield one
        while one is not None:
            try:
                one = self._waiting.get_nowait()
            except Empty:
                return
            yield one
