"""Groups of files that show the same picture, with the evidence and the one to keep.

Four kinds, never mixed: ``exact`` (the same bytes), ``pixels`` (other bytes, the same decoded and oriented pixels),
``copy`` (re-encoded, resized, cropped, bordered, recoloured, written on, turned, put into another picture) and
``similar`` (shots of one burst or scene, which are no copies). Every member matches the one to keep, so that a chain of
small steps never joins two different pictures.

What was found of two pictures is kept in the store by their pixels: a new picture is compared with the album, and the
album not with itself again. So is what a person says: see `keep_apart`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Literal

import numpy as np
from joblib import Parallel, cpu_count, delayed

from qsplit.duplicates.candidates import BURST, Candidate, candidates
from qsplit.duplicates.descriptors import Portraits
from qsplit.duplicates.keep_rules import KeepOrder, Kept
from qsplit.duplicates.matching import comparison as comparing
from qsplit.duplicates.matching import keypoints
from qsplit.duplicates.matching.comparison import COPY, Comparison, Evidence, compare
from qsplit.duplicates.move_rules import MOVED_KINDS, reason_to_stay
from qsplit.errors import NotFound, UsageError
from qsplit.progress import Progress, counting
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import ComparedRow, DecisionRow, FileRow, ImageRow, PairRow

__all__ = [
    "KINDS",
    "Group",
    "Kind",
    "Member",
    "Pairs",
    "Step",
    "compare_all",
    "find_duplicates",
    "grouped",
    "keep_apart",
    "known_pairs",
    "settled",
]

Kind = Literal["exact", "pixels", "copy", "similar"]
KINDS: tuple[Kind, ...] = ("exact", "pixels", "copy", "similar")

_AT_ONCE = 1000  # pairs compared between two commits
_MANY = 300  # pairs that are worth processes of their own: ten seconds of one
_NEAR = 0.6  # cosine of centred vectors, for similar shots
_CLOCKS = timedelta(minutes=15)  # by whole multiples of which a clock that was set wrong is put right
_PART = 0.9  # of a picture: what another holds at least that much of is a part of it
_HELD = 0.75  # of a file, at least, must be in the one that is kept, or --trash leaves it
_PLAIN = 0.2  # of what lies around a picture: less texture is a border
_DETAIL = 0.9  # and in at least so much detail, by length


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a group. ``score`` is its likeness to the one to keep, 1 at best, and ``evidence`` why, where bytes
    or pixels do not say it. ``movable`` says that the file may go to the trash: its kind is one that is moved, the kept
    file holds what this one shows, in no less detail, and `qsplit.duplicates.move_rules` allows it; ``reason`` says why
    not.
    """

    id: str
    path: str
    score: float
    movable: bool
    evidence: Evidence | None = field(default=None)
    reason: str | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Group:
    """Files that show one picture; ``keep`` is the path of the best, which is the first member."""

    kind: Kind
    keep: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """What was found of two pictures, from the one's side."""

    kind: Kind
    score: float
    evidence: Evidence


Pairs = Mapping[str, Mapping[str, _Pair]]


@dataclass(frozen=True, slots=True)
class Step:
    """Some pairs of which something was found, and the fresh pictures, by number, of which no pair is left."""

    pairs: list[tuple[Candidate, Comparison]] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)


def find_duplicates(
    store: FeatureStore,
    *,
    kinds: Collection[Kind] = KINDS[:3],
    moved: Collection[str] = MOVED_KINDS,
    order: KeepOrder | None = None,
    mirrored: bool = False,
    encoder_id: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Group]:
    """Every group of the given kinds, in the order of `KINDS`; pictures that are new are compared first.

    ``moved`` are the kinds of which files are movable, ``order`` decides which is kept, ``mirrored`` also finds copies
    in a mirror, ``encoder_id`` names whose vectors and tokens are compared: empty, those of the last index.
    ``on_progress`` is told of pictures looked at, and then of pairs that were compared.
    """
    images = store.images()
    files = [row for row in store.files().values() if row.state == "ok" and row.image_id in images]
    pairs: Pairs = {}
    if {"copy", "similar"} & set(kinds):
        encoder_id = encoder_id or store.settings().encoder
        pairs = _pairs(store, _distinct(files, images), encoder_id, mirrored=mirrored, on_progress=on_progress)
    groups = grouped(store.decisions(), files, images, pairs, kinds, order or KeepOrder())
    return [settled(group, images, moved) for group in groups]


