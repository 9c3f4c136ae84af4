"""Long work, one job at a time on a thread of its own; it can be held, gone on with and given up between its steps."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Condition, Thread
from typing import Literal

from qsplit.errors import NotFound, NotReady, QsplitError, QueueFull, UsageError
from qsplit.progress import Progress
from qsplit.server.middleware import problems

__all__ = ["LIVE", "Failure", "Job", "Jobs", "Kind", "Outcome", "State", "Tell", "Work"]

_LOG = logging.getLogger(__name__)

Kind = Literal["index", "refresh", "duplicates", "check"]
State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
LIVE: tuple[State, ...] = ("queued", "running", "paused")

_WAITING = 16  # jobs, beside the one that runs
_REMEMBERED = 50  # jobs that ended
_LISTED = 100  # failures of a job that are told one by one


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that a job could not use, and why; the job went on."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to, in a sentence, and what of it failed."""

    message: str
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now: ``done`` of ``total`` of ``what`` it counts, at a ``rate`` a second, after so many seconds.

    Time in which it was held counts for nothing. ``failures`` are the first of so many (``failed``) that it survived.
    """

    id: str
    kind: Kind
    state: State
    done: int
    total: int
    what: str
    rate: float
    seconds: float
    message: str
    failed: int
    failures: tuple[Failure, ...]
    created_at: datetime


Tell = Callable[[Progress], None]
Work = Callable[[Tell], Outcome]


class _Cancelled(Exception):  # no error: it ends a job's work from where that tells how far it is
    """Raised inside the work of a job that was given up."""


@dataclass
class _Run:
    """A job and what is done for it. Whoever touches one holds `Jobs`' condition."""

    kind: Kind
    work: Work = field(repr=False)
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    state: State = "queued"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    has_begun: bool = False
    is_given_up: bool = False
    outcome: Outcome = field(default_factory=lambda: Outcome(""))
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0.0, ""))
    _phase: float = 0.0  # seconds of work before what is being counted now
    _worked: float = 0.0  # seconds of work until it was last held
    _since: float | None = None

    def enter(self, state: State) -> None:
        """Be in a state; time counts while it runs."""
        now = time.monotonic()
        if self._since is not None:
            self._worked += now - self._since
        self._since = now if state == "running" else None
        self.has_begun |= state == "running"
        self.state = state

    def tell(self, progress: Progress) -> None:
        if progress.what != self.progress.what:
            self._phase = max(0.0, self.seconds - progress.seconds)
        self.progress = progress

    @property
    def seconds(self) -> float:
        return self._worked + (time.monotonic() - self._since if self._since is not None else 0.0)

    def job(self) -> Job:
        progress, spent = self.progress, self.seconds - self._phase
        rate = progress.done / spent if spent > 0 else 0.0
        failures, message = self.outcome.failures, self.outcome.message
        counted = progress.done, progress.total, progress.what
        return Job(
            self.id, self.kind, self.state, *counted, rate, self.seconds, message,
            failed=len(failures), failures=failures[:_LISTED], created_at=self.created_at,
        )  # fmt: skip


