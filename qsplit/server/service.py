"""What every route of a service shares: the album, how it may be used, and who takes turns on it."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from qsplit import bundled
from qsplit.album import Album
from qsplit.duplicates import grouping
from qsplit.duplicates.grouping import read_groups
from qsplit.errors import NotReady
from qsplit.maintenance.status import read_status
from qsplit.media.sandbox.decoder import Decoder
from qsplit.qa import check_results
from qsplit.qa.check_results import Checked, read_checked
from qsplit.qa.policy import read_policy
from qsplit.server.config import ServeOptions
from qsplit.server.engine.halves import Engine
from qsplit.server.engine.recent_features import Recent
from qsplit.server.job_queue import Jobs
from qsplit.server.middleware.metrics import Metrics
from qsplit.server.uploads.uploads import AT_ONCE, Uploads
from qsplit.store import timeline
from qsplit.store.derived_cache import Kept
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture
from qsplit.store.timeline import read_timeline

__all__ = ["Held", "Service", "name_of", "without_paths"]

_ASKING = 8  # requests that are prepared at a time


class Service:
    """One running service; routes get it as `Held`."""

    def __init__(self, album: Album, options: ServeOptions) -> None:
        self.album, self.options = album, options
        if options.role != "all":
            album.leave_out("language" if options.role == "vision" else "vision")
        self.metrics = Metrics()
        self.decoder = Decoder(options.max_pixels, options.max_upload_bytes)
        self.viewer = Decoder(album.limits.max_pixels, album.limits.max_bytes)  # of files that are the user's own
        self.engine = Engine(album, options)
        self.recent = Recent()
        self.metrics.watch(self.engine)
        self.uploads = Uploads(album, options, self.decoder, self.metrics)
        # Threads of their own, so that what waits for a half of the model keeps no other request waiting.
        self.upload_threads = CapacityLimiter(AT_ONCE)
        self.look_threads = CapacityLimiter(2 * AT_ONCE)  # of requests that bring new pictures
        self.chat_threads = CapacityLimiter(_ASKING)
        self.vector_threads = CapacityLimiter(_ASKING)  # of searches and embeddings
        self.health_threads = CapacityLimiter(2)
        self.jobs = Jobs()
        self.timeline = Kept(read_timeline, *timeline.TABLES)
        self.groups = Kept(read_groups, *grouping.TABLES)
        self.status = Kept(read_status)
        self.checked = {name: Kept(partial(self._check, name), *check_results.TABLES) for name in bundled.policies()}
        self.scanned_at: datetime | None = None  # when this process last looked for duplicates
        self.trashing = Lock()
        self.draining = False

    def start(self) -> None:
        """Before the first request: an album that is not there yet is begun."""
        if not self.album.exists and self.options.role != "language":
            self.album.begin()

    def close(self) -> None:
        """After the last request."""
        self.draining = True
        self.jobs.close()
        self.engine.close()
        self.uploads.close()

    def check_ready(self) -> None:
        """Raise what keeps the service from answering."""
        if self.draining:
            raise NotReady("This service is ending.")
        self.engine.check_alive()
        self.album.store.count("images")

    def picture(self, image_id: str) -> StoredPicture:
        """The picture with an id, or with the only id that begins so; never a path. Raises `NotFound`."""
        return self.album.pictures.find(image_id)

    def _check(self, policy: str, store: FeatureStore) -> Checked:
        return read_checked(store, self.album.answerer, read_policy(policy), self.timeline.of(store))


def name_of(picture: StoredPicture) -> str:
    """What a picture is called towards clients: its file's name, without where it lies; or the head of its id."""
    return Path(picture.path).name if picture.path else picture.image.image_id[:12]


def without_paths(text: str, *paths: str) -> str:
    """A text for clients, in which files go by their names."""
    for path in sorted(filter(None, paths), key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    return text


async def held(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Held = Annotated[Service, Depends(held)]
