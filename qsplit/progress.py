"""How far something is that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "counting"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: done of those that had to be read, and seconds since it began; ``what`` is being counted."""

    done: int
    total: int
    seconds: float
    what: str = "files"

    @property
    def rate(self) -> float:
        """So many a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float:
        """Seconds to go at this rate."""
        return (self.total - self.done) / self.rate if self.rate else 0.0


def counting(what: str, on_progress: Callable[[Progress], None] | None) -> Callable[[int, int], None]:
    """What tells ``on_progress`` of so many done of so many, from now on."""
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(done, total, time.monotonic() - began, what))

    return tell