class Jobs:
    """The jobs of a service, in the order in which they were asked for.

    Work is a function that tells how far it is; there it waits while its job is held, and ends where that is given up.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._runs: dict[str, _Run] = {}
        self._thread: Thread | None = None
        self._is_closed = False

    def start(self, kind: Kind, work: Work) -> Job:
        """Have work done when its turn comes; raises `QueueFull`, and `NotReady` once the service ends."""
        with self._changed:
            if self._is_closed:
                raise NotReady("This service is ending.")
            if sum(run.state in LIVE for run in self._runs.values()) > _WAITING:
                raise QueueFull(f"{_WAITING} jobs wait already.", fix="Cancel some, or wait.")
            run = _Run(kind, work)
            self._runs[run.id] = run
            self._forget()
            if self._thread is None:
                self._thread = Thread(target=self._serve, name="qsplit-jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return run.job()

    def all(self) -> list[Job]:
        """Every job that is remembered, the newest first."""
        with self._changed:
            return [run.job() for run in reversed(self._runs.values())]

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        with self._changed:
            return self._run(job_id).job()

    def pause(self, job_id: str) -> Job:
        """Hold a job, at the next step if it runs; raises `NotFound`, and `UsageError` for one that has ended."""
        return self._move(job_id, ("queued", "running"), lambda _: "paused")

    def resume(self, job_id: str) -> Job:
        """Go on with a job that is held; raises as `pause` does."""
        return self._move(job_id, ("paused",), lambda run: "running" if run.has_begun else "queued")

    def cancel(self, job_id: str) -> Job:
        """Give a job up, at the next step if it has begun; what it has done stays. Raises as `pause` does."""
        with self._changed:
            run = self._live(job_id)
            self._give_up(run)
            self._changed.notify_all()
            return run.job()

    def wait(self, job_id: str, seconds: float) -> Job:
        """The job once it has ended, or after so many seconds."""
        with self._changed:
            run = self._run(job_id)
            self._changed.wait_for(lambda: run.state not in LIVE, seconds)
            return run.job()

    def close(self, seconds: float = 10.0) -> None:
        """Give up every job, and wait so long for the one that runs to come to its next step."""
        with self._changed:
            self._is_closed = True
            for run in self._runs.values():
                if run.state in LIVE:
                    self._give_up(run)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    # --- with the condition held ---

    def _run(self, job_id: str) -> _Run:
        if job_id not in self._runs:
            raise NotFound(f"There is no job {job_id!r}.", fix="The list of jobs has their ids.")
        return self._runs[job_id]

    def _live(self, job_id: str) -> _Run:
        run = self._run(job_id)
        if run.state not in LIVE:
            raise UsageError(f"The job {job_id} has ended: {run.state}.", fix="Start another one.")
        return run

    def _move(self, job_id: str, of: Iterable[State], to: Callable[[_Run], State]) -> Job:
        with self._changed:
            run = self._live(job_id)
            if run.state in of:
                run.enter(to(run))
                self._changed.notify_all()
            return run.job()

    def _give_up(self, run: _Run) -> None:
        run.is_given_up = True
        if not run.has_begun:
            run.enter("cancelled")

    def _forget(self) -> None:
        """Drop the oldest of the jobs that ended."""
        ended = [run.id for run in self._runs.values() if run.state not in LIVE]
        for job_id in ended[:-_REMEMBERED]:
            del self._runs[job_id]

    # --- on the thread ---

    def _serve(self) -> None:
        while (run := self._next()) is not None:
            state, outcome = self._done(run)
            with self._changed:
                run.enter(state)
                run.outcome = outcome
                self._changed.notify_all()

    def _next(self) -> _Run | None:
        with self._changed:
            while not self._is_closed:
                for run in self._runs.values():
                    if run.state == "queued":
                        run.enter("running")
                        return run
                self._changed.wait()
        return None

    def _done(self, run: _Run) -> tuple[State, Outcome]:
        try:
            return "done", run.work(partial(self._tell, run))
        except _Cancelled:
            return "cancelled", Outcome("What was done until then stays.")
        except QsplitError as error:
            _, message, fix = problems.told(f"The job {run.id} ({run.kind})", error)
            return "failed", Outcome(f"{message} {fix}".strip())
        except BaseException:  # noqa: BLE001  # the jobs behind it have their turn, whatever became of this one
            _LOG.exception("The job %s (%s) failed.", run.id, run.kind)
            return "failed", Outcome("This is a defect of qsplit; the log of the server has more.")

    def _tell(self, run: _Run, progress: Progress) -> None:
        with self._changed:
            run.tell(progress)
            self._changed.notify_all()
            self._changed.wait_for(lambda: run.state != "paused" or run.is_given_up)
            if run.is_given_up:
                raise _Cancelled
