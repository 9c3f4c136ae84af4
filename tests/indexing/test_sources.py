"""Pictures are found and read where they lie: in folders, on object storage, in tars and Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png, write_tar
from object_stores import BUCKET, KEY, SECRET, enter, moto

from qsplit.errors import ImageTooLarge, NotFound, UnreadableImage
from qsplit.indexing.sources import Content, Entry, find, is_archive, read
from qsplit.media.images import SUFFIXES, FileContent, Limits


def contents(path: Path | str, limits: Limits | None = None) -> dict[str, Content]:
    (entry,) = find([str(path)], suffixes=SUFFIXES)
    return dict(read(entry, limits or Limits(), SUFFIXES))


def data_of(found: Mapping[str, Content]) -> dict[str, bytes]:
    return {Path(path).name: one.data for path, one in found.items() if isinstance(one, FileContent)}


def test_a_folder_holds_files_and_archives(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "notes.txt").write_text("no picture")
    write_tar(tmp_path / "b.tar", {"one.png": png(2)})
    found = list(find([str(tmp_path)], suffixes=SUFFIXES))
    assert [(Path(one.path).name, is_archive(one.path)) for one in found] == [("a.png", False), ("b.tar", True)]
    stat = (tmp_path / "a.png").stat()
    assert found[0] == Entry(str(tmp_path / "a.png"), stat.st_size, stat.st_mtime_ns)


def test_what_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing here"):
        list(find([str(tmp_path / "nothing here")], suffixes=SUFFIXES))


def test_a_tar_names_its_pictures_and_leaves_out_the_rest(tmp_path: Path) -> None:
    members = {"0001.png": png(1), "0001.json": b"{}", "deep/0002.png": png(2), ".hidden.png": png(3)}
    tar = write_tar(tmp_path / "set.tar", members)
    found = contents(tar)
    assert list(found) == [f"{tar}#0001.png", f"{tar}#deep/0002.png"]
    assert [one.data for one in found.values() if isinstance(one, FileContent)] == [png(1), png(2)]
    assert {one.mtime_ns for one in found.values() if isinstance(one, FileContent)} == {tar.stat().st_mtime_ns}


def test_a_tar_that_ends_early_gives_what_came_before_and_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {"0001.png": png(1), "0002.png": png(2)})
    tar.write_bytes(tar.read_bytes()[:12_000])  # in the second
    found = contents(tar)
    assert isinstance(found.pop(f"{tar}#0001.png"), FileContent)
    (error,) = found.values()
    assert isinstance(error, UnreadableImage)
    assert "cannot be read" in str(error)


def test_one_member_that_is_too_large_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {"large.png": png(1, side=112), "small.png": png(2), "none.png": b""})
    found = contents(tar, Limits(max_bytes=12_000))
    assert isinstance(found[f"{tar}#large.png"], ImageTooLarge)
    assert isinstance(found[f"{tar}#none.png"], UnreadableImage)
    assert data_of(found) == {"set.tar#small.png": png(2)}


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("image", pa.binary(), lambda data: data),
        ("photo", pa.large_binary(), lambda data: data),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), lambda data: {"bytes": data}),
    ],
    ids=["bytes", "another name", "as the datasets library has it"],
)
def test_parquet_holds_pictures_in_a_column(tmp_path: Path, name: str, kind: pa.DataType, value: Any) -> None:
    rows = [png(seed) for seed in range(20)]  # more than are read at once
    table = pa.table({"id": list(range(20)), name: pa.array([value(row) for row in rows], kind)})
    path = tmp_path / "set.parquet"
    pq.write_table(table, path, row_group_size=7)
    assert data_of(contents(path)) == {f"set.parquet#{i}": row for i, row in enumerate(rows)}


def test_parquet_without_pictures_says_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"id": [1], "name": ["x"]}), path)
    (error,) = contents(path).values()
    assert "only id, name" in str(error)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with moto(tmp_path_factory.mktemp("moto")) as endpoint, pytest.MonkeyPatch.context() as patch:
        enter(endpoint, patch)
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        yield client
        client.close()


def test_object_storage_is_looked_through_and_read(bucket: Any, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {"in.png": png(3)})
    pq.write_table(pa.table({"image": [png(4)]}), tmp_path / "set.parquet")
    objects = {"trip/a.png": png(1), "trip/deep/b.png": png(2), "trip/notes.txt": b"x"}
    objects |= {f"trip/{path.name}": path.read_bytes() for path in (tmp_path / "set.parquet", tar)}
    for key, data in objects.items():
        bucket.put_object(Bucket=BUCKET, Key=key, Body=data)
    found = list(find([f"s3://{BUCKET}/trip"], suffixes=SUFFIXES))
    names = ("a.png", "deep/b.png", "set.parquet", "set.tar")
    assert [one.path for one in found] == [f"s3://{BUCKET}/trip/{name}" for name in names]
    held = data_of({path: one for entry in found for path, one in read(entry, Limits(), SUFFIXES)})
    assert held == {"a.png": png(1), "b.png": png(2), "set.tar#in.png": png(3), "set.parquet#0": png(4)}
    assert [one.size for one in find([f"s3://{BUCKET}/trip/a.png"], suffixes=SUFFIXES)] == [len(png(1))]
    with pytest.raises(NotFound, match="nowhere"):
        list(find([f"s3://{BUCKET}/nowhere"], suffixes=SUFFIXES))


def test_an_object_that_is_gone_or_too_large_is_told(bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="some/a.png", Body=png(1))
    (entry,) = find([f"s3://{BUCKET}/some"], suffixes=SUFFIXES)
    (error,) = dict(read(entry, Limits(max_bytes=100), SUFFIXES)).values()
    assert isinstance(error, ImageTooLarge)
    bucket.delete_object(Bucket=BUCKET, Key="some/a.png")
    (error,) = dict(read(entry, Limits(), SUFFIXES)).values()
    assert isinstance(error, UnreadableImage)
