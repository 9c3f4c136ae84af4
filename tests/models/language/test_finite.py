"""NaN and infinity in what a model computes are an error of the pictures that they are of, and never an answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from models import make_checkpoint, overflow, overflowing
from patience import PATIENCE
from PIL import Image
from safetensors.torch import load_file, save_file

from qsplit.album import Album
from qsplit.cli.main import main
from qsplit.errors import CheckpointError, InvalidFeatures, QsplitError
from qsplit.features.features import Features
from qsplit.integrations.vllm.remote_language import Heard
from qsplit.maintenance import drift
from qsplit.models.language.choice_scoring import Ways
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.probe import make_probe
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.qa.check_results import read_checked
from qsplit.qa.checks import Verdict
from qsplit.qa.policy import Check, Policy
from qsplit.search import captions, semantic_vectors
from qsplit.search.rerank import probability
from qsplit.server.engine.decoding import Piece
from qsplit.server.engine.remote_scheduler import _said
from qsplit.server.engine.scheduler import Together
from qsplit.store.feature_store import vectors_table
from qsplit.store.records import CheckRow, FeatureRow, Skipped, VectorRow
from qsplit.store.timeline import read_timeline

SHORT = Sampling(max_new_tokens=4)
QUESTION, OTHER = "Which colour is it?", "And how many are there?"
POLICY = Policy(
    "colours",
    (
        Check("colour", QUESTION, ("red", "green"), flag=("red",)),
        Check("number", OTHER, ("one", "two")),
    ),
)
ASKED = [(one.question, one.choices) for one in POLICY.checks]
NOT_FINITE = "NaN or infinite"

Command = Callable[..., tuple[int, list[Any], str]]
Reads = Callable[[LanguageModel, list[Features]], Any]
READS: dict[str, Reads] = {
    "an answer": lambda language, seen: language.answer(seen, QUESTION, sampling=SHORT),
    "an answer that is drawn": lambda language, seen: language.answer(
        seen, QUESTION, sampling=Sampling(4, temperature=1.0, seed=1)
    ),
    "an answer that may reuse": lambda language, seen: language.answer(seen, QUESTION, sampling=SHORT, reuse=True),
    "answers": lambda language, seen: language.answers(seen, [QUESTION, OTHER], sampling=SHORT),
    "choices": lambda language, seen: language.choose(seen, ASKED),
    "exact choices": lambda language, seen: language.choose(seen, ASKED, exact=True),
    "logits": lambda language, seen: language.logits(language.prompt(seen, QUESTION)),
    "logits of an answer": lambda language, seen: language.logits_after(language.prompt(seen, QUESTION), [3, 5]),
    "states": lambda language, seen: language.states([language.prompt(seen, QUESTION)], -2),
    "an answer beside others": lambda language, seen: _told(language, seen, exact=False),
    "an exact answer beside others": lambda language, seen: _told(language, seen, exact=True),
}


def _told(language: LanguageModel, seen: list[Features], *, exact: bool) -> list[int]:
    together = Together(language)
    try:
        told: SimpleQueue[Piece | Exception] = SimpleQueue()
        together.submit(language.prompt(seen, QUESTION), SHORT, told.put, exact=exact)
        return _tokens(told)
    finally:
        together.close()


def _tokens(told: SimpleQueue[Piece | Exception]) -> list[int]:
    tokens: list[int] = []
    while True:
        what = told.get(timeout=PATIENCE)
        if isinstance(what, Exception):
            raise what
        assert what.said is not None
        tokens.append(what.said.id)
        if what.finish:
            return tokens


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_5"])
def halves_and_features(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, Features, Features]:
    folder = str(overflow(make_checkpoint(tmp_path_factory.mktemp("whole") / "m", request.param, dtype="float32")))
    (good,) = VisionEncoder.from_pretrained(folder, device="cpu").encode([Image.new("RGB", (112, 84), "red")])
    return LanguageModel.from_pretrained(folder, device="cpu"), good, overflowing(good)


@pytest.mark.parametrize("what", READS)
def test_what_a_model_computes_is_read_only_if_it_is_finite(
    halves_and_features: tuple[LanguageModel, Features, Features], what: str
) -> None:
    language, good, bad = halves_and_features
    before = READS[what](language, [good])
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        READS[what](language, [bad])
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        READS[what](language, [good, bad])
    after = READS[what](language, [good])
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)


def test_a_prior_that_is_not_finite_calibrates_nothing(
    halves_and_features: tuple[LanguageModel, Features, Features],
) -> None:
    language, good, bad = halves_and_features
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        language.choose([good], ASKED, prior=bad)


def test_nothing_is_said_of_what_is_not_finite(halves_and_features: tuple[LanguageModel, Features, Features]) -> None:
    language, _, bad = halves_and_features
    said: list[str] = []
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        language.answer([bad], QUESTION, sampling=SHORT, on_text=said.append)
    assert not said


def test_a_later_token_is_read_only_if_it_is_finite(
    halves_and_features: tuple[LanguageModel, Features, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    language, good, _ = halves_and_features
    first, *_ = language.answer([good], QUESTION, sampling=SHORT).tokens
    words = language._model.get_input_embeddings()
    forward = words.forward

    def spoilt(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = forward(ids)
        return torch.where((ids == first)[..., None], torch.nan, found) if ids.shape[1] == 1 else found

    monkeypatch.setattr(words, "forward", spoilt)
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        language.answer([good], QUESTION, sampling=SHORT)


def test_one_that_is_not_finite_fails_alone_among_many(
    halves_and_features: tuple[LanguageModel, Features, Features],
) -> None:
    language, good, bad = halves_and_features
    alone = list(language.answer([good], QUESTION, sampling=SHORT).tokens)
    together = Together(language)
    told: list[SimpleQueue[Piece | Exception]] = [SimpleQueue() for _ in range(4)]
    for one, queue in zip([good, bad, good, bad], told, strict=True):
        together.submit(language.prompt([one], QUESTION), SHORT, queue.put)
    assert [_tokens(told[i]) for i in (0, 2)] == [alone, alone]
    for i in (1, 3):
        with pytest.raises(InvalidFeatures, match=NOT_FINITE):
            _tokens(told[i])
    together.close()
    assert language.prefixes.take((bad.digest(),)) is None  # what comes later does not begin with it


def test_chances_that_are_no_numbers_are_refused() -> None:
    ways = Ways(["yes", "no"], lambda text: (len(text),))
    for value in (math.nan, math.inf):
        with pytest.raises(InvalidFeatures, match=NOT_FINITE):
            ways.weighed({(): {3: value, 2: -1.0}}, exact=False)
    assert ways.weighed({(): {3: -math.inf, 2: -1.0}}, exact=False).best == "no"


def test_a_servers_chances_are_numbers_that_json_has() -> None:
    def heard(value: float, other: float) -> Heard:
        top = [{"token": "b", "logprob": other}]
        return Heard("a", (1,), ({"token": "a", "logprob": value, "top_logprobs": top},))

    (said,) = _said(heard(-0.5, -math.inf))
    json.dumps(asdict(said), allow_nan=False)
    for value, other in ((math.nan, -1.0), (-1.0, math.nan), (math.inf, -1.0)):
        with pytest.raises(QsplitError, match=NOT_FINITE):
            list(_said(heard(value, other)))


# --- an album of which one picture overflows ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and a store of them in which the features of b.png overflow."""
    folder = tmp_path_factory.mktemp("album")
    model = overflow(make_checkpoint(folder / "model", "qwen2_vl", dtype="float32"))
    (folder / "pictures").mkdir()
    up = Image.linear_gradient("L").resize((112, 84)).convert("RGB")
    for name, picture in (("a", up), ("b", up.rotate(180)), ("c", Image.new("RGB", (140, 112), "red"))):
        picture.save(folder / "pictures" / f"{name}.png")
    album = Album(folder / "album.qsplit", model=str(model), device="cpu")
    album.index(folder / "pictures")
    image = album.locate(folder / "pictures" / "b.png").image
    (head,) = album.store.heads([image.pixels_digest])
    bad = overflowing(album.store.get_features([head.key])[head.key])
    album.store.remove("features", "key", [head.key])
    album.store.put_features([FeatureRow(head.pixels_digest, bad, head.provenance)])
    album.store.remove(vectors_table(head.encoder.id), "image_id", [image.image_id])
    album.store.put_vectors(head.encoder, [VectorRow(image, bad.pooled())])
    return folder


