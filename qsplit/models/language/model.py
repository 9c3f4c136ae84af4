"""`Features` and a question -> text: the language half of a checkpoint, loaded alone.

Positions (M-RoPE) and DeepStack are the model's own code: features enter through ``mm_encoder_outputs``, the front door
that the unsplit model uses for its own vision tower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from threading import Lock
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import TextStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qsplit.errors import CheckpointError, UsageError
from qsplit.features.features import SHORTEST_TRUSTED_ID, Encoder, Features, Making, check_compatible
from qsplit.features.layouts import PATCHES
from qsplit.features.sizing import Resize
from qsplit.models.checkpoint import Checkpoint, default_device, resolve
from qsplit.models.language.choice_scoring import Choice, Ways, calibrated
from qsplit.models.language.finite import check_finite
from qsplit.models.language.kv_cache import Batch, Prefix, PrefixCache, common_length
from qsplit.models.language.prompts import Chat, Message, Prompt
from qsplit.models.language.sampling import first_place, may_begin
from qsplit.models.language.shared_prefix import Tails

__all__ = ["MOST_NEW_TOKENS", "Answer", "LanguageModel", "Read", "Sampling", "continued", "wanted_by"]

_MASK_TYPES = {"sdpa": "bool", "eager": "float"}  # other kinds of attention take no mask of one's own
MOST_NEW_TOKENS = 1_024  # of an answer that is given no bound
PREFIX_BYTES = 2**30  # of keys and values: about 130 pictures of 256 tokens of a 2B model
_TOKENS_AT_ONCE = 16_384  # of questions that are answered together
_TAILS_AT_ONCE = 1_024  # tokens of them that are read in one pass: each is compared with all, in vain for the most part


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, else drawn from the softmax at that temperature.

    An answer goes on to its end token, for ``max_new_tokens`` at most, which have to fit into the model's context.
    Without it, for ``at_most`` tokens, and no further than the context goes.

    ``top_p`` keeps the likeliest tokens that have so much of the chance between them. An answer ends before the first
    of the ``stop`` strings that it comes to, each by itself where many are generated at a time.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    at_most: int = MOST_NEW_TOKENS

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UsageError(f"max_new_tokens is {self.most}, but must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}, but must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, but must be above 0 and at most 1.")
        if not all(self.stop):
            raise UsageError("A stop string is empty.")

    @property
    def most(self) -> int:
        """The most tokens of an answer."""
        return self.at_most if self.max_new_tokens is None else self.max_new_tokens

    def within(self, left: int) -> Sampling:
        """With what is left of a context as the bound, unless ``max_new_tokens`` is one or ``at_most`` is less."""
        return replace(self, max_new_tokens=max(1, min(self.at_most, left))) if self.max_new_tokens is None else self


@dataclass(frozen=True, slots=True)
class Answer:
    """``tokens`` are the generated ids, the end token included; times are in seconds, to the first token and after
    it.
    """

    text: str
    tokens: tuple[int, ...]
    exact: bool
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt that was read, and the logits ``(vocabulary,)`` after it; ``known`` of its tokens were known before."""

    prefix: Prefix
    logits: torch.Tensor
    known: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over several prompts: the states ``(n, width)`` of each one's tail, and what was computed of all of
    it, ``begun`` by what they share."""

    tails: Tails
    states: Sequence[torch.Tensor]
    begun: Prefix

    def known(self, begin: int) -> Prefix:
        """What is known of the beginning, and no longer of the tails."""
        self.begun.shrink(begin)
        return self.begun


class LanguageModel:
    """The language half of a checkpoint and its tokenizer.

    >>> from PIL import Image
    >>> from qsplit.models.vision.encoder import VisionEncoder
    >>> features = VisionEncoder.from_pretrained().encode([Image.new("RGB", (112, 112), "red")])
    >>> language = LanguageModel.from_pretrained()
    >>> answer = language.answer(features, "What colour is it?", sampling=Sampling(max_new_tokens=4))
    >>> len(answer.tokens) <= 4, answer.exact
    (True, True)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        wanted: Encoder,
        *,
        trust_encoder: str = "",
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.checkpoint = checkpoint
        self.wanted = wanted
        self._model = model
        self.chat = Chat(checkpoint)
        self._tokenizer = self.chat.tokenizer
        self._trusted = trust_encoder
        self.prefixes = PrefixCache(prefix_bytes)
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._filler = model.generation_config.pad_token_id or 0  # stands where no token is looked at
        # Models without M-RoPE count pictures' tokens like any others, and need not be told which those are.
        self._has_mrope = "mm_token_type_ids" in signature(model.forward).parameters
        # What a layer of linear attention keeps of a prompt is one state, which cannot be cut back to its beginning.
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
        self.can_share = set(kinds) == {"full_attention"}
        self._mask_type = _MASK_TYPES.get(getattr(model.config.get_text_config(), "_attn_implementation", None) or "")
        self.making = Making(model.device.type, str(model.config._attn_implementation))  # noqa: SLF001  # has no public name
        self._lock = Lock()  # a generation keeps its M-RoPE offset on the model object

    @classmethod
    def from_pretrained(
        cls,
        model: str = "",
        *,
        revision: str = "",
        device: str = "",
        dtype: str = "",
        attention: str | None = None,
        resize: Resize | None = None,
        trust_encoder: str = "",
        prefix_bytes: int = PREFIX_BYTES,
        cache: str = "~/.cache/qsplit",
    ) -> LanguageModel:
        """Load the language half of a folder or hub id (empty: the bundled one), and nothing of the vision half.

        ``resize`` must be what the features were made with. ``trust_encoder`` is the id of an encoder whose features
        the user vouches for, where the folder does not tell what it belongs to; ``prefix_bytes`` bounds what is kept of
        prompts for those that begin in the same way. Raises `CheckpointError`, and `UsageError` for an id of fewer
        than 12 digits.
        """
        if 0 < len(trust_encoder) < SHORTEST_TRUSTED_ID:
            raise UsageError(
                f"The encoder id {trust_encoder!r} is too short; at least {SHORTEST_TRUSTED_ID} digits are wanted.",
                fix="`qsplit status` lists the ids.",
            )
        checkpoint = resolve(model, "language", revision=revision, cache=cache)
        wanted = wanted_by(checkpoint, dtype, resize, trusted=bool(trust_encoder))
        half = checkpoint.load("language", dtype=wanted.dtype, device=device or default_device(), attention=attention)
        return cls(checkpoint, half, wanted, trust_encoder=trust_encoder, prefix_bytes=prefix_bytes)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def n_vision_parameters(self) -> int:
        """How many parameters of the vision half exist in this process' model: none."""
        family = self.checkpoint.family
        return sum(p.numel() for name, p in self._model.named_parameters() if family.half_of(name) == "vision")

    def check(self, encoder: Encoder) -> bool:
        """Whether features of this encoder give exact answers; raises `IncompatibleFeatures` if they give wrong
        ones.
        """
        return check_compatible(encoder, self.wanted, trusted=self._trusted)

    def is_native(self, making: Making) -> bool:
        """Whether the unsplit model would compute features in this way, if it was loaded as this half is."""
        attention = making.attention or self._default_attention
        return (making.device, attention) == (self.making.device, self.making.attention)

    @cached_property
    def _default_attention(self) -> str:
        """The attention that the checkpoint's class takes where none is asked for."""
        named = self.checkpoint.config._attn_implementation  # noqa: SLF001  # has no public name
        return str(named or self._model.get_correct_attn_implementation(None))

    def answer(
        self,
        features: Sequence[Features],
        question: str,
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        reuse: bool = False,
    ) -> Answer:
        """Answer one question about the images, in the order given.

        ``history`` holds earlier (question, answer) pairs about the same images; ``on_text`` gets the text piece by
        piece. With ``reuse``, what was computed for an earlier prompt that began in the same way is not computed
        again; the sums then run in another order, so the answer is not exact. Raises `IncompatibleFeatures`,
        `UsageError` for a prompt that does not fit, and `InvalidFeatures` where the model's logits are NaN or infinite.
        """
        exact = self._check_all(features)
        prompt = self.prompt(features, question, system=system, history=history)
        sampling = self.bounded([prompt], sampling or Sampling())
        clock = _Clock(self._tokenizer, on_text, sampling.stop)
        reuse = reuse and self.can_share
        with self._lock, torch.no_grad(), _seeded(sampling.seed):
            known = self._known(prompt, _beginning([prompt])) if reuse else None
            out = self._generate(prompt, known, sampling, clock)
            if reuse:
                self._keep(prompt, out)
        length, exact = prompt.input_ids.shape[1], exact and known is None
        (answer,) = self._answers(out.sequences[:, length:].tolist(), clock, sampling.stop, exact=exact)
        return answer

    def answers(
        self,
        features: Sequence[Features],
        questions: Sequence[str],
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer questions that do not know of each other about the same images, many at a time.

        The images are read once for all of them, so no answer is exact unless it is the only one; each is given its
        share of the time. What is drawn at random is drawn for each question by itself, so that a seed means the same
        as alone. Raises as `answer` does, before anything is computed.
        """
        sampling = sampling or Sampling()
        options: dict[str, Any] = {"system": system, "history": history}
        if sampling.temperature or len(questions) < 2:
            return [self.answer(features, one, **options, sampling=sampling, reuse=True) for one in questions]
        self._check_all(features)
        prompts = [self.prompt(features, one, **options) for one in questions]
        sampling = self.bounded(prompts, sampling)
        with self._lock, torch.no_grad():
            begin, known = self._begun(prompts)
            if begin:
                return self._together(prompts, begin, known, sampling)
        # Nothing to share: the template puts the question before the images, or the layers cannot.
        return [self.answer(features, one, **options, sampling=sampling, reuse=True) for one in questions]

    def choose(
        self,
        features: Sequence[Features],
        asked: Sequence[tuple[str, Sequence[str]]],
        *,
        system: str = "",
        exact: bool = False,
        prior: Features | None = None,
    ) -> list[Choice]:
        """How likely the model is to begin its answer with each choice, for questions with their choices.

        Nothing is generated: the choices' tokens are read in one pass for all questions, behind what the questions
        begin with. ``exact`` reads each by itself. ``prior`` are features of a picture that shows nothing, as
        `images.null_picture` does: what is said of it is what the model leans to, and is divided out. Raises as
        `answer` does, and `UsageError` for choices that cannot be told apart.
        """
        compatible = self._check_all(features)
        ways = [Ways(choices, self.tokens_of) for _, choices in asked]
        prompts = [self.prompt(features, question, system=system) for question, _ in asked]
        read = [continued(prompt, row) for prompt, one in zip(prompts, ways, strict=True) for row in one.rows]
        for prompt in read:
            self._check_length(prompt, 1)
        ends = [1 + len(row) for one in ways for row in one.rows]
        with self._lock, torch.no_grad():
            begin, known = (0, None) if exact or not prompts else self._begun(prompts)
            if begin:
                logits = self._logits_behind(begin, known, read, ends)
            else:
                logits = [self._last_logits(prompt, end) for prompt, end in zip(read, ends, strict=True)]
        left = iter(logits)
        chosen = [one.score([next(left) for _ in one.rows], exact=compatible and not begin) for one in ways]
        if prior is None:
            return chosen
        of_nothing = self.choose([prior] * len(features), asked, system=system, exact=exact)
        return list(map(calibrated, chosen, of_nothing))

    def logits(self, prompt: Prompt) -> torch.Tensor:
        """The logits over a whole prompt, ``(length, vocabulary)`` on the CPU.

        Raises `InvalidFeatures` for NaN or infinity.
        """
        with self._lock, torch.no_grad():
            self._model.model.rope_deltas = None  # left over from an earlier generation
            logits: torch.Tensor = self._model(**self._inputs(prompt)).logits[0]
        return check_finite(logits).cpu()

    def logits_after(self, prompt: Prompt, tokens: Sequence[int]) -> torch.Tensor:
        """The logits that each of some tokens was chosen by behind a prompt, ``(n, vocabulary)`` on the CPU."""
        with self._lock, torch.no_grad():
            return self._last_logits(continued(prompt, tokens), len(tokens) + 1)[:-1].float().cpu()

    def states(self, prompts: Sequence[Prompt], layer: int) -> torch.Tensor:
        """The states of a layer at the prompts' last tokens, ``(n, width)`` in float32 on the CPU, from one pass.

        ``layer`` counts as transformers' ``hidden_states`` do: -2 is the state before the last layer. Raises as
        `answer` does.
        """
        for prompt in prompts:
            self._check_all(prompt.features)
            self._check_length(prompt, 0)
        rows = [prompt.input_ids[0] for prompt in prompts]
        # What fills up the shorter ones stands behind them, where nothing that counts looks at it.
        ids = pad_sequence(rows, batch_first=True, padding_value=self._filler)
        types = pad_sequence([prompt.mm_token_type_ids[0] for prompt in prompts], batch_first=True)
        whole = Prompt(ids, types, tuple(one for prompt in prompts for one in prompt.features))
        with self._lock, torch.no_grad():
            self._model.model.rope_deltas = None  # left over from an earlier generation
            out = self._model.model(**self._inputs(whole), output_hidden_states=True, use_cache=False)
        states: torch.Tensor = out.hidden_states[layer]
        ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
        found = states[torch.arange(len(rows), device=states.device), ends].float().cpu()
        check_finite(found.norm(dim=-1), "states")  # infinite also where the squares of a huge state overflow
        return found

    def check_prompt(self, prompt: Prompt, new_tokens: int) -> bool:
        """Whether its features give exact answers; raises as `answer` does."""
        self._check_length(prompt, new_tokens)
        return self._check_all(prompt.features)

    def bounded(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sampling:
        """The sampling with a ``max_new_tokens`` that fits behind each of some prompts; raises `UsageError`."""
        sampling = sampling.within(self.longest - max(prompt.input_ids.shape[1] for prompt in prompts))
        for prompt in prompts:
            self._check_length(prompt, sampling.most)
        return sampling

    @property
    def longest(self) -> int:
        """The model's context: how many tokens a prompt and its answer may have together."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def read(self, prompts: Sequence[Prompt], *, share: bool = True) -> list[Read]:
        """Read prompts: with ``share`` behind what is known of their beginnings, all of those in one pass.

        What is read is then known for those to come. Without it, each takes a pass of its own, as in the unsplit model.
        """
        found: dict[int, Read] = {}
        behind: dict[int, tuple[Prefix, int]] = {}
        with self._lock, torch.no_grad():
            for i, prompt in enumerate(prompts):
                known = self._held(prompt) if share else None
                if known is None:
                    found[i] = self._read_whole(prompt)
                    if share:
                        self._put(found[i])
                else:
                    behind[i] = known
            some = self._read_behind([prompts[i] for i in behind], list(behind.values()))
        return [one for _, one in sorted({**found, **dict(zip(behind, some, strict=True))}.items())]

    def step(self, batch: Batch, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token in each sequence of a batch; the logits ``(n, vocabulary)`` after it."""
        with self._lock, torch.no_grad():
            return self._onward(batch, [torch.tensor([token]) for token in tokens])

    def remember(self, prefix: Prefix) -> None:
        """Have a sequence be known for prompts that begin with it."""
        with self._lock:
            self.prefixes.put(prefix)

    def forget(self) -> None:
        """Let go of what is known of prompts, and of the memory that it took: for after a failure."""
        with self._lock:
            self.prefixes.clear()
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()

    def choosing(self, prompt: Prompt, sampling: Sampling) -> Any:
        """What the checkpoint and the sampling do to logits ``(1, vocabulary)`` behind ids ``(1, length)``.

        That is its repetition penalty and whatever else its settings name, then temperature and ``top_p``.
        """
        return self._model._get_logits_processor(  # noqa: SLF001  # what `generate` itself uses, and no other way to it
            generation_config=self._generation(sampling),
            input_ids_seq_length=prompt.input_ids.shape[1],
            device=str(self._model.device),
            model_kwargs={},
        )

    def prompt(
        self,
        features: Sequence[Features],
        question: str,
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        ending: str = "",
    ) -> Prompt:
        """As `Chat.prompt`."""
        return self.chat.prompt(features, question, system=system, history=history, ending=ending)

    def prompt_of(
        self, features: Sequence[Features], messages: Sequence[Message], *, system: str = "", ending: str = ""
    ) -> Prompt:
        """As `Chat.prompt_of`."""
        return self.chat.prompt_of(features, messages, system=system, ending=ending)

    def _check_all(self, features: Sequence[Features]) -> bool:
        """Whether all features give exact answers; each is checked, also after one that does not."""
        checks = [self.check(one.encoder) and one.exact and self.is_native(one.making) for one in features]
        return all(checks)

    def _known(self, prompt: Prompt, begun: torch.Tensor) -> Prefix | None:
        """What is known of a prompt's beginning, if that takes in its pictures; it is the caller's then."""
        prefix = self.prefixes.take(prompt.pictures)
        if prefix is None:
            return None
        length = common_length([prefix.ids, begun])
        if length < prompt.pictures_end:
            return None
        prefix.crop(length)
        return prefix

    def _begun(self, prompts: Sequence[Prompt]) -> tuple[int, Prefix | None]:
        """How many tokens prompts about the same pictures begin with, and what is known of those; 0 if that lacks the
        pictures or the layers cannot share it."""
        begun = _beginning(prompts)
        if not self.can_share or self._mask_type is None or len(begun) < max(1, prompts[0].pictures_end):
            return 0, None
        known = self._known(prompts[0], begun)
        return (len(known) if known else len(begun)), known

    def _pass_over(self, prompts: Sequence[Prompt], begin: int, known: Prefix | None) -> _Pass:
        """One pass over what prompts have after their first ``begin`` tokens, and over those if they are not known."""
        tails = Tails(begin, [prompt.input_ids[0, begin:] for prompt in prompts])
        first, device, mask = prompts[0], self._model.device, tails.mask()
        if known is None:
            ids = first.input_ids[:, :begin]
            inputs = self._inputs(Prompt(ids, first.mm_token_type_ids[:, :begin], first.features))
            places, deltas = self._places(inputs)
        else:
            ids, mask = first.input_ids[:, :0], mask[begin:]
            inputs = {"past_key_values": known.cache}
            places, deltas = self._index(0), known.rope_deltas
        own = tails.places.to(device) + deltas
        inputs["input_ids"] = torch.cat([ids, tails.ids], dim=1).to(device)
        inputs["position_ids"] = torch.cat([places, own.expand(*places.shape[:-1], -1)], dim=-1)
        inputs["attention_mask"] = self._mask(mask)
        inputs.pop("mm_token_type_ids", None)  # they were for the positions
        out = self._model.model(**inputs, use_cache=True)
        begun = Prefix(first.input_ids[0, :begin], first.pictures, out.past_key_values, deltas)
        return _Pass(tails, tails.split(out.last_hidden_state[0]), begun)

    def _places(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions of a prompt's tokens as the model itself counts them, and what later ones are off their
        index."""
        if "mm_token_type_ids" not in inputs:
            return self._index(inputs["input_ids"].shape[1]), _no_deltas(self._model.device)
        count = self._model.model.get_rope_index
        places, deltas = count(**{name: inputs[name] for name in signature(count).parameters if name in inputs})
        return places, deltas

    def _index(self, length: int) -> torch.Tensor:
        """The positions of so many tokens without pictures ``(1, length)``, of M-RoPE ``(3, 1, length)``."""
        places = torch.arange(length, device=self._model.device)
        return places.expand(*([3] if self._has_mrope else []), 1, -1)

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        """What each token looks at ``(queries, keys)``, as the attention takes it."""
        seen = seen.to(self._model.device)
        if self._mask_type == "bool":
            return seen[None, None]
        dtype = self._model.dtype
        nothing = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return nothing.masked_fill(~seen, torch.finfo(dtype).min)[None, None]

    def _held(self, prompt: Prompt) -> tuple[Prefix, int] | None:
        """What is known of a prompt's beginning and how many tokens that is; it stays known to others."""
        prefix = self.prefixes.take(prompt.pictures)
        if prefix is None:
            return None
        self.prefixes.put(prefix)
        length = common_length([prefix.ids, _beginning([prompt])])
        return (prefix, length) if length >= max(1, prompt.pictures_end) else None

    def _read_whole(self, prompt: Prompt) -> Read:
        self._model.model.rope_deltas = None  # left over from an earlier generation
        out = self._model(**self._inputs(prompt), use_cache=True, logits_to_keep=1)
        prefix = Prefix(prompt.input_ids[0], prompt.pictures, out.past_key_values, self._rope_deltas())
        return Read(prefix, out.logits[0, -1], 0)

    def _read_behind(self, prompts: Sequence[Prompt], known: Sequence[tuple[Prefix, int]]) -> list[Read]:
        if not prompts:
            return []
        batch = Batch()
        for prefix, length in known:
            batch.add(prefix, length)
        rests = [prompt.input_ids[0, length:] for prompt, (_, length) in zip(prompts, known, strict=True)]
        logits = self._onward(batch, rests)
        found = []
        for i, (prompt, (_, length)) in enumerate(zip(prompts, known, strict=True)):
            prefix = batch.row(i, prompt.input_ids[0], prompt.pictures)
            found.append(Read(prefix, logits[i], length))
            self._put(found[-1])
        return found

    def _put(self, read: Read) -> None:
        """Have a prompt be known, unless what was computed of it is NaN: the next one to ask would get that, too."""
        if torch.isfinite(read.logits).all():
            self.prefixes.put(read.prefix)

    def _onward(self, batch: Batch, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read on in each sequence; the logits ``(n, vocabulary)`` after the last token of each."""
        device, width = self._model.device, max(map(len, rows))
        ids = torch.full((len(rows), width), self._filler)
        fresh = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = row
            fresh[i, width - len(row) :] = True
        held = torch.cat([batch.held, fresh.to(device)], dim=1)
        places = (held.long().cumsum(1) - 1)[:, -width:] + batch.deltas
        out = self._model(
            input_ids=ids.to(device),
            attention_mask=held.long(),
            position_ids=places.expand(3, -1, -1) if self._has_mrope else places,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        batch.held = held
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _rope_deltas(self) -> torch.Tensor:
        deltas = getattr(self._model.model, "rope_deltas", None)  # models without M-RoPE have none
        return _no_deltas(self._model.device) if deltas is None else deltas.clone()

    def _keep(self, prompt: Prompt, out: Any) -> None:
        """Remember a whole sequence, for the question that follows it."""
        length = out.past_key_values.get_seq_length()  # the last token was foretold, not read
        ids = out.sequences[0, :length].cpu()
        self.prefixes.put(Prefix(ids, prompt.pictures, out.past_key_values, self._rope_deltas()))

    def _generate(self, prompt: Prompt, known: Prefix | None, sampling: Sampling, clock: _Clock) -> Any:
        """Generate after one prompt, behind what is known of it, which then grows."""
        inputs = self._inputs(prompt)
        if known is not None:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"past_key_values": known.cache}
            self._model.model.rope_deltas = known.rope_deltas
        return self._run(inputs, sampling, clock)

    def _run(self, inputs: dict[str, Any], sampling: Sampling, clock: _Clock) -> Any:
        stopping = {"tokenizer": self._tokenizer} if sampling.stop else {}
        with _finite_only(self._model):
            return self._model.generate(
                **inputs, generation_config=self._generation(sampling), streamer=clock, **stopping
            )

    def _together(
        self, prompts: Sequence[Prompt], begin: int, known: Prefix | None, sampling: Sampling
    ) -> list[Answer]:
        """The answers to all prompts behind what they begin with, which is kept."""
        answers: list[Answer] = []
        for part in _parts(prompts, begin, sampling.most):
            clock = _Clock(self._tokenizer)
            read = self._pass_over(prompts[part], begin, known)
            tokens = self._go_on(read, sampling, clock)
            answers += self._answers(tokens, clock, sampling.stop, exact=False)
            known = read.known(begin)
        if known is not None:
            self.prefixes.put(known)
        return answers

    def _go_on(self, read: _Pass, sampling: Sampling, clock: _Clock) -> list[list[int]]:
        """The tokens that greedy generation adds to each prompt that was read; filler may follow an end token."""
        everyone = range(len(read.states))
        mask = read.tails.mask_of(everyone).to(self._model.device)
        ids = read.tails.ids_of(read.begun.ids, everyone, self._filler).to(self._model.device)
        first = self._first(ids, mask, read, sampling)
        clock.put(ids)
        clock.put(first)
        tokens = [[one] for one in first.tolist()]
        # Those whose first token ended their answer would be computed in vain until all have ended.
        left = [i for i in everyone if tokens[i][0] not in self.ends]
        if sampling.most == 1 or not left:
            return tokens
        self._model.model.rope_deltas = read.begun.rope_deltas
        out = self._run(
            {
                "input_ids": torch.cat([ids[left], first[left, None]], dim=1),
                "attention_mask": pad(mask[left], (0, 1), value=1),
                "past_key_values": read.tails.side_by_side(read.begun.cache, left),
            },
            replace(sampling, max_new_tokens=sampling.most - 1),
            clock,
        )
        for i, more in zip(left, out.sequences[:, ids.shape[1] + 1 :].tolist(), strict=True):
            tokens[i] += more
        return tokens

    def _first(self, ids: torch.Tensor, mask: torch.Tensor, read: _Pass, sampling: Sampling) -> torch.Tensor:
        """The likeliest next token of each prompt ``(n,)``, after what the checkpoint's settings do to logits."""
        logits = check_finite(self._model.lm_head(torch.stack([states[-1] for states in read.states])).float())

        def pick(_: Any, input_ids: torch.Tensor, logits_processor: Any, **__: Any) -> torch.Tensor:
            likeliest: torch.Tensor = logits_processor(input_ids, logits).argmax(dim=-1)
            return likeliest

        settings = self._generation(replace(sampling, max_new_tokens=1, stop=()))
        found: torch.Tensor = self._model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, custom_generate=pick
        )
        return found

    def _last_logits(self, prompt: Prompt, number: int) -> torch.Tensor:
        """The logits ``(number, vocabulary)`` at a prompt's end, computed by itself."""
        self._model.model.rope_deltas = None  # left over from an earlier generation
        logits: torch.Tensor = self._model(**self._inputs(prompt), logits_to_keep=number).logits[0]
        return check_finite(logits)

    def _logits_behind(
        self, begin: int, known: Prefix | None, prompts: Sequence[Prompt], ends: Sequence[int]
    ) -> list[torch.Tensor]:
        """The last logits of each prompt, ``(end, vocabulary)``, computed together behind what all begin with."""
        found: list[torch.Tensor] = []
        for part in _parts(prompts, begin, 0):
            read = self._pass_over(prompts[part], begin, known)
            logits = (self._model.lm_head(one[-end:]) for one, end in zip(read.states, ends[part], strict=True))
            found += map(check_finite, logits)
            known = read.known(begin)
        if known is not None:
            self.prefixes.put(known)
        return found

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """The ids of a text as an answer would begin with it."""
        return self.chat.tokens_of(text)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return self.chat.text_of(tokens)

    def _answers(self, rows: Sequence[list[int]], clock: _Clock, stop: Sequence[str], *, exact: bool) -> list[Answer]:
        """What each row of tokens says, up to its end token or the end of a stop string."""
        found = []
        for row in rows:
            end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
            text = self.text_of(row[:end])
            if (place := first_place(text, stop)) is not None:
                # The fewest tokens that say so much: in a batch, filler follows them.
                end = next(i for i in range(1, end + 1) if first_place(self.text_of(row[:i]), stop) is not None)
                text = text[:place]
            share = 1 / len(rows)
            found.append(Answer(text, tuple(row[:end]), exact, clock.prefill * share, clock.decode_seconds * share))
        return found

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        device = self._model.device
        inputs: dict[str, Any] = {
            "input_ids": prompt.input_ids.to(device),
            "attention_mask": torch.ones_like(prompt.input_ids).to(device),
        }
        if prompt.features and self._has_mrope:
            inputs["mm_token_type_ids"] = prompt.mm_token_type_ids.to(device)
        stills = [one for one in prompt.features if not one.is_clip]
        clips = [one for one in prompt.features if one.is_clip]
        seen = {kind: some for kind, some in (("image", stills), ("video", clips)) if some}
        family, dtype = self.checkpoint.family, self._model.dtype
        if family.layout == PATCHES:
            for kind, some in seen.items():
                inputs[f"{kind}_grid_thw"] = torch.tensor([one.grid_thw for one in some], device=device)
        if seen:
            outputs = {kind: _encoder_output(some, device, dtype, family.taken) for kind, some in seen.items()}
            inputs["mm_encoder_outputs"] = outputs
        if clips and family.clips == "seconds":
            steps = [len(one.timestamps) // one.grid_thw[0] / one.sample_fps for one in clips]
            inputs["second_per_grid_ts"] = torch.tensor(steps, device=device)
        return inputs

    def _generation(self, sampling: Sampling) -> Any:
        """The checkpoint's generation settings with the sampling asked for in place of its own."""
        config = self._model.generation_config.to_dict() | {
            "max_new_tokens": sampling.most,
            "max_length": None,
            "return_dict_in_generate": True,  # with the keys and values
            "do_sample": sampling.temperature > 0,
            "temperature": float(sampling.temperature) or None,
            "top_p": sampling.top_p if sampling.temperature and sampling.top_p < 1 else None,
            "stop_strings": list(sampling.stop) or None,
            "top_k": 0 if sampling.temperature else None,
        }
        return type(self._model.generation_config).from_dict(config)

    def _check_length(self, prompt: Prompt, new_tokens: int) -> None:
        length = prompt.input_ids.shape[1]
        if length + new_tokens > self.longest:
            raise UsageError(
                f"The prompt has {length} tokens and {new_tokens} are to be generated; "
                f"the model's context is {self.longest}.",
                fix="Ask about fewer images, with a shorter text, or for a shorter answer.",
            )


class _Clock(TextStreamer):
    """Passes text on as it becomes whole words, and tells prefill from decode."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None = None, stop: Sequence[str] = ()) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self._stop = stop
        self._held = ""  # text that a stop string may begin with
        self._start = self._first = self._last = time.perf_counter()
        self._seen = 0

    def put(self, value: Any) -> None:
        self._seen += 1
        self._last = time.perf_counter()
        if self._seen == 2:  # the first call brings the prompt, the second the first token
            self._first = self._last
        if self._on_text is not None:
            super().put(value)  # type: ignore[no-untyped-call]  # transformers is typed in part

    def end(self) -> None:
        if self._on_text is not None:
            super().end()  # type: ignore[no-untyped-call]  # transformers is typed in part

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._held += text
        sure = first_place(self._held, self._stop)
        if sure is None:
            sure = len(self._held) if stream_end else len(self._held) - may_begin(self._held, self._stop)
        if self._on_text is not None and self._held[:sure]:
            self._on_text(self._held[:sure])
        self._held = self._held[sure:]

    @property
    def prefill(self) -> float:
        return self._first - self._start

    @property
    def decode_seconds(self) -> float:
        return self._last - self._first


def _no_deltas(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, 1, dtype=torch.long, device=device)


def _beginning(prompts: Sequence[Prompt]) -> torch.Tensor:
    """The tokens that all prompts begin with ``(n,)``, but for the last: the next one follows from its state."""
    rows = [prompt.input_ids[0] for prompt in prompts]
    return rows[0][: min(common_length(rows), min(map(len, rows)) - 1)]


def _parts(prompts: Sequence[Prompt], begin: int, new_tokens: int) -> Iterator[slice]:
    """As many prompts at once as the budgets of tokens allow, with so many to be generated after each."""
    longest = max(prompt.input_ids.shape[1] for prompt in prompts)
    at_once = max(1, min(_TOKENS_AT_ONCE // (longest + new_tokens), _TAILS_AT_ONCE // (longest - begin)))
    return (slice(start, start + at_once) for start in range(0, len(prompts), at_once))


def continued(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """A prompt with the beginning of an answer to it."""
    ids = torch.cat([prompt.input_ids, torch.tensor([tokens], dtype=torch.long)], dim=1)
    types = torch.cat([prompt.mm_token_type_ids, torch.zeros(1, len(tokens), dtype=torch.long)], dim=1)
    return Prompt(ids, types, prompt.features)


def wanted_by(checkpoint: Checkpoint, dtype: str, resize: Resize | None, *, trusted: bool) -> Encoder:
    """The encoder whose features this language half was made for."""
    try:
        return checkpoint.encoder(dtype, resize)
    except CheckpointError:
        if not trusted:
            raise
        return Encoder(
            vision_weights="unknown",
            processor="unknown",
            dtype=dtype or checkpoint.dtype,
            width=checkpoint.width,
            levels=checkpoint.levels,
            merge_size=checkpoint.merge_size,
            layout=checkpoint.family.layout,
        )


def _encoder_output(
    features: Sequence[Features], device: torch.device, dtype: torch.dtype, taken: str
) -> BaseModelOutputWithPooling:
    """Features in the form in which the vision tower would have returned them."""
    # As its `get_image_features` does, the model splits by image although its output class is annotated with tensors.
    each = [[_to(tensor, device, dtype) for tensor in one.to_torch()] for one in features]
    tokens: Any = tuple(one[0] for one in each)
    if taken == "tiles":
        tokens = torch.cat(
            [one.view(-1, row.grid_thw[0] ** 2, row.encoder.width) for one, row in zip(tokens, features, strict=True)]
        )
    n_levels = features[0].encoder.levels
    if not n_levels:
        return BaseModelOutputWithPooling(pooler_output=tokens)
    levels: Any = [tuple(one[1 + i] for one in each) for i in range(n_levels)]
    return BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=levels)


def _to(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On the model's device; the dtype changes only where `check_compatible` found that nothing is lost."""
    if device.type == "cuda":  # page-locked memory is copied while the prompt is still being prepared
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(dtype)


@contextmanager
def _finite_only(model: Any) -> Iterator[None]:
    """Have every pass of a model raise `InvalidFeatures` for NaN or infinity in the logits that a token is chosen by.

    `generate` shows them to nobody else before its logits processors, which may mask with -inf.
    """

    def check(_module: Any, _inputs: Any, out: Any) -> None:
        check_finite(out.logits[:, -1])

    hook = model.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed of one's own, and leave the program's random state as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