def known_pairs(store: FeatureStore) -> Pairs:
    """What was found of pictures that were compared before, by the vectors and tokens of the last index."""
    return _both_ways(store.pairs(_made(store.settings().encoder, mirrored=False)))


def grouped(
    apart: Collection[tuple[str, str]],
    files: Iterable[FileRow],
    images: Mapping[str, ImageRow],
    pairs: Pairs,
    kinds: Collection[Kind],
    order: KeepOrder,
) -> list[Group]:
    """The groups of some files, by what was found of their pictures and what a person said (``apart``).

    No file is read: what is movable so far is for `settled` to decide.
    """
    found = sorted((_kept(row, images, pairs) for row in files), key=order.rank)
    by_id = _grouped(found, "image_id")
    by_pixels = _grouped([same[0] for same in by_id], "pixels_digest")
    single = [same[0] for same in by_pixels]
    groups = {
        "exact": lambda: _same("exact", by_id, order, set()),
        "pixels": lambda: _same("pixels", by_pixels, order, apart),
        "copy": lambda: _alike("copy", single, pairs, order, apart),
        "similar": lambda: _alike("similar", single, pairs, order, apart),
    }
    return [group for kind in KINDS if kind in kinds for group in groups[kind]()]


def settled(group: Group, images: Mapping[str, ImageRow], moved: Collection[str]) -> Group:
    """Return a group of which a member stays movable only if `qsplit.duplicates.move_rules` allows it, as files are
    now.

    Args:
        group: one of `grouped`.
        images: image id -> what the store knows, of every member.
        moved: the kinds of which files are to be moved.
    """
    keep, *others = group.members
    members = (_settled(group, one, images, moved) for one in others)
    return replace(group, members=(keep, *members))


def _settled(group: Group, one: Member, images: Mapping[str, ImageRow], moved: Collection[str]) -> Member:
    if not one.movable:
        return one
    taken_at = images[one.id].taken_at, images[group.members[0].id].taken_at
    reason = reason_to_stay(group.kind, one.path, group.keep, taken_at=taken_at, kinds=moved)
    return replace(one, movable=reason is None, reason=reason)


def keep_apart(store: FeatureStore, one: ImageRow, other: ImageRow) -> None:
    """Remember that two pictures are no duplicates, whatever files they are found in and whatever model looks.

    Raises `UsageError` for two files of the same bytes, which nothing tells apart.
    """
    if one.image_id == other.image_id:
        raise UsageError(
            f"Both are the image {one.image_id[:12]}: the same bytes.",
            fix="To keep several files of them, use `--protect` on their folder.",
        )
    store.put_decisions([DecisionRow(*_apart(one, other))])


def let_together(store: FeatureStore, one: ImageRow, other: ImageRow) -> None:
    """Forget that two pictures were said to be no duplicates. Raises `NotFound` where nobody said so."""
    said = DecisionRow(*_apart(one, other)).key
    if "decisions" not in store.tables() or not store.remove("decisions", "key", [said]):
        raise NotFound(
            f"Nobody said that {one.image_id[:12]} and {other.image_id[:12]} are no duplicates.",
            fix="Say so with `qsplit duplicates --not A B`.",
        )


def _apart(one: ImageRow, other: ImageRow) -> tuple[str, str]:
    """What a decision on two pictures is kept under."""
    by_pixels = one.pixels_digest != other.pixels_digest
    a, b = sorted((each.pixels_digest if by_pixels else each.image_id) for each in (one, other))
    return a, b


# Comparing


def _distinct(files: Iterable[FileRow], images: Mapping[str, ImageRow]) -> dict[str, ImageRow]:
    """One image of each different picture that has a file; of videos and blank pictures there is nothing to compare."""
    ids = sorted({str(row.image_id) for row in files})
    return {images[i].pixels_digest: images[i] for i in reversed(ids) if images[i].detail > 0}


