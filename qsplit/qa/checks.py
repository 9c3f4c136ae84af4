"""Many checks on many pictures: the questions of a policy over stored features, their answers kept in the store.

What is kept are the probabilities of the choices, so another threshold or another flag needs no model at all.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qsplit.errors import CorruptStore, IncompatibleFeatures, InvalidFeatures, NotIndexed
from qsplit.features.features import Features
from qsplit.media.images import NULL_PIXELS
from qsplit.models.language.backend import Answerer
from qsplit.models.language.choice_scoring import Choice
from qsplit.qa.ask import best_head
from qsplit.qa.policy import Check, Policy
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture
from qsplit.store.records import CheckRow, FeatureHead, Skipped, check_key, feature_key

__all__ = ["Verdict", "asked_by", "asker_of", "check"]

_PICTURES_AT_ONCE = 16  # whose results are one commit: what a crash can cost
_LEAST_MASS = sys.float_info.min  # of a result: a mass of 0 is what NaN was once recorded as, see `CheckRow.is_sound`


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found of a picture.

    ``probability`` is the answer's, and ``probabilities`` all choices'; ``mass`` is what the model gave all of them
    against anything else that it might have said. ``encoder`` and ``model`` say whose word this is.
    """

    id: str
    path: str | None
    check: str
    answer: str
    probability: float
    flagged: bool
    probabilities: dict[str, float]
    mass: float
    exact: bool
    model: str
    encoder: str


def check(
    store: FeatureStore,
    language: Answerer,
    policy: Policy,
    pictures: Sequence[StoredPicture],
    *,
    exact: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Verdict | Skipped]:
    """The verdicts of all pictures in their order, each check in the policy's; resumable.

    Results that the store has are not computed again. ``on_progress`` is told of pictures done and of all. A picture
    without features that the model can take is skipped, with the reason; so is one whose encoder has no features of
    `images.null_picture` in the store, if the policy wants its answers calibrated.
    """
    asks = _Asks(language, policy, exact=exact)
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        some = pictures[start : start + _PICTURES_AT_ONCE]
        yield from _check_some(store, asks, some)
        if on_progress is not None:
            on_progress(start + len(some), len(pictures))


def _check_some(store: FeatureStore, asks: _Asks, pictures: Sequence[StoredPicture]) -> Iterator[Verdict | Skipped]:
    heads = store.heads(picture.image.pixels_digest for picture in pictures)
    chosen = {picture.image.image_id: asks.head(picture, heads) for picture in pictures}
    usable = {head.key: head for head in chosen.values() if isinstance(head, FeatureHead)}
    known = store.checks(asks.key(head, one) for head in usable.values() for one in asks.policy.checks)
    held = {key: row for key, row in known.items() if row.is_sound}
    failed: dict[str, str] = {}
    fresh: list[CheckRow] = []
    for head in usable.values():
        lacking = [one for one in asks.policy.checks if asks.key(head, one) not in held]
        try:
            fresh += asks.ask(store, head, lacking) if lacking else []
        except (CorruptStore, InvalidFeatures, NotIndexed) as error:
            failed[head.key] = str(error)
    if unsound := [row.key for row in fresh if row.key in known]:
        store.remove("checks", "key", unsound)
    store.put_checks(fresh)
    held |= {row.key: row for row in fresh}
    for picture in pictures:
        found = chosen[picture.image.image_id]
        reason = failed.get(found.key) if isinstance(found, FeatureHead) else found
        if isinstance(found, FeatureHead) and reason is None:
            for one in asks.policy.checks:
                yield _verdict(picture, one, held[asks.key(found, one)], is_native=asks.is_native(found))
        else:
            yield Skipped(picture.path or picture.image.image_id, str(reason))


