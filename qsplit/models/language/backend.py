"""What answers questions about stored features: a language half in this process, or a server that runs one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from qsplit.features.features import Encoder, Features, Making
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.language.choice_scoring import Choice
from qsplit.models.language.model import Answer, Sampling

__all__ = ["Answerer"]


class Answerer(Protocol):
    """The questions that `LanguageModel` and `RemoteLanguage` both take; see there."""

    checkpoint: Checkpoint
    wanted: Encoder

    def check(self, encoder: Encoder) -> bool: ...

    def is_native(self, making: Making) -> bool: ...

    def answer(
        self,
        features: Sequence[Features],
        question: str,
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        reuse: bool = False,
    ) -> Answer: ...

    def answers(
        self,
        features: Sequence[Features],
        questions: Sequence[str],
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
    ) -> list[Answer]: ...

    def choose(
        self,
        features: Sequence[Features],
        asked: Sequence[tuple[str, Sequence[str]]],
        *,
        system: str = "",
        exact: bool = False,
        prior: Features | None = None,
    ) -> list[Choice]: ...
