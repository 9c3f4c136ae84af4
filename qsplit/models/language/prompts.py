"""A conversation as a checkpoint's own chat template writes it, and as its tokenizer reads that.

A picture or a video stands in it as the processor of the family writes it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from qsplit.errors import CheckpointError, UsageError
from qsplit.features.features import Features
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.families import Family

__all__ = ["Chat", "Message", "Prompt", "messages", "placeholders"]


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


Message = dict[str, Any]

_PIECE = 65_536  # characters: what is longer is counted in such pieces first
_FAR = 2  # times the context: the most that the pieces of a text that fits can come to, as cuts cost a few tokens each
_SHORTER = "Send a shorter text."
_ELSEWHERE = "Say it in the question."
# What a template raises, on purpose or by reading what a conversation does not have.
_REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass
class Prompt:
    """What the model takes: ``input_ids`` and ``mm_token_type_ids`` ``(1, length)``, and the features it refers to.

    ``said`` is the conversation that this is, for whoever writes it out by itself.
    """

    input_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    features: tuple[Features, ...] = field(default=())
    said: tuple[Message, ...] = field(default=())

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        """What tells the features apart from any others."""
        return tuple(one.digest() for one in self.features)

    @property
    def pictures_end(self) -> int:
        """The length of the prompt up to its last feature token."""
        return int(self.mm_token_type_ids[0].nonzero().max()) + 1 if self.features else 0


class Chat:
    """The tokenizer and the chat template of a checkpoint; several threads may use one at a time.

    ``context`` is how many tokens there are at most of a prompt, if not those of the checkpoint. Raises
    `CheckpointError` for a checkpoint that lacks either.
    """

    def __init__(self, checkpoint: Checkpoint, *, context: int = 0) -> None:
        self.checkpoint = checkpoint
        self.context = context or checkpoint.context
        name = Path(checkpoint.name)
        self._name = name.name if name.is_absolute() else checkpoint.name  # clients read it, who are told no paths
        self.tokenizer = _tokenizer(checkpoint)
        self._template = _template(checkpoint, self.tokenizer)
        # Some families have no placeholder of videos, and some tokenizers lack the one of their family.
        self._media_ids = {kind: getattr(checkpoint.config, f"{kind}_token_id", None) for kind in ("image", "video")}
        self._media_tokens = {kind: _token(self.tokenizer, one) for kind, one in self._media_ids.items()}
        known = [token for token in self._media_tokens.values() if token]
        self._media = re.compile("(" + "|".join(map(re.escape, known)) + ")")
        # A fast tokenizer takes any number of threads while nobody changes its settings: no call here does.
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None:
            fast.no_truncation()
            fast.no_padding()
        self._turn = Lock() if fast is None else nullcontext()
        self._mark = str(secrets.randbits(256))  # stands for a system prompt: what is said is never that

    def prompt(
        self,
        features: Sequence[Features],
        question: str,
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        ending: str = "",
    ) -> Prompt:
        """The chat format around a question, with as many placeholders as there are tokens.

        ``ending`` goes on with the question in tokens of its own, whatever the question ends with.
        """
        return self.prompt_of(features, messages(features, question + ending, history), system=system, ending=ending)

    def prompt_of(
        self, features: Sequence[Features], conversation: Sequence[Message], *, system: str = "", ending: str = ""
    ) -> Prompt:
        """The prompt of a conversation as chat templates take it, with a part ``{"type": "image"}`` for each picture.

        ``ending`` is what the conversation ends with, in tokens of its own. Raises `UsageError` for text that stands
        for a picture, and for one that is too long for the context by far, before it is tokenised.
        """
        self._check_pictures(features)
        self._check_characters(sum(map(_characters, conversation), len(system)))
        text = self.text(conversation, system)
        self._check_pieces(text)
        tokens = [self._media_tokens[_kind(one)] for one in features]
        first, *parts = self._media.split(text)
        if parts[::2] != tokens:
            known = [one for one in self._media_tokens.values() if one]
            raise UsageError(
                f"The text contains {' or '.join(known)}, which stands for an image or a video.",
                fix="Leave it out of the question.",
            )
        family, config = self.checkpoint.family, self.checkpoint.config
        padded = first + "".join(
            placeholders(family, self.tokenizer, config, str(token), one) + part
            for one, token, part in zip(features, tokens, parts[1::2], strict=True)
        )
        # As the processor does: where the template writes what a text begins with, the tokenizer does not.
        begin = self.tokenizer.bos_token
        begun = bool(begin) and padded.startswith(begin)
        apart = padded.rfind(ending) if ending else len(padded)
        ids = self.ids(padded[:apart], begins=not begun)
        if padded[apart:]:
            ids = torch.cat([ids, self.ids(padded[apart:], begins=False)], dim=1)
        types = torch.zeros_like(ids)
        for number, one in enumerate(self._media_ids.values(), 1):
            types[ids == (-1 if one is None else one)] = number
        said = [{"role": "system", "content": system}, *conversation] if system.strip() else conversation
        return Prompt(ids, types, tuple(features), tuple(said))

    def text(self, conversation: Sequence[Message], system: str = "") -> str:
        """Render a conversation with the chat template; a blank system prompt is none.

        Raises `UsageError`, in the template's words, for a conversation or a system prompt that it refuses, and for a
        system prompt that it leaves out.
        """
        if not system.strip():
            return self._written(conversation)
        refusal = UsageError(f"The chat template of {self._name} leaves a system prompt out.", fix=_ELSEWHERE)
        # Some templates only read text, and some only lists of parts; what they do not read they leave out. Whether one
        # writes it is seen by a mark in its place: the text itself may stand in the prompt anyway.
        for content_of in (str, _as_parts):
            try:
                if self._mark in self._written([_system(content_of(self._mark)), *conversation]):
                    return self._written([_system(content_of(system)), *conversation])
            except UsageError as error:
                refusal = UsageError(error.message, fix=_ELSEWHERE)
        self._written(conversation)  # raises where it is not the system prompt that is refused
        raise refusal

    def ids(self, text: str, *, begins: bool) -> torch.Tensor:
        """The tokens ``(1, length)`` of a text; where it begins a sequence, with what the tokenizer begins one with."""
        with self._turn:
            ids: torch.Tensor = self.tokenizer(text, add_special_tokens=begins, return_tensors="pt").input_ids
        return ids

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """The ids of a text as an answer would begin with it; raises `UsageError` for one that is too long by far."""
        self._check_characters(len(text))
        self._check_pieces(text)
        with self._turn:
            return tuple(self.tokenizer(self._lead + text, add_special_tokens=False).input_ids)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _check_pictures(self, features: Sequence[Features]) -> None:
        tokens = sum(map(len, features))
        if tokens > self.context:
            raise UsageError(
                f"The pictures have {tokens:,} tokens; the model's context is {self.context:,}.",
                fix="Ask about fewer images.",
            )

    def _check_characters(self, number: int) -> None:
        """Refuse a text that has more characters than the longest tokens of a full context."""
        if number > self.context and number > (most := self.context * self._longest):
            raise UsageError(
                f"The text has {number:,} characters; the model's context of {self.context:,} tokens holds {most:,} "
                "at most.",
                fix=_SHORTER,
            )

    def _check_pieces(self, text: str) -> None:
        """Refuse a text that is too long by far without tokenising more of it than a few contexts."""
        if len(text) <= _PIECE:
            return
        tokens = 0
        for begin in range(0, len(text), _PIECE):
            piece = text[begin : begin + _PIECE]
            with self._turn:
                tokens += len(self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
            if tokens > _FAR * self.context:
                raise UsageError(
                    f"The first {begin + len(piece):,} of the text's {len(text):,} characters are some {tokens:,} "
                    f"tokens; the model's context is {self.context:,}.",
                    fix=_SHORTER,
                )

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token: of bytes, as a vocabulary writes them, there are no fewer."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _written(self, conversation: Sequence[Message], *, asks: bool = True) -> str:
        refusal: Exception | None = None
        for form in _forms(conversation):
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        form, chat_template=self._template, tokenize=False, add_generation_prompt=asks
                    )
                )
            except TemplateSyntaxError as error:
                raise CheckpointError(f"The chat template of {self._name} is invalid: {error}.") from error
            except _REFUSALS as error:
                refusal = refusal or error
        words = str(refusal).strip().rstrip(".") or type(refusal).__name__
        raise UsageError(
            f"The chat template of {self._name} refuses the conversation: {words}.",
            fix="Change the messages to what it takes.",
        ) from refusal

    @cached_property
    def _lead(self) -> str:
        """The space, if any, that the template has between the prompt and an answer."""
        asked = messages((), "?", ())
        answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "!"}]}]
        begin, whole = self._written(asked), self._written(answered, asks=False)
        lead = whole.removeprefix(begin).partition("!")[0]
        return lead if whole.startswith(begin) and not lead.strip() else ""


def messages(features: Sequence[Features], question: str, history: Sequence[tuple[str, str]]) -> list[Message]:
    """The conversation as messages; the images and videos stand at the head of the first question."""
    found: list[Message] = []
    for asked, answered in history:
        found.append({"role": "user", "content": [{"type": "text", "text": asked}]})
        found.append({"role": "assistant", "content": [{"type": "text", "text": answered}]})
    found.append({"role": "user", "content": [{"type": "text", "text": question}]})
    found[0]["content"] = [{"type": _kind(one)} for one in features] + found[0]["content"]
    return found


def _characters(message: Message) -> int:
    """How many a message says."""
    content = message["content"]
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)


def _forms(conversation: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Ways to write the same conversation for a template that fails on the first: some read the first part of a message
    whether there is one or not, and some join texts only."""
    yield conversation
    if not all(one["content"] for one in conversation):
        conversation = [one if one["content"] else {**one, "content": _as_parts("")} for one in conversation]
        yield conversation
    texts = [_as_text(one["content"]) for one in conversation]
    if any(text is not None for text in texts):
        yield [one if text is None else {**one, "content": text} for one, text in zip(conversation, texts, strict=True)]


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _as_text(content: Any) -> str | None:
    """The text of a list of parts; None where one is not text, or where there is no list."""
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return None
    return "\n".join(part["text"] for part in content)


