"""Duplicates over HTTP: groups side by side, what a person says of them, and the way to the trash and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qsplit.duplicates.detector import KINDS, Group, Kind, Member, settled
from qsplit.duplicates.grouping import KnownGroups
from qsplit.duplicates.matching.comparison import Evidence
from qsplit.duplicates.move_rules import MOVED_KINDS
from qsplit.duplicates.trash import Moved
from qsplit.errors import NotFound, UsageError
from qsplit.server.api.timeline import Offset
from qsplit.server.service import Held, without_paths

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/duplicates", tags=["duplicates"])

_MOST = 10_000  # groups in one answer, or request


class Kept(BaseModel):
    """The file of a group that is kept."""

    id: str
    name: str


class MemberInfo(BaseModel):
    """A file of a group. ``file`` tells it from others of the same name; ``movable`` says that accepting moves it, and
    ``reason`` why not.
    """

    id: str
    name: str
    file: str
    score: float
    movable: bool
    reason: str | None
    width: int
    height: int
    bytes: int
    taken_at: datetime | None
    format: str
    evidence: Evidence | None


class GroupInfo(BaseModel):
    """Files that show one picture, the one to keep first."""

    id: str
    kind: Kind
    keep: Kept
    members: list[MemberInfo]


class Groups(BaseModel):
    """Groups, of ``total``; ``scanned_at`` is when pictures were last compared, null if they never were."""

    total: int
    scanned_at: datetime | None
    groups: list[GroupInfo]


class Decision(BaseModel):
    """The ids of two pictures."""

    model_config = ConfigDict(extra="forbid")

    one: str
    other: str


class Unwanted(BaseModel):
    """A file to move: the id of its picture, its name, and where several of a group have both, its ``file``."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: str
    file: str = ""


class Accepted(BaseModel):
    """Either whole groups, of which all that their kept file holds is moved, or one file to keep and others to move.

    Files of other ``kinds`` than those given are left: copies are moved only if ``copy`` is among them.
    """

    model_config = ConfigDict(extra="forbid")

    groups: list[str] = Field(default_factory=list, max_length=_MOST)
    keep: str = ""
    keep_file: str = ""
    trash: list[Unwanted] = Field(default_factory=list, max_length=_MOST)
    kinds: list[Kind] = Field(default_factory=lambda: list[Kind](MOVED_KINDS), max_length=len(KINDS))

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Accepted:
        if bool(self.groups) == bool(self.keep and self.trash):
            raise ValueError("give either groups, or keep and trash")
        return self


class Trashed(BaseModel):
    """What became of a file; one that was not ``moved`` lies where it was, for the ``reason`` given."""

    id: str
    name: str
    moved: bool
    reason: str | None


class Trash(BaseModel):
    """Every file that was to be moved."""

    moved: list[Trashed]


class BroughtBack(BaseModel):
    """What became of a file of the trash."""

    name: str
    restored: bool
    reason: str | None


class Restored(BaseModel):
    """Every file of the last move."""

    restored: list[BroughtBack]


@router.get("")
def list_groups(
    service: Held,
    kinds: Annotated[str, Query(description="Some of exact, pixels, copy, similar; all but similar if none.")] = "",
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = _MOST,
) -> Groups:
    """The groups that are known; a job of kind ``duplicates`` compares pictures that came later.

    Copies are movable only if ``kinds`` names them.
    """
    known = service.groups.of(service.album.store)
    wanted, moved = _kinds(kinds) or {*KINDS[:3]}, _kinds(kinds) or MOVED_KINDS
    found = [(key, group) for key, group in known.by_id.items() if group.kind in wanted]
    times = [when for when in (service.scanned_at, known.compared_at) if when]
    page = [
        _group_info(known, key, settled(group, known.images, moved)) for key, group in found[offset : offset + limit]
    ]
    return Groups(total=len(found), scanned_at=max(times, default=None), groups=page)


@router.post("/decisions", status_code=204)
def keep_apart(decision: Decision, service: Held) -> None:
    """Remember that two pictures are no duplicates, whatever is found later."""
    one, other = (service.picture(image_id).image.image_id for image_id in (decision.one, decision.other))
    service.album.decisions.keep_apart(one, other)


@router.delete("/decisions", status_code=204)
def let_together(one: str, other: str, service: Held) -> None:
    """Forget that two pictures, given by their ids, were said to be no duplicates."""
    one, other = (service.picture(image_id).image.image_id for image_id in (one, other))
    service.album.decisions.let_together(one, other)


