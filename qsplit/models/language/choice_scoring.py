"""How likely a model is to begin its answer with each of several choices, from the tokens it might say next.

A choice counts in both cases of its first letter, as models answer ``Yes`` to people who write ``yes``. A choice that
begins another one (``no`` and ``not sure`` may) has what the longer one leaves of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from qsplit.errors import UsageError
from qsplit.models.language.finite import not_finite

__all__ = ["Choice", "Ways", "calibrated"]

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``probabilities`` of the choices, in the order given, sum to 1; ``mass`` is what the model gives all of them.

    A small mass says that the model would rather have said something else.

    >>> Choice({"yes": 0.9, "no": 0.1}, mass=0.97, exact=True).best
    'yes'
    """

    probabilities: dict[str, float]
    mass: float
    exact: bool

    @property
    def best(self) -> str:
        return max(self.probabilities, key=lambda choice: self.probabilities[choice])


class Ways:
    """The token sequences that choices may be said in; ``tokens_of`` a text makes its tokens.

    Raises `UsageError` for fewer than two choices, an empty one, and two that are said in the same way.

    >>> ways = Ways(["no", "not sure"], lambda text: tuple(ord(letter) for letter in text.lower()))
    >>> len(ways.rows)
    1
    """

    def __init__(self, choices: Sequence[str], tokens_of: Callable[[str], Tokens]) -> None:
        if len(choices) < 2:
            raise UsageError(f"There must be two choices or more, not {len(choices)}.")
        self.choices = tuple(choices)
        self._owner: dict[Tokens, str] = {}
        for choice in choices:
            if not choice.strip():
                raise UsageError("A choice is empty.")
            for said in _cases(choice):
                tokens = tokens_of(said)
                if self._owner.setdefault(tokens, choice) != choice or choices.count(choice) > 1:
                    raise UsageError(f"Two choices are said alike: {self._owner[tokens]!r} and {choice!r}.")
        contexts = {tokens[:-1] for tokens in self._owner}
        # What is read on the way to a longer context need not be read by itself.
        self.rows = sorted(one for one in contexts if not any(_begins(one, other) for other in contexts))

    @property
    def contexts(self) -> list[Tokens]:
        """The beginnings after which a next token tells choices apart, the empty one first."""
        return sorted({row[:i] for row in self.rows for i in range(len(row) + 1)})

    def after(self, context: Tokens) -> set[int]:
        """The tokens that choices go on with after one of the contexts."""
        return {tokens[len(context)] for tokens in self._owner if _begins(context, tokens)}

    def score(self, logits: Sequence[torch.Tensor], *, exact: bool) -> Choice:
        """The choice from each row's logits ``(1 + length, vocabulary)``: at the prompt's end and after each token."""
        said: dict[Tokens, dict[int, float]] = {}
        for row, found in zip(self.rows, logits, strict=True):
            likely = found.float().log_softmax(-1)
            for i in range(len(row) + 1):
                said[row[:i]] = {token: float(likely[i, token]) for token in self.after(row[:i])}
        return self.weighed(said, exact=exact)

    def weighed(self, said: Mapping[Tokens, Mapping[int, float]], *, exact: bool) -> Choice:
        """The choice from the log probabilities, after each context, of the tokens that choices go on with.

        Raises `InvalidFeatures` for NaN, which would otherwise count as no chance at all.
        """
        if any(math.isnan(value) or value == math.inf for likely in said.values() for value in likely.values()):
            raise not_finite("log probabilities")
        whole = {
            tokens: math.exp(sum(said[tokens[:i]][token] for i, token in enumerate(tokens))) for tokens in self._owner
        }
        found_mass = dict.fromkeys(self.choices, 0.0)
        for tokens, choice in self._owner.items():
            longer = sum(whole[other] for other in self._next_longer(tokens))
            found_mass[choice] += max(0.0, whole[tokens] - longer)
        return _normalised(found_mass, exact=exact)

    def _next_longer(self, tokens: Tokens) -> Iterator[Tokens]:
        """The sequences that go on from this one, without those that go on from one of them."""
        longer = [other for other in self._owner if _begins(tokens, other)]
        return (one for one in longer if not any(_begins(other, one) for other in longer))


def calibrated(choice: Choice, prior: Choice) -> Choice:
    """What a picture adds to what the model says of one that shows nothing: each probability over its prior.

    They are made to sum to 1 again. Zhao et al. 2021, "Calibrate Before Use", with a picture for the text.

    >>> calibrated(Choice({"a": 0.6, "b": 0.4}, 1.0, True), Choice({"a": 0.75, "b": 0.25}, 1.0, True)).best
    'b'
    """
    ratios = {
        name: value / max(prior.probabilities[name], torch.finfo().tiny) for name, value in choice.probabilities.items()
    }
    total = sum(ratios.values())
    return Choice({name: ratio / total for name, ratio in ratios.items()}, choice.mass, choice.exact and prior.exact)


def _normalised(mass: Mapping[str, float], *, exact: bool) -> Choice:
    total = sum(mass.values())
    if not total > 0:  # no choice has a chance that a float can tell from none
        return Choice(dict.fromkeys(mass, 1 / len(mass)), 0.0, exact)
    return Choice({name: value / total for name, value in mass.items()}, total, exact)


def _cases(choice: str) -> set[str]:
    return {choice, choice[0].swapcase() + choice[1:]}


def _begins(one: Tokens, other: Tokens) -> bool:
    """Whether ``other`` goes on from ``one``."""
    return len(one) < len(other) and other[: len(one)] == one
