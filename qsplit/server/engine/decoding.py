"""One answer as it comes: which token is next, what text is certain by now, and whether that was the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from qsplit.models.language.finite import check_finite
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.language.prompts import Prompt
from qsplit.models.language.sampling import first_place, may_begin

__all__ = ["Answering", "Finish", "Piece", "Said", "held_back"]

_INCOMPLETE = "\ufffd"  # stands for a letter of which not all bytes have come

_SETTLES = 32  # tokens after which their text is not looked at again

Finish = Literal["", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Said:
    """A token, how likely the model was to say it, and the likeliest ones it might have said: natural logarithms."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one more token told: the ``text`` that is certain now, and in the last piece why it is the last.

    A server may tell of text, or of the end, without a token.
    """

    text: str
    said: Said | None
    finish: Finish = ""


def held_back(text_of: Callable[[Sequence[int]], str], tokens: Sequence[int], told: str) -> str:
    """Return the text of an answer's tokens that was not told: it might have begun a stop string, or be half a letter.

    >>> held_back(lambda tokens: "".join(map(chr, tokens)), [72, 105, 33], "Hi")
    '!'
    """
    whole = text_of(tokens)
    return whole[len(told) :] if whole.startswith(told) else ""


class Answering:
    """The answer to one prompt, token by token; ``ids`` are the prompt's tokens and its own."""

    def __init__(self, language: LanguageModel, prompt: Prompt, sampling: Sampling, top: int | None) -> None:
        self._language, self._sampling, self._top = language, sampling, top
        self._change = language.choosing(prompt, sampling)
        self._drawn = torch.Generator()
        if sampling.seed is None:
            self._drawn.seed()
        else:
            self._drawn.manual_seed(sampling.seed)
        self._prompt = prompt.input_ids[0].tolist()
        self._sent = 0
        self._settled, self._along = "", ""  # the text of the first `_until` tokens, and of those from `_before` on
        self._before = self._until = 0
        self.tokens: list[int] = []
        self.text = ""

    @property
    def ids(self) -> torch.Tensor:
        return torch.tensor(self._prompt + self.tokens)

    def next(self, logits: torch.Tensor) -> Piece:
        """Go on by a token, given the logits ``(vocabulary,)`` after the last.

        Raises `InvalidFeatures` for NaN or infinity.
        """
        logits = check_finite(logits.float().cpu())
        token = self._chosen(logits)
        self.tokens.append(token)
        said = self._said(logits, token)
        finish = self._finish(token)
        return Piece(self._certain(ends=bool(finish)), said, finish)

    def cut(self) -> Piece:
        """End where it is: what was not told yet."""
        return Piece(self._certain(ends=True), None, "length")

    def _chosen(self, logits: torch.Tensor) -> int:
        scores = self._change(self.ids[None], logits[None].clone())[0] if len(self._change) else logits
        if not self._sampling.temperature:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._drawn))

    def _said(self, logits: torch.Tensor, token: int) -> Said:
        if self._top is None:
            return Said(token, "", 0.0)
        found = logits.log_softmax(-1)
        values, ids = found.topk(min(self._top, len(found)))
        top = tuple((self._text([one]), value) for one, value in zip(ids.tolist(), values.tolist(), strict=True))
        return Said(token, self._text([token]), float(found[token]), top)

    def _finish(self, token: int) -> Finish:
        whole = self._whole()
        place = first_place(whole, self._sampling.stop)
        self.text = whole[:place]
        if place is not None or token in self._language.ends:
            return "stop"
        return "length" if len(self.tokens) == self._sampling.most else ""

    def _certain(self, *, ends: bool) -> str:
        """The text that was not told yet and that no later token can change."""
        sure = len(self.text)
        if not ends:
            sure = len(self.text.rstrip(_INCOMPLETE))
            sure -= may_begin(self.text[:sure], self._sampling.stop)
        piece = self.text[self._sent : sure]
        self._sent = max(self._sent, sure)
        return piece

    def _whole(self) -> str:
        """The text of all tokens, of which only the last are decoded: all, at each token, take the longer the more.

        Text that ends with a whole letter stays as it is, whatever follows. Some tokens before go along, because
        tokenizers may write the first of a text otherwise.
        """
        last = self._text(self.tokens[self._before :])
        if not last.startswith(self._along):
            return self._text(self.tokens)
        whole = self._settled + last[len(self._along) :]
        if len(self.tokens) - self._until >= _SETTLES and not whole.endswith(_INCOMPLETE):
            self._before, self._until, self._settled = self._until, len(self.tokens), whole
            self._along = self._text(self.tokens[self._before :])
        return whole

    def _text(self, tokens: Sequence[int]) -> str:
        return self._language.text_of(tokens)
