"""Jobs: one at a time, in order, held and given up between two steps, and never in the way of those behind them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qsplit.errors import NotFound, NotReady, QueueFull, StoreError, UsageError
from qsplit.progress import Progress
from qsplit.server.job_queue import Job, Jobs, Outcome, Tell

ENOUGH = 30.0  # seconds, for what takes none


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.close()


class Steps:
    """Work of some steps, each of which waits until it is let go."""

    def __init__(self, number: int = 3) -> None:
        self.number, self.done = number, 0
        self.stepped, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, tell: Tell) -> Outcome:
        for step in range(1, self.number + 1):
            assert self._go.acquire(timeout=ENOUGH)
            self.done = step
            self.stepped.release()
            tell(Progress(step, self.number, float(step), "steps"))
        return Outcome(f"{self.number} steps.")

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._go.release()
            assert self.stepped.acquire(timeout=ENOUGH)


def at_once(_: Tell) -> Outcome:
    return Outcome("done")


def ended(jobs: Jobs, job: Job) -> Job:
    return jobs.wait(job.id, ENOUGH)


def test_a_job_tells_how_far_it_is(jobs: Jobs) -> None:
    work = Steps()
    job = jobs.start("index", work)
    assert (job.state, job.done, job.message) == ("queued", 0, "")
    work.step(2)
    work._go.release()  # the third step is told before the job ends
    job = ended(jobs, job)
    assert (job.state, job.done, job.total, job.what, job.message) == ("done", 3, 3, "steps", "3 steps.")
    assert job.seconds > 0
    assert job.rate > 0
    assert jobs.get(job.id) == job


def test_one_at_a_time_in_order(jobs: Jobs) -> None:
    first, second = Steps(), Steps(1)
    jobs.start("index", first)
    waiting = jobs.start("check", second)
    last = jobs.start("refresh", at_once)
    first.step(2)
    assert [job.state for job in jobs.all()] == ["queued", "queued", "running"]
    assert [job.kind for job in jobs.all()] == ["refresh", "check", "index"]
    first.step()
    second.step()
    assert ended(jobs, waiting).state == ended(jobs, last).state == "done"


def test_held_and_gone_on_with(jobs: Jobs) -> None:
    work = Steps()
    job = jobs.start("index", work)
    work.step()
    assert jobs.pause(job.id).state == "paused"
    assert jobs.pause(job.id).state == "paused"
    work.step()  # the one that it was at
    work._go.release()
    assert not work.stepped.acquire(timeout=0.2)
    assert work.done == 2
    held = jobs.get(job.id).seconds
    assert jobs.get(job.id).seconds == held, "time stands still"
    assert jobs.resume(job.id).state == "running"
    assert ended(jobs, job).state == "done"
    assert work.done == 3


def test_what_waits_can_be_held_and_others_go_first(jobs: Jobs) -> None:
    first, other = Steps(1), Steps(1)
    jobs.start("index", first)
    held = jobs.start("check", at_once)
    last = jobs.start("refresh", other)
    assert jobs.pause(held.id).state == "paused"
    first.step()
    other.step()
    assert ended(jobs, last).state == "done"
    assert jobs.get(held.id).state == "paused"
    assert jobs.resume(held.id).state in ("queued", "running", "done")
    assert ended(jobs, held).state == "done"


@pytest.mark.parametrize("is_held", [False, True])
def test_given_up_at_the_next_step(jobs: Jobs, *, is_held: bool) -> None:
    work = Steps()
    job = jobs.start("index", work)
    work.step()
    if is_held:
        jobs.pause(job.id)
    jobs.cancel(job.id)
    work._go.release()
    job = ended(jobs, job)
    assert job.state == "cancelled"
    assert "stays" in job.message
    assert work.done < 3


def test_what_waits_is_given_up_at_once(jobs: Jobs) -> None:
    work = Steps(1)
    jobs.start("index", work)
    job = jobs.start("check", at_once)
    assert jobs.cancel(job.id).state == "cancelled"
    work.step()
    assert ended(jobs, jobs.start("check", at_once)).state == "done"
    assert jobs.get(job.id).state == "cancelled"


def test_a_failure_is_told_and_the_next_has_its_turn(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    def refused(_: Tell) -> Outcome:
        raise UsageError("No.", fix="Ask otherwise.")

    def broken(_: Tell) -> Outcome:
        raise StoreError("/home/me/album.qsplit is broken.")

    def defect(_: Tell) -> Outcome:
        raise ZeroDivisionError("/home/me")

    def panic(_: Tell) -> Outcome:
        raise BaseException("of a library that is written in Rust")

    found = [ended(jobs, jobs.start("index", work)) for work in (refused, broken, defect, panic, at_once)]
    assert [job.state for job in found] == ["failed", "failed", "failed", "failed", "done"]
    assert found[0].message == "No. Ask otherwise."
    assert not any("/home" in job.message for job in found), "paths are for the log"
    assert "album.qsplit is broken" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_what_has_ended_stays_so(jobs: Jobs) -> None:
    job = ended(jobs, jobs.start("index", at_once))
    for change in (jobs.pause, jobs.resume, jobs.cancel):
        with pytest.raises(UsageError, match="has ended: done"):
            change(job.id)
    with pytest.raises(NotFound, match="no job 'nothing'"):
        jobs.get("nothing")


def test_no_more_than_some_wait(jobs: Jobs) -> None:
    work = Steps(1)
    jobs.start("index", work)
    for _ in range(16):
        jobs.start("check", at_once)
    with pytest.raises(QueueFull, match="wait already"):
        jobs.start("check", at_once)
    work.step()


def test_the_oldest_are_forgotten(jobs: Jobs) -> None:
    found = [ended(jobs, jobs.start("index", at_once)) for _ in range(60)]
    told = {job.id for job in jobs.all()}
    assert found[-1].id in told
    assert found[0].id not in told


def test_closing_gives_up_everything() -> None:
    jobs, work = Jobs(), Steps()
    running, waiting = jobs.start("index", work), jobs.start("check", at_once)
    work.step()
    work._go.release()
    jobs.close(ENOUGH)
    assert [jobs.get(job.id).state for job in (running, waiting)] == ["cancelled", "cancelled"]
    with pytest.raises(NotReady):
        jobs.start("index", at_once)
    Jobs().close()
