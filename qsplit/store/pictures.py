"""What a store knows of its pictures, by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qsplit.errors import ImageError, NotFound
from qsplit.media.images import Limits, read_bytes
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture, by_prefix
from qsplit.store.records import FileRow, ImageRow

__all__ = ["Pictures"]


class Pictures:
    """Those of one album; a picture goes by its whole id, and no name is taken for a path."""

    def __init__(self, store: FeatureStore, limits: Limits) -> None:
        self._store, self._limits = store, limits

    def find(self, prefix: str) -> StoredPicture:
        """Find the only picture whose id begins so; raises `NotFound`, and `UsageError` where several do."""
        return by_prefix(self._store, prefix)

    def images(self, image_ids: Iterable[str]) -> dict[str, ImageRow]:
        """Map ids to what is known of their pictures; those that are not in the store are left out."""
        return self._store.images(image_ids)

    def files(self, image_id: str) -> list[FileRow]:
        """List the files that hold a picture, as they were when they were indexed."""
        paths = self._store.paths_of([image_id]).get(image_id, [])
        rows = self._store.files(paths)
        return [rows[path] for path in paths if path in rows]

    def captions(self, image_ids: Sequence[str]) -> dict[str, str | None]:
        """Map ids to captions, of the pictures that the last index's encoder has seen."""
        rows = self._store.vectors(self._store.settings().encoder).rows(image_ids, ["caption"])
        return {image_id: row["caption"] for image_id, row in rows.items()}

    def thumbnail(self, image_id: str) -> bytes:
        """Read a WebP of at most 256 pixels a side; raises `NotFound`."""
        return self._store.thumbnail(image_id)

    def content(self, image_id: str) -> bytes:
        """Read the bytes of a file that still holds a picture; raises `NotFound` where there is none."""
        for file in self.files(image_id):
            try:
                content = read_bytes(file.path, self._limits)
            except ImageError:
                continue
            if content.image_id == image_id:
                return content.data
        raise NotFound(f"No file of the picture {image_id[:12]} is left.", fix="Mount its drive, or index its folder.")
