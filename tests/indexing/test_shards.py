"""Shards that many encode and one joins end in the rows of a plain run, whatever is cut off between."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event, Lock, Semaphore
from typing import Any

import pytest
from archives import png, write_tar
from held import album_of, held
from patience import PATIENCE
from pictures import dated, year

from qsplit.album import Album
from qsplit.cluster.index import _changed, _missing
from qsplit.errors import NotFound
from qsplit.indexing import pipeline
from qsplit.indexing.shards import QUARANTINED, Joiner, Shard, cut, encode_shard
from qsplit.indexing.sources import Entry, find
from qsplit.maintenance.garbage import find_orphans
from qsplit.media.images import SUFFIXES, Limits
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import Apart, FileRow
from qsplit.store.shard_log import Done, Notes, Trial

PICTURES = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, one of them twice, and a file that is none."""
    made = tmp_path / "pictures"
    made.mkdir()
    for seed in range(PICTURES):
        (made / f"{seed}.png").write_bytes(png(seed))
    shutil.copy(made / "0.png", made / "again.png")
    (made / "broken.png").write_bytes(b"nothing")
    return made


class Cluster:
    """An album, and shards of three files for it."""

    def __init__(self, uri: Path, vision: VisionEncoder) -> None:
        self.album, self.vision = album_of(str(uri), vision), vision
        self.album.begin()
        self.store = self.album.store

    def shards(self, folder: Path) -> list[Shard]:
        return list(cut(find([str(folder)], suffixes=SUFFIXES), at_most=3))

    def encode(self, shard: Shard, **options: Any) -> Done:
        return encode_shard(
            self.store,
            shard,
            self.vision.encoder,
            lambda: self.vision,
            limits=self.album.limits,
            codec="raw",
            suffixes=SUFFIXES,
            **options,
        )

    def join(self) -> list[Done]:
        return list(Joiner(self.store, "job").join_known())


@pytest.fixture
def cluster(tmp_path: Path, mini_vision: VisionEncoder) -> Cluster:
    return Cluster(tmp_path / "cluster.qsplit", mini_vision)


@pytest.fixture
def plain(tmp_path: Path, mini_vision: VisionEncoder, folder: Path) -> Album:
    album = album_of(str(tmp_path / "plain.qsplit"), mini_vision)
    album.index(folder)
    return album


def test_shards_end_in_the_rows_of_a_plain_run(cluster: Cluster, folder: Path, plain: Album) -> None:
    shards = cluster.shards(folder)
    assert [len(shard) for shard in shards] == [3, 3, 3]
    done = [cluster.encode(shard) for shard in reversed(shards)]
    assert cluster.store.count("features") == cluster.store.count("files") == 0  # nobody sees them yet
    assert sum(one.encoded for one in done) == PICTURES + 1  # what two shards have is encoded in both
    assert len(cluster.join()) == 3
    assert held(cluster.store) == held(plain.store)
    assert Notes(cluster.store.uri).done() == []
    assert cluster.album.verify().sound


def test_rows_are_joined_once_however_often_they_are_given(cluster: Cluster, folder: Path) -> None:
    done = [cluster.encode(shard) for shard in cluster.shards(folder)]
    parts = [part for one in done for part in one.parts if part.table == "features"]
    assert cluster.store.join(parts, "job") == PICTURES
    version = cluster.store.lance("features").version
    twice = [part for part in parts for _ in range(2)]
    assert [cluster.store.join(parts, "job"), cluster.store.join(twice, "job")] == [0, 0]
    assert cluster.store.count("features") == PICTURES
    assert cluster.store.lance("features").version == version, "rows were put again, and taken away"


def test_a_transaction_tells_whose_it_is(cluster: Cluster, folder: Path) -> None:
    parts = cluster.encode(cluster.shards(folder)[0]).parts
    cluster.store.join(parts[:1], "the job")
    table = cluster.store.lance("features")
    assert table.read_transaction(table.version).transaction_properties == {"qsplit.job": "the job"}


@pytest.mark.parametrize(("step", "call"), [("join", 1), ("join", 2), ("put_files", 1), ("drop", 1)])
def test_a_joiner_that_is_cut_off_anywhere_is_followed_by_one_that_ends(
    cluster: Cluster, folder: Path, plain: Album, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    for shard in cluster.shards(folder):
        cluster.encode(shard)
    owner: type = Notes if step == "drop" else FeatureStore
    act, calls = getattr(owner, step), []

    def act_and_die(*given: Any) -> Any:
        result = act(*given)
        calls.append(step)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, act_and_die)
        with pytest.raises(KeyboardInterrupt):
            cluster.join()
    cluster.join()
    assert held(cluster.store) == held(plain.store)


