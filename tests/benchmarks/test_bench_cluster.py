"""The benchmark of the cluster runs, in the small; how fast it is is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from held import album_of

from benchmarks.cluster import bench_cluster
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, what: str, **options: int) -> dict[str, Any]:
    given = [f"--{name}={value}" for name, value in options.items()]
    told = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.cluster.bench_cluster", what, f"--json={told}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(told.read_text()))


@pytest.mark.thorough
def test_rows_that_many_wrote_are_joined_once(tmp_path: Path) -> None:
    figures = run(tmp_path, "commits", rows=400, joined=3, writers=1, tokens=1)["figures"]
    assert (figures["rows"], figures["shards"], figures["commits"]) == (400, 7, 3)


def test_a_row_that_is_doubled_or_lacks_is_wrong(tmp_path: Path) -> None:
    place = FeatureStore(tmp_path / "album.qsplit", create=True)
    place.put(bench_cluster.ENCODER, bench_cluster.batch_of(range(4), 1))
    bench_cluster.verify(place, 4, 0)
    with pytest.raises(SystemExit, match="features has 4 rows"):
        bench_cluster.verify(place, 5, 0)


@pytest.mark.thorough
def test_both_ways_encode_the_same_drawn_pictures(tmp_path: Path, mini_vision: VisionEncoder) -> None:
    folder = bench_cluster.drawn(tmp_path / "drawn", 3, 56)
    for name in ("one", "other"):
        album_of(str(tmp_path / name), mini_vision).index(folder)
    one, other = (bench_cluster.digests(tmp_path / name) for name in ("one", "other"))
    assert one == other
    assert len(one) == 3
