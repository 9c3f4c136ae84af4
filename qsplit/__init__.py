"""Look once, ask for ever: the vision half of a Qwen-VL model runs once per image, and its features are kept.

Importing this package loads neither torch nor lancedb; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsplit.album import Album as Album
    from qsplit.album import open as open  # noqa: A004  # qsplit.open is the name users type
    from qsplit.features.features import Encoder as Encoder
    from qsplit.features.features import Features as Features
    from qsplit.media.images import load_image as load_image
    from qsplit.models.language.model import LanguageModel as LanguageModel
    from qsplit.models.vision.encoder import VisionEncoder as VisionEncoder
    from qsplit.store.feature_store import FeatureStore as FeatureStore

__version__ = "0.2.0.dev0"

_HOMES = {
    "Album": "qsplit.album",
    "Encoder": "qsplit.features.features",
    "FeatureStore": "qsplit.store.feature_store",
    "Features": "qsplit.features.features",
    "LanguageModel": "qsplit.models.language.model",
    "VisionEncoder": "qsplit.models.vision.encoder",
    "load_image": "qsplit.media.images",
    "open": "qsplit.album",
}
__all__ = [
    "Album",
    "Encoder",
    "FeatureStore",
    "Features",
    "LanguageModel",
    "VisionEncoder",
    "__version__",
    "load_image",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qsplit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
