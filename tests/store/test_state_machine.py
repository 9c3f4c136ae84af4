"""Two writers of one store, against a plain dict: whatever they do in whatever order, both see what the dict says."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qsplit.features.codecs import CODECS, is_lossless
from qsplit.maintenance import garbage
from qsplit.store import feature_store
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow

ENCODERS = (rows.encoder(width=64), rows.encoder(width=64, weights="other"))
SEEDS = st.lists(st.integers(0, 7), min_size=1, max_size=4)
WRITERS = st.integers(0, 1)
NAMES = st.sampled_from(["monday", "tuesday"])


@dataclass
class Content:
    """What a store should hold: each features row by its codec, images, vectors, and files with their state."""

    features: dict[tuple[int, int], str] = field(default_factory=dict)  # (seed, encoder) -> codec
    images: set[int] = field(default_factory=set)
    vectors: set[tuple[int, int]] = field(default_factory=set)
    files: dict[int, str] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(dict(self.features), set(self.images), set(self.vectors), dict(self.files))


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        feature_store._READS_BY_QUERY = 1  # so that rows are read both by queries and from where they lie
        feature_store._FEW = 1  # so that keys are both filtered for and known
        self.folder = Path(tempfile.mkdtemp())
        self.writers = [FeatureStore(self.folder / "album.qsplit", create=True) for _ in range(2)]
        self.content = Content()
        self.snapshots: dict[str, Content] = {}

    def teardown(self) -> None:
        feature_store._READS_BY_QUERY, feature_store._FEW = 3, 16
        shutil.rmtree(self.folder)

    @rule(writer=WRITERS, seeds=SEEDS, which=st.integers(0, 1), codec=st.sampled_from(list(CODECS)))
    def put_features(self, writer: int, seeds: list[int], which: int, codec: str) -> None:
        made = [replace(rows.feature_row(seed, ENCODERS[which]), codec=codec) for seed in seeds]
        new = {seed for seed in seeds if (seed, which) not in self.content.features}
        assert self.writers[writer].put_features(made) == len(new)
        self.content.features |= {(seed, which): codec for seed in new}

    @rule(writer=WRITERS, seeds=SEEDS)
    def put_images(self, writer: int, seeds: list[int]) -> None:
        assert self.writers[writer].put_images([rows.picture(s) for s in seeds]) == len({*seeds} - self.content.images)
        self.content.images |= set(seeds)

    @rule(writer=WRITERS, seeds=SEEDS, which=st.integers(0, 1))
    def put_vectors(self, writer: int, seeds: list[int], which: int) -> None:
        self.writers[writer].put_vectors(ENCODERS[which], [rows.vector_row(seed, 64) for seed in seeds])
        self.content.vectors |= {(seed, which) for seed in seeds}

    @rule(writer=WRITERS, seeds=SEEDS, state=st.sampled_from(["ok", "missing"]))
    def put_files(self, writer: int, seeds: list[int], state: str) -> None:
        found = [FileRow(f"/{seed}.jpg", image_id(seed), seed, 1, state) for seed in seeds]  # type: ignore[arg-type]
        self.writers[writer].put_files(found)
        self.content.files |= dict.fromkeys(seeds, state)

    @rule(writer=WRITERS, seeds=SEEDS)
    def forget(self, writer: int, seeds: list[int]) -> None:
        gone = self.content.images & set(seeds)
        told = garbage.forget(self.writers[writer], map(image_id, seeds))
        assert told.images == len(gone)
        content = self.content
        content.features = {key: codec for key, codec in content.features.items() if key[0] not in gone}
        content.vectors = {key for key in content.vectors if key[0] not in gone}
        content.files = {seed: state for seed, state in content.files.items() if seed not in gone}
        content.images -= gone

    @rule(writer=WRITERS)
    def compact(self, writer: int) -> None:
        garbage.compact(self.writers[writer], alone=True)
        content = self.content
        content.images &= set(content.files)
        content.features = {key: codec for key, codec in content.features.items() if key[0] in content.images}
        content.vectors = {key for key in content.vectors if key[0] in content.images}

    @precondition(lambda self: len(self.snapshots) < 2)
    @rule(writer=WRITERS, data=st.data())
    def snapshot(self, writer: int, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({"monday", "tuesday"} - set(self.snapshots))))
        garbage.snapshot(self.writers[writer], name)
        self.snapshots[name] = self.content.copy()

    @precondition(lambda self: self.snapshots)
    @rule(writer=WRITERS, data=st.data(), what=st.sampled_from(["restore", "drop", "read"]))
    def use_snapshot(self, writer: int, data: st.DataObject, what: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        if what == "drop":
            garbage.drop_snapshot(self.writers[writer], name)
            del self.snapshots[name]
        elif what == "read":
            check(FeatureStore(self.writers[writer].uri, snapshot=name), self.snapshots[name])
        else:
            garbage.restore(self.writers[writer], name)
            self.content = self.snapshots[name].copy()

    @rule(writer=WRITERS)
    def open_again(self, writer: int) -> None:
        self.writers[writer] = FeatureStore(self.writers[writer].uri)

    @invariant()
    def both_see_the_same(self) -> None:
        for writer in self.writers:
            check(writer, self.content)


def image_id(seed: int) -> str:
    return rows.digest(f"image {seed}")


def check(opened: FeatureStore, content: Content) -> None:
    assert {path: row.state for path, row in opened.files().items()} == {
        f"/{seed}.jpg": state for seed, state in content.files.items()
    }
    assert set(opened.images()) == {image_id(seed) for seed in content.images}
    for which, encoder in enumerate(ENCODERS):
        assert opened.vector_ids(encoder.id) == {image_id(seed) for seed, of in content.vectors if of == which}
    made = {key: rows.feature_row(key[0], ENCODERS[key[1]]) for key in content.features}
    found = opened.get_features(row.key for row in made.values())
    assert opened.count("features") == len(found) == len(made)
    for key, codec in content.features.items():
        features = found[made[key].key]
        assert features.exact == is_lossless(codec)
        if is_lossless(codec):
            assert rows.same_bits(features, made[key].features)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(stateful_step_count=8)
