"""Work that a few threads do ahead of whoever takes its results, in order and never far ahead: what waits is large."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["THREADS", "ahead"]

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
