"""Keep a store small and undo what was done to it: forget, compact, snapshot, restore."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from qsplit.errors import CorruptStore, NotFound, UsageError
from qsplit.media.images import NULL_PIXELS
from qsplit.store import compaction
from qsplit.store.feature_store import FeatureStore, vectors_table
from qsplit.store.layout import check_removable

__all__ = [
    "GRACE",
    "Compacted",
    "Forgotten",
    "Orphans",
    "compact",
    "drop_old",
    "drop_snapshot",
    "find_orphans",
    "forget",
    "restore",
    "snapshot",
    "snapshots",
]

GRACE = timedelta(hours=1)  # what is younger may belong to a batch that is still being written


@dataclass(frozen=True, slots=True)
class Orphans:
    """Rows that nothing refers to, as an interrupted run leaves them: keys of features, image ids, keys of checks,
    of what was found about duplicates, and of ways in which no semantic vector is made any more.

    What a person said of duplicates is none of it: only `forget` removes that, as nothing could make it again.
    """

    features: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    comparisons: list[str] = field(default_factory=list)
    semantics: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(getattr(self, one.name)) for one in fields(self))


@dataclass(frozen=True, slots=True)
class Compacted:
    """What housekeeping did, or with ``dry_run`` would do: rows removed, fragments rewritten, bytes on disk."""

    orphans: Orphans
    fragments: int
    before: int
    after: int
    written: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed of some images, and the bytes on disk before and after."""

    images: int
    files: int
    features: int
    before: int
    after: int
    dry_run: bool


def forget(store: FeatureStore, image_ids: Iterable[str], *, dry_run: bool = False) -> Forgotten:
    """Remove images with all that the store holds of them, and give the room back.

    Features stay as long as another image has the same pixels; what a server put of the same patches goes, too. The
    pictures themselves are not touched, so the next
    index of their folder brings them back.
    """
    images = store.images()
    gone = {image_id: images[image_id] for image_id in image_ids if image_id in images}
    kept = {image.pixels_digest for image_id, image in images.items() if image_id not in gone}
    digests = {image.pixels_digest for image in gone.values()} - kept
    rows = store.column("features", "key", "pixels_digest", "shown")
    shown = {of for _, digest, of in rows if of and digest in digests}
    keys = [key for key, digest, of in rows if digest in digests or (digest == of and of in shown)]
    files = [path for path, image_id in store.column("files", "path", "image_id") if image_id in gone]
    before = store.bytes()["total"]
    if dry_run:
        return Forgotten(len(gone), len(files), len(keys), before, before - store.payload_bytes(keys), dry_run)
    check_removable(store.uri)
    store.remove("decisions", "key", [key for key, of in _decisions(store) if of & (digests | gone.keys())])
    store.remove("files", "path", files)
    checks = [key for key, digest in _checks(store) if digest in digests]
    comparisons = [key for key, of in _comparisons(store) if of & digests]
    _remove(store, Orphans(keys, list(gone), list(gone), checks, comparisons))
    compaction.give_back(store)
    return Forgotten(len(gone), len(files), len(keys), before, store.bytes()["total"], dry_run)


def drop_old(store: FeatureStore, encoder_id: str) -> Forgotten:
    """Remove what other encoders made of the pictures that this one has seen, and give the room back."""
    seen = store.encoded_pixels(encoder_id)
    rows = store.column("features", "key", "pixels_digest", "encoder_id")
    old = [key for key, digest, encoder in rows if encoder != encoder_id and digest in seen]
    images = [image_id for image_id, digest in store.column("images", "image_id", "pixels_digest") if digest in seen]
    before = store.bytes()["total"]
    check_removable(store.uri)
    for table in store.vector_tables():
        if table != vectors_table(encoder_id):
            store.remove(table, "image_id", images)
    store.remove("features", "key", old)
    compaction.give_back(store)
    return Forgotten(0, 0, len(old), before, store.bytes()["total"], dry_run=False)


def find_orphans(store: FeatureStore, *, grace: timedelta = GRACE, served_for: timedelta | None = None) -> Orphans:
    """Features that no image refers to, images that no file refers to, vectors without their image.

    What is younger than ``grace`` is left out: features are written before their images, and images before files.
    Features that a server put, of which there is no image, are kept for as long as ``served_for``, or for ever.
    """
    now = datetime.now(UTC)
    before, served_before = now - grace, None if served_for is None else now - served_for
    # Others may be writing: what is removed where something else is not there is read before that, or what is written
    # in between would seem to be an orphan.
    features = store.column("features", "key", "pixels_digest", "created_at", "shown")
    ways = store.column("semantics", "key", "created_at")
    held = [row for table in store.vector_tables() for row in store.column(table, "image_id", "semantic_id")]
    vectors, used = {image_id for image_id, _ in held}, {semantic_id for _, semantic_id in held}
    checks, comparisons = _checks(store), _comparisons(store)
    images = store.column("images", "image_id", "pixels_digest", "created_at")
    owned = {image_id for _, image_id in store.column("files", "path", "image_id")}
    stray = {image_id for image_id, _, made in images if image_id not in owned and made <= before}
    left = {image_id: digest for image_id, digest, _ in images if image_id not in stray}
    digests = {NULL_PIXELS, *left.values()}
    return Orphans(
        [
            key
            for key, digest, made, shown in features
            if digest not in digests
            and (until := served_before if shown == digest else before) is not None
            and made <= until
        ],
        sorted(stray),
        sorted(vectors - left.keys()),
        [key for key, digest in checks if digest not in digests],
        [key for key, of in comparisons if not of <= digests],
        [key for key, made in ways if key not in used and made <= before],
    )