@router.post("/trash")
def move_to_trash(accepted: Accepted, service: Held) -> Trash:
    """Move files to the system's trash; each file, and the one that is kept, must still be what was indexed."""
    with service.trashing:
        known = service.groups.of(service.album.store)
        groups = _whole(known, accepted.groups) if accepted.groups else [_chosen(known, accepted)]
        groups = [settled(group, known.images, accepted.kinds) for group in groups]
        moved = {one.path: one for one in service.album.trash.move(groups)}
    return Trash(moved=[_trashed(member, group, moved) for group in groups for member in group.members[1:]])


@router.post("/undo")
def undo(service: Held) -> Restored:
    """Bring back what was moved last."""
    with service.trashing:
        moved = service.album.trash.bring_back()
    return Restored(restored=[_brought_back(one) for one in moved])


def _kinds(text: str) -> set[str]:
    wanted = set(filter(None, text.split(",")))
    if not wanted <= set(KINDS):
        raise UsageError(f"There are no such kinds: {text!r}.", fix=f"Choose of {', '.join(KINDS)}.")
    return wanted


def _group_info(known: KnownGroups, key: str, group: Group) -> GroupInfo:
    keep = group.members[0]
    members = [_member_info(known, group, member) for member in group.members]
    return GroupInfo(id=key, kind=group.kind, keep=Kept(id=keep.id, name=Path(keep.path).name), members=members)


def _member_info(known: KnownGroups, group: Group, member: Member) -> MemberInfo:
    image = known.images[member.id]
    return MemberInfo(
        id=member.id,
        name=Path(member.path).name,
        file=_file(member),
        score=member.score,
        movable=member.movable,
        reason=_reason(member, group),
        width=image.width,
        height=image.height,
        bytes=known.files[member.path].size,
        taken_at=image.taken_at,
        format=image.format,
        evidence=member.evidence,
    )


def _file(member: Member) -> str:
    """What a file is called towards clients, who are not told where it lies."""
    return hashlib.sha256(member.path.encode()).hexdigest()[:12]


def _whole(known: KnownGroups, keys: Iterable[str]) -> list[Group]:
    """The groups of some ids. Raises `NotFound` for one that is not there, or no longer as it was shown."""
    for key in keys:
        if key not in known.by_id:
            raise NotFound(f"There is no group {key!r} by now.", fix="List the groups again.")
    return [known.by_id[key] for key in dict.fromkeys(keys)]


def _chosen(known: KnownGroups, accepted: Accepted) -> Group:
    """The file to keep, and those to move in its favour, all of one group; a person has looked at them."""
    for group in known.groups:
        if group.kind == "similar" or accepted.keep not in {member.id for member in group.members}:
            continue
        unwanted = _unwanted(group.members, accepted)
        others = (member for member in group.members if member not in unwanted)
        keep = next((one for one in others if _is(one, accepted.keep, accepted.keep_file)), None)
        if keep and len(unwanted) == len(accepted.trash):
            movable = (replace(one, movable=True, reason=None) for one in unwanted)
            return Group(group.kind, keep.path, (replace(keep, movable=False), *movable))
    raise NotFound("There is no group that holds these files by now.", fix="List the groups again.")


def _unwanted(members: Sequence[Member], accepted: Accepted) -> list[Member]:
    """The files to move, each once: of several that go by one id and name, the last, since the first is the best."""
    found: list[Member] = []
    for wanted in accepted.trash:
        left = (one for one in reversed(members) if one not in found and Path(one.path).name == wanted.name)
        member = next((one for one in left if _is(one, wanted.id, wanted.file)), None)
        found += [member] if member else []
    return found


def _is(member: Member, image_id: str, file: str) -> bool:
    return member.id == image_id and file in ("", _file(member))


def _trashed(member: Member, group: Group, moved: dict[str, Moved]) -> Trashed:
    one = moved.get(member.path)
    said = _reason(member if one is None else replace(member, reason=one.reason), group)
    is_moved = one is not None and one.state == "moved"
    return Trashed(id=member.id, name=Path(member.path).name, moved=is_moved, reason=said)


def _reason(member: Member, group: Group) -> str | None:
    return without_paths(member.reason, member.path, group.keep) if member.reason else None


def _brought_back(one: Moved) -> BroughtBack:
    reason = without_paths(one.reason, one.path, one.keep, one.trashed or "") if one.reason else None
    return BroughtBack(name=Path(one.path).name, restored=one.state == "restored", reason=reason)
