"""Every error that qsplit raises on purpose.

    QsplitError
    ├── UsageError                 an option or argument that cannot be honoured    exit 2
    ├── ImageError                 one picture cannot be used; the batch goes on    exit 1
    │   ├── UnreadableImage        missing, forbidden, truncated or not a picture
    │   ├── ImageTooLarge          beyond the bound on bytes or pixels
    │   └── UnsupportedImage       a picture, but outside what the model takes
    ├── CheckpointError            a model folder that is incomplete, unsafe or wrong exit 1
    ├── FeaturesError
    │   ├── InvalidFeatures        shapes, grid or values that no model can have made exit 4
    │   └── IncompatibleFeatures   made for another language model                  exit 3
    ├── StoreError                 the store cannot be opened, read or written      exit 4
    │   ├── CorruptStore           what was read is not what was written
    │   └── StoreVersionError      written by a newer qsplit
    ├── NotFound                   nothing matches what was asked for               exit 5
    │   └── NotIndexed             the picture is known but has no features, or is unknown
    ├── RemoteError                a server of a language half does not answer as it should exit 1
    └── ServiceError               a service cannot take a request, or not in time  exit 1
        ├── Unauthorized           it names no key, or a wrong one
        ├── Forbidden              its key, host or origin may not do that
        ├── NotReady               it begins or ends
        ├── QueueFull              as many wait as may wait
        ├── AnswerFailed           the model failed on it; the log says how
        └── DeadlineExceeded       the answer took longer than is allowed

A foreign error is translated into one of these where the foreign library is called, ``from`` the original.
Each carries a ``fix``: the next step, usually a command.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AnswerFailed",
    "CheckpointError",
    "CorruptStore",
    "DeadlineExceeded",
    "FeaturesError",
    "Forbidden",
    "ImageError",
    "ImageTooLarge",
    "IncompatibleFeatures",
    "InvalidFeatures",
    "NotFound",
    "NotIndexed",
    "NotReady",
    "QsplitError",
    "QueueFull",
    "RemoteError",
    "ServiceError",
    "StoreError",
    "StoreVersionError",
    "Unauthorized",
    "UnreadableImage",
    "UnsupportedImage",
    "UsageError",
]


class QsplitError(Exception):
    """The root: ``message`` says what was found, ``fix`` what to do about it, ``exit_code`` what the shell gets."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}" if self.fix else self.message


class UsageError(QsplitError):
    """An option or an argument that cannot be honoured."""

    exit_code = 2


class ImageError(QsplitError):
    """One picture cannot be used; the rest of its batch is not affected."""


class UnreadableImage(ImageError):
    """The file is missing, forbidden, truncated, changing, or no picture."""


class ImageTooLarge(ImageError):
    """The file or its pixels exceed the configured bound."""


class UnsupportedImage(ImageError):
    """A readable picture that the model's preprocessing does not take."""


class CheckpointError(QsplitError):
    """A checkpoint that is incomplete, unsafe to load, or not of a known family."""


class FeaturesError(QsplitError):
    """Anything wrong with features."""


class InvalidFeatures(FeaturesError):
    """Features whose shapes, grid or values contradict each other."""

    exit_code = 4


class IncompatibleFeatures(FeaturesError):
    """Features that the language half was not made for; ``reasons`` lists every difference."""

    exit_code = 3

    def __init__(self, reasons: Sequence[str], *, fix: str = "") -> None:
        self.reasons = tuple(reasons)
        super().__init__(f"These features were not made for this language model: {'; '.join(self.reasons)}.", fix=fix)


class StoreError(QsplitError):
    """The store cannot be opened, read or written."""

    exit_code = 4


class CorruptStore(StoreError):
    """What was read from the store is not what was written to it."""


class StoreVersionError(StoreError):
    """The store was written by a newer qsplit."""


class NotFound(QsplitError):
    """Nothing matches what was asked for."""

    exit_code = 5


class NotIndexed(NotFound):
    """The picture has no features in this store."""


class RemoteError(QsplitError):
    """A server that runs the language half cannot be reached, or does not answer as it should."""


class ServiceError(QsplitError):
    """A service cannot take a request, or cannot answer it in time."""


class Unauthorized(ServiceError):
    """The request names no key, or one that is none."""


class Forbidden(ServiceError):
    """The request's key, host or origin may not do what it asks for."""


class NotReady(ServiceError):
    """The service does not answer yet, or no longer."""


class QueueFull(ServiceError):
    """As many requests wait as may wait; one that is sent later may be answered."""


class AnswerFailed(ServiceError):
    """The model, or the memory that it needs, failed while a request was answered; others may be answered."""


class DeadlineExceeded(ServiceError):
    """The answer took longer than the service allows."""