def _system(content: Any) -> Message:
    return {"role": "system", "content": content}


def _kind(one: Features) -> str:
    return "video" if one.is_clip else "image"


def _token(tokenizer: Any, number: int | None) -> str | None:
    return None if number is None else tokenizer.convert_ids_to_tokens(number)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    if not any((checkpoint.folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(
            f"{checkpoint.folder} has no tokenizer.json.",
            fix="Copy the tokenizer's files from the published checkpoint.",
        )
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"The tokenizer of {checkpoint.folder} cannot be made: {error}") from error


def _template(checkpoint: Checkpoint, tokenizer: Any) -> str:
    """Return the template that the checkpoint's processor would use, searched in transformers' order."""
    own, legacy = checkpoint.folder / "chat_template.jinja", checkpoint.folder / "chat_template.json"
    nested = _default(checkpoint.processor_config.get("chat_template"))
    if nested:
        return nested
    if legacy.exists():
        return _legacy_template(legacy)
    if own.exists():
        return own.read_text(encoding="utf-8")
    template = _default(tokenizer.chat_template)
    if not template:
        raise CheckpointError(f"{checkpoint.folder} has no chat template.", fix="Use an instruction-tuned checkpoint.")
    return template


def _default(template: Any) -> str:
    """The template that is used where none is named, of one or of several by name; empty where there is none."""
    return str((template.get("default") if isinstance(template, dict) else template) or "")


def _legacy_template(path: Path) -> str:
    try:
        return _default(json.loads(path.read_text(encoding="utf-8"))["chat_template"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no chat template: {error}.") from error
