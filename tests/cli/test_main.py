"""The commands as a user types them: output, JSON, exit codes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from models import make_checkpoint, save_as_transformers_5, unsplit_tokens
from PIL import Image

from qsplit import bundled
from qsplit.album import Album
from qsplit.cli import main
from qsplit.duplicates.detector import Group
from qsplit.indexing import pipeline
from qsplit.indexing.pipeline import IndexReport
from qsplit.maintenance.verify import Verified
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.language.model import Answer, LanguageModel
from qsplit.qa.ask import Reply
from qsplit.qa.checks import Verdict
from qsplit.search.engine import Match
from qsplit.store.feature_store import FeatureStore

Run = Any


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def qsplit(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exited:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(exited.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """Three photographs, one of them twice, indexed into <folder>.qsplit."""
    folder = tmp_path_factory.mktemp("album") / "pictures"
    folder.mkdir()
    for path in photos[:3]:
        shutil.copy(path, folder)
    shutil.copy(photos[0], folder / "again.jpg")
    with pytest.raises(SystemExit) as exited:
        main.main(["index", str(folder), "--store", str(folder.with_suffix(".qsplit"))])
    assert exited.value.code == 0
    return folder


def store(album: Path) -> str:
    return str(album.with_suffix(".qsplit"))


def names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


# --- index ---


def test_index_tells_what_it_did_and_what_it_could_not_read(qsplit: Run, tmp_path: Path, photos: list[Path]) -> None:
    shutil.copy(photos[0], tmp_path)
    (tmp_path / "note.jpg").write_text("no picture")
    first = qsplit("index", tmp_path, "--store", tmp_path / "s.qsplit")
    assert first.code == 1
    assert first.out.startswith("2 found: 1 encoded, 0 reused, 0 unchanged, 0 missing, 1 unreadable")
    assert "note.jpg" in first.err
    second = qsplit("index", tmp_path, "--store", tmp_path / "s.qsplit", "--json")
    (report,) = second.lines
    assert report.keys() == names(IndexReport)
    assert (report["encoded"], report["unchanged"]) == (0, 1)
    assert report["unreadable"][0]["path"].endswith("note.jpg")


def test_index_reports_progress_on_stderr(qsplit: Run, tmp_path: Path, photos: list[Path]) -> None:
    result = qsplit("index", photos[0], "--store", tmp_path / "s.qsplit")
    assert "1/1 files" in result.err
    assert "ETA" in result.err


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 1), (11.0, 4)])
def test_a_log_has_a_line_of_progress_every_ten_seconds(
    qsplit: Run, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    """And one at the end, however fast pictures come; ``seconds`` is how long each takes."""
    clock = count(time.monotonic(), seconds)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told = qsplit("index", *photos[:4], "--store", tmp_path / "s.qsplit").err
    assert [line.split()[0] for line in told.splitlines() if " files " in line][-1] == "4/4"
    assert told.count(" files ") == lines


def test_an_interrupted_command_exits_with_130(
    qsplit: Run, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was encoded before stays."""
    put = FeatureStore.put_files

    def put_and_interrupt(*given: Any) -> Any:
        put(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "put_files", put_and_interrupt)
        assert qsplit("index", photos[0], "--store", tmp_path / "s.qsplit").code == 130
    (report,) = qsplit("index", photos[0], "--store", tmp_path / "s.qsplit", "--json").lines
    assert (report["encoded"], report["unchanged"]) == (0, 1)


def test_an_empty_folder_is_nothing_found(qsplit: Run, tmp_path: Path) -> None:
    result = qsplit("index", tmp_path, "--store", tmp_path / "s.qsplit")
    assert result.code == 5
    assert "no picture" in result.err


def test_a_mistyped_path_leaves_no_store_behind(qsplit: Run, tmp_path: Path) -> None:
    result = qsplit("index", tmp_path / "nothing", "--store", tmp_path / "s.qsplit")
    assert result.code == 5
    assert not (tmp_path / "s.qsplit").exists()


# --- ask ---


