"""What a store holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from qsplit.features.features import Provenance
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import EncoderUse, Skipped
from qsplit.store.schema import VERSION

__all__ = ["EncoderStatus", "MadeBy", "Status", "read_status"]


@dataclass(frozen=True, slots=True)
class MadeBy:
    """Software and hardware that made ``features`` rows of an encoder: what may change numbers slightly, and no more;
    `qsplit verify --drift` tells by how much."""

    features: int
    torch: str
    transformers: str
    torchvision: str
    pillow: str
    device: str
    attention: str


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """One encoder that the store has features of; ``current`` is the one that the last index used.

    ``semantic`` says how many images have a vector that texts can be compared with, by its identity: of several, those
    of the model in use are searched, and `qsplit refresh --semantic` replaces the others.
    """

    id: str
    models: list[str]
    dtype: str
    compute: str
    width: int
    levels: int
    features: int
    current: bool
    codecs: dict[str, int]
    semantic: dict[str, int]
    captions: int
    made_by: list[MadeBy]


@dataclass(frozen=True, slots=True)
class Status:
    """Counts, in files and images; ``stale`` images lack features of the current encoder and lie at the paths
    ``lacking``; ``skipped`` are the unreadable files and why; ``bytes`` are on disk."""

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
    lacking: list[str]
    snapshots: list[str]
    schema: int


def read_status(store: FeatureStore) -> Status:
    """Count what the store holds; needs no checkpoint, and imports nothing of the models."""
    recorded = store.settings()
    files, images = store.files().values(), store.images()
    encoded = store.encoded_pixels(recorded.encoder)
    states = [row.state for row in files]
    stale = {image.image_id for image in images.values() if image.pixels_digest not in encoded}
    return Status(
        store=store.uri,
        model=recorded.model,
        images=len(images),
        files=states.count("ok"),
        unreadable=states.count("unreadable"),
        missing=states.count("missing"),
        features=store.count("features"),
        stale=len(stale),
        bytes=store.bytes(),
        encoders=[
            _encoder_status(store, key, uses, current=key == recorded.encoder)
            for key, uses in sorted(store.encoders().items())
        ],
        skipped=[Skipped(row.path, row.reason or "") for row in files if row.state == "unreadable"],
        lacking=sorted(row.path for row in files if row.image_id in stale and row.state == "ok"),
        snapshots=sorted(store.snapshots()),
        schema=VERSION,
    )


def _encoder_status(store: FeatureStore, key: str, uses: dict[EncoderUse, int], *, current: bool) -> EncoderStatus:
    encoder = next(iter(uses)).encoder
    makers: Counter[Provenance] = Counter()
    codecs: Counter[str] = Counter()
    marks = Counter(row["semantic_id"] for row in store.vectors(key).rows(None, ["semantic_id"]).values())
    for use, n in uses.items():
        makers[replace(use.provenance, model_id="", model_revision="")] += n
        codecs[use.codec] += n
    return EncoderStatus(
        key,
        sorted({use.provenance.model_id for use in uses}),
        encoder.dtype,
        encoder.compute,
        encoder.width,
        encoder.levels,
        sum(uses.values()),
        current,
        dict(codecs),
        {identity: n for identity, n in marks.items() if identity},
        store.vectors(key).count("caption"),
        [
            MadeBy(n, made.torch, made.transformers, made.torchvision, made.pillow, made.device, made.attention)
            for made, n in makers.most_common()
        ],
    )
