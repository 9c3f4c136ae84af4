"""Requests to a server that runs the language half, passed on as they come: it batches them by itself.

What `qsplit.server.engine.scheduler` is for a language half in this process. An answer that nobody waits for any longer
is ended at the server, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from qsplit.errors import DeadlineExceeded, RemoteError, UsageError
from qsplit.integrations.vllm.remote_language import PATIENCE, Heard, RemoteLanguage, has_timed_out
from qsplit.models.language.model import Sampling
from qsplit.models.language.prompts import Prompt
from qsplit.server.engine.decoding import Finish, Piece, Said, held_back
from qsplit.server.engine.scheduler import QUEUE, Tell, check_room, survived, too_late

__all__ = ["Passed", "Relay"]

_AT_ONCE = 64  # requests that the server has at a time
_NEVER = -9999.0  # what servers call the log probability of a token that cannot be: JSON has no infinity


@dataclass(eq=False)
class Passed:
    """A request, as `qsplit.server.engine.scheduler.Ticket` is one: nothing is known of its prompt here, and it is
    never exact."""

    prompt: Prompt
    sampling: Sampling
    tell: Tell
    top: int | None
    deadline: float  # of the monotonic clock
    known: int = field(default=0, init=False)
    exact: bool = field(default=False, init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    is_cancelled: bool = field(default=False, init=False)

    @property
    def n_tokens(self) -> int:
        """Of the answer so far."""
        return len(self.tokens)

    def cancel(self) -> None:
        """Nobody waits for it any longer: it is let go of when the next piece comes."""
        self.is_cancelled = True


class Relay:
    """Takes requests to a server and tells its answers piece by piece, many at a time."""

    def __init__(self, language: RemoteLanguage, *, queue: int = QUEUE) -> None:
        self.language = language
        self._queue = queue
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="relay")
        self._counting = Lock()
        self._is_closed = False
        self._ends_by = math.inf
        self._passed: set[Passed] = set()
        self.n_waiting = self.n_running = 0

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        tell: Tell,
        *,
        exact: bool = False,
        top: int | None = None,
        deadline: float = float("inf"),
    ) -> Passed:
        """As `Together.submit`, with threads of its own that call ``tell``; they also check, for which they may have to
        ask the server.

        Raises `QueueFull`, `NotReady`, and `UsageError` for a request that is to be exact.
        """
        if exact:
            raise UsageError(
                "A server's answers are never exact.", fix="Leave `exact` out, or serve without --language."
            )
        one = Passed(prompt, sampling, tell, top, deadline)
        with self._counting:
            check_room(self.n_waiting, self._queue, is_closed=self._is_closed)
            self.n_waiting += 1
            one.deadline = min(deadline, self._ends_by)
            self._passed.add(one)
            self._pool.submit(self._pass_on, one)
        return one

    def check_alive(self) -> None:
        """As `Together.check_alive`: threads that pass requests on survive whatever happens to one."""

    def end_by(self, deadline: float) -> None:
        """As `Together.end_by`; a server that writes nothing more is waited for until the answer's own deadline."""
        with self._counting:
            self._ends_by = deadline
            for one in self._passed:
                one.deadline = min(one.deadline, deadline)

    def close(self, seconds: float | None = None) -> None:  # noqa: ARG002  # each is waited for until its deadline
        """Answer what is asked already, and nothing after it."""
        with self._counting:
            self._is_closed = True
        self._pool.shutdown()

    def _pass_on(self, one: Passed) -> None:
        with self._counting:
            self.n_waiting, self.n_running = self.n_waiting - 1, self.n_running + 1
        has_begun = False
        try:
            for piece in () if one.is_cancelled else self._pieces(one):
                one.tell(piece)
                has_begun = True
        except BaseException as error:  # noqa: BLE001  # whatever it is, who asked is told
            if not one.is_cancelled:
                one.tell(self._end(one, survived(error), has_begun=has_begun))
        finally:
            with self._counting:
                self._passed.discard(one)
                self.n_running -= 1

    def _pieces(self, one: Passed) -> Iterator[Piece]:
        """Each token with the text that came with it; the last when the server has told all of its answer."""
        last: Piece | None = None
        patience = min(one.deadline - time.monotonic(), PATIENCE)
        if patience <= 0:
            raise too_late()
        with closing(self.language.hear(one.prompt, one.sampling, top=one.top, seconds=patience)) as hearing:
            for some in hearing:
                if one.is_cancelled:
                    return
                if last is None and time.monotonic() >= one.deadline:
                    raise DeadlineExceeded("The server has not come to the end.")
                finish, said = _finish(some), list(_said(some))
                one.tokens += [each.id for each in said]
                if not finish:
                    one.text += some.text
                yield from (Piece("", each) for each in said[:-1])
                piece = Piece(some.text, said[-1] if said else None, finish)
                if finish:
                    last = piece
                elif said or some.text:
                    yield piece
        if last is None:
            raise RemoteError("The server broke off.", fix="Ask again.")
        yield last

    def _end(self, one: Passed, error: Exception, *, has_begun: bool) -> Piece | Exception:
        """What is told of an answer that an error ends: where it is late only, what was written of it stands."""
        if time.monotonic() < one.deadline:
            return error
        is_late = isinstance(error, DeadlineExceeded) or has_timed_out(error)
        if has_begun:
            return Piece(held_back(self.language.text_of, one.tokens, one.text), None, "length") if is_late else error
        return too_late()


def _finish(some: Heard) -> Finish:
    if some.finish == "stop":
        return "stop"
    if some.finish == "length":
        return "length"
    if not some.finish:
        return ""
    raise RemoteError(f"The server ended an answer with {some.finish!r}.", fix="Look into its log.")


def _said(some: Heard) -> Iterator[Said]:
    """The tokens of a piece, with their chances where those were asked for."""
    for token, told in zip(some.tokens, some.chances or [{}] * len(some.tokens), strict=True):
        top = tuple((str(other["token"]), _logprob(other["logprob"])) for other in told.get("top_logprobs", ()))
        yield Said(token, str(told.get("token", "")), _logprob(told.get("logprob", 0.0)), top)


def _logprob(given: Any) -> float:
    """A log probability that JSON can hold; raises `RemoteError` for NaN. Servers mask tokens with -inf."""
    value = float(given)
    if math.isnan(value) or value == math.inf:
        raise RemoteError("The server produced NaN or infinite log probabilities.", fix="Read the log of the server.")
    return max(value, _NEVER)
