"""The families of checkpoints that can be split: which class each loads with, and which modules make up each half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from qsplit.errors import CheckpointError

__all__ = ["FAMILIES", "HALVES", "Family", "Half", "family_of", "files_of_half"]

Half = Literal["vision", "language"]
HALVES: tuple[Half, ...] = ("vision", "language")

_VISION_SETTINGS = ("num_heads", "hidden_act", "window_size", "fullatt_block_indexes", "deepstack_visual_indexes")
_GLM_SETTINGS = ("num_heads", "hidden_act", "rms_norm_eps")


@lru_cache
def _renamings(class_name: str, model_type: str) -> tuple[Any, ...]:
    """Transformers copies its table, compiled patterns included, at every call: half a millisecond a tensor name.

    It knows some families by their class, and others by their type.
    """
    return tuple(get_checkpoint_conversion_mapping(class_name) or get_checkpoint_conversion_mapping(model_type) or ())


@dataclass(frozen=True, slots=True)
class Family:
    """Which class checkpoints of a type load with, which of its modules make up each half, and what changes features.

    ``settings`` are those of the vision config that cannot be told from the shapes of the weights. ``clips`` is how the
    language half is told when a video's frames were: by counting ``steps``, by the ``seconds`` of a step, or by
    ``stamps`` in the text; empty where videos are not taken.
    """

    model_type: str
    class_name: str
    vision: tuple[str, ...] = ("model.visual",)
    language: tuple[str, ...] = ("model.language_model", "lm_head")
    settings: tuple[str, ...] = _VISION_SETTINGS
    clips: Literal["", "steps", "seconds", "stamps"] = ""

    def modules(self, half: Half) -> tuple[str, ...]:
        return self.vision if half == "vision" else self.language

    def canonical(self, key: str) -> str:
        """The name of a stored tensor in today's class; published Qwen2-VL files carry older ones."""
        for renaming in _renamings(self.class_name, self.model_type):
            key, _ = renaming.rename_source_key(key)
        return key

    def vision_settings(self, vision_config: Any) -> dict[str, Any]:
        """What changes features and cannot be told from the shapes of the weights; None where a family has no such."""
        return {name: getattr(vision_config, name, None) for name in self.settings}

    def half_of(self, canonical: str) -> Half:
        for half in ("vision", "language"):
            if any(canonical.startswith(f"{module}.") for module in self.modules(half)):
                return half
        raise CheckpointError(f"Tensor {canonical!r} belongs to neither half of a {self.class_name}.")


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "Qwen2VLForConditionalGeneration", clips="steps"),
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", clips="seconds"),
        Family("qwen3_vl", "Qwen3VLForConditionalGeneration", clips="stamps"),
        Family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", clips="stamps"),
        Family("qwen3_5", "Qwen3_5ForConditionalGeneration"),
        Family("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
        Family("glm4v", "Glm4vForConditionalGeneration", settings=_GLM_SETTINGS),
        Family("glm46v", "Glm46VForConditionalGeneration", settings=_GLM_SETTINGS),
        Family("glm_ocr", "GlmOcrForConditionalGeneration", settings=_GLM_SETTINGS),
        Family("exaone4_5", "Exaone4_5_ForConditionalGeneration"),
        Family(
            "paddleocr_vl",
            "PaddleOCRVLForConditionalGeneration",
            vision=("model.visual", "model.projector"),
            settings=("num_attention_heads", "hidden_act", "layer_norm_eps"),
        ),
    )
}


def family_of(config: Mapping[str, Any], where: object) -> Family:
    """The family that a ``config.json`` names; raises `CheckpointError` for one that is not known."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(f"{where} is of type {model_type!r}; qsplit splits {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def files_of_half(family: Family, weight_map: Mapping[str, str], half: Half) -> list[str]:
    """The shards of an index that hold at least one tensor of the half, sorted."""
    return sorted({file for key, file in weight_map.items() if family.half_of(family.canonical(key)) == half})
