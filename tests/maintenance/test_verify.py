"""Verify finds each kind of damage, and only what is there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import rows

from qsplit.errors import CorruptStore, QsplitError
from qsplit.features.codecs import CODECS
from qsplit.features.features import Encoder, Features
from qsplit.maintenance import verify as verifying
from qsplit.maintenance.verify import Verified, verify
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.records import FeatureRow, FileRow, VectorRow, feature_key

ENCODER = rows.encoder(width=64, dtype="float32")


def features_row(seed: int, codec: str = "raw") -> FeatureRow:
    """Features as models make them: numbers of like size, whose mean has a direction."""
    made = rows.feature_row(seed, ENCODER)
    values = np.random.default_rng(seed).normal(0.3, 1.0, tuple(made.features.tokens.shape)).astype(np.float32)
    features = Features(values, made.features.grid_thw, ENCODER)
    return FeatureRow(made.pixels_digest, features, made.provenance, codec)


def put(store: FeatureStore, seeds: Iterable[int], codec: str = "raw") -> None:
    made = {seed: features_row(seed, codec) for seed in seeds}
    store.put_features(list(made.values()))
    store.put_images([rows.picture(seed) for seed in made])
    vectors = [VectorRow(rows.image_row(seed), row.features.pooled()) for seed, row in made.items()]
    store.put_vectors(ENCODER, vectors)
    store.put_files([FileRow(f"/{seed}.jpg", image_id(seed), seed, 1, "ok") for seed in made])


def image_id(seed: int) -> str:
    return rows.digest(f"image {seed}")


def only(found: Verified, **expected: Any) -> None:
    """Nothing is wrong but this."""
    nothing: dict[str, Any] = {"corrupt": [], "duplicate_keys": [], "missing": []}
    told = {"corrupt": [(one.table, one.key) for one in found.corrupt]}
    told |= {name: getattr(found, name) for name in ("duplicate_keys", "missing")}
    assert told == nothing | expected
    assert found.sound == (not expected)


@pytest.mark.parametrize("codec", CODECS)
def test_a_sound_store_is_sound(store: FeatureStore, codec: str) -> None:
    put(store, range(5), codec)
    found = verify(store)
    only(found)
    assert (found.checked, len(found.orphans), found.drift) == (5, 0, None)


def test_an_empty_store_is_sound(store: FeatureStore) -> None:
    found = verify(store)
    only(found)
    assert found.checked == 0


def test_progress_is_told_a_chunk_at_a_time(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_TOKENS_AT_ONCE", 8)
    put(store, range(5))
    told: list[tuple[int, int]] = []
    assert verify(store, on_progress=lambda *done: told.append(done)).checked == 5
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("table", ["files", "images", "features", vectors_table(ENCODER.id)])
def test_a_flipped_byte_never_gives_a_path_another_pictures_features(store: FeatureStore, table: str) -> None:
    """A path, its image, its pixels, their features: a byte of any table may break the chain, and not bend it."""
    put(store, range(3))
    expected = answers(store.uri)
    assert len(expected) == 3
    path = max(Path(store.uri, f"{table}.lance", "data").glob("*.lance"), key=lambda file: file.stat().st_size)
    sound, lost = path.read_bytes(), 0
    for offset in range(0, len(sound), 1 + len(sound) // 60):
        rows.flipped(path, offset)
        try:
            found = answers(store.uri)
        except QsplitError:
            found = {}
        path.write_bytes(sound)
        # A name that was spoilt is another name; what is asked by its own is right or gone.
        wrong = {name for name in expected.keys() & found.keys() if found[name] != expected[name]}
        assert not wrong, f"byte {offset} of {len(sound)}"
        lost += len(expected.keys() - found.keys())
    assert lost or table.startswith("vectors")


def answers(uri: str) -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """Path -> what an answer about it is made from, wherever the store leads to it."""
    store = FeatureStore(uri)
    images = store.images()
    keys = {
        path: feature_key(images[str(row.image_id)].pixels_digest, ENCODER.id)
        for path, row in store.files().items()
        if row.image_id in images
    }
    found = store.get_features(keys.values())
    return {
        path: (bytes(found[key].to_payload().data), found[key].grid_thw) for path, key in keys.items() if key in found
    }


def test_one_spoilt_payload_is_named_and_the_others_are_read(store: FeatureStore) -> None:
    put(store, range(5))
    key = features_row(3).key
    payload = bytes(features_row(3).features.to_payload().data)
    spoilt = 0
    for path in Path(store.uri, "features.lance", "data").rglob("*"):
        if path.is_file() and payload in (held := path.read_bytes()):
            path.write_bytes(held.replace(payload, payload[:-1] + bytes([payload[-1] ^ 1])))
            spoilt += 1
    assert spoilt == 1
    found = verify(FeatureStore(store.uri))
    only(found, corrupt=[("features", key)])
    assert "sha256" in found.corrupt[0].reason
    assert found.checked == 5


def test_a_table_that_cannot_be_read_is_corrupt(store: FeatureStore) -> None:
    put(store, range(2))
    for path in Path(store.uri, "images.lance", "data").rglob("*.lance"):
        path.unlink()
    with pytest.raises(CorruptStore):
        verify(FeatureStore(store.uri))


@pytest.mark.parametrize("table", ["features", "images", "files", "vectors"])
def test_a_doubled_key_is_named(store: FeatureStore, table: str) -> None:
    """As a writer without the declared key would leave it."""
    put(store, range(3))
    name = vectors_table(ENCODER.id) if table == "vectors" else table
    key = {"features": features_row(1).key, "files": "/1.jpg"}.get(table, image_id(1))
    if table in ("features", "images"):  # a row with its blob
        other = FeatureStore(f"{store.uri}-other.qsplit", create=True)
        put(other, [1])
        double(other.uri, name, store.uri)
    else:
        opened = lancedb.connect(store.uri).open_table(name)
        opened.add(opened.search().where(f"{opened.schema.names[0]} = '{key}'").limit(None).to_arrow())
    only(verify(store), duplicate_keys=[f"{name}: {key}"])


def double(source: str, table: str, target: str) -> None:
    """Append the rows of one store's table to another's, blobs and all."""
    held = FeatureStore(source)
    column = "payload" if table == "features" else "thumbnail"
    names = [name for name in held._tables[table].schema.names if name != column]
    ((record, blob),) = held._blobs(table, column, names, lancedb.expr.lit(True))
    opened = lancedb.connect(target).open_table(table)
    made = pa.schema([held._tables[table].schema.field(name) for name in names] + [pa.field(column, pa.large_binary())])
    opened.add(pa.Table.from_pylist([record | {column: blob.to_pybytes()}], schema=made))


def test_what_is_referred_to_and_gone_is_missing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "GRACE", timedelta(0))
    put(store, range(4))
    store.remove("images", "image_id", [image_id(0)])
    only(verify(store), missing=[f"image {image_id(0)} of /0.jpg"])
    put(store, [0])
    store.remove("features", "key", [features_row(1).key])
    only(verify(store), missing=[f"features of image {image_id(1)}", f"features of vector {image_id(1)}"])
    put(store, [1])
    store.remove(vectors_table(ENCODER.id), "image_id", [image_id(2)])
    only(verify(store), missing=[f"vector of image {image_id(2)}"])


def test_an_image_of_this_hour_may_wait_for_its_vector(store: FeatureStore) -> None:
    store.put_features([features_row(1)])
    store.put_images([rows.picture(1)])
    only(verify(store))


def test_a_vector_that_is_not_its_features_mean_is_corrupt(store: FeatureStore) -> None:
    put(store, range(2))
    store.put_features([features_row(7)])
    store.put_images([rows.picture(7)])
    store.put_vectors(ENCODER, [VectorRow(rows.image_row(7), features_row(1).features.pooled())])
    store.put_files([FileRow("/7.jpg", image_id(7), 7, 1, "ok")])
    found = verify(store)
    only(found, corrupt=[(vectors_table(ENCODER.id), image_id(7))])
    assert "cosine" in found.corrupt[0].reason


def test_orphans_are_counted_and_no_fault(store: FeatureStore) -> None:
    put(store, range(2))
    store.put_features([features_row(7)])
    found = verify(store)
    only(found)
    assert found.orphans.features == [features_row(7).key]


def test_verify_changes_nothing(store: FeatureStore) -> None:
    put(store, range(2))
    before = {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()}
    verify(store)
    assert {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()} == before


def test_several_encoders_are_each_compared_with_their_own(store: FeatureStore) -> None:
    other: Encoder = rows.encoder(width=64, dtype="float32", weights="other")
    put(store, range(2))
    store.put_features(
        [
            FeatureRow(
                row.pixels_digest,
                Features(row.features.tokens * 2 - 1, row.features.grid_thw, other),
                row.provenance,
            )
            for row in map(features_row, range(2))
        ]
    )
    vectors = [
        VectorRow(rows.image_row(seed), (features_row(seed).features.tokens * 2 - 1).mean(0)) for seed in range(2)
    ]
    vectors = [VectorRow(one.image, one.pooled / np.linalg.norm(one.pooled)) for one in vectors]
    store.put_vectors(other, vectors)
    found = verify(store)
    only(found)
    assert found.checked == 4