def test_ask_answers_each_question(qsplit: Run, album: Path) -> None:
    command = ["ask", album / "again.jpg", "What is it?", "What else?", "--store", store(album)]
    results = {
        exact: qsplit(*command, "--max-new-tokens", 5, "--json", *(["--exact"] if exact else []))
        for exact in (False, True)
    }
    for exact, result in results.items():
        assert result.code == 0
        assert [line["question"] for line in result.lines] == ["What is it?", "What else?"]
        assert all(line.keys() == names(Reply) and line["exact"] == exact for line in result.lines)
        assert all(line["seconds"].keys() == {"fetch", "prefill", "decode"} for line in result.lines)


@pytest.mark.parametrize("system", ["You are a helpful assistant.", "assistant", " ", "Answer in one word."])
def test_ask_and_check_take_any_system_prompt(qsplit: Run, album: Path, tmp_path: Path, system: str) -> None:
    arguments = [album / "again.jpg", "--store", store(album), "--json"]
    answer = qsplit("ask", arguments[0], "What is it?", *arguments[1:], "--system", system, "--max-new-tokens", 2)
    assert answer.code == 0, answer.err
    policy = tmp_path / "policy.toml"
    check = '[[check]]\nname = "a"\nquestion = "What is it?"\nchoices = ["a picture", "none"]\n'
    policy.write_text(f"system = {json.dumps(system)}\n{check}")
    found = qsplit("check", policy, *arguments, "--all")
    assert (found.code, len(found.lines)) == (0, 1), found.err


def test_ask_goes_on_to_the_end_of_the_answer_or_of_the_context(qsplit: Run, album: Path, tmp_path: Path) -> None:
    model = tmp_path / "endless"
    shutil.copytree(bundled.checkpoint(), model)
    settings = json.loads((model / "generation_config.json").read_text()) | {"eos_token_id": [1530]}
    (model / "generation_config.json").write_text(json.dumps(settings))
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 300
    (model / "config.json").write_text(json.dumps(config))
    arguments = ["ask", album / "again.jpg", "What is it?", "--store", store(album), "--model", model, "--json"]
    (found,) = qsplit(*arguments).lines
    assert 128 < len(found["tokens"]) < 300
    assert qsplit(*arguments, "--max-new-tokens", 1024).code == 2
    assert len(qsplit(*arguments, "--max-new-tokens", 5).lines[0]["tokens"]) == 5


def test_ask_takes_several_images_and_id_prefixes(qsplit: Run, album: Path) -> None:
    (match, *_) = qsplit("search", "--like", album / "again.jpg", "--store", store(album), "--json").lines
    result = qsplit(
        "ask", album / "again.jpg", "Which?", "--image", match["id"][:10], "--store", store(album),
        "--max-new-tokens", 3, "--json",
    )  # fmt: skip
    assert [image["path"] for image in result.lines[0]["images"]] == [str(album / "again.jpg"), match["path"]]


def test_a_chat_goes_on_until_an_empty_line(qsplit: Run, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["What is it?", "And why?", ""])
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(typed))
    histories: list[list[tuple[str, str]]] = []
    answer = LanguageModel.answer

    def spy(*arguments: Any, **options: Any) -> Answer:
        histories.append(list(options.get("history", ())))
        return answer(*arguments, **options)

    monkeypatch.setattr(LanguageModel, "answer", spy)
    result = qsplit("ask", album / "again.jpg", "-i", "--store", store(album), "--max-new-tokens", 4, "--json")
    assert [line["question"] for line in result.lines] == ["What is it?", "And why?"]
    assert histories == [[], [("What is it?", result.lines[0]["answer"])]], "the second question did not see the first"


def test_answers_are_streamed_to_a_terminal(album: Path) -> None:
    """A pseudo-terminal sees the same text that a pipe gets, in several pieces."""
    command = [sys.executable, "-m", "qsplit", "ask", str(album / "again.jpg"), "What is it?", "--store", store(album)]
    command += ["--max-new-tokens", "8"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdout=follower) as process:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # Linux: the other end was closed
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(leader)
    assert process.returncode == 0
    assert b"".join(pieces).decode().replace("\r\n", "\n") == piped
    assert len(pieces) > 1


# --- search, duplicates, status, doctor ---