class _Asks:
    """What a policy asks of a language model, and under which keys the answers are kept."""

    def __init__(self, language: Answerer, policy: Policy, *, exact: bool) -> None:
        self.policy = policy
        self._language = language
        self._exact = exact
        self._asker = asker_of(language)
        self._priors: dict[str, Features] = {}

    def head(self, picture: StoredPicture, heads: Sequence[FeatureHead]) -> FeatureHead | str:
        """The features to ask about, or why there are none."""
        try:
            return best_head(picture, heads, self._language)
        except (NotIndexed, IncompatibleFeatures) as error:
            return str(error)

    def is_native(self, head: FeatureHead) -> bool:
        """Whether the features were made as here; their results may have been kept by who reads them otherwise."""
        return self._language.is_native(head.provenance.making)

    def key(self, head: FeatureHead, one: Check) -> str:
        return check_key(head.pixels_digest, self._asked(head, one))

    def ask(self, store: FeatureStore, head: FeatureHead, checks: Sequence[Check]) -> list[CheckRow]:
        """The results of checks on one picture, which is read once for all of them."""
        features = store.get_features([head.key])[head.key]
        found = self._language.choose(
            [features],
            [(one.question, one.choices) for one in checks],
            system=self.policy.system,
            exact=self._exact,
            prior=self._prior(store, head.encoder.id) if self.policy.calibrate else None,
        )
        return [self._row(head, one, choice) for one, choice in zip(checks, found, strict=True)]

    def _prior(self, store: FeatureStore, encoder_id: str) -> Features:
        """The features of a picture that shows nothing, by the encoder of what they are compared with."""
        if encoder_id not in self._priors:
            key = feature_key(NULL_PIXELS, encoder_id)
            found = store.get_features([key])
            if key not in found:
                raise NotIndexed(
                    f"The encoder {encoder_id[:12]} has not seen the picture that shows nothing, to calibrate by.",
                    fix="Run `qsplit refresh` with this model.",
                )
            self._priors[encoder_id] = found[key]
        return self._priors[encoder_id]

    def _row(self, head: FeatureHead, one: Check, choice: Choice) -> CheckRow:
        return CheckRow(
            head.pixels_digest,
            self._asked(head, one),
            one.question,
            one.choices,
            tuple(choice.probabilities[name] for name in one.choices),
            max(choice.mass, _LEAST_MASS),
            choice.exact,
            encoder_id=head.encoder.id,
            model_id=self._language.checkpoint.name,
            model_revision=self._language.checkpoint.revision,
        )

    def _asked(self, head: FeatureHead, one: Check) -> str:
        return asked_by(self._asker, self.policy, one, (head.encoder.id, head.codec), exact=self._exact)


def asker_of(language: Answerer) -> tuple[str, str]:
    """What of a language half decides its answers: the digest of its weights, and its dtype."""
    return language.checkpoint.fingerprint("language"), language.wanted.dtype


def asked_by(
    asker: tuple[str, str], policy: Policy, one: Check, features: tuple[str, str], *, exact: bool = False
) -> str:
    """The digest of everything that decides the probabilities of a check, but for the picture.

    ``asker`` is from `asker_of`; ``features`` are encoder id and codec.
    """
    decides: dict[str, Any] = {
        "question": one.question,
        "choices": one.choices,
        "system": policy.system,
        "calibrate": NULL_PIXELS if policy.calibrate else "",
        "exact": exact,
        "features": features,
        "language": asker,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _verdict(picture: StoredPicture, one: Check, row: CheckRow, *, is_native: bool) -> Verdict:
    found = Choice(dict(zip(row.choices, row.probabilities, strict=True)), row.mass, row.exact and is_native)
    return Verdict(
        picture.image.image_id,
        picture.path,
        one.name,
        found.best,
        found.probabilities[found.best],
        flagged=bool(one.flag) and sum(found.probabilities[choice] for choice in one.flag) >= one.threshold,
        probabilities=found.probabilities,
        mass=found.mass,
        exact=found.exact,
        model=row.model_id,
        encoder=row.encoder_id,
    )
