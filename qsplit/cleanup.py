"""Groups of duplicates -> all but the kept files in the trash, and back; the store is told either way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from qsplit import trash
from qsplit.dedupe import Group
from qsplit.errors import UsageError
from qsplit.move_rules import reason_to_stay
from qsplit.objects import is_remote
from qsplit.store import FeatureStore
from qsplit.trash import Moved, Wanted

__all__ = ["bring_back", "movable", "move_to_trash"]

JOURNAL = "trash.journal"


def movable(groups: Iterable[Group]) -> list[Wanted]:
    """What `move_to_trash` would try to move: the members that are movable. Similar shots are never among them."""
    return [
        Wanted(member.path, member.id, group.kind, group.keep, group.members[0].id)
        for group in groups
        if group.kind != "similar"
        for member in group.members
        if member.movable and member.path != group.keep
    ]


def move_to_trash(store: FeatureStore, groups: Iterable[Group]) -> Iterator[Moved]:
    """Move files to the system's trash; one that is not what was indexed, or whose keeper is not, stays.

    So does one that `qsplit.move_rules` does not allow to be moved, as both files are at that moment.

    Raises `UsageError` for a snapshot. The journal lies beside the store's tables, or where they are on object storage,
    in this user's own data folder.
    """
    for one in trash.move(_journal(store), movable(groups), partial(_reason_to_stay, store)):
        if one.state == "moved":
            _tell(store, one, "missing")
        yield one


def _reason_to_stay(store: FeatureStore, one: Wanted) -> str | None:
    images = store.images([one.image_id, one.keep_id])
    taken_at = [images[image_id].taken_at if image_id in images else None for image_id in (one.image_id, one.keep_id)]
    return reason_to_stay(one.kind, one.path, one.keep, taken_at=(taken_at[0], taken_at[1]), kinds=[one.kind])


def bring_back(store: FeatureStore) -> Iterator[Moved]:
    """Undo the last `move_to_trash`: files that are still in the trash go back to where they were."""
    for one in trash.undo(_journal(store)):
        if one.state == "restored":
            _tell(store, one, "ok")
        yield one


def _tell(store: FeatureStore, moved: Moved, state: Literal["ok", "missing"]) -> None:
    row = store.file(moved.path)
    if row is not None:
        store.put_files([replace(row, state=state)])


def _journal(store: FeatureStore) -> Path:
    if store.snapshot:
        raise UsageError("A snapshot tells what was, and files are moved as they are now.", fix="Leave out --at.")
    if is_remote(store.uri):  # what is moved are files of this machine: here it is told where they went
        folder = trash.data_home() / "qsplit" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        folder = Path(store.uri.removeprefix("file://"))
    return folder / JOURNAL
