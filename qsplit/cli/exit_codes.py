"""What a command ends with."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """Pinned: scripts test for them. Errors bring their own, see `qsplit.errors`."""

    DONE = 0
    PARTLY_FAILED = 1
    USAGE = 2
    CORRUPT = 4
    NOTHING_FOUND = 5
    FLAGGED = 6
    INTERRUPTED = 130