def test_pictures_that_were_put_meanwhile_are_not_doubled(cluster: Cluster, folder: Path, plain: Album) -> None:
    for shard in cluster.shards(folder):
        cluster.encode(shard)
    album_of(cluster.album.uri, cluster.vision).index(folder)
    cluster.join()
    assert held(cluster.store) == held(plain.store)


def test_a_shard_with_a_note_is_not_encoded_again(cluster: Cluster, folder: Path) -> None:
    shard = cluster.shards(folder)[0]
    first = cluster.encode(shard)
    again = encode_shard(
        cluster.store,
        shard,
        cluster.vision.encoder,
        lambda: pytest.fail("it is encoded again"),
        limits=cluster.album.limits,
        codec="raw",
        suffixes=SUFFIXES,
    )
    assert again == first


def test_a_note_in_pieces_is_none(cluster: Cluster, folder: Path, plain: Album) -> None:
    shards = cluster.shards(folder)
    for shard in shards:
        cluster.encode(shard)
    note = Path(cluster.store.uri) / "_shards" / f"{shards[1].id}.done"
    note.write_bytes(note.read_bytes()[:100])
    assert len(cluster.join()) == 2
    cluster.encode(shards[1])
    cluster.join()
    assert held(cluster.store) == held(plain.store)


def test_notes_are_dropped_though_one_of_them_is_gone(cluster: Cluster) -> None:
    notes = Notes(cluster.store.uri)
    for name in ("a", "b", "c"):
        notes.put(Done(name))
    notes.drop(["a", "gone", "b", "c"])
    assert notes.done() == []
    notes.drop([])


def test_of_a_shard_that_is_joined_no_note_stays(cluster: Cluster, folder: Path) -> None:
    """A worker may die when it has told that a shard is done, and before it forgets the pieces."""
    shard, other = cluster.shards(folder)[:2]
    notes = Notes(cluster.store.uri)
    done = cluster.encode(shard)
    notes.put_piece(0, done)
    notes.put_trial(shard.id, Trial(begun=1))
    notes.put_trial(other.id, Trial(begun=1))
    cluster.join()
    assert notes.pieces(shard.id) == []
    assert (notes.trial(shard.id).begun, notes.trial(other.id).begun) == (0, 1)


