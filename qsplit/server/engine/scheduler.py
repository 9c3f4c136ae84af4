"""Many requests to one language half at a time: they join and leave between two tokens, each with its own deadline.

A step of the model costs nearly the same for one sequence as for many, because it is spent reading weights. So all
answers that are being written go on by one token in one pass, new prompts are read between two passes behind what is
known of their beginnings, and what is finished, cancelled or late makes room at once; an answer that is late ends where
it is. A request that is to be exact takes passes of its own, as does every one of a model whose sequences cannot stand
side by side.

How long an answer gets is not known before: room is held for its next tokens only. Where answers outgrow the room, the
latest go back to those who wait, and are read on from where they were as soon as there is room.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Condition, Thread
from traceback import clear_frames

import torch

from qsplit.errors import AnswerFailed, DeadlineExceeded, NotReady, QsplitError, QueueFull
from qsplit.models.language.kv_cache import Batch
from qsplit.models.language.model import LanguageModel, Read, Sampling, continued
from qsplit.models.language.prompts import Prompt
from qsplit.server.engine.decoding import Answering, Piece

__all__ = ["QUEUE", "Tell", "Ticket", "Together", "check_room", "survived", "too_late"]

_LOG = logging.getLogger(__name__)
QUEUE = 64  # requests that wait
_TOKENS_AT_ONCE = 16_384  # of all sequences, filled up to the longest of their batch: what bounds keys and values
_AHEAD = 512  # tokens of an answer that room is held for
_JOIN_TOKENS = 2_048  # of prompts that are read between two steps: those who are being answered wait for them

Tell = Callable[[Piece | Exception], None]


@dataclass(eq=False)
class Ticket:
    """A request; from its first piece on it tells how many prompt tokens were known, and whether it is exact so far."""

    prompt: Prompt
    sampling: Sampling
    alone: bool
    deadline: float  # of the monotonic clock
    tell: Tell
    answering: Answering
    known: int = 0
    exact: bool = True
    is_cancelled: bool = False
    logits: torch.Tensor | None = field(default=None, repr=False)

    @property
    def n_tokens(self) -> int:
        """Of the answer so far."""
        return len(self.answering.tokens)

    @property
    def length(self) -> int:
        """Tokens of its prompt and of its answer so far."""
        return self.prompt.input_ids.shape[1] + self.n_tokens

    def length_after(self, tokens: int) -> int:
        """Its length after some tokens more, as far as it may go on."""
        return self.length + min(tokens, self.sampling.most - self.n_tokens)

    @property
    def to_read(self) -> Prompt:
        """What has to be read before it can go on: its prompt, and what was answered so far."""
        return continued(self.prompt, self.answering.tokens) if self.n_tokens else self.prompt

    def cancel(self) -> None:
        """Nobody waits for it any longer: it is let go of before the next token."""
        self.is_cancelled = True


class Together:
    """Takes requests to a language half and answers them together, on a thread of its own."""

    def __init__(self, language: LanguageModel, *, queue: int = QUEUE, tokens_at_once: int = _TOKENS_AT_ONCE) -> None:
        self.language = language
        self._queue, self._tokens_at_once = queue, tokens_at_once
        self._waiting: deque[Ticket] = deque()
        self._joining: list[Ticket] = []
        self._groups: list[_Group] = []
        self._changed = Condition()
        self._is_closed = False
        self._died_of: BaseException | None = None
        self._ends_by = float("inf")
        self._thread = Thread(target=self._run, name="together", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        tell: Tell,
        *,
        exact: bool = False,
        top: int | None = None,
        deadline: float = float("inf"),
    ) -> Ticket:
        """Ask; ``tell`` gets each piece of the answer, or what went wrong, on the thread that computes: it must not
        block.

        ``top`` asks for the chances of the tokens, and of so many of the likeliest. ``deadline`` is of the monotonic
        clock. Raises `QueueFull`, `NotReady`, and as `LanguageModel.answer` does, before anything is computed.
        """
        sampling = self.language.bounded([prompt], sampling)
        fits = self.language.check_prompt(prompt, sampling.most)
        alone = exact or not self.language.can_share
        answering = Answering(self.language, prompt, sampling, top)
        ticket = Ticket(prompt, sampling, alone, deadline, tell, answering, exact=fits)
        with self._changed:
            ticket.deadline = min(deadline, self._ends_by)
            check_room(len(self._waiting), self._queue, is_closed=self._is_closed)
            self.check_alive()
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def check_alive(self) -> None:
        """Raises `NotReady` where the thread that answers has died: no request is ever answered then."""
        if self._died_of is not None:
            raise NotReady(_died(self._died_of), fix="Start the service anew; its log says more.")

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return sum(len(group.tickets) for group in self._groups)

    def end_by(self, deadline: float) -> None:
        """Have every answer end by then where it is, those that are asked for later, too."""
        with self._changed:
            self._ends_by = deadline
            for ticket in (*self._waiting, *self._joining, *(one for group in self._groups for one in group.tickets)):
                ticket.deadline = min(ticket.deadline, deadline)

    def close(self, seconds: float | None = None) -> None:
        """Answer what is asked already, and nothing after it; wait for that, or so long at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while self._has_work():
                try:
                    self._round()
                except BaseException as error:  # noqa: BLE001  # whatever it is, those that come later are answered
                    self._give_up(survived(error))
                    self.language.forget()
        except BaseException as error:  # noqa: BLE001  # nobody may wait for what never comes
            _LOG.critical("The thread that answers has ended", exc_info=error)
            with self._changed:
                self._died_of = error
            self._give_up(NotReady(_died(error)))

    def _round(self) -> None:
        """One more token in every answer, once room was made and filled."""
        failed = self._leave() + self._make_room() + self._join()
        for group in self._going_on():
            failed += group.step(self.language)
        self._groups = [group for group in self._groups if group.tickets]
        if failed:
            self.language.forget()

    def _give_up(self, error: Exception) -> None:
        """Tell everybody of a failure, and begin anew with nobody."""
        with self._changed:
            answered = [ticket for group in self._groups for ticket in group.tickets]
            tickets = dict.fromkeys([*answered, *self._joining, *self._waiting])
            self._waiting.clear()
            self._joining, self._groups = [], []
        _tell_all(tickets, error)

    def _has_work(self) -> bool:
        """Wait until there is something to do; False if there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting or self._groups)
            return bool(self._waiting or self._groups)

    def _leave(self) -> int:
        """Let go of what nobody waits for, or of what comes too late; how many groups failed by it."""
        with self._changed:
            gone = [ticket for ticket in self._waiting if _is_over(ticket)]
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in gone)
        for ticket in gone:
            _tell_late(ticket)
        return sum(group.leave() for group in self._groups)

    def _make_room(self) -> int:
        """Have the latest answers wait as long as the others' next tokens do not fit; all but one can.

        Not those that are computed alone, whose bits would be others if they were read again. Returns how often that
        failed.
        """
        failed = 0
        for group in self._groups:
            while not group.is_alone and len(group.tickets) > 1 and not self._fits(self._running, 1):
                ticket = group.tickets[-1]
                failed += group.set_back(ticket, self.language)
                with self._changed:
                    self._waiting.appendleft(ticket)
        return failed

    def _going_on(self) -> list[_Group]:
        """The groups that have room to go on; the oldest does in any case, so that there will be room again."""
        return self._groups if self._fits(self._running, 1) else self._groups[:1]

    @property
    def _running(self) -> list[Ticket]:
        return [ticket for group in self._groups for ticket in group.tickets]

    def _fits(self, tickets: Iterable[Ticket], ahead: int) -> bool:
        """Whether there is room for some requests, each with so many tokens more."""
        return _room(tickets, ahead) <= self._tokens_at_once

    def _join(self) -> int:
        """Read the prompts of those that have room, and answer each with its first token; how many passes failed."""
        self._joining = []
        self._joining += self._admitted()
        shared, failed = [ticket for ticket in self._joining if not ticket.alone], 0
        for some in filter(None, [shared, *([ticket] for ticket in self._joining if ticket.alone)]):
            failed += self._read(some)
        self._joining = []
        self._groups = [group for group in self._groups if group.tickets]
        return failed

    def _read(self, some: list[Ticket]) -> int:
        """Read prompts in as few passes as may be; how many failed. Where several fail together, each is read alone."""
        group = self._group_of(some)
        try:
            read = self.language.read([ticket.to_read for ticket in some], share=not group.is_alone)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the others are answered
            if len(some) == 1:
                return _fail(some, error)
            survived(error)
            self.language.forget()
            return sum(self._read([ticket]) for ticket in some)
        return group.join(zip(some, read, strict=True))

    def _group_of(self, tickets: list[Ticket]) -> _Group:
        alone = any(ticket.alone for ticket in tickets)
        for group in self._groups:
            if not alone and not group.is_alone:
                return group
        group = _Group(is_alone=alone)
        self._groups.append(group)
        return group

    def _admitted(self) -> Iterable[Ticket]:
        """Those that come next, as long as there is room and the others need not wait too long for them."""
        running, tokens = self._running, 0
        while self._waiting and tokens < _JOIN_TOKENS:
            ticket = self._waiting[0]
            if running and not self._fits([*running, ticket], _AHEAD):
                return
            with self._changed:
                self._waiting.popleft()
            running.append(ticket)
            tokens += ticket.length
            yield ticket


def check_room(waiting: int, queue: int, *, is_closed: bool) -> None:
    """Raises `NotReady` where nothing more is answered, and `QueueFull` where as many wait as may."""
    if is_closed:
        raise NotReady("This service is ending.")
    if waiting >= queue:
        raise QueueFull(
            f"{waiting} requests are waiting already.",
            fix="Ask again in a while.",
        )


def too_late() -> DeadlineExceeded:
    """What is said of an answer whose deadline has passed."""
    return DeadlineExceeded(
        "The answer had not begun by the deadline.",
        fix="Ask again in a while or with a shorter prompt, or serve with a longer --deadline.",
    )


class _Group:
    """Requests whose answers go on in the same passes; ``is_alone`` is one by itself."""

    def __init__(self, *, is_alone: bool) -> None:
        self.is_alone = is_alone
        self.tickets: list[Ticket] = []
        self._batch = Batch()

    def join(self, read: Iterable[tuple[Ticket, Read]]) -> int:
        """Have requests join whose prompts were read; how many of them failed."""
        failed = 0
        for ticket, one in read:
            try:
                if self.is_alone:
                    self._batch = Batch.alone(one.prefix)
                else:
                    self._batch.add(one.prefix, len(one.prefix))
            except BaseException as error:  # noqa: BLE001  # whatever it is, those beside it are answered
                failed += _fail([ticket], error)
                continue
            ticket.logits = one.logits
            ticket.exact = ticket.exact and not one.known and not ticket.n_tokens
            if not ticket.n_tokens:  # else it has told by now
                ticket.known = one.known
            self.tickets.append(ticket)
        return failed + self._say()

    def step(self, language: LanguageModel) -> int:
        """Have every answer go on by a token; 1 where that failed."""
        if not self.tickets:
            return 0
        try:
            logits = language.step(self._batch, [ticket.answering.tokens[-1] for ticket in self.tickets])
        except BaseException as error:  # noqa: BLE001  # whatever it is, other groups are answered
            return self._fail(error)
        for ticket, row in zip(self.tickets, logits, strict=True):
            ticket.logits = row
            ticket.exact = ticket.exact and len(self.tickets) == 1
        return self._say(language)

    def set_back(self, ticket: Ticket, language: LanguageModel) -> int:
        """Let a request leave with what it knows; that is remembered as long as there is room for it there.

        Returns how often that failed.
        """
        failed = self._remember(ticket, language)
        return failed + self._keep([one for one in self.tickets if one is not ticket])

    def _remember(self, ticket: Ticket, language: LanguageModel) -> int:
        """Have what is known of a request's answer be known to those that come later; 1 where that failed."""
        try:
            number = self.tickets.index(ticket)
            language.remember(self._batch.row(number, ticket.answering.ids[:-1], ticket.prompt.pictures))
        except BaseException as error:  # noqa: BLE001  # the answer is there, and stays to be told
            survived(error)
            return 1
        return 0

    def leave(self) -> int:
        """Let go of those that nobody waits for, or that come too late; 1 where that failed."""
        gone = [ticket for ticket in self.tickets if _is_over(ticket)]
        failed = self._keep([ticket for ticket in self.tickets if ticket not in gone])
        for ticket in gone:
            _tell_late(ticket)
        return failed

    def _say(self, language: LanguageModel | None = None) -> int:
        """Have each that has logits say its next token; those whose answer ends leave, and are remembered.

        Returns how often that failed.
        """
        said = {ticket: _next(ticket) for ticket in self.tickets if ticket.logits is not None}
        ended = {one for one, what in said.items() if isinstance(what, Exception) or what.finish}
        failed = 0
        for ticket in self.tickets:
            if language and not self.is_alone and isinstance(said.get(ticket), Piece) and ticket in ended:
                failed += self._remember(ticket, language)
        failed += self._keep([ticket for ticket in self.tickets if ticket not in ended])
        for ticket, what in said.items():
            if ticket in ended or ticket in self.tickets:
                _tell(ticket, what)
        return failed

    def _keep(self, tickets: list[Ticket]) -> int:
        """Have all others leave; 1 where that failed, and those that were to stay with it."""
        rows = [i for i, ticket in enumerate(self.tickets) if ticket in tickets]
        self.tickets = tickets
        try:
            self._batch.keep(rows)
        except BaseException as error:  # noqa: BLE001  # whatever it is, other groups are answered
            return self._fail(error)
        return 0

    def _fail(self, error: BaseException) -> int:
        """Have nobody stay, whatever had been computed."""
        failed = _fail(self.tickets, error)
        self.tickets, self._batch = [], Batch()
        return failed


