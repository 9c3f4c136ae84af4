"""What stands in a prompt for a picture or a video, as the processor of its family writes it."""

from __future__ import annotations

from typing import Any

from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from qsplit.errors import CheckpointError
from qsplit.family import Family
from qsplit.features.features import Features

__all__ = ["placeholders"]


def placeholders(family: Family, tokenizer: Any, config: Any, token: str, one: Features) -> str:
    """A placeholder ``token`` for each of the tokens, and what tells their places or times."""
    if one.is_clip and family.clips == "stamps":
        return _stamped(tokenizer, config, token, one)
    if family.written == "ends":
        start, end = (_named(tokenizer, f"{name}_image_token") for name in ("start", "end"))
        return f"{start}{token * len(one)}{end}"
    if family.written == "places":
        return _placed(tokenizer, token, one)
    return token * len(one)


def _placed(tokenizer: Any, token: str, one: Features) -> str:
    """The tiles with their rows and columns, then the whole picture; of a picture that was not cut, only that."""
    side, *tiles = one.grid_thw
    rows, cols = tiles if tiles != [1, 1] else (0, 0)
    around = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
    whole = getattr(tokenizer, "global_image_token", "<global-img>")
    return str(get_image_prompt_string(rows, cols, side**2, around, token, whole))


def _named(tokenizer: Any, name: str) -> str:
    token = getattr(tokenizer, name, None)
    if not token:
        raise CheckpointError(
            f"The tokenizer has no {name}, which stands around a picture.",
            fix="Copy tokenizer_config.json from the published checkpoint of transformers' format (-hf).",
        )
    return str(token)


def _stamped(tokenizer: Any, config: Any, token: str, one: Features) -> str:
    steps = one.grid_thw[0]
    # A step in time is of several frames, and is said to be in the middle between the first and the last.
    each = len(one.timestamps) // steps
    middles = [(one.timestamps[i] + one.timestamps[i + each - 1]) / 2 for i in range(0, each * steps, each)]
    start, end = tokenizer.convert_ids_to_tokens([config.vision_start_token_id, config.vision_end_token_id])
    frame = start + token * (len(one) // steps) + end
    return "".join(f"<{middle:.1f} seconds>{frame}" for middle in middles)
