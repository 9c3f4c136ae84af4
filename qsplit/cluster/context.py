"""What the processes of a run are told, which may be on other machines: names and bounds, and nothing that is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsplit.features.features import Encoder
from qsplit.media.images import Limits
from qsplit.models.vision.encoder import VisionEncoder

__all__ = ["EncodeContext"]


@dataclass(frozen=True, slots=True)
class EncodeContext:
    """Where a run puts features, and how it makes them; each process that gets it opens and loads for itself.

    ``uri`` is the store's, the same from every working directory. ``vision`` loads the vision half whose features are
    those of ``encoder``, on the best device of whoever calls it unless it names one; it has to be picklable.
    """

    uri: str
    encoder: Encoder
    vision: Callable[[], VisionEncoder]
    limits: Limits
    codec: str