def test_search_like_finds_neighbours(qsplit: Run, album: Path) -> None:
    result = qsplit("search", "--like", album / "again.jpg", "--limit", 1, "--store", store(album), "--json")
    assert len(result.lines) == 1
    assert result.lines[0].keys() == names(Match)
    plain = qsplit("search", "--like", album / "again.jpg", "--store", store(album))
    assert len(plain.out.splitlines()) == 2


def test_search_by_text(qsplit: Run, album: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store(album), tmp_path / "copy.qsplit")
    lacking = qsplit("search", "a", "photograph", "--store", copy)
    assert lacking.code == 5
    assert "qsplit refresh --semantic" in lacking.err
    assert qsplit("refresh", "--semantic", "--captions", "--store", copy).code == 0
    everything = qsplit("search", "a", "photograph", "--all", "--store", copy, "--json")
    assert everything.code == 0
    assert [line["kind"] for line in everything.lines] == ["semantic"] * 3
    assert everything.lines[0].keys() == names(Match)
    asked = qsplit("search", "a photograph", "--all", "--hybrid", "--rerank", 2, "--store", copy, "--json")
    assert [line["kind"] for line in asked.lines] == ["probability"] * 2
    said = qsplit("search", "photograph", "--words", "--store", copy, "--json")
    assert {line["kind"] for line in said.lines} == {"words"}
    nothing = qsplit("search", "photograph of qwertz", "--words", "--store", copy)
    assert nothing.code == 5
    assert "no good match" in nothing.err
    assert "--all" in nothing.err


def test_search_goes_on_where_a_page_ended(qsplit: Run, album: Path) -> None:
    command = ["search", "--like", album / "again.jpg", "--limit", 1, "--store", store(album)]
    (first,) = qsplit(*command, "--json").lines
    (second,) = qsplit(*command, "--json", "--after", first["after"]).lines
    assert first["id"] != second["id"]
    assert second["after"] == ""
    assert f"--after {first['after']}" in qsplit(*command).err
    (failure,) = qsplit(*command, "--camera", "x", "--after", first["after"], "--json").lines
    assert failure["error"]["type"] == "UsageError"


def test_search_by_conditions(qsplit: Run, album: Path) -> None:
    found = qsplit("search", "--path", "again.*", "--store", store(album), "--json")
    assert [line["path"] for line in found.lines] == [str(album / "again.jpg")]
    assert found.lines[0]["kind"] == "date"
    assert len(qsplit("search", "--sort", "date", "--store", store(album), "--json").lines) == 3
    nothing = qsplit("search", "--min-size", "1000MP", "--store", store(album), "--json")
    assert nothing.code == 5
    assert nothing.lines[0]["error"]["type"] == "NotFound"
    for wrong in (["--since", "soon"], ["--near", "1,2"], ["--min-size", "big"], ["red", "+"], ["--after", "x"], []):
        assert qsplit("search", *wrong, "--store", store(album)).code == 2, wrong


def test_search_options_are_described() -> None:
    command = main.cli.commands["search"]
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert all(option.help for option in options), "an option without help"


def test_duplicates_are_listed(qsplit: Run, album: Path) -> None:
    result = qsplit("duplicates", "--store", store(album), "--json")
    assert [(line["kind"], len(line["members"])) for line in result.lines] == [("exact", 2)]
    assert result.lines[0].keys() == names(Group)
    assert qsplit("duplicates", "--store", store(album)).out.startswith("exact: keep ")


def test_status_counts(qsplit: Run, album: Path) -> None:
    (found,) = qsplit("status", "--store", store(album), "--json").lines
    assert (found["images"], found["files"], found["features"], found["stale"]) == (3, 4, 3, 0)
    assert found["bytes"]["total"] > found["bytes"]["features"] > 0
    assert found["encoders"][0]["current"]
    assert "3 images in 4 files" in qsplit("status", "--store", store(album)).out


def test_what_needs_no_model_imports_none() -> None:
    code = "import sys, qsplit.maintenance.status, qsplit.duplicates.detector; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- upkeep ---