def _pairs(
    store: FeatureStore,
    images: Mapping[str, ImageRow],
    encoder_id: str,
    *,
    mirrored: bool,
    on_progress: Callable[[Progress], None] | None,
) -> Pairs:
    """Pixels digest -> pixels digest -> what was found; what is new is compared, and unless it is a snapshot, kept."""
    made = _made(encoder_id, mirrored=mirrored)
    known = store.compared(made)
    rows = store.pairs(made)
    if images.keys() - known:
        portraits = Portraits(store, images, encoder_id, counting("pictures", on_progress))
        fresh = [i for i, digest in enumerate(portraits.digests) if digest not in known]
        tell = counting("pairs", on_progress)
        for step in compare_all(portraits, fresh, mirrored=mirrored, on_progress=tell):
            found = [
                _row(portraits, candidate, kind, comparison, made)
                for candidate, comparison in step.pairs
                if (kind := _kind(portraits, candidate, comparison))
            ]
            if not store.snapshot:  # whoever stops a long run goes on behind the last step
                store.put_pairs(found, [ComparedRow(portraits.digests[i], made) for i in step.pictures])
            rows += found
    return _both_ways(rows)


def _made(encoder_id: str, *, mirrored: bool) -> str:
    """The name of a way of comparing."""
    return f"{keypoints.VERSION}.{comparing.VERSION}:{encoder_id[:12]}{':mirrored' if mirrored else ''}"


def compare_all(
    portraits: Portraits,
    fresh: Sequence[int],
    *,
    mirrored: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Step]:
    """Every pair worth comparing of which one picture, by its number, is fresh: all that anything speaks for.

    Many are compared by a process for each core: of what this takes, numpy keeps the interpreter to itself for most.
    """
    new, left = set(fresh), deque(sorted(fresh))

    def first(candidate: Candidate) -> int:
        return candidate.one if candidate.one in new else candidate.other

    wanted = sorted(candidates(portraits, np.array(fresh, np.intp), mirrored=mirrored), key=first)
    with Parallel(cpu_count() if len(wanted) >= _MANY else 1, return_as="generator", max_nbytes=None) as in_turn:
        for start in range(0, max(1, len(wanted)), _AT_ONCE):
            end = start + _AT_ONCE
            some, after = wanted[start:end], wanted[end : end + 1]
            held = portraits.fetch({i for one in some for i in (one.one, one.other)})
            found = in_turn(delayed(compare)(held[one.one], held[one.other], mirror=one.mirrored) for one in some)
            step = Step()
            for number, (one, comparison) in enumerate(zip(some, found, strict=True), start + 1):
                if comparison is not None:
                    step.pairs.append((one, comparison))
                if on_progress is not None:
                    on_progress(number, len(wanted))
            while left and (not after or left[0] < first(after[0])):
                step.pictures.append(left.popleft())
            yield step


def _kind(portraits: Portraits, candidate: Candidate, found: Comparison) -> Literal["copy", "similar"] | None:
    """Two exposures are similar shots at most, however alike: their cameras tell when each was made."""
    times = [portraits.images[i].taken_at for i in (candidate.one, candidate.other)]
    between = abs(times[0] - times[1]) if times[0] and times[1] else None
    if found.score >= COPY and (between is None or between % _CLOCKS == timedelta(0)):
        return "copy"
    if between is not None and between > BURST:
        return None
    near = candidate.cosine >= _NEAR and between is not None
    return "similar" if near or found.same_scene or found.score >= COPY else None


def _row(
    portraits: Portraits, candidate: Candidate, kind: Literal["copy", "similar"], found: Comparison, made: str
) -> PairRow:
    one, other = portraits.digests[candidate.one], portraits.digests[candidate.other]
    return PairRow(one, other, made, kind, found.score, json.dumps(asdict(found.evidence)))


def _both_ways(rows: Iterable[PairRow]) -> dict[str, dict[str, _Pair]]:
    """Each pair from both sides; of a picture that was found plain and in a mirror, the surer."""
    pairs: dict[str, dict[str, _Pair]] = {}
    for row in sorted(rows, key=lambda row: (row.kind != "copy", -row.score)):
        evidence = Evidence(**json.loads(row.evidence))
        pair = _Pair("copy" if row.kind == "copy" else "similar", row.score, evidence)
        pairs.setdefault(row.one, {}).setdefault(row.other, pair)
        pairs.setdefault(row.other, {}).setdefault(row.one, replace(pair, evidence=evidence.turned_round()))
    return pairs


