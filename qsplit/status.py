"""What a store holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from qsplit.rows import Skipped
from qsplit.schema import VERSION
from qsplit.store import FeatureStore

__all__ = ["EncoderStatus", "Status", "read_status"]


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """One encoder that the store has features of; ``current`` is the one that the last index used."""

    id: str
    models: list[str]
    dtype: str
    width: int
    levels: int
    features: int
    current: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Counts, in files and images; ``stale`` images lack features of the current encoder, ``skipped`` are the
    unreadable files and why; ``bytes`` are on disk."""

    store: str
    model: str
    images: int
    files: int
    unreadable: int
    missing: int
    features: int
    stale: int
    bytes: dict[str, int]
    encoders: list[EncoderStatus]
    skipped: list[Skipped]
    schema: int


def read_status(store: FeatureStore) -> Status:
    """Count what the store holds; needs no checkpoint, and imports nothing of the models."""
    recorded = store.settings()
    files, images = store.files().values(), store.images()
    encoded = store.encoded_pixels(recorded.encoder)
    states = [row.state for row in files]
    return Status(
        store=store.uri,
        model=recorded.model,
        images=len(images),
        files=states.count("ok"),
        unreadable=states.count("unreadable"),
        missing=states.count("missing"),
        features=store.count("features"),
        stale=sum(image.pixels_digest not in encoded for image in images.values()),
        bytes=store.bytes(),
        encoders=[
            EncoderStatus(key, sorted(models), e.dtype, e.width, e.levels, n, key == recorded.encoder)
            for key, (e, n, models) in sorted(store.encoders().items())
        ],
        skipped=[Skipped(row.path, row.reason or "") for row in files if row.state == "unreadable"],
        schema=VERSION,
    )
