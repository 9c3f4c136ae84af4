"""The families of checkpoints that can be split: which class each loads with, and which modules make up each half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, Literal

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from qsplit.errors import CheckpointError
from qsplit.features.layouts import LINES, PATCHES, TILES

__all__ = ["FAMILIES", "HALVES", "Family", "Half", "family_of", "files_of_half"]

Half = Literal["vision", "language"]
HALVES: tuple[Half, ...] = ("vision", "language")

_VISION_SETTINGS = ("num_heads", "hidden_act", "window_size", "fullatt_block_indexes", "deepstack_visual_indexes")
_GLM_SETTINGS = ("num_heads", "hidden_act", "rms_norm_eps")
_TOWER_SETTINGS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size")
_PROJECTOR_SETTINGS = ("projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
_TOWER = ("model.vision_tower", "model.multi_modal_projector")


@lru_cache
def _renamings(class_name: str, model_type: str) -> tuple[Any, ...]:
    """Transformers copies its table, compiled patterns included, at every call: half a millisecond a tensor name.

    It knows some families by their class, and others by their type.
    """
    return tuple(get_checkpoint_conversion_mapping(class_name) or get_checkpoint_conversion_mapping(model_type) or ())


@dataclass(frozen=True, slots=True)
class Family:
    """Which class checkpoints of a type load with, which of its modules make up each half, and what changes features.

    ``vision`` and ``language`` are names of modules, or of parameters that lie in none of them; ``nested`` are modules
    that published files have a level deeper than today's class. ``settings`` are those of the vision config, and
    ``whole_settings`` those beside it, that cannot be told from the shapes of the weights. ``clips`` is how the
    language half is told when a video's frames were: by counting ``steps``, by the ``seconds`` of a step, or by
    ``stamps`` in the text; empty where videos are not taken.

    ``layout`` is that of `qsplit.features.layouts`; ``merging`` is where the config says how many patches a side make
    one token (or what part of a token a patch's side is), empty for one. ``options`` are what the family's processor
    tells its image processor. ``written`` is what stands in a prompt: only the placeholders of a picture, these between
    its ``ends``, or those of each tile with its ``places``. ``taken`` is what the model takes features by.
    """

    model_type: str
    class_name: str
    vision: tuple[str, ...] = ("model.visual",)
    language: tuple[str, ...] = ("model.language_model", "lm_head")
    settings: tuple[str, ...] = _VISION_SETTINGS
    clips: Literal["", "steps", "seconds", "stamps"] = ""
    nested: tuple[str, ...] = ()
    whole_settings: tuple[str, ...] = ()
    layout: int = PATCHES
    merging: str = "vision_config.spatial_merge_size"
    options: Mapping[str, bool] = field(default_factory=dict)
    written: Literal["placeholders", "ends", "places"] = "placeholders"
    taken: Literal["pictures", "tiles"] = "pictures"

    def modules(self, half: Half) -> tuple[str, ...]:
        return self.vision if half == "vision" else self.language

    def canonical(self, key: str) -> str:
        """The name of a stored tensor in today's class; published Qwen2-VL files carry older ones."""
        for renaming in _renamings(self.class_name, self.model_type):
            key, _ = renaming.rename_source_key(key)
        for module in self.nested:
            if _is_of(key, module):
                key = f"{module.rpartition('.')[0]}{key.removeprefix(module)}"
        return key

    def vision_settings(self, config: Any) -> dict[str, Any]:
        """What changes features and cannot be told from the shapes of the weights; None where a family has no such."""
        whole = {name: getattr(config, name, None) for name in self.whole_settings}
        return {name: getattr(config.vision_config, name, None) for name in self.settings} | whole

    def merge_size(self, config: Any) -> int:
        """How many patches a side make one token."""
        value = reduce(getattr, self.merging.split("."), config) if self.merging else 1
        return round(1 / value) if value < 1 else int(value)

    def half_of(self, canonical: str) -> Half | None:
        """The half that a tensor belongs to; None for one that neither half has a place for, as ``mtp.fc.weight``."""
        for half in HALVES:
            if any(_is_of(canonical, module) for module in self.modules(half)):
                return half
        return None


def _is_of(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


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
        Family(
            "llava_onevision",
            "LlavaOnevisionForConditionalGeneration",
            vision=(*_TOWER, "model.image_newline"),
            settings=(*_TOWER_SETTINGS, "model_type"),
            nested=("model.language_model.model", "model.vision_tower.vision_model"),
            whole_settings=(*_PROJECTOR_SETTINGS, "vision_aspect_ratio", "image_grid_pinpoints"),
            layout=LINES,
            merging="",
        ),
        Family(
            "internvl",
            "InternVLForConditionalGeneration",
            vision=_TOWER,
            settings=(*_TOWER_SETTINGS, "norm_type"),
            nested=("model.language_model.model",),
            whole_settings=_PROJECTOR_SETTINGS,
            layout=TILES,
            merging="downsample_ratio",
            options={"crop_to_patches": True},
            written="ends",
            taken="tiles",
        ),
        *(
            Family(
                model_type,
                f"{class_name}ForConditionalGeneration",
                vision=("model.vision_model", "model.connector"),
                language=("model.text_model", "lm_head"),
                settings=_TOWER_SETTINGS,
                layout=TILES,
                merging="scale_factor",
                options={"return_row_col_info": True},
                written="places",
            )
            for model_type, class_name in (("idefics3", "Idefics3"), ("smolvlm", "SmolVLM"))
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