def test_verify_tells_what_it_read_and_exits_with_4_for_damage(qsplit: Run, album: Path, tmp_path: Path) -> None:
    sound = qsplit("verify", "--drift", 1, "--store", store(album))
    assert sound.code == 0
    assert "3 payloads read: 0 rows corrupt" in sound.out
    assert "1 looked at again: 1 the same bits" in sound.out
    copy = shutil.copytree(store(album), tmp_path / "copy.qsplit")
    key, *_ = [key for (key,) in FeatureStore(copy).column("features", "key")]
    payload = bytes(FeatureStore(copy).get_features([key])[key].to_payload().data)
    for path in Path(copy, "features.lance", "data").rglob("*.*"):
        path.write_bytes(path.read_bytes().replace(payload, payload[:-1] + bytes([payload[-1] ^ 1])))
    damaged = qsplit("verify", "--json", "--store", copy)
    assert damaged.code == 4
    (found,) = damaged.lines
    assert found.keys() == names(Verified)
    assert (found["checked"], len(found["corrupt"])) == (3, 1)


def test_forget_compact_and_snapshots(qsplit: Run, album: Path, tmp_path: Path) -> None:
    copy = ("--store", shutil.copytree(store(album), tmp_path / "copy.qsplit"))
    assert qsplit("snapshot", *copy).out == ""
    assert "before" in qsplit("snapshot", "before", *copy).out
    told = qsplit("forget", album / "again.jpg", "--dry-run", *copy)
    assert told.out.startswith("1 images in 2 files, 1 features would go")
    (gone,) = qsplit("forget", album / "again.jpg", "--json", *copy).lines
    assert (gone["images"], gone["files"], gone["features"]) == (1, 2, 1)
    assert [qsplit("status", "--json", *at, *copy).lines[0]["images"] for at in ((), ("--at", "before"))] == [2, 3]
    assert "snapshot: before" in qsplit("status", *copy).out
    (kept,) = qsplit("snapshot", "--json", *copy).lines
    assert kept["name"] == "before"
    assert qsplit("snapshot", "before", "--restore", *copy).code == 0
    assert qsplit("status", "--json", *copy).lines[0]["images"] == 3
    assert qsplit("snapshot", "before", "--delete", *copy).out == ""
    assert "0 orphans" in qsplit("compact", "--dry-run", *copy).out
    (done,) = qsplit("compact", "--alone", "--json", *copy).lines
    assert done["after"] < done["before"]
    assert qsplit("snapshot", "--restore", *copy).code == 2
    assert qsplit("status", "--at", "before", *copy).code == 5


def test_refresh_says_what_is_stale_and_encodes_it(qsplit: Run, album: Path, tmp_path: Path) -> None:
    copy = ("--store", shutil.copytree(store(album), tmp_path / "copy.qsplit"))
    report = qsplit("refresh", "--dtype", "float32", "--drop-old", "--codec", "planes-zstd", "--json", *copy).lines[0]
    assert report["encoded"] == 3
    (encoder,) = qsplit("status", "--json", *copy).lines[0]["encoders"]
    assert (encoder["dtype"], encoder["codecs"]) == ("float32", {"planes-zstd": 3})
    assert encoder["made_by"][0]["device"]


def test_texts_are_prepared_for_on_request(qsplit: Run, album: Path, tmp_path: Path) -> None:
    copy = ("--store", shutil.copytree(store(album), tmp_path / "copy.qsplit"))
    wanted = ("--semantic", "--captions", "--caption-prompt", "What is it?", "--caption-prompt", "这是什么？")
    told = qsplit("refresh", *wanted, *copy)
    assert "3 semantic vectors and 3 captions made" in told.out
    assert "3/3 captions" in told.err
    (again,) = qsplit("index", album, "--semantic", "--captions", "--json", *copy).lines
    assert (again["semantic"], again["captions"], again["unsearchable"]) == (0, 0, [])
    (encoder,) = qsplit("status", "--json", *copy).lines[0]["encoders"]
    assert (list(encoder["semantic"].values()), encoder["captions"]) == ([3], 3)
    assert "3 semantic vectors, 3 captions" in qsplit("status", *copy).out


def test_doctor_tells_what_would_fail(qsplit: Run, album: Path, tmp_path: Path) -> None:
    healthy = qsplit("doctor", "--store", store(album), "--json")
    assert healthy.code == 0
    assert {"torch", "lancedb", "devices", "vision half", "language half", "store"} <= {
        c["name"] for c in healthy.lines
    }
    broken = qsplit("doctor", "--model", tmp_path, "--store", tmp_path / "none")
    assert broken.code == 1
    assert "FAIL  vision half" in broken.out


