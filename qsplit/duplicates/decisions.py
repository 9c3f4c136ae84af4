"""What a person said of two pictures of an album, whatever is found of them later."""

from __future__ import annotations

import os

from qsplit.duplicates import detector
from qsplit.media.images import Limits
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import locate
from qsplit.store.records import ImageRow

__all__ = ["Decisions"]

PathLike = str | os.PathLike[str]


class Decisions:
    """Pictures are named by path, by the end of a path, or by an id prefix."""

    def __init__(self, store: FeatureStore, limits: Limits) -> None:
        self._store, self._limits = store, limits

    def keep_apart(self, one: PathLike, other: PathLike) -> None:
        """Remember that two pictures are no duplicates, whatever files and models are yet to come."""
        detector.keep_apart(self._store, self._image(one), self._image(other))

    def let_together(self, one: PathLike, other: PathLike) -> None:
        """Forget that `keep_apart` was said of two pictures; raises `NotFound` where it was not."""
        detector.let_together(self._store, self._image(one), self._image(other))

    def _image(self, name: PathLike) -> ImageRow:
        return locate(self._store, name, self._limits).image