def _checks(store: FeatureStore) -> list[tuple[str, str]]:
    """The key and the pixels digest of every result of a check."""
    return [(key, digest) for key, digest in store.column("checks", "key", "pixels_digest")]


def _comparisons(store: FeatureStore) -> list[tuple[str, set[str]]]:
    """The key of every row that was found about duplicates, and the pixels digests that it is of."""
    of_one = (row for table in ("landmarks", "compared") for row in store.column(table, "key", "pixels_digest"))
    return [(key, set(of)) for rows in (of_one, store.column("pairs", "key", "one", "other")) for key, *of in rows]


def _decisions(store: FeatureStore) -> list[tuple[str, set[str]]]:
    """The key of every row that a person said about duplicates, and the pixels digests or image ids that it is of."""
    return [(key, {one, other}) for key, one, other in store.column("decisions", "key", "one", "other")]


def compact(
    store: FeatureStore, *, dry_run: bool = False, alone: bool = False, served_for: timedelta | None = None
) -> Compacted:
    """Remove orphans, rewrite what is largely gone, join what is in too many pieces, drop versions without a name.

    What a server put is an orphan when it is older than ``served_for``.
    ``alone`` is the word of the caller that nobody else writes: then also what an interrupted write left a minute ago
    goes, rows and files; otherwise rows stay for an hour and files for a week.
    """
    before = store.bytes()["total"]
    orphans = find_orphans(store, grace=timedelta(0) if alone else GRACE, served_for=served_for)
    if dry_run:
        fragments, old = compaction.foreseen(store, unverified=alone)
        freed = store.payload_bytes(orphans.features) + old
        return Compacted(orphans, fragments, before, before - freed, 0, dry_run)
    check_removable(store.uri)
    _remove(store, orphans)
    fragments, written = compaction.give_back(store, unverified=alone)
    return Compacted(orphans, fragments, before, store.bytes()["total"], written, dry_run)


def _remove(store: FeatureStore, rows: Orphans) -> None:
    """What refers goes before what is referred to, so that whatever a crash leaves is an orphan."""
    for table in store.vector_tables():
        store.remove(table, "image_id", rows.vectors)
    store.remove("checks", "key", rows.checks)
    store.remove("semantics", "key", rows.semantics)
    for table in ("compared", "pairs", "landmarks"):
        if rows.comparisons and table in store.tables():
            store.remove(table, "key", rows.comparisons)
    store.remove("images", "image_id", rows.images)
    store.remove("features", "key", rows.features)


# --- snapshots ---


def snapshot(store: FeatureStore, name: str) -> None:
    """Keep the store as it is now under a name, beside what it becomes.

    Raises `UsageError` for a name that is taken or that no tag can have.
    """
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or not name[0].isalnum():
        raise UsageError(f"{name!r} is no name for a snapshot.", fix="Use letters, digits, - _ and .")
    if name in store.snapshots():
        raise UsageError(f"There is a snapshot {name!r} already.", fix="Choose another name, or delete it first.")
    # Files first: what a file refers to was written before it, so the later a table is read, the more it holds.
    versions = {table: store.lance(table).version for table in reversed(store.tables())}
    for table in store.tables():  # and files last: a snapshot without its files is none
        store.commit(table, partial(_tag, store, table, name, versions[table]), f"The snapshot {name}")


def snapshots(store: FeatureStore) -> dict[str, datetime]:
    """Name -> when the files of the snapshot were last written, oldest first."""
    times = {one["version"]: one["timestamp"].astimezone(UTC) for one in store.lance("files").versions()}
    named = {name: times[version] for name, version in store.snapshots().items()}
    return dict(sorted(named.items(), key=lambda item: item[1]))


def drop_snapshot(store: FeatureStore, name: str) -> None:
    """Let go of a snapshot; `compact` then gives its room back."""
    _check_known(store, name)
    check_removable(store.uri)
    for table in reversed(store.tables()):
        found = store.lance(table)
        if name in found.tags.list():
            found.tags.delete(name)


def restore(store: FeatureStore, name: str) -> None:
    """Make the store what it was at a snapshot. What came later stays as older versions until `compact`.

    A crash on the way leaves files whose images or features are gone or not yet there: restore again, or index.
    """
    _check_known(store, name)
    identifier = _identifier(store)  # stays, also if the snapshot is of before there was one
    for table in store.tables():
        found = store.lance(table)
        if name not in found.tags.list():
            store.clear(table)  # younger than the snapshot
            continue
        keep = identifier if table == "files" else ""
        store.commit(table, partial(_restore, store, found, name, keep), f"Restoring {table} of {store.uri}")
    store.reopen()  # what was restored may be of an older layout


def _identifier(store: FeatureStore) -> str:
    try:
        return store.id
    except CorruptStore:  # to restore is what mends it
        return ""


def _restore(store: FeatureStore, table: Any, name: str, identifier: str) -> None:
    table.checkout_version(name).restore()
    if identifier:
        store.write_id(identifier)


def _check_known(store: FeatureStore, name: str) -> None:
    if name not in store.snapshots():
        raise NotFound(f"{store.uri} has no snapshot {name!r}.", fix="`qsplit snapshot` lists them.")


def _tag(store: FeatureStore, of: str, name: str, version: int) -> None:
    table = store.lance(of)
    if name in table.tags.list():  # of a snapshot that was cut off
        table.tags.update(name, version)
    else:
        table.tags.create(name, version)
