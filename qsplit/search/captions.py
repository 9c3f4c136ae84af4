"""What the language half says of each picture, for full-text search to find and for people to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from qsplit.features.features import Features
from qsplit.models.language.backend import Answerer
from qsplit.models.language.model import Sampling
from qsplit.search.backfill import Filled
from qsplit.search.backfill import fill as fill_with
from qsplit.store.feature_store import FeatureStore

__all__ = ["caption", "fill", "identity"]

_TOKENS = 64  # a caption at most
_AT_ONCE = 4  # each takes seconds, in which nobody is told and nothing can be stopped


def identity(language: Answerer, encoder_id: str, prompts: Sequence[str]) -> str:
    """sha256 over all that decides a caption: encoder, language weights, and how it is asked for."""
    decides = [encoder_id, language.checkpoint.fingerprint("language"), list(prompts), _TOKENS]
    return hashlib.sha256(json.dumps(decides, separators=(",", ":")).encode()).hexdigest()


def caption(language: Answerer, features: Features, prompts: Sequence[str]) -> str:
    """A line for each prompt; raises as `LanguageModel.answer` does."""
    answers = language.answers([features], prompts, sampling=Sampling(max_new_tokens=_TOKENS))
    return "\n".join(" ".join(answer.text.split()) for answer in answers)


def fill(
    store: FeatureStore,
    language: Answerer,
    encoder_id: str,
    *,
    prompts: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Filled:
    """Give every picture of an encoder that lacks it its caption; see `qsplit.search.backfill.fill`.

    ``prompts`` are the checkpoint's own if there are none. A caption by other prompts, or of another language half, is
    replaced.
    """
    prompts = prompts or language.checkpoint.retrieval.caption_prompts
    wanted = identity(language, encoder_id, prompts)
    vectors = store.vectors(encoder_id)

    def make(features: Sequence[Features]) -> list[str]:
        return [caption(language, one, prompts) for one in features]

    lacking = vectors.lacking("caption", wanted)
    return fill_with(
        store,
        encoder_id,
        lacking,
        make,
        lambda made: vectors.put_captions(wanted, made),
        at_once=_AT_ONCE,
        on_progress=on_progress,
    )
