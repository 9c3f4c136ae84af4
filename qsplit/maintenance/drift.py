"""How far this machine's features and answers are from the stored ones: the same pictures, looked at again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsplit.errors import CorruptStore, ImageError, InvalidFeatures
from qsplit.features.features import Features
from qsplit.media.images import Limits, open_picture
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, ImageRow, Skipped, feature_key

if TYPE_CHECKING:  # what is measured is given; who only verifies a store loads no model
    from qsplit.models.language.model import LanguageModel
    from qsplit.models.vision.encoder import VisionEncoder

__all__ = ["Drift", "measure_drift"]

QUESTION = "Describe this image."


@dataclass(frozen=True, slots=True)
class Drift:
    """Stored features against those that this machine makes of the same pixels, over ``pictures`` of them.

    ``equal`` of them are the same bits, ``equal_answers`` get the same greedy tokens for one question. ``largest`` and
    ``mean`` are absolute differences of features, ``cosine`` is the lowest of two tokens at one place, and
    ``largest_logit`` the largest difference of a logit over the prompt. ``skipped`` pictures are gone, changed, or were
    never encoded by this encoder; of ``failed`` ones there is nothing to compare, as their stored features cannot be
    read, or features or logits of this machine are NaN or infinite.
    """

    encoder: str
    pictures: int
    equal: int
    largest: float
    mean: float
    cosine: float
    largest_logit: float
    equal_answers: int
    skipped: list[Skipped]
    failed: list[Skipped]


@dataclass(frozen=True, slots=True)
class _Difference:
    equal: bool
    largest: float
    mean: float
    cosine: float
    largest_logit: float
    equal_answer: bool


def measure_drift(
    store: FeatureStore,
    vision: VisionEncoder,
    language: LanguageModel,
    number: int,
    *,
    limits: Limits,
    on_progress: Callable[[int, int], None] | None = None,
) -> Drift:
    """Encode ``number`` pictures of the store again, spread evenly over their paths, and ask one question over both."""
    skipped: list[Skipped] = []
    failed: list[Skipped] = []
    found: list[_Difference] = []
    images, encoded = store.images(), store.encoded_pixels(vision.encoder.id)
    chosen = _spread([row for row in store.files().values() if row.state == "ok" and row.image_id in images], number)
    for done, (row, image) in enumerate((row, images[str(row.image_id)]) for row in chosen):
        try:
            pair = _both(store, vision, encoded, row, image, limits)
            if isinstance(pair, str):
                skipped.append(Skipped(row.path, pair))
            else:
                found.append(_compare(*pair, language))
        except (CorruptStore, InvalidFeatures) as error:
            failed.append(Skipped(row.path, str(error)))
        if on_progress is not None:
            on_progress(done + 1, len(chosen))
    return Drift(
        vision.encoder.id,
        len(found),
        sum(one.equal for one in found),
        max((one.largest for one in found), default=0.0),
        sum(one.mean for one in found) / max(1, len(found)),
        min((one.cosine for one in found), default=1.0),
        max((one.largest_logit for one in found), default=0.0),
        sum(one.equal_answer for one in found),
        skipped,
        failed,
    )


def _spread(rows: Sequence[FileRow], number: int) -> list[FileRow]:
    ordered = sorted(rows, key=lambda row: row.path)
    number = min(number, len(ordered))
    return [ordered[i * len(ordered) // number] for i in range(number)]


def _both(
    store: FeatureStore, vision: VisionEncoder, encoded: set[str], row: FileRow, image: ImageRow, limits: Limits
) -> tuple[Features, Features] | str:
    """The features as stored and as made now, or why there is no such pair."""
    key = feature_key(image.pixels_digest, vision.encoder.id)
    if image.pixels_digest not in encoded:
        return "It has no features of this encoder."
    try:
        picture = open_picture(row.path, limits)
    except ImageError as error:
        return str(error)
    if picture.pixels_digest != image.pixels_digest:
        return "The file has changed since it was indexed."
    (now,) = vision.encode([picture])
    return store.get_features([key])[key], now


def _compare(then: Features, now: Features, language: LanguageModel) -> _Difference:
    import torch  # noqa: PLC0415  # who only verifies a store loads no model library

    tensors = list(zip(then.to_torch(), now.to_torch(), strict=True))
    # In float64: of the largest numbers that features may hold, differences and squares are infinite in float32.
    differences = torch.cat([(a.double() - b.double()).abs().flatten() for a, b in tensors])
    cosine = min(float(torch.cosine_similarity(a.double(), b.double(), dim=-1).min()) for a, b in tensors)
    logits = [language.logits(language.prompt([one], QUESTION)).double() for one in (then, now)]
    tokens = [language.answer([one], QUESTION).tokens for one in (then, now)]
    return _Difference(
        all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in tensors),
        float(differences.max()),
        float(differences.mean()),
        cosine,
        float((logits[0] - logits[1]).abs().max()),
        tokens[0] == tokens[1],
    )
