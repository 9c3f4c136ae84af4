"""Groups of duplicates -> all but the kept files in the trash, and back; the store is told either way."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from qsplit import user_data
from qsplit.duplicates import trash
from qsplit.duplicates.detector import Group
from qsplit.duplicates.move_rules import reason_to_stay
from qsplit.duplicates.trash import Moved, Wanted
from qsplit.errors import UsageError
from qsplit.store.feature_store import FeatureStore
from qsplit.store.object_storage import is_remote

__all__ = ["Trash", "bring_back", "movable", "move_to_trash"]

JOURNAL = "trash.journal"
_AT_ONCE = 10_000  # paths looked up in one query
_LOG = logging.getLogger(__name__)


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

    So does one that `qsplit.duplicates.move_rules` does not allow to be moved, as both files are at that moment.

    Raises `UsageError` for a snapshot. The journal lies in this user's own data folder, found by the store's id, and
    never in the store: whoever may write there has no say in what is brought back.
    """
    wanted = movable(groups)
    if not wanted and not _has_journal(store):
        return
    for one in trash.move(_journal(store), wanted, partial(_reason_to_stay, store)):
        if one.state == "moved":
            _tell(store, one, "missing")
        yield one


def _reason_to_stay(store: FeatureStore, one: Wanted) -> str | None:
    images = store.images([one.image_id, one.keep_id])
    taken_at = [images[image_id].taken_at if image_id in images else None for image_id in (one.image_id, one.keep_id)]
    return reason_to_stay(one.kind, one.path, one.keep, taken_at=(taken_at[0], taken_at[1]), kinds=[one.kind])


def bring_back(store: FeatureStore) -> Iterator[Moved]:
    """Undo the last `move_to_trash`: files that are still in the trash go back to where they were."""
    if not _has_journal(store):
        return
    for one in trash.undo(_journal(store)):
        if one.state == "restored":
            _tell(store, one, "ok")
        yield one


def _tell(store: FeatureStore, moved: Moved, state: Literal["ok", "missing"]) -> None:
    row = store.file(moved.path)
    if row is not None:
        store.put_files([replace(row, state=state)])


def _has_journal(store: FeatureStore) -> bool:
    """Whether files were ever moved from this store, so that there is something to undo or recover."""
    _check_current(store)
    known = bool(store.id) and os.path.lexists(user_data.store_folder(store.id) / JOURNAL)
    return known or os.path.lexists(_old_journal(store))


def _journal(store: FeatureStore) -> Path:
    """The path of this user's journal of the store, with what an older one holds of this user's files."""
    _check_current(store)
    journal = user_data.make_store_folder(store.identify()) / JOURNAL
    old = _old_journal(store)
    if is_remote(store.uri):
        trash.take_over(journal, old, old.parent.name)
        return journal

    def known(paths: Collection[str]) -> Collection[str]:
        wanted = sorted(paths)
        parts = (wanted[start : start + _AT_ONCE] for start in range(0, len(wanted), _AT_ONCE))
        return {path for part in parts for path in store.files(part)}

    try:
        refused = trash.adopt(journal, old, "store", known)
    except OSError as error:
        _LOG.warning("The journal %s of an earlier version cannot be read and is ignored: %s.", old, error.strerror)
        return journal
    if refused:
        _LOG.warning(
            "%d entries of the journal %s of an earlier version are ignored: their files are not in your trash.",
            refused,
            old,
        )
    return journal


def _old_journal(store: FeatureStore) -> Path:
    """Where the journal of a store lay in earlier versions. It is only read.

    Of a store on object storage it was this user's own; in a folder, anybody who may write there may have written it.
    """
    if is_remote(store.uri):
        name = hashlib.sha256(store.uri.encode()).hexdigest()[:16]
        return user_data.store_folder(name) / JOURNAL
    return Path(store.uri.removeprefix("file://")) / JOURNAL


def _check_current(store: FeatureStore) -> None:
    if store.snapshot:
        raise UsageError("A snapshot tells what was, and files are moved as they are now.", fix="Leave out --at.")


class Trash:
    """The system's trash, for the files of one album."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def move(self, groups: Iterable[Group]) -> list[Moved]:
        """Move all but the kept files of some groups there; see `move_to_trash`."""
        return list(self.move_each(groups))

    def move_each(self, groups: Iterable[Group]) -> Iterator[Moved]:
        """Move file by file; what is not reached stays where it is."""
        return move_to_trash(self._store, groups)

    def bring_back(self) -> list[Moved]:
        """Undo the last `move`."""
        return list(self.bring_back_each())

    def bring_back_each(self) -> Iterator[Moved]:
        """Undo it file by file."""
        return bring_back(self._store)
