"""Drift is measured over all pictures: the largest difference is the largest of any, and the mean that of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import made_album

from qsplit.features.features import Features
from qsplit.maintenance.drift import measure_drift
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.records import FeatureRow

BY = (0.0, 8.0, 64.0)  # what is added to a number of each picture's features


def moved(features: Features, by: float) -> Features:
    tokens, *levels = (one.clone() for one in features.to_torch())
    tokens[0, 0] += by
    return Features.from_torch([tokens, *levels], features.grid_thw, features.encoder, making=features.making)


def test_pictures_of_known_differences(
    tmp_path: Path, photos: list[Path], mini_vision: VisionEncoder, mini_language: LanguageModel
) -> None:
    album = made_album(tmp_path, photos[: len(BY)], mini_vision, mini_language)
    store = album.store
    heads = store.heads(image.pixels_digest for image in store.images().values())
    now = store.get_features(head.key for head in heads)
    then = {head.key: moved(now[head.key], by) for head, by in zip(heads, BY, strict=True)}
    store.remove("features", "key", list(then))
    store.put_features([FeatureRow(head.pixels_digest, then[head.key], head.provenance) for head in heads])
    found = measure_drift(store, mini_vision, mini_language, len(BY), limits=album.limits)
    pairs = [(then[key].float32[0], now[key].float32[0]) for key in then]
    apart = [np.abs(a - b) for a, b in pairs]
    assert (found.pictures, found.equal, found.skipped, found.failed) == (len(BY), 1, [], [])
    assert found.largest == max(float(one.max()) for one in apart) == pytest.approx(BY[-1], rel=0.02)
    assert found.mean == pytest.approx(sum(float(one.mean()) for one in apart) / len(BY))
    cosines = [a[0] @ b[0] / np.linalg.norm(a[0]) / np.linalg.norm(b[0]) for a, b in pairs]
    assert found.cosine == pytest.approx(min(cosines))
    assert found.largest_logit > 0
    assert found.equal_answers >= 1