@pytest.fixture
def album(made: Path) -> Iterator[Album]:
    album = Album(made / "album.qsplit", device="cpu")
    yield album
    if "checks" in album.store.tables():
        album.store.clear("checks")


def strictly(text: str) -> Any:
    """JSON as it is defined, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, list[Any], str]:
        with pytest.raises(SystemExit) as exited:
            main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return int(exited.value.code or 0), list(map(strictly, captured.out.splitlines())), captured.err

    return run


def test_a_question_about_it_is_an_error(made: Path, album: Album) -> None:
    with pytest.raises(InvalidFeatures, match=NOT_FINITE):
        album.ask(made / "pictures" / "b.png", QUESTION)
    assert album.ask(made / "pictures" / "a.png", QUESTION, sampling=SHORT)[0].exact


def test_checks_skip_it_and_try_again(album: Album) -> None:
    for _ in range(2):
        *found, skipped = sorted(album.check(POLICY), key=lambda one: isinstance(one, Skipped))
        assert [Path(str(one.path)).name for one in found] == ["a.png"] * 2 + ["c.png"] * 2
        assert isinstance(skipped, Skipped)
        assert Path(skipped.path).name == "b.png"
        assert NOT_FINITE in skipped.reason
        assert len(album.store.column("checks", "key")) == 4


@pytest.mark.parametrize(("probabilities", "mass"), [((0.5, 0.5), 0.0), ((math.nan, 0.5), 0.9), ((0.5, 0.5), math.nan)])
def test_a_result_that_is_of_nan_is_asked_again(
    made: Path, album: Album, probabilities: tuple[float, ...], mass: float
) -> None:
    policy, picture = replace(POLICY, checks=POLICY.checks[:1]), made / "pictures" / "a.png"
    (expected,) = album.check(policy, [picture])
    assert isinstance(expected, Verdict)
    ((key,),) = album.store.column("checks", "key")
    row = album.store.checks([key])[key]
    album.store.clear("checks")
    album.store.put_checks([replace(row, probabilities=probabilities, mass=mass)])
    timeline = read_timeline(album.store)
    assert len(read_checked(album.store, album.language, policy, timeline)) == 0
    (found,) = album.check(policy, [picture])
    assert isinstance(found, Verdict)
    assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-3)
    assert found.mass == pytest.approx(expected.mass, rel=1e-3)
    assert album.store.checks([key])[key].is_sound
    assert len(read_checked(album.store, album.language, policy, timeline)) == 1
    assert len(album.store.column("checks", "key")) == 1


def test_a_result_without_a_chance_is_asked_once(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def never(_: Ways, logits: Any, *, exact: bool) -> Any:
        asked.append(len(logits))
        return Ways(["red", "green"], lambda text: (len(text),)).weighed({(): {3: -1e9, 5: -1e9}}, exact=exact)

    monkeypatch.setattr(Ways, "score", never)
    policy = replace(POLICY, checks=POLICY.checks[:1])
    first = [one for one in album.check(policy) if isinstance(one, Verdict)]
    monkeypatch.undo()
    assert [one for one in album.check(policy) if isinstance(one, Verdict)] == first
    assert [one.probability for one in first] == [0.5, 0.5]
    assert len(asked) == 2


def test_captions_and_vectors_leave_it_out(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_vectors, "_FEWEST", 2)  # so that a mean is taken, which one picture could spoil
    encoder_id = album.wanted.id
    filled = [
        semantic_vectors.fill(album.store, album.language, encoder_id),
        captions.fill(album.store, album.language, encoder_id, prompts=["What?"]),
    ]
    for one in filled:
        assert one.images == 2
        (skipped,) = one.skipped
        assert Path(skipped.path).name == "b.png"
        assert NOT_FINITE in skipped.reason
    known = semantic_vectors.known(album.store, album.language, encoder_id)
    assert known is not None
    assert len(known.image_mean)


def test_a_judgement_of_it_names_it(made: Path, album: Album) -> None:
    images = {name: album.locate(made / "pictures" / f"{name}.png").image for name in "ab"}
    pictures = {one.image_id: one.pixels_digest for one in images.values()}
    with pytest.raises(InvalidFeatures, match=f"{images['b'].image_id[:12]} .*{NOT_FINITE}"):
        probability(album.store, album.language, album.wanted.id, pictures, ["a cat"])


def test_commands_say_so_in_json(made: Path, tmp_path: Path, command: Command) -> None:
    store, policy = ("--store", made / "album.qsplit", "--json"), tmp_path / "policy.toml"
    policy.write_text(f'name = "p"\n[[check]]\nname = "c"\nquestion = "{QUESTION}"\nchoices = ["red", "green"]\n')
    code, (told,), _ = command("ask", made / "pictures" / "b.png", QUESTION, *store)
    assert (code, told["error"]["type"]) == (4, "InvalidFeatures")
    assert NOT_FINITE in told["error"]["message"]
    assert told["error"]["fix"]
    code, found, error = command("check", policy, *store)
    assert (code, len(found)) == (1, 2)
    assert NOT_FINITE in error
    code, (verified,), _ = command("verify", "--drift", 3, *store)
    assert code == 1
    assert (verified["corrupt"], verified["drift"]["pictures"]) == ([], 2)
    (failed,) = verified["drift"]["failed"]
    assert Path(failed["path"]).name == "b.png"
    assert NOT_FINITE in failed["reason"]


def test_an_index_that_leaves_pictures_unsearchable_fails_in_part(made: Path, tmp_path: Path, command: Command) -> None:
    store = ("--store", shutil.copytree(made / "album.qsplit", tmp_path / "album.qsplit"), "--json")
    code, (report,), _ = command("index", made / "pictures", "--semantic", *store)
    assert (report["unchanged"], report["unreadable"]) == (3, [])
    assert [Path(one["path"]).name for one in report["unsearchable"]] == ["b.png"]
    assert code == 1
    code, (report,), _ = command("refresh", "--semantic", *store)
    assert (code, len(report["unsearchable"])) == (1, 1)


def test_drift_of_the_largest_numbers_is_a_number(album: Album, made: Path) -> None:
    picture = album.locate(made / "pictures" / "a.png")
    (head,) = album.store.heads([picture.image.pixels_digest])
    then = album.store.get_features([head.key])[head.key]
    largest = float(np.finfo(np.float32).max)
    first, second = (replace(then, tokens=np.full_like(then.tokens, value)) for value in (largest, -largest))
    found = drift._compare(first, second, album.language)
    assert found.cosine == pytest.approx(-1)
    assert found.largest == pytest.approx(2 * largest)
    strictly(json.dumps(asdict(found)))


def test_a_model_of_nan_has_no_probe(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "qwen2_vl", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    name = next(
        name for name in weights if name.endswith("norm.weight") and "layers" not in name and "visual" not in name
    )
    save_file(weights | {name: weights[name] * torch.nan}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=NOT_FINITE):
        make_probe(
            VisionEncoder.from_pretrained(str(folder), device="cpu"),
            lambda: LanguageModel.from_pretrained(str(folder), device="cpu"),
        )


def test_a_row_says_whether_it_is_sound() -> None:
    row = CheckRow("p", "a", "q", ("x", "y"), (0.5, 0.5), 0.9, True, "e", "m", "")
    assert row.is_sound
    assert not any(replace(row, mass=mass).is_sound for mass in (0.0, math.nan, math.inf))
    assert not replace(row, probabilities=(math.nan, 1.0)).is_sound