def _next(ticket: Ticket) -> Piece | Exception:
    """What its logits say next, which are used up then."""
    logits, ticket.logits = ticket.logits, None
    assert logits is not None
    if not ticket.n_tokens and _is_over(ticket):
        return too_late()
    try:
        return ticket.answering.next(logits)
    except BaseException as error:  # noqa: BLE001  # whatever it is, those beside it are answered
        return survived(error)


def survived(error: BaseException) -> Exception:
    """What is told of a failure after which others are answered, and logged if nobody foresaw it.

    What is to end a thread is raised; a panic of a library that is written in Rust is not, though no `Exception`.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    if isinstance(error, QsplitError):
        return error
    _LOG.error("An answer failed", exc_info=error)
    clear_frames(error.__traceback__)  # they hold what was computed until then
    failed = AnswerFailed(f"The model failed at this answer: {type(error).__name__}.", fix="Ask again, or for less.")
    failed.__cause__ = error
    return failed


def _died(of: BaseException) -> str:
    return f"The thread that answers has ended: {type(of).__name__}."


def _room(tickets: Iterable[Ticket], ahead: int) -> int:
    """Tokens of some requests after so many more, each filled up to the longest of those beside it."""
    beside = [ticket.length_after(ahead) for ticket in tickets if not ticket.alone]
    return len(beside) * max(beside, default=0) + sum(one.length_after(ahead) for one in tickets if one.alone)


def _is_over(ticket: Ticket) -> bool:
    return ticket.is_cancelled or time.monotonic() > ticket.deadline


def _tell_late(ticket: Ticket) -> None:
    """Tell of the end of an answer where it is, or that there is none."""
    if not ticket.is_cancelled:
        _tell(ticket, ticket.answering.cut() if ticket.n_tokens else too_late())


def _fail(tickets: Iterable[Ticket], error: BaseException) -> int:
    """Tell some of what failed; 1 if memory may have to be let go of."""
    told = survived(error)
    _tell_all(tickets, told)
    return int(told is not error)


def _tell_all(tickets: Iterable[Ticket], error: Exception) -> None:
    for ticket in tickets:
        _tell(ticket, error)


def _tell(ticket: Ticket, what: Piece | Exception) -> None:
    if ticket.is_cancelled:
        return
    try:
        ticket.tell(what)
    except Exception:  # noqa: BLE001  # the loop of one who left is closed
        _LOG.exception("An answer could not be told")
