"""What the pictures of a store are compared by: landmarks made of their thumbnails once and kept, and their tokens."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from qsplit.duplicates.matching import keypoints
from qsplit.duplicates.matching.comparison import Portrait
from qsplit.duplicates.matching.keypoints import BITS, Landmarks, find_landmarks
from qsplit.duplicates.matching.neighbors import Marks
from qsplit.duplicates.matching.token_matching import SAMPLE, TokenSpace
from qsplit.errors import CorruptStore, InvalidFeatures
from qsplit.features.features import Features
from qsplit.media.gray_planes import grey_plane
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import ImageRow, LandmarkRow, feature_key

__all__ = ["Portraits"]

_LOG = logging.getLogger(__name__)
_AT_ONCE = 500  # thumbnails read and looked at
_THREADS = 2
_KEPT = 2000  # portraits in memory: a third of a megabyte each
_AHEAD = 200  # pictures whose tokens are read at once


class Portraits:
    """The portraits of some pictures, given as pixels digest -> one of the images that have these pixels.

    Landmarks that the store lacks are made and, unless it is a snapshot, kept. ``encoder_id`` names whose tokens are
    compared; empty, none are.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: Mapping[str, ImageRow],
        encoder_id: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.digests = sorted(images)
        self.images = [images[digest] for digest in self.digests]
        self._store, self._encoder_id = store, encoder_id
        self._rows = self._look(on_progress)
        self._kept: OrderedDict[int, Portrait] = OrderedDict()
        self._space: TokenSpace | None = None

    def __len__(self) -> int:
        return len(self.digests)

    def landmarks(self, i: int) -> Landmarks:
        """The landmarks of a picture, by its number."""
        row = self._rows[self.digests[i]]
        return Landmarks.from_bytes(row.landmarks, row.width, row.height)

    def marks(self, numbers: Sequence[int], *, mirrored: bool = False) -> Marks:
        """The landmarks of some pictures together, with ``mirrored`` as they look in a mirror."""
        found = [self.landmarks(i) for i in numbers]
        if mirrored:
            found = [each.mirrored() for each in found]
        owners = np.repeat(np.array(numbers, np.intp), [len(each) for each in found])
        bits = np.concatenate([np.empty((0, BITS // 8), np.uint8), *(each.bits for each in found)])
        points = np.concatenate([np.empty((0, 4), np.float32), *(each.points for each in found)])
        return Marks(bits, points, owners)

    def vectors(self) -> npt.NDArray[np.float32] | None:
        """The pooled vectors, centred on the album and of length 1; zero for a picture that has none."""
        digests, held = self._store.pooled_vectors(self._encoder_id) if self._encoder_id else ([], np.empty((0, 0)))
        at = {digest: i for i, digest in enumerate(digests)}
        have = [digest in at for digest in self.digests]
        if not any(have):
            return None
        rows = held[[at.get(digest, 0) for digest in self.digests]]
        found = np.where(np.array(have)[:, None], rows - rows[have].mean(0), 0).astype(np.float32)
        centred: npt.NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return centred

    def fetch(self, numbers: Iterable[int]) -> dict[int, Portrait]:
        """The portraits of some pictures, with thumbnails and tokens."""
        wanted = sorted(set(numbers))
        missing = [i for i in wanted if i not in self._kept]
        for start in range(0, len(missing), _AHEAD):
            self._kept |= self._made(missing[start : start + _AHEAD])
        found = {i: self._kept[i] for i in wanted}
        for i in wanted:
            self._kept.move_to_end(i)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _made(self, numbers: Sequence[int]) -> dict[int, Portrait]:
        thumbnails = dict(self._store.thumbnails(self.images[i].image_id for i in numbers))
        features = self._features([self.digests[i] for i in numbers])
        made = {}
        for i in numbers:
            image, held = self.images[i], features.get(self.digests[i])
            plane = grey_plane(thumbnails[image.image_id], f"The thumbnail of {image.image_id}")
            grid = self._tokens().grid(held) if held is not None else None
            made[i] = Portrait(plane, self.landmarks(i), image.width, image.height, grid)
        return made

    def _tokens(self) -> TokenSpace:
        if self._space is None:
            sample = self._features(self.digests[:: 1 + len(self) // SAMPLE])  # by digest: as good as at random
            self._space = TokenSpace.fitted([sample[digest] for digest in sorted(sample)])
        return self._space

    def _features(self, digests: Sequence[str]) -> dict[str, Features]:
        """The features of some pictures, without those that have none or whose row is damaged."""
        if not self._encoder_id:
            return {}
        try:
            found = self._store.get_features(feature_key(digest, self._encoder_id) for digest in digests)
        except (CorruptStore, InvalidFeatures) as error:
            if len(digests) == 1:
                _LOG.warning("%s is compared without its tokens: %s", digests[0], error)
                return {}
            return {key: one for digest in digests for key, one in self._features([digest]).items()}
        return {key.partition(":")[0]: features for key, features in found.items()}

    def _look(self, on_progress: Callable[[int, int], None] | None) -> dict[str, LandmarkRow]:
        """The landmarks of all pictures; those that there are none of are made."""
        held = self._store.landmarks(keypoints.VERSION)
        found = {digest: held[digest] for digest in self.digests if digest in held}
        missing = [i for i, digest in enumerate(self.digests) if digest not in found]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            thumbnails = dict(self._store.thumbnails(self.images[i].image_id for i in some))
            with ThreadPoolExecutor(_THREADS) as pool:
                made = list(
                    pool.map(_looked_at, [(self.digests[i], thumbnails[self.images[i].image_id]) for i in some])
                )
            if not self._store.snapshot:
                self._store.put_landmarks(made)
            found |= {row.pixels_digest: row for row in made}
            if on_progress is not None:
                on_progress(start + len(some), len(missing))
        return found


def _looked_at(given: tuple[str, bytes]) -> LandmarkRow:
    digest, thumbnail = given
    found = find_landmarks(grey_plane(thumbnail, f"The thumbnail of a picture with the pixels {digest}"))
    return LandmarkRow(digest, keypoints.VERSION, found.width, found.height, found.to_bytes())
