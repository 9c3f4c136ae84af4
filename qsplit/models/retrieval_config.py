"""How text and pictures become comparable vectors in a language half: what a checkpoint says of it, or what fits any.

A frozen generative model has no vector of a text or a picture. The state before its last layer, at the last token of a
prompt that asks for one word, is one that both can be searched by.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qsplit.errors import CheckpointError

__all__ = ["RETRIEVAL", "Retrieval"]

RETRIEVAL = "retrieval.json"
_SYSTEM = "Given an image, summarize the provided image in one word. Given only text, describe the text in one word."


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What a vector is read from; the defaults are for checkpoints that say nothing of it (``retrieval.json``).

    ``image_prompt`` stands behind a picture, ``text_prompt`` behind a text. ``layer`` counts the states of all layers
    from the end: -2 is the state before the last layer. ``centred`` takes the mean of pictures from each picture's
    vector and that of texts from each text's. ``caption_prompts`` ask for captions, each for one. ``questions`` are
    what a model was taught to answer of what texts say (`qsplit.search.rerank.Form`), and ``cut`` is what was measured
    of where good matches end, for `qsplit.search.relevance` alone to read.
    """

    system: str = _SYSTEM
    image_prompt: str = ""
    text_prompt: str = ""
    layer: int = -2
    centred: bool = True
    caption_prompts: tuple[str, ...] = ("Describe the picture in one sentence.",)
    questions: tuple[dict[str, Any], ...] = ()
    cut: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption_prompts", tuple(self.caption_prompts))
        object.__setattr__(self, "questions", tuple(self.questions))

    @classmethod
    def read(cls, folder: Path) -> Retrieval:
        """What a checkpoint's folder says, or the defaults; raises `CheckpointError` if that makes no sense."""
        path = folder / RETRIEVAL
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} does not say how to search: {error}.") from error

    def write(self, folder: Path) -> None:
        """Make it what a checkpoint's folder says."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / RETRIEVAL).write_text(text + "\n", encoding="utf-8")

    def identity(self) -> dict[str, Any]:
        """What decides a vector, apart from the model."""
        names = ("system", "image_prompt", "text_prompt", "layer", "centred")
        return {name: getattr(self, name) for name in names}
