"""A probe tells a model from every other that answers otherwise, wherever in an answer that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qsplit.features.features import Features
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.probe import Probe, read_probe


def told(probe: Probe, question: str, said: Sequence[int]) -> str:
    """What is mistaken about who says this to one question, and what is wanted to all others."""
    answers = dict(probe.answers) | {question: tuple(said)}
    return probe.mistaken(lambda _, asked, n: answers[asked][:n])


def test_the_model_itself_is_not_mistaken(halves: Path, mini_language: LanguageModel) -> None:
    def say(features: Features, question: str, n: int) -> Sequence[int]:
        return mini_language.answer([features], question, sampling=Sampling(n)).tokens

    assert read_probe(halves / "language").mistaken(say) == ""


def test_each_token_of_each_answer_counts(halves: Path) -> None:
    probe = read_probe(halves / "language")
    assert max(len(wanted) for _, wanted in probe.answers) > 1
    for question, wanted in probe.answers:
        assert told(probe, question, wanted) == told(probe, question, [*wanted, 7]) == ""
        for place in range(len(wanted)):
            said = [*wanted[:place], wanted[place] + 1, *wanted[place + 1 :]]
            expected = f"to {question!r} it begins with the tokens {said}, not {list(wanted)}"
            assert told(probe, question, said) == expected
            assert told(probe, question, wanted[:place]), "an answer that ends early is another one"
