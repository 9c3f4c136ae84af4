"""Requests that are answered together get the answers they would get alone, and come and go between two tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import DataObject, data, integers, lists, sampled_from
from listening import Gate, until
from models import language_and_features
from patience import PATIENCE
from PIL import Image

from qsplit.errors import AnswerFailed, DeadlineExceeded, InvalidFeatures, NotReady, QueueFull, UsageError
from qsplit.features.features import Features
from qsplit.models.language.kv_cache import Batch, PrefixCache
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.engine.decoding import Answering, Piece
from qsplit.server.engine.scheduler import Ticket, Together, _Group

QUESTIONS = ("What is it?", "How many red circles are there in this picture, please?", "Is there a dog?", "有几个？")
SAMPLING = Sampling(max_new_tokens=8)
FAMILIES = ("qwen2_vl", "qwen3_vl", "qwen3_5", "llava_onevision")


@dataclass
class Asked:
    """A request, and what it is told."""

    ticket: Ticket
    told: SimpleQueue[Piece | Exception]
    pieces: list[Piece] = field(default_factory=list)

    def next(self) -> Piece:
        what = self.told.get(timeout=PATIENCE)
        if isinstance(what, Exception):
            raise what
        self.pieces.append(what)
        return what

    def tokens(self) -> tuple[int, ...]:
        while not (self.pieces and self.pieces[-1].finish):
            self.next()
        return tuple(piece.said.id for piece in self.pieces if piece.said)

    def text(self) -> str:
        self.tokens()
        return "".join(piece.text for piece in self.pieces)


def ask(
    together: Together, features: list[Features], question: str, sampling: Sampling = SAMPLING, **how: Any
) -> Asked:
    told: SimpleQueue[Piece | Exception] = SimpleQueue()
    prompt = together.language.prompt(features, question)
    return Asked(together.submit(prompt, sampling, told.put, **how), told)


@pytest.fixture(scope="module", params=FAMILIES)
def halves(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, list[Features]]:
    return language_and_features(tmp_path_factory.mktemp("whole"), request.param)


@pytest.fixture
def features(halves: tuple[LanguageModel, list[Features]]) -> list[Features]:
    return halves[1]


@pytest.fixture
def together(halves: tuple[LanguageModel, list[Features]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    monkeypatch.setattr(halves[0], "prefixes", PrefixCache(2**30))
    yield from _opened(Together(halves[0], queue=8))


@pytest.fixture
def mini(mini_language: LanguageModel) -> Iterator[Together]:
    yield from _opened(Together(mini_language, queue=4))


def _opened(together: Together) -> Iterator[Together]:
    yield together
    together.close()


def test_requests_that_join_and_leave_are_answered_as_alone(
    together: Together, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [(features[:1], one) for one in QUESTIONS] + [([features[1]], QUESTIONS[0]), (features[1:], QUESTIONS[1])]
    expected = [
        together.language.answer(some, question, sampling=Sampling(2 + 2 * i)).tokens
        for i, (some, question) in enumerate(shown)
    ]
    assert len(set(expected)) == len(expected)
    gate = Gate(together.language, monkeypatch)
    asked = [ask(together, *shown[0], Sampling(2))]
    assert gate.reached.wait(PATIENCE)  # the first is being answered when the others come
    asked += [ask(together, *one, Sampling(2 + 2 * i)) for i, one in enumerate(shown) if i]
    gate.open()
    assert [one.tokens() for one in asked] == expected
    shares = together.language.can_share
    assert max(gate.sizes) == (len(shown) - 1 if shares else 1)  # the first has left: two tokens are two steps
    assert [one.ticket.known > 0 for one in asked] == [False, *[shares] * 3, False, False]


def test_one_alone_is_answered_as_the_language_half_answers(together: Together, features: list[Features]) -> None:
    for question in QUESTIONS[:2]:
        one = ask(together, features[:1], question)
        assert one.tokens() == together.language.answer(features[:1], question, sampling=SAMPLING).tokens
        assert one.ticket.exact == (question == QUESTIONS[0] or not together.language.can_share)


def test_what_is_to_be_exact_is_computed_by_itself(
    together: Together, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(together.language, monkeypatch)
    asked = [ask(together, features[:1], one, exact=i % 2 == 0) for i, one in enumerate(QUESTIONS)]
    gate.open()
    assert [one.tokens() for one in asked] == [
        together.language.answer(features[:1], one, sampling=SAMPLING).tokens for one in QUESTIONS
    ]
    assert all(one.ticket.exact and not one.ticket.known for one in asked[::2])


def test_bits_of_an_exact_answer_are_the_unsplit_ones(mini: Together, mini_vision: VisionEncoder) -> None:
    (shown,) = mini_vision.encode([Image.new("RGB", (112, 112), "red")])
    prompt = mini.language.prompt([shown], QUESTIONS[0])
    expected = mini.language.logits(prompt)[-1].float().log_softmax(-1)
    one = ask(mini, [shown], QUESTIONS[0], exact=True, top=3)
    first = one.next().said
    assert first is not None
    assert first.logprob == float(expected.max()) == first.top[0][1]
    assert [chance for _, chance in first.top] == expected.topk(3).values.tolist()
    assert one.text() == mini.language.answer([shown], QUESTIONS[0]).text


@pytest.mark.parametrize("sampling", [Sampling(8, 0.7, 3), Sampling(8, 1.3, 5, 0.8), Sampling(32, stop=("c", " th"))])
def test_sampling_and_stop_strings_mean_what_they_mean_alone(
    mini: Together, mini_vision: VisionEncoder, sampling: Sampling
) -> None:
    (shown,) = mini_vision.encode([Image.new("RGB", (112, 112), "red")])
    for question in QUESTIONS:
        expected = mini.language.answer([shown], question, sampling=sampling)
        one = ask(mini, [shown], question, sampling, exact=True)
        assert one.tokens() == expected.tokens
        assert one.text() == one.ticket.answering.text == expected.text


def test_a_follow_up_computes_what_is_new(mini: Together, mini_vision: VisionEncoder) -> None:
    (shown,) = mini_vision.encode([Image.new("RGB", (112, 112), "blue")])
    first = ask(mini, [shown], QUESTIONS[0]).text()
    told: SimpleQueue[Piece | Exception] = SimpleQueue()
    prompt = mini.language.prompt([shown], QUESTIONS[1], history=[(QUESTIONS[0], first)])
    one = Asked(mini.submit(prompt, SAMPLING, told.put), told)
    one.tokens()
    asked_first = mini.language.prompt([shown], QUESTIONS[0]).input_ids.shape[1]
    assert asked_first < one.ticket.known < prompt.input_ids.shape[1]


def test_more_than_may_wait_are_turned_away_and_the_others_are_answered(
    mini: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(mini.language, monkeypatch)
    asked = [ask(mini, [], QUESTIONS[0])]
    assert gate.reached.wait(PATIENCE)
    asked += [ask(mini, [], one) for one in QUESTIONS]
    assert mini.n_waiting == 4
    with pytest.raises(QueueFull, match="4 requests are waiting"):
        ask(mini, [], QUESTIONS[0])
    gate.open()
    assert len({one.tokens() for one in asked}) > 1
    assert (mini.n_waiting, mini.n_running) == (0, 0)


def test_who_leaves_or_comes_too_late_makes_room(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini.language, "ends", frozenset())  # answers end where they have to
    long = Sampling(100)
    gate = Gate(mini.language, monkeypatch)
    with mini._changed:  # both are read before the first step
        left, late = (ask(mini, [], one, long) for one in QUESTIONS[:2])
    assert gate.reached.wait(PATIENCE)
    left.ticket.cancel()
    late.ticket.deadline = time.monotonic()
    waiting = ask(mini, [], QUESTIONS[2], deadline=time.monotonic())
    kept = ask(mini, [], QUESTIONS[3])
    gate.open()
    kept.tokens()
    with pytest.raises(DeadlineExceeded):
        waiting.tokens()
    assert len(late.tokens()) == late.ticket.n_tokens < 4
    assert late.pieces[-1].finish == "length"
    assert late.text() == mini.language.text_of(late.tokens())
    told = left.told.qsize()
    assert told < 4
    ask(mini, [], QUESTIONS[0]).tokens()
    assert left.told.qsize() == told


def test_a_budget_of_tokens_bounds_what_is_answered_at_once(
    mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(mini_language.prompt([], one).input_ids.shape[1] for one in QUESTIONS) + SAMPLING.most
    gate = Gate(mini_language, monkeypatch)
    together = Together(mini_language, tokens_at_once=2 * longest)
    asked = [ask(together, [], one) for one in QUESTIONS * 2]
    gate.open()
    found = [one.tokens() for one in asked]
    together.close()
    assert max(gate.sizes) == 2
    assert found[:4] == found[4:]


class Panic(BaseException):
    """What a library that is written in Rust raises where it gives up."""


def test_an_answer_without_a_bound_goes_on_to_the_end_of_the_context(
    together: Together, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together.language, "ends", frozenset())
    length = together.language.prompt(features[:1], QUESTIONS[0]).input_ids.shape[1]
    monkeypatch.setattr(together.language._model.config.get_text_config(), "max_position_embeddings", length + 20)
    for most, expected in ((2**31, 20), (7, 7)):
        asked = ask(together, features[:1], QUESTIONS[0], Sampling(at_most=most))
        assert (len(asked.tokens()), asked.pieces[-1].finish) == (expected, "length")
    with pytest.raises(UsageError, match="21 are to be generated"):
        ask(together, features[:1], QUESTIONS[0], Sampling(21))
    with pytest.raises(UsageError, match=f"has {length + 24} tokens and 1 are to be generated"):
        ask(together, features[:1], QUESTIONS[0] + "?" * 24, Sampling(at_most=2**31))


def test_requests_without_a_bound_are_answered_side_by_side(
    together: Together, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(together.language, monkeypatch)
    asked = [ask(together, features[:1], one, Sampling(at_most=2**31)) for one in QUESTIONS]
    gate.open()
    until(lambda: together.n_running == len(asked))
    for one in asked:
        one.ticket.cancel()


def test_answers_that_outgrow_the_room_take_turns_and_are_answered_as_alone(
    together: Together, features: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsplit.server.engine.scheduler._AHEAD", 2)
    monkeypatch.setattr(together.language, "ends", frozenset())
    monkeypatch.setattr(together.language._model.generation_config, "eos_token_id", None)
    sampling = Sampling(16)
    expected = [together.language.answer(features[:1], one, sampling=sampling).tokens for one in QUESTIONS]
    longest = max(together.language.prompt(features[:1], one).input_ids.shape[1] for one in QUESTIONS)
    rooms, step = list[int](), together.language.step
    waited, set_back = list[Ticket](), _Group.set_back

    def noted(group: _Group, ticket: Ticket, language: LanguageModel) -> int:
        waited.append(ticket)
        return set_back(group, ticket, language)

    monkeypatch.setattr(_Group, "set_back", noted)

    def measured(batch: Any, tokens: Any) -> Any:
        logits = step(batch, tokens)
        rooms.append(batch.held.numel())
        return logits

    monkeypatch.setattr(together.language, "step", measured)
    together._tokens_at_once = 4 * (longest + 6)
    gate = Gate(together.language, monkeypatch)
    asked = [ask(together, features[:1], one, sampling, exact=i == 0) for i, one in enumerate(QUESTIONS)]
    assert gate.reached.wait(PATIENCE)
    gate.open()
    assert [one.tokens() for one in asked] == expected
    assert [one.text() for one in asked] == [together.language.text_of(tokens) for tokens in expected]
    assert all(one.ticket.known < one.ticket.prompt.input_ids.shape[1] for one in asked)
    assert asked[0].ticket.exact
    assert max(rooms) <= 4 * (longest + 6)
    assert bool(waited) == together.language.can_share


def test_an_answer_that_waits_for_room_ends_where_it_is_when_it_is_late(
    mini: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsplit.server.engine.scheduler._AHEAD", 2)
    monkeypatch.setattr(mini.language, "ends", frozenset())
    length = max(mini.language.prompt([], one).input_ids.shape[1] for one in QUESTIONS[:2])
    mini._tokens_at_once = 2 * (length + 8)
    first, second = (ask(mini, [], one, Sampling(64)) for one in QUESTIONS[:2])
    until(lambda: first.ticket.n_tokens > 16)
    assert mini.n_waiting == 1
    second.ticket.deadline = 0.0
    tokens = second.tokens()
    assert 1 < len(tokens) < 16
    assert (second.pieces[-1].finish, second.text()) == ("length", mini.language.text_of(tokens))
    assert len(first.tokens()) == 64


def test_a_first_token_after_the_deadline_is_too_late(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    read = mini.language.read

    def slowly(*prompts: Any, **how: Any) -> Any:
        assert late.ticket is not None
        late.ticket.deadline = 0.0
        return read(*prompts, **how)

    with mini._changed:
        monkeypatch.setattr(mini.language, "read", slowly)
        late = ask(mini, [], QUESTIONS[0])
    with pytest.raises(DeadlineExceeded):
        late.next()
    assert late.pieces == []


@given(data())
def test_the_text_of_a_long_answer_is_that_of_its_tokens(mini_language: LanguageModel, data: DataObject) -> None:
    """Also where letters take several tokens, or come to nothing."""
    language, prompt = mini_language, mini_language.prompt([], QUESTIONS[0])
    letters = data.draw(lists(sampled_from(("a", " the", "好", "é", "👍🏽", "\n", " .")), max_size=60))
    tokens = list(language.tokens_of("".join(letters)))
    tokens += data.draw(lists(integers(0, len(language.chat.tokenizer) - 1), max_size=80))
    tokens = [token for token in tokens if token not in language.ends] + [min(language.ends)]
    answering, told = Answering(language, prompt, Sampling(len(tokens)), None), ""
    monkeypatch = pytest.MonkeyPatch()
    for number, token in enumerate(tokens, 1):
        monkeypatch.setattr(answering, "_chosen", lambda _, token=token: token)
        told += answering.next(torch.zeros(4)).text
        assert answering.text == language.text_of(tokens[:number])
    assert told == language.text_of(tokens)


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
@pytest.mark.parametrize(
    ("of", "name"),
    [
        (LanguageModel, "read"),
        (LanguageModel, "step"),
        (LanguageModel, "remember"),
        (Batch, "row"),
        (Batch, "add"),
        (Batch, "keep"),
        (Answering, "next"),
        (Together, "_leave"),
    ],
)
def test_a_failure_is_told_to_those_it_is_of(
    mini: Together, of: type, name: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mini.language.answer([], QUESTIONS[0], sampling=SAMPLING).tokens
    mini.language.forget()
    works, failed = getattr(of, name), list[str]()

    def fail_once(*given: Any, **how: Any) -> Any:
        if not failed:
            failed.append(name)
            raise kind("out of memory")
        return works(*given, **how)

    monkeypatch.setattr(of, name, fail_once)
    one = ask(mini, [], QUESTIONS[0])
    if name in ("remember", "row"):  # all is said by then
        assert one.tokens() == expected
    else:
        with pytest.raises(AnswerFailed, match=f"failed at this answer: {kind.__name__}") as told:
            one.tokens()
        assert "memory" not in str(told.value)
        assert isinstance(told.value.__cause__, kind)
    assert failed == [name]
    assert ask(mini, [], QUESTIONS[0]).tokens() == expected
    mini.check_alive()


def test_what_is_no_number_is_told_to_those_it_is_of(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        step = mini.language.step
        patched.setattr(mini.language, "step", lambda *given: step(*given) * float("nan"))
        with pytest.raises(InvalidFeatures, match="NaN or infinite"):
            ask(mini, [], QUESTIONS[0]).tokens()
    assert ask(mini, [], QUESTIONS[0]).tokens() == mini.language.answer([], QUESTIONS[0], sampling=SAMPLING).tokens


def test_who_has_no_room_is_told_so_and_those_who_had_are_answered(
    mini: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mini.language.answer([], QUESTIONS[0], sampling=SAMPLING).tokens
    gate = Gate(mini.language, monkeypatch)
    first = ask(mini, [], QUESTIONS[0])
    assert gate.reached.wait(PATIENCE)

    def full(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr("qsplit.models.language.kv_cache._stacked", full)
    second = ask(mini, [], QUESTIONS[1])
    gate.open()
    with pytest.raises(AnswerFailed):
        second.tokens()
    assert first.tokens() == expected


def test_a_prompt_that_cannot_be_read_fails_by_itself(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [mini.language.answer([], one, sampling=SAMPLING).tokens for one in QUESTIONS]
    mini.language.forget()
    gate, read = Gate(mini.language, monkeypatch), mini.language.read
    bad = mini.language.prompt([], QUESTIONS[2]).input_ids

    def some_fail(prompts: Any, **how: Any) -> Any:
        if any(torch.equal(prompt.input_ids, bad) for prompt in prompts):
            raise RuntimeError("out of memory")
        return read(prompts, **how)

    asked = [ask(mini, [], QUESTIONS[0])]
    assert gate.reached.wait(PATIENCE)
    monkeypatch.setattr(mini.language, "read", some_fail)
    asked += [ask(mini, [], one) for one in QUESTIONS[1:]]
    gate.open()
    for number, one in enumerate(asked):
        if number == 2:
            with pytest.raises(AnswerFailed):
                one.tokens()
        else:
            assert one.tokens() == expected[number]


def test_memory_is_let_go_of_after_a_failure(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(mini, [], QUESTIONS[1]).tokens()
    held = mini.language.prefixes.nbytes
    assert held

    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mini.language, "step", fail)
    with pytest.raises(AnswerFailed):
        ask(mini, [], QUESTIONS[0]).tokens()
    mini.close()
    assert mini.language.prefixes.nbytes == 0


def test_who_asks_of_a_thread_that_has_ended_is_told_so(
    mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(mini_language, monkeypatch)
    together = Together(mini_language)
    asked = [ask(together, [], QUESTIONS[0])]
    assert gate.reached.wait(PATIENCE)

    def end(*_: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr(Batch, "keep", end)
    asked += [ask(together, [], one) for one in QUESTIONS[1:]]
    gate.open()
    for one in asked:
        with pytest.raises(NotReady, match="has ended: SystemExit"):
            one.tokens()
    for _ in range(2):
        with pytest.raises(NotReady, match="has ended: SystemExit"):
            ask(together, [], QUESTIONS[0])
    with pytest.raises(NotReady):
        together.check_alive()
    assert (together.n_waiting, together.n_running) == (0, 0)
    together.close()


def test_what_does_not_fit_is_said_before_anything_is_computed(mini: Together) -> None:
    with pytest.raises(UsageError, match="context"):
        ask(mini, [], QUESTIONS[0], Sampling(10**6))


def test_what_was_asked_is_answered_before_it_closes(mini_language: LanguageModel) -> None:
    together = Together(mini_language)
    asked = [ask(together, [], one) for one in QUESTIONS]
    together.close()
    assert all(one.tokens() for one in asked)
    with pytest.raises(NotReady):
        ask(together, [], QUESTIONS[0])


def test_every_answer_ends_by_when_it_is_told_to(mini: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini.language, "ends", frozenset())
    begun = ask(mini, [], QUESTIONS[0], Sampling())
    until(lambda: begun.ticket.n_tokens)
    mini.end_by(time.monotonic() + 2)
    later = ask(mini, [], QUESTIONS[1], Sampling())
    for one in (begun, later):
        assert one.text() == mini.language.text_of(one.tokens())
        assert one.pieces[-1].finish == "length"