@pytest.mark.parametrize(
    ("dtype", "has", "told"), [("bfloat16", False, True), ("float32", False, False), ("", True, False)]
)
def test_doctor_tells_of_a_cpu_that_is_slow_in_the_dtype(
    qsplit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, has: bool, told: bool
) -> None:
    monkeypatch.setattr("qsplit.cli.doctor.has_bfloat16", lambda: has)
    monkeypatch.setattr("qsplit.models.checkpoint.default_device", lambda: "cpu")
    asked = ["--dtype", dtype] if dtype else []
    lines = qsplit("doctor", "--store", tmp_path / "none", *asked, "--json").lines
    assert [("--dtype float32" in c["fix"], c["ok"]) for c in lines if c["name"] == "vision half"] == [(told, True)]


# --- failures ---


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["ask", "x.jpg", "What?", "--store", "no-such.qsplit"], 5, "NotFound"),
        (["status", "--store", "no-such.qsplit"], 5, "NotFound"),
        (["ask", "x.jpg"], 2, "UsageError"),
        (["index"], 2, "UsageError"),
        (["frobnicate"], 2, "UsageError"),
        (["index", ".", "--min-pixels", "0"], 2, "UsageError"),
        (["index", ".", "--resized-width", "56"], 2, "UsageError"),
    ],
)
def test_any_failure_is_an_exit_code_and_one_object(
    qsplit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spoken = qsplit(*arguments)
    assert (spoken.code, spoken.out) == (code, "")
    assert "rror" in spoken.err
    told = qsplit(*arguments, "--json")
    assert told.code == code
    assert told.lines[0]["error"].keys() == {"type", "message", "fix"}
    assert told.lines[0]["error"]["type"] == kind
    assert not list(tmp_path.iterdir())


def test_features_of_another_model_are_exit_code_3(qsplit: Run, album: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "qwen2_vl")
    result = qsplit("ask", album / "again.jpg", "What?", "--store", store(album), "--model", other, "--json")
    assert result.code == 3
    assert "other vision weights" in result.lines[0]["error"]["message"]


def test_a_store_that_is_a_file_is_exit_code_4(qsplit: Run, tmp_path: Path, photos: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    assert qsplit("index", photos[0], "--store", tmp_path / "file").code == 4


def test_a_picture_that_is_not_indexed_is_exit_code_5(qsplit: Run, album: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), "red").save(tmp_path / "new.png")
    result = qsplit("ask", tmp_path / "new.png", "What?", "--store", store(album), "--json")
    assert result.code == 5
    assert result.lines[0]["error"]["fix"] == f"Run `qsplit index {tmp_path / 'new.png'}`."


def test_what_the_first_index_used_need_not_be_repeated(qsplit: Run, tmp_path: Path, photos: list[Path]) -> None:
    model = make_checkpoint(tmp_path / "model", "qwen2_5_vl")
    options = ["--store", tmp_path / "s.qsplit", "--json"]
    assert qsplit("index", photos[0], "--model", model, "--max-pixels", 9000, "--dtype", "float32", *options).code == 0
    result = qsplit("ask", photos[0], "What?", "--max-new-tokens", 2, *options)
    assert result.code == 0
    assert (result.lines[0]["model"], result.lines[0]["exact"]) == (str(model), True)
    assert qsplit("index", photos[0], *options).lines[0]["unchanged"] == 1


def test_a_store_that_was_filled_in_another_dtype_is_asked_in_it(
    qsplit: Run, tmp_path: Path, photos: list[Path]
) -> None:
    """As a store of a checkpoint with no dtype but its text's is, which was once run in float32."""
    model = make_checkpoint(tmp_path / "model", "qwen3_vl")
    config = json.loads((model / "config.json").read_text())
    for settings in (config, config["vision_config"]):
        settings.pop("dtype", None)
    config["text_config"]["dtype"] = "bfloat16"
    (model / "config.json").write_text(json.dumps(config))
    assert Checkpoint(model, "").dtype == "bfloat16"
    uri = tmp_path / "s.qsplit"
    index = ["index", *photos[:1], "--store", uri, "--json"]
    ask = ["ask", photos[0], "What?", "--max-new-tokens", 2, "--exact", "--store", uri, "--json"]
    assert qsplit(*index, "--model", model, "--dtype", "float32").code == 0
    assert qsplit(*ask).lines[0]["exact"]  # in what the store recorded
    assert qsplit(*index).lines[-1]["unchanged"] == 1

    FeatureStore(uri).record(replace(FeatureStore(uri).settings(), dtype=""))  # a store that does not say it
    refused = qsplit(*ask)
    assert refused.code == 3
    assert refused.lines[0]["error"]["fix"].startswith("Add `--dtype float32`, or run `qsplit index`")
    expected = qsplit(*ask, "--dtype", "float32").lines[0]
    assert expected["exact"]
    report = qsplit(*index).lines[-1]
    assert (report["encoded"], report["unchanged"]) == (1, 0)
    (line,) = qsplit(*ask).lines
    assert line["exact"]
    assert line["encoder"] != expected["encoder"]  # and the rows of before are there still
    assert qsplit(*ask, "--dtype", "float32").lines[0]["tokens"] == expected["tokens"]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "smolvlm"])
