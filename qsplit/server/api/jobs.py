"""Long work over the API: indexing, preparing for search, looking for duplicates, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from qsplit.errors import UsageError
from qsplit.indexing.pipeline import IndexReport
from qsplit.progress import counting
from qsplit.qa.policy import Policy
from qsplit.server.api.checks import policy_named
from qsplit.server.job_queue import Failure, Job, Kind, Outcome, Tell, Work
from qsplit.server.service import Held, Service, without_paths
from qsplit.store.records import Skipped

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


class JobRequest(BaseModel):
    """The work to do.

    ``index`` looks through the folders that the service was started with, and the uploads; ``refresh`` encodes what the
    current model has not seen. Both make ``semantic`` vectors and ``captions`` if they are told to. ``check`` asks what
    a ``policy`` asks.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    policy: str = ""
    semantic: bool = False
    captions: bool = False


class Listed(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]


@router.get("")
def list_jobs(service: Held) -> Listed:
    """Every job since the service began, but for the oldest of many."""
    return Listed(jobs=service.jobs.all())


@router.post("", status_code=202)
def start(asked: JobRequest, service: Held) -> Job:
    """Begin a job, or have it wait until those before it have ended."""
    return service.jobs.start(asked.kind, _WORK[asked.kind](service, asked))


@router.get("/{job_id}")
def get(job_id: str, service: Held) -> Job:
    """One job."""
    return service.jobs.get(job_id)


@router.post("/{job_id}/pause")
def pause(job_id: str, service: Held) -> Job:
    """Hold a job at its next step."""
    return service.jobs.pause(job_id)


@router.post("/{job_id}/resume")
def resume(job_id: str, service: Held) -> Job:
    """Go on with a job that is held."""
    return service.jobs.resume(job_id)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, service: Held) -> Job:
    """Give a job up at its next step; what it has done stays."""
    return service.jobs.cancel(job_id)


def _index(service: Service, asked: JobRequest) -> Work:
    _check_halves(service, "vision", *_enriching(asked))

    def work(tell: Tell) -> Outcome:
        folders = [*service.options.folders, *filter(_is_there, [str(service.uploads.folder)])]
        gone = [Skipped(folder, "The folder is not there.") for folder in folders if not _is_there(folder)]
        there = list(filter(_is_there, folders))
        if not there:
            return Outcome("There is no folder to index.", _failures(gone))
        report = service.album.index(*there, semantic=asked.semantic, captions=asked.captions, on_progress=tell)
        return _outcome(report, gone)

    return work


def _refresh(service: Service, asked: JobRequest) -> Work:
    _check_halves(service, "vision", *_enriching(asked))

    def work(tell: Tell) -> Outcome:
        return _outcome(service.album.refresh(semantic=asked.semantic, captions=asked.captions, on_progress=tell))

    return work


def _duplicates(service: Service, _: JobRequest) -> Work:
    def work(tell: Tell) -> Outcome:
        groups = service.album.duplicates(on_progress=tell)
        service.scanned_at = datetime.now(UTC)
        return Outcome(f"{len(groups)} groups of duplicates.")

    return work


def _check(service: Service, asked: JobRequest) -> Work:
    _check_halves(service, "language")
    return partial(_checked, service, policy_named(asked.policy))


def _checked(service: Service, policy: Policy, tell: Tell) -> Outcome:
    verdicts, skipped, flagged = 0, [], set()
    for one in service.album.check(policy, on_progress=counting("pictures", tell)):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        verdicts += 1
        if one.flagged:
            flagged.add(one.id)
    return Outcome(f"{verdicts} answers; {len(flagged)} pictures are flagged.", _failures(skipped))


_WORK: Mapping[Kind, Callable[[Service, JobRequest], Work]] = {
    "index": _index,
    "refresh": _refresh,
    "duplicates": _duplicates,
    "check": _check,
}


def _enriching(asked: JobRequest) -> Sequence[str]:
    return ("language",) if asked.semantic or asked.captions else ()


def _check_halves(service: Service, *wanted: str) -> None:
    """Raise `UsageError` for work that takes a half of the model which this service is without."""
    for half in wanted:
        if service.options.role not in ("all", half):
            raise UsageError(f"This service has no {half} half.", fix=f"Ask the service that has the {half} half.")


def _is_there(folder: str) -> bool:
    return Path(folder).exists()


def _outcome(report: IndexReport, gone: Iterable[Skipped] = ()) -> Outcome:
    message = (
        f"{report.found} found: {report.encoded} encoded, {report.reused} reused, {report.unchanged} unchanged, "
        f"{report.missing} missing, {len(report.unreadable)} unreadable."
    )
    if report.semantic or report.captions:
        message += f" {report.semantic} semantic vectors and {report.captions} captions made."
    return Outcome(message, _failures([*gone, *report.unreadable, *report.unsearchable]))


def _failures(skipped: Iterable[Skipped]) -> tuple[Failure, ...]:
    return tuple(Failure(Path(one.path).name, without_paths(one.reason, one.path)) for one in skipped)
