"""The groups of duplicates as far as pictures were compared before: nothing is computed of pictures to list them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from qsplit.duplicates.detector import KINDS, Group, Pairs, grouped, known_pairs
from qsplit.duplicates.keep_rules import KeepOrder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, ImageRow

__all__ = ["TABLES", "KnownGroups", "group_id", "read_groups"]

TABLES = ("files", "images", "pairs", "compared", "decisions")  # what they are made of


@dataclass(frozen=True)
class KnownGroups:
    """The groups of all kinds, with what is known of their members by image id and by path.

    ``compared_at`` is when pictures were last compared, None if none ever were. One that came later is in groups of the
    same bytes or pixels only.
    """

    groups: tuple[Group, ...]
    images: Mapping[str, ImageRow]
    files: Mapping[str, FileRow]
    compared_at: datetime | None

    @cached_property
    def by_id(self) -> dict[str, Group]:
        """The groups by their ids."""
        return {group_id(group): group for group in self.groups}


def group_id(group: Group) -> str:
    """The same for the same files in one group with the same one to keep, and for no others."""
    said = [group.kind, group.keep, [[member.id, member.path] for member in group.members]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def read_groups(store: FeatureStore) -> KnownGroups:
    """The groups that a store holds now; which members may be moved is for `qsplit.duplicates.detector.settled` to
    decide."""
    pairs = known_pairs(store)
    images, files = _candidates(store, pairs)
    groups = grouped(store.decisions(), files.values(), images, pairs, KINDS, KeepOrder())
    return KnownGroups(tuple(groups), images, files, _newest(store))


def _candidates(store: FeatureStore, pairs: Pairs) -> tuple[dict[str, ImageRow], dict[str, FileRow]]:
    """The images and files that may be in a group: of a pair, or of pixels that several files show."""
    files = store.arrow("files", "path", "image_id", "state")
    images = store.arrow("images", "image_id", "pixels_digest")
    assert files is not None
    assert images is not None, "a store has these tables from its beginning"
    there = files.filter(pc.equal(files["state"], "ok")).join(images, "image_id", join_type="inner")
    counts = there.group_by("pixels_digest").aggregate([("path", "count")])
    several = counts.filter(pc.greater(counts["path_count"], 1))["pixels_digest"]
    wanted = pa.array({*pairs, *several.to_pylist()}, pa.string())
    there = there.filter(pc.is_in(there["pixels_digest"], wanted))
    return store.images(there["image_id"].to_pylist()), store.files(there["path"].to_pylist())


def _newest(store: FeatureStore) -> datetime | None:
    compared = store.arrow("compared", "created_at")
    return None if compared is None else pc.max(compared["created_at"]).as_py()