def test_every_command_takes_a_folder_that_transformers_5_saved(
    qsplit: Run, tmp_path: Path, photos: list[Path], family: str
) -> None:
    before = make_checkpoint(tmp_path / family, family, dtype="float32")
    old, new = ["--store", tmp_path / "old.qsplit"], ["--store", tmp_path / "new.qsplit"]
    assert qsplit("index", photos[0], "--model", before, *old).code == 0
    model = save_as_transformers_5(shutil.copytree(before, tmp_path / "five"))
    assert qsplit("index", *photos[:2], "--model", model, *new, "--json").lines[-1]["encoded"] == 2
    question = ["What is it?", "--max-new-tokens", 4, "--exact", "--json"]
    expected = unsplit_tokens(model, photos[:1], "What is it?", 4)
    # Asked of the store that it filled, and of one that was filled before.
    for store_ in (new, old):
        (line,) = qsplit("ask", photos[0], *question, "--model", model, *store_).lines
        assert (tuple(line["tokens"]), line["exact"]) == (expected, True)
    for command in (["refresh"], ["search", "--like", photos[1]], ["verify"], ["doctor"]):
        assert qsplit(*command, "--model", model, *new).code == 0, command
    assert qsplit("status", *new).code == 0
    assert qsplit("check", "album-tags", "--model", model, *new).code in (0, 1)
    assert qsplit("export", tmp_path / "exported", "--model", model, *new).code == 0
    assert qsplit("split", model, tmp_path / "out").code == 0
    report = qsplit("index", *photos[:3], "--model", tmp_path / "out" / "vision", *new, "--json").lines[-1]
    assert (report["encoded"], report["unchanged"]) == (1, 2)
    (line,) = qsplit("ask", photos[0], *question, "--model", tmp_path / "out" / "language", *new).lines
    assert (tuple(line["tokens"]), line["exact"]) == (expected, True)


def test_every_command_is_documented_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, command in main.cli.commands.items():
        assert f"`qsplit {name}" in readme, f"{name} is not in the README"
        assert command.help
        assert any("--json" in option.opts for option in command.params)


# --- check ---


POLICY = """
[[check]]
name = "kind"
question = "Is it a drawing or a photograph?"
choices = ["drawing", "photograph"]
flag = "FLAG"
"""


@pytest.mark.parametrize(("flag", "code", "flagged"), [("photograph", 6, 3), ("drawing", 0, 0)])
def test_check_tells_by_its_exit_code_whether_anything_was_flagged(
    qsplit: Run, album: Path, tmp_path: Path, flag: str, code: int, flagged: int
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.replace("FLAG", flag))
    outs = [tmp_path / f"out{ending}" for ending in (".jsonl", ".html")]
    found = qsplit("check", policy, "--store", store(album), "--json", *(f"--out={path}" for path in outs))
    assert found.code == code
    assert [set(line) for line in found.lines] == [names(Verdict)] * 3
    assert sum(line["flagged"] for line in found.lines) == flagged
    assert outs[0].read_text().splitlines() == found.out.splitlines()
    assert f"{flagged} of 3 pictures flagged" in outs[1].read_text()
    printed = qsplit("check", policy, "--store", store(album))
    assert printed.out.count("photograph (") == flagged
    assert f"3 pictures checked, {flagged} flagged, 0 skipped" in printed.err
    assert qsplit("check", policy, "--store", store(album), "--all").out.count("photograph (") == 3