def test_pieces_are_dropped_when_the_shard_has_its_note(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between the two leaves a shard that is done, not one to do again."""
    shard, notes = cluster.shards(folder)[0], Notes(cluster.store.uri)
    died(notes, shard, shard.entries[0].path)  # so that it is done in pieces

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Notes, "drop_pieces", die)
        with pytest.raises(KeyboardInterrupt):
            cluster.encode(shard)
    assert len(notes.pieces(shard.id)) > 0
    known = notes.get(shard.id)
    assert known is not None
    assert {row.path for row in known.files} == {entry.path for entry in shard.entries}


def test_what_is_known_is_not_encoded(cluster: Cluster, folder: Path, plain: Album) -> None:
    plain_rows = held(plain.store)
    done = [
        encode_shard(
            plain.store,
            shard,
            cluster.vision.encoder,
            lambda: cluster.vision,
            limits=plain.limits,
            codec="raw",
            suffixes=SUFFIXES,
        )
        for shard in cluster.shards(folder)
    ]
    assert (sum(one.encoded for one in done), sum(one.reused for one in done)) == (0, PICTURES + 1)
    assert len(list(Joiner(plain.store, "job").join_known())) == 3
    assert held(plain.store) == plain_rows


def test_rows_of_a_table_that_is_nowhere_are_refused(cluster: Cluster) -> None:
    with pytest.raises(NotFound, match="vectors-none"):
        cluster.store.join([Apart("vectors-none", ["a"], [])], "job")


# --- what workers die over ---


def test_one_shard_is_looked_at_while_another_is_written(
    cluster: Cluster, folder: Path, plain: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, at_a_time, counts = Event(), Semaphore(1), count(1)
    encode, write_apart = pipeline.encode, FeatureStore.write_apart

    def look(*given: Any, **options: Any) -> Any:
        assert at_a_time.acquire(blocking=False)
        found = encode(*given, **options)
        at_a_time.release()
        if next(counts) == 2:
            both.set()
        return found

    def write(*given: Any) -> Any:
        assert both.wait(PATIENCE)
        return write_apart(*given)

    monkeypatch.setattr(pipeline, "encode", look)
    monkeypatch.setattr(FeatureStore, "write_apart", write)
    shards, turn = cluster.shards(folder), Lock()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda shard: cluster.encode(shard, turn=turn), shards[:2]))
    monkeypatch.undo()
    assert [one.encoded for one in done] == [3, 3]
    cluster.encode(shards[2])
    cluster.join()
    assert held(cluster.store) == held(plain.store)


def died(notes: Notes, shard: Shard, *at: str, times: int = 1) -> None:
    """What a worker leaves that dies over files, or before it is at any."""
    for _ in range(times):
        trial = notes.trial(shard.id)
        for path in trial.at:
            trial.deaths[path] = trial.deaths.get(path, 0) + 1
        trial.begun, trial.at = trial.begun + 1, list(at)
        notes.put_trial(shard.id, trial)


def reasons(done: Done) -> dict[str, str]:
    return {row.path: row.reason or "" for row in done.files if row.state == "unreadable"}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the files that workers say they are at, as they say it."""
    told: list[list[str]] = []
    put = Notes.put_trial

    def put_and_tell(self: Notes, of: str, trial: Any) -> None:
        put(self, of, trial)
        told.append([Path(path).stem for path in trial.at])

    monkeypatch.setattr(Notes, "put_trial", put_and_tell)
    return told


def test_a_file_that_two_workers_died_over_alone_is_skipped(cluster: Cluster, folder: Path) -> None:
    shard, notes = cluster.shards(folder)[0], Notes(cluster.store.uri)
    paths = [entry.path for entry in shard.entries]
    died(notes, shard, *paths, times=2)  # all at once, and then in pieces, of which this shard is one
    died(notes, shard, paths[1], times=2)
    done = cluster.encode(shard)
    assert reasons(done).keys() == {paths[1]}
    assert reasons(done)[paths[1]].startswith(f"{QUARANTINED} 2 workers died over")
    assert done.encoded == 2
    assert notes.trial(shard.id).begun == 0  # the shard is done
    assert notes.pieces(shard.id) == []


def test_one_death_over_a_file_may_be_by_chance(cluster: Cluster, folder: Path) -> None:
    shard, notes = cluster.shards(folder)[0], Notes(cluster.store.uri)
    died(notes, shard, *(entry.path for entry in shard.entries), times=2)
    died(notes, shard, shard.entries[1].path)
    assert cluster.encode(shard).encoded == 3


def test_a_worker_that_does_not_die_tells_of_its_shard_once(
    cluster: Cluster, folder: Path, at_once: list[list[str]]
) -> None:
    cluster.encode(cluster.shards(folder)[0])
    assert at_once == [["0", "1", "2"]]


def test_after_a_death_files_come_in_smaller_pieces_each_named_before_it_is_touched(
    cluster: Cluster, folder: Path, at_once: list[list[str]]
) -> None:
    shard, notes = Shard(tuple(find([str(folder)], suffixes=SUFFIXES))), Notes(cluster.store.uri)
    paths = [entry.path for entry in shard.entries]
    died(notes, shard, *paths)
    died(notes, shard, *paths[:3])
    del at_once[:]
    done = cluster.encode(shard)
    eight = ["3", "4", "5", "6", "again", "broken"]
    assert [some for some in at_once if some] == [["0"], ["1"], ["2"], eight]
    assert at_once[0] == at_once[2] == at_once[-1] == []  # while rows are written it is at none
    assert (done.encoded, len(done.files)) == (PICTURES + 1, PICTURES + 2)


def test_pieces_that_are_done_are_not_done_again(
    cluster: Cluster, folder: Path, plain: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that live for one piece each end a shard, and nothing of it is taken for what killed them."""
    shard, notes = Shard(tuple(find([str(folder)], suffixes=SUFFIXES))), Notes(cluster.store.uri)
    seen: list[list[str]] = []

    def live_for_one(*given: Any, **options: Any) -> Any:
        if seen and seen[-1]:
            seen.append([])
            raise KeyboardInterrupt
        seen.append(list(given[1]))
        return encode(*given, **options)

    encode = pipeline.encode
    paths = [entry.path for entry in shard.entries]
    died(notes, shard, *paths, times=2)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "encode", live_for_one)
        for _ in paths[1:]:
            with pytest.raises(KeyboardInterrupt):
                cluster.encode(shard)
        done = cluster.encode(shard)
    assert [path for some in seen for path in some] == paths
    assert done.encoded == PICTURES + 1
    assert reasons(done).keys() == {str(folder / "broken.png")}
    assert notes.pieces(shard.id) == []
    cluster.join()
    assert held(cluster.store) == held(plain.store)


def test_what_an_archive_holds_is_kept_piece_by_piece(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "set.tar", {f"{seed:02}.png": png(seed) for seed in range(70)})
    (shard,) = cut(find([str(tar)], suffixes=SUFFIXES))
    encode, seen = pipeline.encode, list[int]()

    def die_at_second(*given: Any, **options: Any) -> Any:
        seen.append(len(given[1]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encode(*given, **options)

    monkeypatch.setattr(pipeline, "encode", die_at_second)
    with pytest.raises(KeyboardInterrupt):
        cluster.encode(shard)
    assert cluster.encode(shard).encoded == 70
    assert seen == [64, 6, 6]


def test_a_shard_is_not_tried_for_ever(cluster: Cluster, folder: Path) -> None:
    shard, notes = cluster.shards(folder)[0], Notes(cluster.store.uri)
    died(notes, shard, times=10)
    done = cluster.encode(shard)
    assert [row.state for row in done.files] == ["unreadable"] * 3
    assert all(reason.startswith(QUARANTINED) for reason in reasons(done).values())
    assert done.parts == []


def test_notes_that_nobody_came_back_to_are_forgotten(cluster: Cluster, folder: Path) -> None:
    shard, notes = cluster.shards(folder)[0], Notes(cluster.store.uri)
    died(notes, shard)
    notes.put_piece(0, Done(shard.id, encoded=1))
    Joiner(cluster.store, "job").close()
    assert (notes.trial(shard.id).begun, len(notes.pieces(shard.id))) == (1, 1)
    notes.forget(now=datetime.now(UTC) + timedelta(days=4))
    assert (notes.trial(shard.id).begun, notes.pieces(shard.id)) == (0, [])


@pytest.mark.parametrize("alone", [False, True])
def test_housekeeping_joins_what_a_run_left(cluster: Cluster, folder: Path, plain: Album, alone: bool) -> None:
    for shard in cluster.shards(folder):
        cluster.encode(shard)
    cluster.album.compact(dry_run=True, alone=alone)
    assert len(Notes(cluster.store.uri).done()) == 3
    cluster.album.compact(alone=alone)
    assert held(cluster.store) == held(plain.store)
    assert Notes(cluster.store.uri).done() == []
    assert cluster.album.verify().sound


def test_who_removes_the_files_of_pieces_removes_their_notes(cluster: Cluster, folder: Path, plain: Album) -> None:
    shard, notes = Shard(tuple(find([str(folder)], suffixes=SUFFIXES))), Notes(cluster.store.uri)
    piece = cluster.encode(cluster.shards(folder)[0])
    notes.drop([piece.shard])
    notes.put_piece(0, Done(shard.id, piece.parts, piece.files, piece.encoded))
    cluster.album.compact()
    assert len(notes.pieces(shard.id)) == 1  # somebody may be at it
    cluster.album.compact(alone=True)
    assert notes.pieces(shard.id) == []
    cluster.encode(shard)
    cluster.join()
    assert held(cluster.store) == held(plain.store)


# --- how files are cut ---


def entries(*sizes: int) -> list[Entry]:
    return [Entry(f"/{i}.jpg", size, 0) for i, size in enumerate(sizes)]


def lengths(shards: Sequence[Shard]) -> list[int]:
    return [len(shard) for shard in shards]


def test_large_files_make_short_shards() -> None:
    assert lengths(list(cut(entries(*[10] * 130)))) == [64, 64, 2]
    assert lengths(list(cut(entries(*[100 * 1024**2] * 3)))) == [1, 1, 1]


def test_an_archive_is_a_shard_and_its_pictures_are_rows(cluster: Cluster, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {f"{seed}.png": png(seed) for seed in range(70)})
    (shard,) = cut(find([str(tar)], suffixes=SUFFIXES))
    done = cluster.encode(shard)
    assert [len(part.keys) for part in done.parts if part.table == "features"] == [64, 6]
    cluster.join()
    assert cluster.store.count("features") == 70
    assert sorted(cluster.store.files())[0] == f"{tar}#0.png"


def test_what_a_worker_cannot_read_keeps_its_picture(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """A file that is cut off, one that is too large by now, and one of an archive; each is back when it can be read."""
    members = {f"{seed}.png": png(seed) for seed in range(20, 22)}
    tar = write_tar(tmp_path / "set.tar", members)
    cut_off, large, inside = str(folder / "0.png"), str(folder / "big.png"), f"{tar}#20.png"
    Path(large).write_bytes(png(9, side=280))

    def run(limits: Limits | None = None) -> dict[str, FileRow]:
        cluster.album.limits = limits or Limits()
        for shard in [*cluster.shards(folder), *cut(find([str(tar)], suffixes=SUFFIXES))]:
            cluster.encode(shard)
        cluster.join()
        return cluster.store.files()

    def changed(data: bytes, member: bytes) -> None:
        Path(cut_off).write_bytes(data)
        write_tar(tar, {**members, "20.png": member})

    known, features = run(), cluster.store.count("features")
    assert {known[path].state for path in (cut_off, large, inside)} == {"ok"}
    changed(png(0)[:500], b"no picture")
    files = run(Limits(max_bytes=Path(large).stat().st_size - 1))
    for path in (cut_off, large, inside):
        assert files[path].reason
        assert files[path] == replace(known[path], state="unreadable", reason=files[path].reason)
    assert files[str(folder / "broken.png")].image_id is None
    assert len(find_orphans(cluster.store, grace=timedelta(0))) == 0
    changed(png(0), members["20.png"])
    files = run()
    assert {path: (row.state, row.image_id) for path, row in files.items()} == {
        path: (row.state, row.image_id) for path, row in known.items()
    }
    assert cluster.store.count("features") == features


def test_files_and_archives_of_any_time_are_encoded_once(cluster: Cluster, tmp_path: Path) -> None:
    """Of a member, the archive's own time is taken, whatever the archive says of it."""
    folder, info = tmp_path / "odd", tarfile.TarInfo("a.png")
    folder.mkdir()
    info.size, info.pax_headers = len(png(2)), {"mtime": "nan"}
    with tarfile.open(folder / "set.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(png(2)))
    (folder / "b.png").write_bytes(png(1))
    for path in folder.iterdir():
        dated(path, year(2300))
    entries = list(find([str(folder)], suffixes=SUFFIXES))
    assert _changed(entries, cluster.store.files().values()) == entries
    for shard in cut(entries):
        assert cluster.encode(shard).encoded == 1
    cluster.join()
    assert [row.state for row in cluster.store.files().values()] == ["ok", "ok"]
    assert _changed(find([str(folder)], suffixes=SUFFIXES), cluster.store.files().values()) == []
    dated(folder / "b.png", year(2000))
    changed = _changed(find([str(folder)], suffixes=SUFFIXES), cluster.store.files().values())
    assert [entry.path for entry in changed] == [str(folder / "b.png")]


def test_objects_of_any_time_and_size_can_be_kept(store: FeatureStore) -> None:
    """What a bucket says of them need not be so."""
    entries = [Entry(f"s3://bucket/{i}.png", 2**64 - 1, when) for i, when in enumerate((year(9999), year(1), 2**63))]
    store.put_files([FileRow(one.path, "ab" * 32, one.size, one.mtime_ns, "ok") for one in entries])
    assert _changed(entries, store.files().values()) == []
    touched = [replace(one, mtime_ns=0) for one in entries]
    assert _changed(touched, store.files().values()) == touched


def test_of_two_notes_on_a_file_the_later_keeps_the_picture_of_the_first(store: FeatureStore) -> None:
    joiner, read = Joiner(store, "job"), FileRow("/a.png", "ab" * 32, 9, 1, "ok")
    joiner.add(Done("1", files=[read]))
    joiner.add(Done("2", files=[FileRow("/a.png", None, 3, 2, "unreadable", "Truncated.")]))
    joiner.flush()
    assert store.file("/a.png") == replace(read, state="unreadable", reason="Truncated.")


def test_a_shard_is_named_by_what_it_holds() -> None:
    one, same, other = Shard(tuple(entries(1, 2))), Shard(tuple(entries(1, 2))), Shard(tuple(entries(1, 3)))
    assert one.id == same.id != other.id


def test_what_cannot_be_looked_at_is_not_taken_for_gone(tmp_path: Path, folder: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {"a.png": png(1)})
    paths = [str(folder / "0.png"), f"{tar}#a.png", str(folder / "gone.png"), f"{tmp_path}/gone.tar#a.png"]
    known = [FileRow(path, "id", 1, 1, "ok") for path in paths]
    rows = _missing(
        [str(tmp_path), "s3://bucket/trip"], [], [*known, FileRow("s3://bucket/trip/a.png", "id", 1, 1, "ok")]
    )
    assert [(row.path, row.state) for row in rows] == [
        (path, "missing") for path in [*paths[2:], "s3://bucket/trip/a.png"]
    ]
