"""Bytes that were sent in -> a picture of the album: decoded apart, kept in the uploads folder, encoded once."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore

from qsplit.album import Album
from qsplit.errors import ImageError, StoreError, UsageError
from qsplit.media.images import Picture
from qsplit.media.sandbox.decoder import Decoder
from qsplit.memory import give_back_freed_memory
from qsplit.server.config import ServeOptions
from qsplit.server.middleware.metrics import Metrics
from qsplit.store.compaction import tend
from qsplit.store.object_storage import is_remote

__all__ = ["AT_ONCE", "Upload", "Uploads"]

_LOG = logging.getLogger(__name__)

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}  # of others: the format's name

AT_ONCE = 2  # one is decoded while another is encoded
_LARGE = 4_000_000  # pixels
_KEPT = re.compile(r"[0-9a-f]{64}\.[a-z0-9]+")  # names of files that are put here
_TENDED = 64  # pictures after which their commits are joined: each makes the next a little slower


@dataclass(frozen=True, slots=True)
class Upload:
    """What became of a picture: ``known`` if it was there before, ``encoded`` if the vision half looked at it now.

    One that shows the same pixels as a known picture goes by the id of that.
    """

    id: str
    encoded: bool
    known: bool


class Uploads:
    """The folder of pictures that were sent in; one picture is added at a time."""

    def __init__(self, album: Album, options: ServeOptions, decoder: Decoder, metrics: Metrics) -> None:
        self._album, self._decoder, self._metrics = album, decoder, metrics
        beside = PurePosixPath(album.uri).name if is_remote(album.uri) else album.uri
        self.folder = Path(options.uploads or f"{beside}.uploads").absolute()
        self.are_taken = options.role != "language"
        self._encoder = ThreadPoolExecutor(1, "encode")  # one thread, whose freed memory the next picture uses
        self._turns = BoundedSemaphore(AT_ONCE)  # what waits to be encoded is held in pixels
        self._untended = 0

    def add(self, data: bytes) -> Upload:
        """Take a picture in; blocks until it is encoded. What is known costs neither encoding nor writing.

        Raises `ImageError` for what is no picture or too large, and `UsageError` where there is no vision half.
        """
        if image_id := self._album.known(hashlib.sha256(data).hexdigest()):
            return self._counted(Upload(image_id, encoded=False, known=True))
        if not self.are_taken:
            fix = "Send it to the service that has the vision half."
            raise UsageError("This service takes no new pictures: it has no vision half.", fix=fix)
        try:
            with self._turns:
                picture = self._decoder.picture(data)
                is_large = picture.width * picture.height > _LARGE
                upload = self._encoder.submit(self._add, picture, data).result()
                del picture
                if is_large:  # a service that was shown one would keep its hundreds of megabytes for the next
                    give_back_freed_memory()
                return self._counted(upload)
        except ImageError:
            self._metrics.uploads.labels("refused").inc()
            raise

    def remove(self, paths: list[str]) -> list[str]:
        """Delete those of some files that lie in this folder; which they were."""
        ours = [path for path in paths if Path(path).parent == self.folder and _KEPT.fullmatch(Path(path).name)]
        for path in ours:
            Path(path).unlink(missing_ok=True)
        return ours

    def close(self) -> None:
        """Wait for what is being encoded."""
        self._encoder.shutdown()

    def _add(self, picture: Picture, data: bytes) -> Upload:
        if image_id := self._album.known(pixels_digest=picture.pixels_digest):
            return Upload(image_id, encoded=False, known=True)
        path = self._keep(picture, data)
        try:
            encoded = self._album.add(picture, path)
        except ImageError:
            path.unlink()
            raise
        self._tend()
        return Upload(picture.image_id, encoded, known=False)

    def _tend(self) -> None:
        self._untended += 1
        if self._untended >= _TENDED:
            self._untended = 0
            try:
                tend(self._album.store)
            except StoreError as error:  # the picture is kept, and the next one need not fail for it
                _LOG.warning("Housekeeping after uploads failed: %s", error)
            give_back_freed_memory()  # joining commits reads what they hold

    def _keep(self, picture: Picture, data: bytes) -> Path:
        """The file, whole or not at all."""
        suffix = _SUFFIXES.get(picture.format, picture.format.lower())
        path = self.folder / f"{picture.image_id}.{suffix}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return path

    def _counted(self, upload: Upload) -> Upload:
        self._metrics.uploads.labels("known" if upload.known else "encoded" if upload.encoded else "reused").inc()
        return upload