def test_check_takes_selected_pictures_and_a_policy_by_name(qsplit: Run, album: Path) -> None:
    found = qsplit("check", "album-tags", album / "again.jpg", "--store", store(album))
    assert found.code == 0
    assert len(found.out.splitlines()) == 7
    assert "again.jpg  kind: photograph" in found.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 5, "album-tags, moderation"),
        (["moderation", "--out", "x.txt"], 2, ".parquet"),
    ],
)
def test_check_refuses_before_it_begins(qsplit: Run, album: Path, arguments: list[str], code: int, says: str) -> None:
    found = qsplit("check", *arguments, "--store", store(album))
    assert (found.code, found.out) == (code, "")
    assert says in found.err


def test_check_skips_what_it_cannot_ask_about(qsplit: Run, tmp_path: Path, photos: list[Path]) -> None:
    uri = tmp_path / "s.qsplit"
    qsplit("index", photos[0], "--store", uri)
    made = FeatureStore(uri)
    made.remove("features", "key", [key for (key,) in made.column("features", "key")])
    found = qsplit("check", "album-tags", "--store", uri)
    assert found.code == 1
    assert "1 skipped" in found.err
    assert "has no features" in found.err


def test_ask_ends_where_it_is_told(qsplit: Run, album: Path) -> None:
    arguments = ["ask", album / "again.jpg", "Describe the picture.", "--store", store(album), "--json"]
    (whole,) = qsplit(*arguments).lines
    word = whole["answer"].split()[1]
    (cut,) = qsplit(*arguments, "--stop", word).lines
    assert cut["answer"] == whole["answer"][: whole["answer"].index(word)]
    (drawn,) = qsplit(*arguments, "--temperature", "3", "--top-p", "0.000001", "--seed", "1").lines
    assert drawn["answer"] == whole["answer"]


# --- transcripts ---


def test_a_conversation_is_kept_and_gone_on_with(qsplit: Run, album: Path, tmp_path: Path) -> None:
    kept = tmp_path / "talk.jsonl"
    arguments = ["--store", store(album), "--json", "--transcript", kept]
    questions = ["Describe the picture.", "Is it bright or dark?", "What is the main colour?"]
    found = qsplit("ask", album / "again.jpg", *questions[:2], *arguments).lines
    assert [json.loads(line) for line in kept.read_text().splitlines()] == found
    found += qsplit("ask", album / "again.jpg", questions[2], *arguments).lines
    assert [line["question"] for line in found] == questions
    talk = Album(store(album))
    history: list[tuple[str, str]] = []
    for line in found:
        (reply,) = talk.ask(album / "again.jpg", line["question"], history=history)
        assert reply.answer == line["answer"]
        history.append((reply.question, reply.answer))


def test_a_transcript_is_of_its_pictures(qsplit: Run, album: Path, photos: list[Path], tmp_path: Path) -> None:
    kept = tmp_path / "talk.jsonl"
    arguments = ["What is it?", "--store", store(album), "--transcript", kept]
    assert qsplit("ask", album / photos[1].name, *arguments).code == 0
    before = kept.read_text()
    other = qsplit("ask", album / photos[2].name, *arguments)
    assert (other.code, kept.read_text()) == (2, before)
    assert "other pictures" in other.err


@pytest.mark.parametrize("line", ["no json", "{}", '{"question": "a", "answer": "b", "images": [1]}'])
def test_what_is_no_transcript_is_left_alone(qsplit: Run, album: Path, tmp_path: Path, line: str) -> None:
    kept = tmp_path / "talk.jsonl"
    kept.write_text(f"\n{line}\n")
    found = qsplit("ask", album / "again.jpg", "What is it?", "--store", store(album), "--transcript", kept)
    assert found.code == 2
    assert "line 2" in found.err
    assert kept.read_text() == f"\n{line}\n"
