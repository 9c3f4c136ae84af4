"""A conversation in a file: a reply a line, as ``ask --json`` prints it, read back as what was said before."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qsplit.errors import UsageError
from qsplit.qa.ask import Reply

__all__ = ["Transcript"]


class Transcript:
    """The conversation at ``path``, which need not be there yet; ``history`` holds its (question, answer) pairs.

    Without a path it is kept nowhere. Raises `UsageError`, which names the line, for a file that is no transcript or
    tells of several sets of pictures.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.history: list[tuple[str, str]] = []
        self._images: tuple[str, ...] = ()
        for number, line in enumerate(_lines(path) if path else [], 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                turn, images = (str(row["question"]), str(row["answer"])), tuple(one["id"] for one in row["images"])
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path}, line {number} is no reply of a transcript: {error!r}.") from error
            self._begin(images, f"{path}, line {number}")
            self.history.append(turn)

    def check(self, images: Sequence[str]) -> None:
        """Raises `UsageError` if the conversation was about other pictures than these ids, or in another order."""
        self._begin(tuple(images), "The question")

    def append(self, reply: Reply) -> None:
        """Add a reply, on disk before this returns; a picture that is not the conversation's is refused."""
        self.check([image.id for image in reply.images])
        if self.path is not None:
            _append(self.path, json.dumps(asdict(reply), ensure_ascii=False))
        self.history.append((reply.question, reply.answer))

    def _begin(self, images: tuple[str, ...], what: str) -> None:
        self._images = self._images or images
        if images != self._images:
            raise UsageError(
                f"{what} is about other pictures than the conversation in {self.path}.",
                fix="Name the same pictures in the same order, or another transcript.",
            )


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
