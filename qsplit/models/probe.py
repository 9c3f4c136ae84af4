"""What a language half says of a picture that is known, by which a server that runs it is told from others.

``qsplit split --probe`` writes it beside the language half: the features of a drawn picture, a few questions about it,
and how the model's answers to them begin, as far as each token was clearly the likeliest. Whoever has the same weights
says the same, however it computes; a model that the features were not made for does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from qsplit.errors import CheckpointError, InvalidFeatures, QsplitError
from qsplit.features.features import Encoder, Features
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.language.model import LanguageModel, Sampling

__all__ = ["PROBE", "PictureEncoder", "Probe", "known_picture", "make_probe", "read_probe", "write_probe"]

PROBE = "probe.safetensors"
QUESTIONS = (
    "Describe the picture.",
    "What colours are there?",
    "How many shapes are in the picture?",
    "What is in the middle?",
)
_TOKENS = 16  # of an answer
# By how much the likeliest token is likelier than the next one, in natural logarithms: further than rounding reaches.
_CLEARLY = {"bfloat16": 0.5, "float16": 0.2, "float32": 0.05}
_LEAST = 4  # tokens that are clear, of all answers


@dataclass(frozen=True, eq=False)
class Probe:
    """Features, questions about them, and the tokens with which the answers clearly begin."""

    features: Features
    answers: tuple[tuple[str, tuple[int, ...]], ...]

    def mistaken(self, say: Callable[[Features, str, int], Sequence[int]]) -> str:
        """What somebody says otherwise, empty if nothing; ``say`` gives so many tokens of an answer."""
        for question, wanted in self.answers:
            said = tuple(say(self.features, question, len(wanted)))
            if said[: len(wanted)] != wanted:
                return f"to {question!r} it begins with the tokens {list(said)}, not {list(wanted)}"
        return ""


class PictureEncoder(Protocol):
    """The vision half, as far as a probe is made with it: whoever reads one has no use for the rest."""

    checkpoint: Checkpoint

    def encode(self, images: Sequence[Image.Image]) -> list[Features]:
        """Features of each image, in order."""


def known_picture() -> Image.Image:
    """The drawn picture that is asked about."""
    image = Image.new("RGB", (168, 168), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 12, 74, 76), fill="red")
    pen.rectangle((96, 20, 150, 74), fill="blue")
    pen.polygon([(84, 92), (126, 156), (42, 156)], fill="green")
    return image


def make_probe(vision: PictureEncoder, language: Callable[[], LanguageModel]) -> Probe:
    """Ask a checkpoint; ``language`` is loaded when the vision half has done its part.

    Raises `CheckpointError` for a model of whose answers hardly a token is clear, or that produces NaN.
    """
    try:
        (features,) = vision.encode([known_picture()])
        model = language()
        answers = tuple((one, tokens) for one in QUESTIONS if (tokens := _clear(model, features, one)))
    except InvalidFeatures as error:
        raise CheckpointError(
            f"{vision.checkpoint.name} cannot be probed: {error.message}", fix="Use another dtype or device."
        ) from error
    if sum(len(tokens) for _, tokens in answers) < _LEAST:
        raise CheckpointError(
            f"{model.checkpoint.name} says nothing clearly of a drawn picture, so nobody could be told from it.",
            fix="Use a model that was trained.",
        )
    return Probe(features, answers)


def _clear(model: LanguageModel, features: Features, question: str) -> tuple[int, ...]:
    """How an answer begins, up to the first token that another might have been instead."""
    prompt = model.prompt([features], question)
    tokens = model.answer([features], question, sampling=Sampling(max_new_tokens=_TOKENS)).tokens
    logits = model.logits_after(prompt, tokens)
    two = logits.log_softmax(-1).topk(2)
    clear = two.values[:, 0] - two.values[:, 1] >= _CLEARLY[model.wanted.dtype]
    clear &= two.indices[:, 0] == torch.tensor(tokens)  # a checkpoint's own settings may have chosen another
    return tokens[: int(clear.long().cumprod(0).sum())]


def write_probe(probe: Probe, folder: Path) -> Path:
    """Put it into the folder of a language half; the file."""
    features = probe.features
    told = {"encoder": asdict(features.encoder), "grid_thw": features.grid_thw, "answers": probe.answers}
    path = folder / PROBE
    path.write_bytes(save(dict(zip(features.arrays, features.to_torch(), strict=True)), {"probe": json.dumps(told)}))
    return path


def read_probe(folder: Path) -> Probe:
    """The probe of a language half; raises `CheckpointError` where there is none, or none that makes sense."""
    path = folder / PROBE
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {PROBE}, so it cannot be told whether a server runs this model.",
            fix="Make one with `qsplit split MODEL OUT --probe`, and use --model OUT/language.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["probe"])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        encoder = Encoder(**told["encoder"])
        levels = (tensors[f"level {i}"] for i in range(encoder.levels))
        features = Features.from_torch([tensors["tokens"], *levels], told["grid_thw"], encoder)
        return Probe(features, tuple((question, tuple(tokens)) for question, tokens in told["answers"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, QsplitError) as error:
        raise CheckpointError(f"{path} is no probe: {error}.", fix="Split the checkpoint again.") from error
