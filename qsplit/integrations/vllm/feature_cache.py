"""Features by what a model was shown: for a server that has patches and no pictures.

It finds what `qsplit index` made of the same patches with the same weights, and keeps what its own vision half made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from threading import Lock
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch

from qsplit.features.features import PLAIN, SERVED, Encoder, Features, Provenance
from qsplit.features.patch_digest import Scale
from qsplit.models.checkpoint import resolve
from qsplit.store.feature_store import FeatureStore
from qsplit.store.payload_reader import Places
from qsplit.store.records import FeatureRow

__all__ = ["Made", "Shelf"]

_FIT = ("vision_weights", "dtype", "width", "levels", "merge_size", "layout")
_NOTHING = pa.table({name: pa.array([], pa.string()) for name in ("key", "row", "compute")})
_FRESH = 5.0  # seconds that what others put may stay unseen
_SHARE = 20  # times as long as it takes to look, at least


class Made(NamedTuple):
    """What a server made: the digest and the grid of patches, and their embeddings ``(n, (1 + levels) * width)``."""

    shown: str
    grid_thw: Sequence[int]
    embedded: torch.Tensor


class Shelf:
    """The features in a store that fit one model, whatever sized its pictures; may be used from several threads.

    ``encoder`` is who makes what is put, ``scale`` how pictures are normalised for it; ``provenance`` is kept beside.
    """

    def __init__(self, store: FeatureStore, encoder: Encoder, scale: Scale, provenance: Provenance) -> None:
        self.store, self.encoder, self.scale, self.provenance = store, encoder, scale, provenance
        self._turn, self._due = Lock(), 0.0
        self._state: tuple[int, ...] = ()
        self._known = Places(_NOTHING)

    @classmethod
    def open(cls, uri: str, model: str, *, revision: str = "", dtype: str = "", server: str = "") -> Shelf:
        """The store at ``uri``, which is made if need be, for the checkpoint that a ``server`` runs in ``dtype``.

        Raises `CheckpointError` for a checkpoint that is not of a known family.
        """
        checkpoint = resolve(model, "vision", revision=revision)
        encoder = replace(checkpoint.encoder(dtype), compute=SERVED)
        scale = Scale.of(checkpoint.image_processor())
        return cls(FeatureStore(uri, create=True), encoder, scale, checkpoint.provenance(attention=server))

    def find(self, patches: torch.Tensor, grid_thw: Sequence[int]) -> tuple[str, Features | None]:
        """The digest of patches, as `Scale.digest` takes them, and the features that are kept of them, if any.

        Those that have the bits of the unsplit model come before those that a server made.
        """
        shown = self.scale.digest(patches, grid_thw)
        if not shown:
            return shown, None
        rows = self._places().find({shown}).values()
        for row in sorted(rows, key=lambda row: (row["compute"] != PLAIN, row["row"]))[:1]:
            return shown, self.store.get_features([row["row"]]).get(row["row"])
        return shown, None

    def put(self, made: Sequence[Made]) -> int:
        """Keep what was made; returns how much of it was not there.

        Raises `InvalidFeatures` for embeddings that are not sound.
        """
        codec = self.store.settings().codec or "raw"
        rows = [FeatureRow(one.shown, self._features(one), self.provenance, codec, one.shown) for one in made]
        self._due = 0.0
        return self.store.put_features(rows)

    def _places(self) -> Places:
        """Where to look for digests; a query for each would take as long as a small model."""
        with self._turn:
            began = time.monotonic()
            if began >= self._due:
                state = self.store.state("features")
                if state != self._state:
                    self._known, self._state = Places(self._fitting()), state
                now = time.monotonic()
                self._due = now + max(_FRESH, _SHARE * (now - began))
            return self._known

    def _fitting(self) -> pa.Table:
        """The rows of same weights, dtype and shape: the patches say already how a picture was prepared."""
        found = self.store.arrow("features", "shown", "key", "compute", *_FIT)
        if found is None:
            return _NOTHING
        fit = [pc.equal(found[name], getattr(self.encoder, name)) for name in _FIT]
        rows = found.filter(reduce(pc.and_, fit, pc.is_valid(found["shown"]))).select(["shown", "key", "compute"])
        return rows.rename_columns(["key", "row", "compute"])

    def _features(self, made: Made) -> Features:
        parts = torch.split(made.embedded, self.encoder.width, dim=1)
        return Features.from_torch(parts, tuple(map(int, made.grid_thw)), self.encoder)
