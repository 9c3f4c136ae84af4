"""What Ray's workers are sent: little, nothing secret, and enough to encode as this process would."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from qsplit.album import Album
from qsplit.cluster.context import EncodeContext
from qsplit.config import Settings
from qsplit.store.feature_store import FeatureStore


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodeContext:
    """Of an album that is named by a path from here, and has keys."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(language_key="secret", keys="secret", read_only_keys="secret")
    album = Album("album.qsplit", device="cpu", dtype="float32", codec="int8", settings=settings)
    return album._begin_encoding(())


def test_it_is_light_and_tells_no_key(context: EncodeContext) -> None:
    sent = pickle.dumps(context)
    assert len(sent) < 2_000
    assert b"secret" not in sent


def test_another_process_encodes_by_it_as_this_one(
    context: EncodeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    got: EncodeContext = pickle.loads(pickle.dumps(context))
    assert FeatureStore(got.uri).settings().encoder == got.encoder.id == context.encoder.id
    vision = got.vision()
    assert vision.encoder == got.encoder
    assert vision.encode([Image.new("RGB", (56, 56), "red")])[0].encoder.dtype == "float32"
    assert got.codec == "int8"
