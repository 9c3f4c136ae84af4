"""What is known of a policy's checks, from the store alone: the flagged first, whatever number of pictures there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qsplit.features.codecs import is_lossless
from qsplit.models.language.backend import Answerer
from qsplit.qa.checks import asked_by, asker_of
from qsplit.qa.policy import Check, Policy
from qsplit.store.feature_store import FeatureStore
from qsplit.store.timeline import Timeline

__all__ = ["TABLES", "Checked", "Result", "read_checked"]

TABLES = ("checks", "features", "images", "files")  # what it is made of


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found of a picture; ``probability`` is the answer's."""

    image_id: str
    path: str
    check: str
    answer: str
    probability: float
    flagged: bool


@dataclass(frozen=True)
class Checked:
    """Every result of a policy that the store holds, the flagged first, and of those the surest."""

    policy: Policy
    rows: pa.Table

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def flagged(self) -> int:
        """How many results are flagged."""
        return int(pc.sum(self.rows["flagged"]).as_py() or 0)

    def page(self, offset: int, limit: int) -> list[Result]:
        """So many results from an offset on."""
        return [self._result(**row) for row in self.rows.slice(min(offset, len(self)), limit).to_pylist()]

    def _result(self, image_id: str, path: str, check: int, answer: int, probability: float, flagged: bool) -> Result:
        one = self.policy.checks[check]
        return Result(image_id, path, one.name, one.choices[answer], probability, flagged)


def read_checked(store: FeatureStore, language: Answerer, policy: Policy, timeline: Timeline) -> Checked:
    """What `qsplit.qa.checks.check` asked of the pictures before, of whatever encoder; nothing is asked."""
    held = store.arrow("checks", "pixels_digest", "asked", "probabilities", "mass")
    if held is not None:
        held = _sound(held)
    asker, kinds = asker_of(language), _encoders(store, language.wanted.id)
    parts = [
        _results(number, one, held, [asked_by(asker, policy, one, kind) for kind in kinds])
        for number, one in enumerate(policy.checks)
    ]
    pictures = timeline.rows.select(["image_id", "path", "pixels_digest"])
    found = pa.concat_tables(parts).join(pictures, "pixels_digest", join_type="inner")
    order = [("flagged", "descending"), ("speaks", "descending"), ("path", "ascending"), ("check", "ascending")]
    columns = ["image_id", "path", "check", "answer", "probability", "flagged"]
    return Checked(policy, found.sort_by(order).select(columns))


def _sound(held: pa.Table) -> pa.Table:
    """The rows that are as `CheckRow.is_sound` wants them: others are of NaN."""
    likely = held["probabilities"].combine_chunks()
    bad = ~np.isfinite(likely.flatten().to_numpy(zero_copy_only=False))
    sound = np.ones(len(held), dtype=bool)
    sound[pc.list_parent_indices(likely).to_numpy(zero_copy_only=False)[bad]] = False
    mass = held["mass"].to_numpy()
    return held.filter(pa.array(sound & np.isfinite(mass) & (mass > 0)))


def _encoders(store: FeatureStore, wanted: str) -> list[tuple[str, str]]:
    """Encoder and codec of all features; those first that a language half takes first."""
    features = store.arrow("features", "encoder_id", "codec")
    kinds = features.group_by(["encoder_id", "codec"]).aggregate([]).to_pylist() if features is not None else []
    pairs = [(row["encoder_id"], row["codec"]) for row in kinds]
    return sorted(pairs, key=lambda pair: (pair[0] != wanted, not is_lossless(pair[1]), pair))


def _results(number: int, one: Check, held: pa.Table | None, asked: Sequence[str]) -> pa.Table:
    """The results of one check, one a picture: of the first of several ways to ask that it was asked in."""
    rows = _firsts(held, asked)
    likely = rows["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    likely = likely.reshape(len(rows), len(one.choices))
    best = likely.argmax(axis=1) if len(rows) else np.empty(0, np.int64)
    speaks = likely[:, [one.choices.index(choice) for choice in one.flag]].sum(axis=1)
    return pa.table(
        {
            "pixels_digest": rows["pixels_digest"],
            "check": pa.array(np.full(len(rows), number)),
            "answer": pa.array(best),
            "probability": pa.array(likely[np.arange(len(rows)), best].astype(np.float64)),
            "flagged": pa.array((speaks >= one.threshold) & bool(one.flag)),
            "speaks": pa.array(speaks.astype(np.float64)),
        }
    )


def _firsts(held: pa.Table | None, asked: Iterable[str]) -> pa.Table:
    parts = [held.filter(pc.equal(held["asked"], one)) for one in asked] if held is not None else []
    if not parts:
        empty = {"pixels_digest": pa.string(), "probabilities": pa.list_(pa.float64())}
        return pa.schema(list(empty.items())).empty_table()
    rows = pa.concat_tables(parts)
    rows = rows.append_column("row", pa.array(np.arange(len(rows))))
    firsts = rows.group_by("pixels_digest").aggregate([("row", "min")])["row_min"]
    return rows.take(firsts)
