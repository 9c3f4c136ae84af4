"""What a user calls a picture -> the picture that the store knows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qsplit.errors import NotFound, NotIndexed, UsageError
from qsplit.media.images import Limits, read_bytes
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, ImageRow

__all__ = ["StoredPicture", "absolute", "by_prefix", "everything", "is_text", "locate"]

_ID = re.compile(r"[0-9a-f]{64}")
_ID_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """An image of the store, and the path it goes by (None if no file of it is left)."""

    image: ImageRow
    path: str | None


def is_text(path: str) -> bool:
    """Whether the store can keep a path: Linux file names are bytes, and some are no UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in path)


def absolute(path: str | os.PathLike[str]) -> str:
    """The form in which the store keeps paths: absolute, ``~`` expanded, symbolic links left as they are."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  # Path.resolve would follow links


def locate(store: FeatureStore, name: str | os.PathLike[str], limits: Limits) -> StoredPicture:
    """Find a picture by its path, by the end of a path that was indexed, or by an id prefix of at least 6 digits.

    A file that was moved or copied is found by its content; one that was changed in place is not what was indexed.
    Raises `NotIndexed`, `NotFound`, and `UsageError` for a name that fits several pictures.
    """
    if _ID.fullmatch(str(name)) and store.images([str(name)]):  # whoever has a whole id need not wait for all paths
        return _by_id(store, str(name), None)
    path = absolute(name)
    if os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises for a name that is too long
        return _by_content(store, path, limits)
    known = store.files()
    if path in known and known[path].image_id:
        return _by_id(store, str(known[path].image_id), path)
    ending = [row for row in known.values() if row.image_id and _ends_with(row.path, str(name))]
    if ending:
        return _only(store, str(name), ending)
    if _ID_PREFIX.fullmatch(str(name)):
        return by_prefix(store, str(name))
    raise NotFound(f"There is no picture {str(name)!r}, neither as a file nor in the store.")


def everything(store: FeatureStore) -> list[StoredPicture]:
    """Every image of the store, by path; those of which no file is left come last."""
    # Of all paths at once: to ask for those of so many images would be one filter of all their ids.
    paths = {row.image_id: path for path, row in sorted(store.files().items(), reverse=True) if row.state == "ok"}
    found = [StoredPicture(image, paths.get(image_id)) for image_id, image in store.images().items()]
    return sorted(found, key=lambda picture: (picture.path is None, picture.path or picture.image.image_id))


def _by_content(store: FeatureStore, path: str, limits: Limits) -> StoredPicture:
    stat = Path(path).stat()
    row = store.file(path) if is_text(path) else None
    if row and row.image_id and row.has(stat.st_size, stat.st_mtime_ns):
        return _by_id(store, row.image_id, path)
    image_id = read_bytes(path, limits).image_id
    if not store.images([image_id]):
        raise NotIndexed(f"{path} is not in the store.", fix=f"Run `qsplit index {path}`.")
    return _by_id(store, image_id, path)


def _ends_with(path: str, name: str) -> bool:
    """Whether a known path ends in what the user typed; a name that says where it begins has no other place."""
    ending = os.path.normpath(name)
    return not ending.startswith(("/", "..", "~")) and path.endswith(f"/{ending}")


def _only(store: FeatureStore, name: str, rows: list[FileRow]) -> StoredPicture:
    ids = {str(row.image_id) for row in rows}
    if len(ids) > 1:
        paths = ", ".join(sorted(row.path for row in rows)[:3])
        raise UsageError(f"{name!r} fits {len(ids)} pictures: {paths}.", fix="Give more of the path, or an id.")
    best = min(rows, key=lambda row: (row.state != "ok", row.path))
    return _by_id(store, ids.pop(), best.path)


def by_prefix(store: FeatureStore, prefix: str) -> StoredPicture:
    """The only picture whose id begins so, with at least 6 digits; whatever else is typed is no path here.

    Raises `NotFound`, and `UsageError` for digits that fit several pictures.
    """
    if not _ID_PREFIX.fullmatch(prefix):
        raise NotFound(f"{prefix!r} is no image id.", fix="Give 6 to 64 hexadecimal digits.")
    ids = store.image_ids_with_prefix(prefix)
    if not ids:
        raise NotFound(f"No image id in the store begins with {prefix}.")
    if len(ids) > 1:
        raise UsageError(f"{len(ids)} image ids begin with {prefix}.", fix="Give more digits.")
    return _by_id(store, ids[0], None)


def _by_id(store: FeatureStore, image_id: str, path: str | None) -> StoredPicture:
    image = store.images([image_id]).get(image_id)
    if image is None:
        raise NotIndexed(f"{path or image_id} is not in the store.", fix=f"Run `qsplit index {path or 'PATH'}`.")
    if path is None:
        path = next(iter(store.paths_of([image_id]).get(image_id, ())), None)
    return StoredPicture(image, path)
