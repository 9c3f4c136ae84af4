"""A store that others may write to reads no file outside of itself, and its values name no file, tag or program."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest
import rows
from foreign import add_row
from lance import FragmentMetadata, LanceDataset, LanceOperation
from lance.blob import Blob
from PIL import Image
from serving import KEY, READ_ONLY, made_album, serving

from qsplit.album import Album
from qsplit.cli import main
from qsplit.duplicates.html_report import write_page
from qsplit.errors import CorruptStore
from qsplit.maintenance.verify import verify
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store import feature_store as store_module
from qsplit.store.feature_store import FeatureStore

ID = "a" * 64
SECRET = b"what stands in a file of the reader: " + bytes(range(256)) * 20
MARKUP = '"><meta http-equiv="refresh" content="0;url=http://evil.example/">'
BAD_IDS = ["../up-and-away", "/tmp/elsewhere", MARKUP, "</script>", "A" * 64, "a" * 63, "", "\x1b[31m", "a" * 64 + "\n"]


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exited:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(exited.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: list[Path], mini_vision: VisionEncoder) -> Path:
    return Path(made_album(tmp_path_factory.mktemp("foreign"), photos[:2], mini_vision).uri)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of a store of two pictures."""
    return Path(shutil.copytree(made, tmp_path / "shared.qsplit"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(SECRET)
    return path


def digests(folder: Path) -> list[tuple[str, str]]:
    """Image id and pixels digest of the pictures."""
    return [(one.image_id, one.pixels_digest) for one in FeatureStore(folder).images().values()]


def holds(text: str | bytes) -> bool:
    """Whether the secret is in a text, as it is or in base64."""
    data = text.encode() if isinstance(text, str) else text
    return SECRET[:30] in data or base64.b64encode(SECRET[:30]) in data


# Blobs


@pytest.mark.parametrize("part", [(), (0, 600)], ids=["whole", "range"])
def test_a_thumbnail_at_an_address_is_refused(folder: Path, secret: Path, part: tuple[int, ...]) -> None:
    add_row(folder, "images", Blob.from_uri(secret.as_uri(), *part), image_id=ID)
    store = FeatureStore(folder)
    with pytest.raises(CorruptStore, match=f"thumbnail of {ID} lies outside of the store"):
        store.thumbnail(ID)
    with pytest.raises(CorruptStore, match="outside of the store"):
        list(store.thumbnails(store.images()))
    assert all(store.thumbnail(one) for one in store.images() if one != ID)


@pytest.mark.parametrize("reads", [0, 3], ids=["by place", "by query"])
def test_a_payload_at_an_address_is_refused(
    folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    monkeypatch.setattr(store_module, "_READS_BY_QUERY", reads)
    (head,) = FeatureStore(folder).heads([digests(folder)[0][1]])
    key = f"{ID}:{head.encoder.id}"
    add_row(folder, "features", Blob.from_uri(secret.as_uri()), key=key, pixels_digest=ID)
    store = FeatureStore(folder)
    with pytest.raises(CorruptStore, match=f"payload of {ID}.* lies outside of the store"):
        store.get_features([key])
    assert head.key in store.get_features([head.key])
    assert [(one.table, one.key) for one in verify(store).corrupt] == [("features", key)]


@pytest.mark.parametrize("what", ["thumbnail", "picture", ""])
def test_a_service_hands_no_file_out_that_a_row_names(folder: Path, secret: Path, what: str) -> None:
    add_row(folder, "images", Blob.from_uri(secret.as_uri()), image_id=ID)
    with serving(Album(folder, device="cpu"), keys=(KEY,), read_only_keys=(READ_ONLY,)) as client:
        answer = client.get(f"/api/v1/images/{ID}/{what}", headers={"Authorization": f"Bearer {READ_ONLY}"})
    assert answer.status_code == 500 or what != "thumbnail"
    assert not holds(answer.content)


def test_no_command_puts_such_a_file_into_what_it_writes(
    folder: Path, secret: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    digest = digests(folder)[0][1]
    add_row(folder, "images", Blob.from_uri(secret.as_uri()), image_id=ID, pixels_digest=digest)
    add_row(folder, "files", path="/elsewhere.jpg", image_id=ID, size=1)
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'name = "p"\n[[check]]\nname = "c"\nquestion = "Is it day?"\n'
        'choices = ["yes", "no"]\nflag = "yes"\nthreshold = 0.5\n'
    )
    page = tmp_path / "page.html"
    checked = run("check", policy, ID, "--store", folder, "--out", page)
    assert checked.code == 4, checked
    reported = run("duplicates", "--store", folder, "--report", tmp_path / "groups.html")
    assert reported.code == 4, reported
    assert not list(tmp_path.glob("*.html*"))
    assert not list(tmp_path.glob(".*"))
    told = run("verify", "--store", folder, "--json")
    assert told.code == 4
    assert [(one["table"], one["key"]) for one in json.loads(told.out)["corrupt"]] == [("images", ID)]
    assert not any(holds(one.out + one.err) for one in (checked, reported, told))
    assert run("forget", ID, "--store", folder).code == 0
    assert run("verify", "--store", folder).code == 0


def test_a_table_whose_files_lie_elsewhere_is_refused(folder: Path, made: Path, tmp_path: Path) -> None:
    """A base path makes rows of another store those of this one, whoever may read that."""
    private = FeatureStore(tmp_path / "private.qsplit", create=True)
    private.put_images([rows.picture(1)])
    theirs = lance.dataset(f"{private.uri}/images.lance")
    ours = lance.dataset(str(folder / "images.lance"))
    opened = FeatureStore(folder)
    ours.add_bases([lance.DatasetBasePath(Path(theirs.uri).as_uri(), name="x", is_dataset_root=True)])
    ours = lance.dataset(ours.uri)
    fragment = theirs.get_fragments()[0].metadata.to_json() | {"row_id_meta": None}
    for file in fragment["files"]:
        file["base_id"] = next(iter(ours.base_paths()))
    added = LanceOperation.Append([FragmentMetadata.from_json(json.dumps(fragment))])
    LanceDataset.commit(ours, added, read_version=ours.version)
    with pytest.raises(CorruptStore, match="outside of its folder"):
        FeatureStore(folder)
    with pytest.raises(CorruptStore, match="outside of its folder"):
        opened.thumbnail(rows.digest("image 1"))
    with pytest.raises(CorruptStore, match="outside of its folder"):
        opened.remove("images", "image_id", [ID])


# Ids


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_a_row_whose_id_is_no_digest_is_refused_and_told_by_verify(folder: Path, bad: str) -> None:
    image_id = digests(folder)[0][0]
    thumbnail = FeatureStore(folder).thumbnail(image_id)
    add_row(folder, "images", thumbnail, image_id=bad)
    add_row(folder, "files", path="/elsewhere.jpg", image_id=bad)
    store = FeatureStore(folder)
    for read in (store.images, store.files, lambda: store.arrow("images", "image_id"), lambda: store.paths_of([bad])):
        with pytest.raises(CorruptStore, match=r"image_id of a row of .* not 64 hex digits"):
            read()
    assert set(store.images([image_id])) == {image_id}
    told = [(one.table, one.key) for one in verify(store).corrupt]
    assert told == [("images", bad if bad.isprintable() else repr(bad)), ("files", "/elsewhere.jpg")]
    with pytest.raises(CorruptStore):
        store.images()  # also after it was verified


@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("features", "pixels_digest", lambda store: store.heads(["../up"])),
        ("features", "encoder_id", lambda store: store.encoders()),
        ("images", "pixels_digest", lambda store: store.images()),
        ("vectors", "image_id", lambda store: store.vectors(store.settings().encoder).rows(None, ["width"])),
        ("vectors", "pixels_digest", lambda store: store.pooled_vectors(store.settings().encoder)),
    ],
)
def test_every_digest_of_a_row_is_checked(
    folder: Path, table: str, column: str, read: Callable[[FeatureStore], Any]
) -> None:
    store = FeatureStore(folder)
    name = store.vector_tables()[0] if table == "vectors" else table
    blob = {"features": b"x", "images": store.thumbnail(digests(folder)[0][0])}.get(table)
    add_row(folder, name, blob, **{column: "../up"})
    with pytest.raises(CorruptStore, match=r"'\.\./up', not 64 hex digits"):
        read(FeatureStore(folder))
    assert name in {one.table for one in verify(FeatureStore(folder)).corrupt}


def test_what_is_searched_has_digests_alone(folder: Path) -> None:
    store = FeatureStore(folder)
    encoder = store.settings().encoder
    vector = store.vectors(encoder).get("pooled", [digests(folder)[0][0]]).popitem()[1]
    add_row(folder, store.vector_tables()[0], image_id="../up", pooled=vector.tolist(), caption="a cat", terms="a cat")
    with pytest.raises(CorruptStore, match="not 64 hex digits"):
        FeatureStore(folder).vectors(encoder).nearest("pooled", vector, 3)


@pytest.mark.parametrize("bad", ["{}/victim", "../victim"])
def test_an_export_writes_nothing_beside_its_folder(
    folder: Path, tmp_path: Path, run: Callable[..., Result], bad: str
) -> None:
    image_id, digest = digests(folder)[0]
    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    add_row(
        folder, "images", FeatureStore(folder).thumbnail(image_id), image_id=bad.format(tmp_path), pixels_digest=digest
    )
    out = tmp_path / "out"
    assert run("export", out, "--store", folder, "--format", "vllm").code == 4
    assert victim.read_text() == "{}"
    assert not out.exists() or not list(out.iterdir())


def test_no_draft_is_written_through_a_link(folder: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    victim, out = tmp_path / "victim.txt", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    for image_id, _ in digests(folder):
        (out / f".{image_id}.json.partial").symlink_to(victim)
    (out / ".groups.html.part").symlink_to(victim)
    assert run("export", out, "--store", folder, "--format", "vllm").code == 0
    run("duplicates", "--store", folder, "--report", out / "groups.html")
    assert (victim.read_text(), sorted(path.is_symlink() for path in out.iterdir())) == ("precious", [False] * 3)


def test_a_state_without_an_image_id_is_allowed(folder: Path) -> None:
    add_row(folder, "files", path="/broken.jpg", image_id=None, state="unreadable", reason="truncated")
    assert FeatureStore(folder).files()["/broken.jpg"].image_id is None
    assert verify(FeatureStore(folder)).sound


def test_a_page_of_duplicates_quotes_what_it_is_given(
    folder: Path, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are checked long before; a page trusts them no more than it trusts names."""
    monkeypatch.setattr(store_module, "check_ids", lambda found, _: found, raising=False)
    thumbnail = FeatureStore(folder).thumbnail(digests(folder)[0][0])
    bad = f"{MARKUP}</script><i>"
    add_row(folder, "images", thumbnail, image_id=bad)
    for name in ("/one.jpg", "/other.jpg"):
        add_row(folder, "files", path=name, image_id=bad)
    album = Album(folder, device="cpu")
    write_page(album.duplicates(), tmp_path / "out.html", album.store, album.limits, title="t")
    text = (tmp_path / "out.html").read_text()
    assert "evil.example" in text
    assert '<meta http-equiv="refresh"' not in text
    assert text.count("</script>") == 2
    assert "form-action 'none'; base-uri 'none'" in text


# Thumbnails


def webp(size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, "WEBP")
    return data.getvalue()


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.mark.parametrize(
    "thumbnail", [POSTSCRIPT, png(), webp((257, 8)), webp((64, 64))[:-30], b"", b"RIFF\x00\x00\x00\x00WEBP" + bytes(9)],
    ids=["postscript", "png", "large", "broken", "empty", "no chunk"],
)  # fmt: skip
def test_a_thumbnail_that_is_no_small_webp_is_neither_decoded_nor_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thumbnail: bytes, request: pytest.FixtureRequest
) -> None:
    gs, called = tmp_path / "bin" / "gs", tmp_path / "called"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=":")
    digest = rows.digest("other pixels")
    add_row(folder, "images", thumbnail, image_id=ID, pixels_digest=digest)
    add_row(folder, "files", path="/elsewhere.jpg", image_id=ID)
    album = Album(folder, device="cpu")
    with pytest.raises(CorruptStore, match=f"thumbnail of .*({ID}|{digest})"):
        album.duplicates()
    assert not called.exists()
    if request.node.callspec.id == "broken":
        return  # its header is sound, and whoever looks at it sees that the rest is not
    with pytest.raises(CorruptStore, match=f"The thumbnail of {ID}"):
        album.store.thumbnail(ID)
    assert ("images", ID) in {(one.table, one.key) for one in verify(album.store).corrupt}
    with serving(Album(folder, device="cpu")) as client:
        answer = client.get(f"/api/v1/images/{ID}/thumbnail")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_thumbnail_that_was_made_here_is_taken(folder: Path) -> None:
    store = FeatureStore(folder)
    for image_id, data in store.thumbnails(store.images()):
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, max(opened.size) <= 256) == ("WEBP", True)
        assert store.thumbnail(image_id) == data
