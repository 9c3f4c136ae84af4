"""Which file of several that show one picture is the one to keep: a stated order of rules.

    whole         not a crop of another of them, and not a picture within a picture
    resolution    more pixels
    exif          more of time, camera and place
    format        a lossless format
    bytes         a larger file
    oldest        taken earliest; files that do not tell come last
    path          a shorter path
    in:GLOB       a path that matches
    not:GLOB      a path that does not match

Rules that are named come first, in their order; those of `RULES` that are not named decide after them. Files in
protected folders come before all others, and files in recycle bins and folders of thumbnails after all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any

from qsplit.duplicates.move_rules import is_managed
from qsplit.errors import UsageError
from qsplit.store.lookup import absolute
from qsplit.store.records import ImageRow

__all__ = ["RULES", "KeepOrder", "Kept"]

RULES = ("whole", "resolution", "exif", "format", "bytes", "path")
_LOSSLESS = ("TIFF", "BMP", "PNG")
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Kept:
    """A file, and whether its picture is ``whole``: no crop of another that is there, and nothing around one."""

    image: ImageRow
    path: str
    size: int
    whole: bool = True


_BY_RULE: dict[str, Callable[[Kept], Any]] = {
    "whole": lambda one: not one.whole,
    "resolution": lambda one: -one.image.width * one.image.height,
    "exif": lambda one: -sum(v is not None for v in (one.image.taken_at, one.image.camera, one.image.latitude)),
    "format": lambda one: one.image.format not in _LOSSLESS,
    "bytes": lambda one: -one.size,
    "oldest": lambda one: one.image.taken_at or _LATEST,
    "path": lambda one: (len(one.path), one.path),
}


@dataclass(frozen=True)
class KeepOrder:
    """The order in which files are kept. Raises `UsageError` for a rule that there is none of.

    >>> KeepOrder(("smallest",))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qsplit.errors.UsageError: There is no rule 'smallest'. Choose from ...
    """

    rules: Sequence[str] = ()
    protected: Sequence[str] = ()
    _prefixes: tuple[str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in _BY_RULE and not rule.startswith(("in:", "not:")):
                known = ", ".join((*_BY_RULE, "in:GLOB", "not:GLOB"))
                raise UsageError(f"There is no rule {rule!r}.", fix=f"Choose from {known}.")
        object.__setattr__(self, "_prefixes", tuple(f"{absolute(path).rstrip('/')}/" for path in self.protected))

    def is_protected(self, path: str) -> bool:
        """Whether a file lies in a protected folder, and so is never moved."""
        return path.startswith(self._prefixes) if self._prefixes else False

    def rank(self, one: Kept) -> tuple[Any, ...]:
        """Lower is kept first; no two files are equal."""
        rules = (*self.rules, *(rule for rule in RULES if rule not in self.rules))
        managed = bool(is_managed(one.path))
        return (not self.is_protected(one.path), managed, *(_by(rule)(one) for rule in rules), one.path)


def _by(rule: str) -> Callable[[Kept], Any]:
    name, _, pattern = rule.partition(":")
    if not pattern:
        return _BY_RULE[rule]
    return lambda one: fnmatch(one.path, pattern) != (name == "in")
