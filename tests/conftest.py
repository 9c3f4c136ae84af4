"""What every test shares: no network, few threads, and the bundled checkpoint loaded once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# The models are tiny: more threads wait for each other longer than they compute, above all on a machine that is busy.
os.environ["OMP_NUM_THREADS"] = "1"
for name in [name for name in os.environ if name.startswith("QSPLIT_")]:
    del os.environ[name]  # a developer's own settings are no part of a test

from pathlib import Path

import pytest
from hypothesis import settings

from qsplit import bundled
from qsplit.media.images import Limits
from qsplit.models.language.model import LanguageModel
from qsplit.models.splitting import probe, split
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore

settings.register_profile("quick", max_examples=20, deadline=None, print_blob=True)  # no test asserts wall time
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=500)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default="", help="Folder to keep the album page's screenshots in.")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("QSPLIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_data_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The trash and the journals of a test are not the developer's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def mini_vision() -> VisionEncoder:
    return VisionEncoder.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def mini_language() -> LanguageModel:
    return LanguageModel.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint, split, with a probe beside its language half."""
    out = tmp_path_factory.mktemp("halves")
    split("qsplit-mini", out)
    probe(out)
    return out


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    return bundled.photos()


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits()


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "album.qsplit", create=True)