# Grouping


def _kept(row: FileRow, images: Mapping[str, ImageRow], pairs: Pairs) -> Kept:
    image = images[str(row.image_id)]
    copies = (pair.evidence for pair in pairs.get(image.pixels_digest, {}).values() if pair.kind == "copy")
    return Kept(image, row.path, row.size, whole=not any(map(_is_derived, copies)))


def _is_derived(evidence: Evidence) -> bool:
    """Whether the first picture is a crop of the second, or the second, perhaps in smaller, with something around."""
    inside = evidence.covers >= _PART > evidence.covered
    around = evidence.covered >= _PART > evidence.covers
    crop = inside and evidence.scale >= _DETAIL and evidence.beyond_other >= _PLAIN
    return crop or (around and (evidence.scale > 1 / _DETAIL or evidence.beyond < _PLAIN))


def _grouped(files: Iterable[Kept], key: str) -> list[list[Kept]]:
    """Files that agree in one field of their image, the order kept."""
    groups: dict[str, list[Kept]] = {}
    for one in files:
        groups.setdefault(getattr(one.image, key), []).append(one)
    return list(groups.values())


def _same(
    kind: Kind, grouped: Iterable[Sequence[Kept]], order: KeepOrder, apart: Collection[tuple[str, str]]
) -> Iterator[Group]:
    for same in grouped:
        left = list(same)
        while left:  # once, unless somebody said that some of them are no duplicates
            keep, *others = left
            taken = others if kind == "exact" else _together(keep, others, apart)
            left = [one for one in others if one not in taken]
            if taken:
                members = (
                    _unless_protected(Member(one.image.image_id, one.path, 1.0, movable=True), order) for one in taken
                )
                yield Group(kind, keep.path, (_first(keep), *members))


def _alike(
    kind: Kind, files: Sequence[Kept], pairs: Pairs, order: KeepOrder, apart: Collection[tuple[str, str]]
) -> Iterator[Group]:
    """Each file in order takes every later one that matches it and is not yet taken, the most alike first."""
    by_digest = {one.image.pixels_digest: one for one in files}
    taken: set[str] = set()
    for keep in files:
        digest = keep.image.pixels_digest
        if digest in taken:
            continue
        taken.add(digest)
        near = [
            (pair, by_digest[other])
            for other, pair in pairs.get(digest, {}).items()
            if pair.kind == kind and other in by_digest and other not in taken
        ]
        near.sort(key=lambda found: (-found[0].score, found[1].path))
        chosen = _together(keep, [one for _, one in near], apart)
        near = [(pair, one) for pair, one in near if one in chosen]
        if near:
            taken |= {one.image.pixels_digest for _, one in near}
            yield Group(kind, keep.path, (_first(keep), *(_member(one, pair, order) for pair, one in near)))


def _together(keep: Kept, others: Iterable[Kept], apart: Collection[tuple[str, str]]) -> list[Kept]:
    """Those of the others, in their order, that nobody said to be no duplicates of any that are taken before."""
    taken = [keep]
    for one in others:
        if not any(_apart(each.image, one.image) in apart for each in taken):
            taken.append(one)
    return taken[1:]


def _first(keep: Kept) -> Member:
    return Member(keep.image.image_id, keep.path, 1.0, movable=False)


def _member(one: Kept, pair: _Pair, order: KeepOrder) -> Member:
    evidence = pair.evidence  # the first is the one that is kept
    whole = evidence.covered >= _HELD or (evidence.covers >= _PART and evidence.beyond_other < _PLAIN)
    holds = whole and evidence.scale <= 1 / _DETAIL
    reason = None if holds else "The file to keep does not hold all that this one shows."
    member = Member(one.image.image_id, one.path, pair.score, holds, evidence, reason)
    return _unless_protected(member, order)


def _unless_protected(member: Member, order: KeepOrder) -> Member:
    if not order.is_protected(member.path):
        return member
    return replace(member, movable=False, reason="It lies in a protected folder.")
