"""Policies, and what their checks found."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel

from qsplit import bundled
from qsplit.errors import NotFound, UsageError
from qsplit.qa.policy import Check, Policy, read_policy
from qsplit.server.api.timeline import Limit, Offset
from qsplit.server.service import Held

__all__ = ["policy_named", "router"]

router = APIRouter(prefix="/api/v1", tags=["checks"])


class PolicyInfo(BaseModel):
    """A policy, and what it asks."""

    name: str
    calibrate: bool
    checks: list[Check]


class Policies(BaseModel):
    """The policies that this service knows."""

    policies: list[PolicyInfo]


class ResultInfo(BaseModel):
    """What a check found of a picture; ``probability`` is the answer's."""

    id: str
    name: str
    check: str
    answer: str
    probability: float
    flagged: bool


class Results(BaseModel):
    """A page of the results of a policy, of ``total``, so many of them ``flagged``."""

    total: int
    flagged: int
    results: list[ResultInfo]


@router.get("/policies")
def list_policies() -> Policies:
    """The policies that come with qsplit."""
    found = map(policy_named, bundled.policies())
    return Policies(policies=[PolicyInfo(name=p.name, calibrate=p.calibrate, checks=list(p.checks)) for p in found])


@router.get("/checks/{policy}")
def list_results(policy: str, service: Held, offset: Offset = 0, limit: Limit = 100) -> Results:
    """What a policy's checks found of the pictures, flagged ones first; a job of kind ``check`` makes the checks."""
    name = policy_named(policy).name
    if service.options.role == "vision":
        fix = "Ask the service that has the language half."
        raise UsageError("Results are those of a language half, and this service has none.", fix=fix)
    found = service.checked[name].of(service.album.store)
    results = [
        ResultInfo(
            id=one.image_id,
            name=Path(one.path).name,
            check=one.check,
            answer=one.answer,
            probability=one.probability,
            flagged=one.flagged,
        )
        for one in found.page(offset, limit)
    ]
    return Results(total=len(found), flagged=found.flagged, results=results)


def policy_named(name: str) -> Policy:
    """A policy that comes with qsplit; never a file. Raises `NotFound`."""
    if name not in bundled.policies():
        raise NotFound(f"There is no policy {name!r}.", fix=f"Choose {', '.join(bundled.policies())}.")
    return read_policy(name)
