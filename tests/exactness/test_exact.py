"""An answer is exact only over features that the reader's own unsplit model would have made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import transformers
from models import make_checkpoint, unsplit_tokens
from patience import PATIENCE
from PIL import Image
from safetensors import safe_open
from serving import serving

from qsplit.album import Album
from qsplit.errors import IncompatibleFeatures
from qsplit.features.features import Features, Making, Provenance
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.qa import ask, checks
from qsplit.qa.checks import Verdict
from qsplit.qa.policy import Check, Policy
from qsplit.server.engine.decoding import Piece
from qsplit.server.engine.scheduler import Together
from qsplit.store import lookup
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

SHORT = Sampling(max_new_tokens=6)
QUESTION = "Which colour is it?"
CHOICES = [(QUESTION, ("red", "green"))]
ATTENTIONS = ("eager", None)

Exact = Callable[[LanguageModel, list[Features]], bool]


def _beside_others(language: LanguageModel, seen: list[Features]) -> bool:
    together = Together(language)
    try:
        told: SimpleQueue[Piece | Exception] = SimpleQueue()
        ticket = together.submit(language.prompt(seen, QUESTION), Sampling(1), told.put, exact=True)
        assert isinstance(told.get(timeout=PATIENCE), Piece)
        return ticket.exact
    finally:
        together.close()


WAYS: dict[str, Exact] = {
    "answer": lambda language, seen: language.answer(seen, QUESTION, sampling=Sampling(1)).exact,
    "choose": lambda language, seen: language.choose(seen, CHOICES, exact=True)[0].exact,
    "submit": _beside_others,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "model", "qwen2_vl", dtype="float32")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.linear_gradient("L").resize((112, 84)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def visions(model: Path) -> dict[str | None, VisionEncoder]:
    return {one: VisionEncoder.from_pretrained(str(model), device="cpu", attention=one) for one in ATTENTIONS}


@pytest.fixture(scope="module")
def languages(model: Path) -> dict[str | None, LanguageModel]:
    return {one: LanguageModel.from_pretrained(str(model), device="cpu", attention=one) for one in ATTENTIONS}


@pytest.fixture(scope="module")
def seen(visions: dict[str | None, VisionEncoder], picture: Path) -> Features:
    (found,) = visions[None].encode([Image.open(picture)])
    return found


@pytest.fixture(scope="module")
def albums(
    model: Path, picture: Path, visions: dict[str | None, VisionEncoder], tmp_path_factory: pytest.TempPathFactory
) -> dict[str | None, Album]:
    """The same picture, encoded with either attention."""
    found = {}
    for attention, vision in visions.items():
        album = Album(tmp_path_factory.mktemp("album") / "album.qsplit", model=str(model), device="cpu")
        album.__dict__["vision"] = vision
        album.index(picture)
        found[attention] = album
    return found


@pytest.mark.parametrize("made", ATTENTIONS)
@pytest.mark.parametrize("read", ATTENTIONS)
def test_what_another_attention_made_is_not_exact(
    model: Path,
    picture: Path,
    albums: dict[str | None, Album],
    languages: dict[str | None, LanguageModel],
    made: str | None,
    read: str | None,
) -> None:
    album, language = albums[made], languages[read]
    located = album.locate(picture)
    (reply,) = ask.ask(album.store, language, [located], [QUESTION], sampling=SHORT, exact=True)
    assert reply.exact == (made == read)
    features = ask.fetch(album.store, language, [located])
    assert {name: way(language, features) for name, way in WAYS.items()} == dict.fromkeys(WAYS, made == read)
    if reply.exact:
        assert reply.tokens == _unsplit_tokens(model, picture, read)


def _unsplit_tokens(model: Path, picture: Path, attention: str | None) -> tuple[int, ...]:
    if attention is None:
        return unsplit_tokens(model, [picture], QUESTION, SHORT.most)
    load = transformers.AutoModelForImageTextToText.from_pretrained
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            transformers.AutoModelForImageTextToText,
            "from_pretrained",
            lambda folder, **options: load(folder, **options, attn_implementation=attention),
        )
        return unsplit_tokens(model, [picture], QUESTION, SHORT.most)


def test_attentions_make_other_bits_of_one_encoder(albums: dict[str | None, Album]) -> None:
    (one,), (other,) = (
        album.store.get_features(key for (key,) in album.store.column("features", "key")).values()
        for album in albums.values()
    )
    assert one.encoder == other.encoder
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("device", "attention", "exact", "exact_in_eager"),
    [
        ("cpu", "sdpa", True, False),
        ("cpu", "", True, False),  # the default of that time is that of today
        ("cpu", "eager", False, True),
        ("NVIDIA H200", "sdpa", False, False),
        ("NVIDIA H200", "", False, False),
        ("Tesla T4", "sdpa", False, False),
        ("mps", "sdpa", False, False),
        ("", "sdpa", False, False),
        ("", "", False, False),
    ],
)
def test_a_row_tells_how_it_was_made(
    tmp_path: Path,
    languages: dict[str | None, LanguageModel],
    seen: Features,
    device: str,
    attention: str,
    exact: bool,
    exact_in_eager: bool,
) -> None:
    store = FeatureStore(tmp_path / "album.qsplit", create=True)
    row = FeatureRow("a" * 64, seen, Provenance(device=device, attention=attention))
    store.put_features([row])
    for _ in range(6):  # by queries at first, and then from known places
        found = store.get_features([row.key])[row.key]
        assert found.making == Making.recorded(device, attention)
        assert found.digest() == seen.digest()
        assert languages[None].check_prompt(languages[None].prompt([found], QUESTION), 1) == exact
        assert languages["eager"].check_prompt(languages["eager"].prompt([found], QUESTION), 1) == exact_in_eager


@pytest.mark.parametrize(
    ("recorded", "device"),
    [
        ("cpu", "cpu"), ("mps", "mps"), ("xpu", "xpu"), ("cuda", "cuda"), ("cuda:1", "cuda"), ("npu", "npu"),
        ("newtype", "newtype"), ("NVIDIA H200", "cuda"), ("Tesla T4", "cuda"), ("AMD Instinct MI300X", "cuda"),
        ("Quadro RTX 6000", "cuda"), ("", ""),
    ],
)  # fmt: skip
def test_devices_are_of_a_class(recorded: str, device: str) -> None:
    assert Making.recorded(recorded, "sdpa") == Making(device, "sdpa")
    assert Provenance(device=recorded, attention="sdpa").making == Making(device, "sdpa")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turned", [False, True])
def test_all_pictures_of_an_answer_count(
    languages: dict[str | None, LanguageModel], seen: Features, way: str, turned: bool
) -> None:
    language, is_exact = languages[None], WAYS[way]

    def both(other: Features) -> list[Features]:
        return [other, seen] if turned else [seen, other]

    payload = seen.to_payload("int8")
    lossy = Features.from_payload(payload, seen.grid_thw, seen.encoder, making=seen.making)
    assert is_exact(language, both(seen))
    for other in (
        lossy,
        replace(seen, making=Making("cuda", "sdpa")),
        replace(seen, making=Making("cpu", "eager")),
        replace(seen, making=Making()),
        replace(seen, encoder=replace(seen.encoder, compute="packed")),
    ):
        assert not is_exact(language, both(other))
    with pytest.raises(IncompatibleFeatures, match="other vision weights"):
        is_exact(language, both(replace(seen, encoder=replace(seen.encoder, vision_weights="0" * 64))))


def test_a_prior_counts_too(languages: dict[str | None, LanguageModel], seen: Features) -> None:
    for making in (seen.making, Making("cuda", "sdpa")):
        (found,) = languages[None].choose([seen], CHOICES, exact=True, prior=replace(seen, making=making))
        assert found.exact == (making == seen.making)


def test_a_kept_result_is_exact_to_those_who_would_have_made_it(
    albums: dict[str | None, Album], languages: dict[str | None, LanguageModel]
) -> None:
    policy = Policy("colours", (Check("colour", *CHOICES[0]),))
    album = albums["eager"]
    pictures = lookup.everything(album.store)
    for read in ("eager", None, "eager"):
        (found,) = checks.check(album.store, languages[read], policy, pictures, exact=True)
        assert isinstance(found, Verdict)
        assert found.exact == (read == "eager")
    assert len(album.store.column("checks", "key")) == 1


def test_a_service_says_it_of_each_answer(
    albums: dict[str | None, Album], languages: dict[str | None, LanguageModel], picture: Path
) -> None:
    for made, album in albums.items():
        served = Album(album.uri, device="cpu")
        served.__dict__["language"] = languages[None]
        shown = {"type": "qsplit_image", "id": album.locate(picture).image.image_id}
        messages = [{"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}]
        body: dict[str, Any] = {"messages": messages, "max_tokens": 2, "exact": True}
        with serving(served) as client:
            answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["qsplit"]["exact"] == (made is None)


def test_videos_tell_how_they_were_made(visions: dict[str | None, VisionEncoder]) -> None:
    frames = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")]
    for attention, vision in visions.items():
        assert vision.encode_video(frames).making == Making("cpu", attention or "sdpa")


def test_a_file_of_features_tells_how_they_were_made(albums: dict[str | None, Album], tmp_path: Path) -> None:
    for attention, album in albums.items():
        (written,) = album.export(tmp_path / (attention or "default"))
        with safe_open(getattr(written, "file", ""), framework="pt") as file:
            told = json.loads(file.metadata()["making"])
        assert told == asdict(Making("cpu", attention or "sdpa"))


def test_how_features_were_made_changes_neither_bytes_nor_keys(seen: Features) -> None:
    other = replace(seen, making=Making("cuda", "eager"))
    assert other.digest() == seen.digest()
    assert other.to_payload() == seen.to_payload()
    assert FeatureRow("p", other, Provenance()).key == FeatureRow("p", seen, Provenance()).key
