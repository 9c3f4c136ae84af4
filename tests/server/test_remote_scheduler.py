"""A service whose answers come from a server that runs the language half: the same answers, and no weights here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import openai
import pytest
from listening import heard, listening, until
from patience import PATIENCE
from remote_server import Remote, remote

import qsplit
from qsplit import bundled
from qsplit.album import Album
from qsplit.errors import AnswerFailed, NotReady, QueueFull, RemoteError, UsageError
from qsplit.integrations.vllm.remote_language import RemoteLanguage
from qsplit.models.language.kv_cache import PrefixCache
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.server.engine.decoding import Piece
from qsplit.server.engine.remote_scheduler import Relay
from qsplit.server.service import Service

QUESTION = "What colour is the ball?"
LONG = Sampling(max_new_tokens=64)


@pytest.fixture(scope="module")
def half(halves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint's small files and its probe, without weights."""
    half = tmp_path_factory.mktemp("half") / "small files"
    shutil.copytree(halves / "language", half)
    for file in half.glob("*.safetensors*"):
        if "probe" not in file.name:
            file.unlink()
    return half


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "album.qsplit"
    qsplit.open(path, device="cpu").index(*bundled.photos()[:2])
    return path


@pytest.fixture(scope="module")
def far(mini_language: LanguageModel) -> Iterator[Remote]:
    with remote(mini_language) as found:
        yield found


@pytest.fixture(autouse=True)
def _as_it_was(far: Remote, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mini_language, "prefixes", PrefixCache(2**30))
    yield
    far.breaks, far.pause, far.adds, far.refusals, far.is_endless, far.longest = -1, 0.0, 0, [], False, 2048


@pytest.fixture(scope="module")
def served(store: Path, half: Path, far: Remote) -> Iterator[tuple[str, Service]]:
    album = qsplit.open(store, model=str(half), language=far.url, device="cpu")
    with listening(album, role="language", deadline_s=20) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: tuple[str, Service]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def here(store: Path, mini_language: LanguageModel) -> Album:
    album = qsplit.open(store, device="cpu")
    album.__dict__["language"] = mini_language
    return album


def picture(album: Album, number: int) -> dict[str, Any]:
    return {"type": "qsplit_image", "id": album.locate(bundled.photos()[number]).image.image_id}


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(model="", messages=messages, **options)


def asking(album: Album, *numbers: int) -> list[Any]:
    shown = [picture(album, number) for number in numbers or (0,)]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]


def test_answers_are_those_of_the_language_half(
    client: openai.OpenAI, served: tuple[str, Service], here: Album
) -> None:
    (expected,) = here.ask(bundled.photos()[:2], QUESTION, exact=True)
    found = ask(client, asking(here, 0, 1))
    assert found.choices[0].message.content == expected.answer
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == len(expected.tokens)
    assert not found.model_extra["qsplit"]["exact"]
    assert not served[1].album.has_loaded("language")
    assert not served[1].album.has_loaded("vision")


def test_a_conversation_is_passed_on_whole(client: openai.OpenAI, here: Album) -> None:
    system = "Answer with one word."
    (expected,) = here.ask(bundled.photos()[0], "And why?", history=[(QUESTION, "red")], system=system, exact=True)
    messages = [
        {"role": "system", "content": system},
        *asking(here),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And why?"},
    ]
    assert ask(client, messages).choices[0].message.content == expected.answer


def test_chances_and_sampling_are_those_of_the_language_half(
    client: openai.OpenAI, here: Album, mini_language: LanguageModel
) -> None:
    (features,) = here.store.get_features([h.key for h in here.store.heads([pixels(here)])]).values()
    sampling = Sampling(8, 1.5, 7, stop=("z",))
    expected = mini_language.answer([features], QUESTION, sampling=sampling)
    options = {"max_tokens": 8, "temperature": 1.5, "seed": 7, "stop": "z"}
    messages = asking(here)
    found = ask(client, messages, logprobs=True, top_logprobs=2, **options)
    assert found.choices[0].message.content == expected.text
    said = found.choices[0].logprobs.content
    assert len(said) == len(expected.tokens) == found.usage.completion_tokens
    logits = mini_language.logits_after(mini_language.prompt([features], QUESTION), expected.tokens).float()
    chances = logits.log_softmax(-1)
    for one, token, row in zip(said, expected.tokens, chances, strict=True):
        assert one.logprob == pytest.approx(float(row[token]), rel=1e-3, abs=1e-3)
        assert [other.logprob for other in one.top_logprobs] == pytest.approx(row.topk(2).values.tolist(), rel=1e-3)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage.completion_tokens == len(expected.tokens)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == found.choices[0].finish_reason


def pixels(album: Album) -> str:
    return album.locate(bundled.photos()[0]).image.pixels_digest


def test_an_exact_answer_is_refused(client: openai.OpenAI, here: Album) -> None:
    with pytest.raises(openai.BadRequestError, match="never exact"):
        ask(client, asking(here), extra_body={"exact": True})


def test_vectors_of_text_need_weights_that_are_here(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes no vectors"):
        client.embeddings.create(model="", input="a red ball")


def test_what_ails_the_server_is_no_clients_matter(client: openai.OpenAI, here: Album, far: Remote) -> None:
    ask(client, asking(here))
    far.refusals = [400]
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client, asking(here))
    assert failed.value.status_code == 502
    assert far.url not in str(failed.value)
    assert "127.0.0.1" not in str(failed.value)
    far.breaks, far.is_endless = 1, True
    chunks = ask(client, asking(here), stream=True, max_tokens=8)
    with pytest.raises(openai.APIError, match="does not answer as it should"):
        list(chunks)
    far.breaks, far.is_endless, far.adds = -1, False, 1
    with pytest.raises(openai.InternalServerError):  # it writes chats otherwise
        ask(client, asking(here))


@pytest.mark.parametrize("pause", [0.05, 8.0], ids=["the server writes on", "the server hangs"])
@pytest.mark.parametrize("stream", [True, False])
def test_at_the_deadline_an_answer_ends_where_it_is(
    served: tuple[str, Service],
    client: openai.OpenAI,
    here: Album,
    far: Remote,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
    pause: float,
) -> None:
    ask(client, asking(here))  # the probe has been sent
    monkeypatch.setattr(served[1], "options", replace(served[1].options, deadline_s=4.0))
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    far.pause, far.is_endless = pause, True
    text, finish, usage = heard(ask(client, asking(here), **options))
    assert (bool(text), finish) == (True, "length")
    assert usage.completion_tokens >= 1


def test_nobody_else_waits_for_a_server_that_is_not_there(store: Path, half: Path) -> None:
    """It is tried for some seconds, in which the service goes on."""
    album = qsplit.open(store, model=str(half), language="http://127.0.0.1:9/v1", device="cpu")
    with (
        listening(album, role="language", deadline_s=20) as (url, service),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, client, asking(album))
        until(lambda: service.engine.n_running == 1)
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE).is_success
        assert not asked.done()
        with pytest.raises(openai.InternalServerError, match="does not answer as it should"):
            asked.result()


# The relay


@pytest.fixture
def language(half: Path, far: Remote) -> RemoteLanguage:
    return RemoteLanguage.connect(far.url, str(half))


@pytest.fixture
def prompt(language: RemoteLanguage, here: Album) -> Any:
    found = here.store.get_features([h.key for h in here.store.heads([pixels(here)])])
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return language.prompt_of(list(found.values()), [{"role": "user", "content": content}])


def test_who_leaves_ends_the_answer_at_the_server(language: RemoteLanguage, prompt: Any, far: Remote) -> None:
    relay, told = Relay(language), Queue[Piece | Exception]()
    list(language.hear(prompt, Sampling(1), seconds=60))  # the probe has been sent
    far.pause, far.is_endless, before = 0.05, True, far.said
    passed = relay.submit(prompt, LONG, told.put)
    assert isinstance(told.get(timeout=PATIENCE), Piece)
    passed.cancel()
    until(lambda: relay.n_running == 0)
    seen = far.said
    time.sleep(0.5)
    assert far.said <= seen + 2 < before + LONG.most
    relay.close()
    with pytest.raises(NotReady):
        relay.submit(prompt, LONG, told.put)


def test_an_answer_that_comes_too_late_is_said(language: RemoteLanguage, prompt: Any, far: Remote) -> None:
    relay, told = Relay(language), Queue[Piece | Exception]()
    list(language.hear(prompt, Sampling(1), seconds=60))  # the probe has been sent
    far.pause, far.is_endless = 0.2, True
    relay.submit(prompt, LONG, told.put, deadline=time.monotonic() + 0.5)
    relay.close()
    pieces = [told.get_nowait() for _ in range(told.qsize())]
    assert pieces[-1] == Piece("", None, "length")
    assert all(isinstance(one, Piece) and one.said for one in pieces[:-1])
    assert 1 < len(pieces) < 6


def test_text_that_might_have_begun_a_stop_string_is_told_at_the_deadline(
    language: RemoteLanguage, prompt: Any, far: Remote
) -> None:
    list(language.hear(prompt, Sampling(1), seconds=60))  # the probe has been sent
    whole = "".join(some.text for some in language.hear(prompt, Sampling(6), seconds=60))
    relay, told = Relay(language), Queue[Piece | Exception]()
    far.pause, far.is_endless = 0.2, True
    passed = relay.submit(prompt, Sampling(64, stop=(whole + "never",)), told.put)
    until(lambda: passed.n_tokens >= 2)
    relay.end_by(time.monotonic())
    relay.close()
    pieces = [told.get_nowait() for _ in range(told.qsize())]
    assert all(isinstance(one, Piece) for one in pieces)
    tokens = [one.said.id for one in pieces if isinstance(one, Piece) and one.said]
    text = "".join(one.text for one in pieces if isinstance(one, Piece))
    assert text == language.text_of(tokens) != ""
    assert whole.startswith(text)


def test_an_answer_that_has_not_begun_by_the_deadline_is_too_late(language: RemoteLanguage, prompt: Any) -> None:
    relay, told = Relay(language), Queue[Piece | Exception]()
    list(language.hear(prompt, Sampling(1), seconds=60))  # the probe has been sent
    for late in (time.monotonic() - 1, time.monotonic() + 0.001):
        relay.submit(prompt, LONG, told.put, deadline=late)
    relay.close()
    assert [type(told.get_nowait()).__name__ for _ in range(told.qsize())] == ["DeadlineExceeded"] * 2


def test_what_ails_a_late_answer_is_said(
    language: RemoteLanguage, prompt: Any, far: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose prompt was read otherwise is wrong, however late it is."""
    relay, told = Relay(language), Queue[Piece | Exception]()
    monkeypatch.setattr(language, "_known", True)
    far.adds, far.pause, far.is_endless = 1, 0.2, True
    passed = relay.submit(prompt, Sampling(2), told.put, deadline=time.monotonic() + 60)
    assert isinstance(told.get(timeout=PATIENCE), Piece)
    until(lambda: passed.n_tokens == 2)  # it ends, and what is left to come is how much was read
    passed.deadline = 0.0
    relay.close()
    assert isinstance(told.get_nowait(), RemoteError)


def test_an_answer_without_a_bound_ends_with_the_servers_context(
    half: Path, prompt: Any, far: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.is_endless = True
    for longest, most, expected in ((prompt.input_ids.shape[1] + 9, 2**31, 9), (2048, 5, 5)):
        far.longest = longest
        language = RemoteLanguage.connect(far.url, str(half))
        monkeypatch.setattr(language, "_known", True)
        relay, told = Relay(language), Queue[Piece | Exception]()
        passed = relay.submit(prompt, Sampling(at_most=most), told.put)
        relay.close()
        pieces = [told.get_nowait() for _ in range(told.qsize())]
        assert isinstance(pieces[-1], Piece), pieces[-1]
        assert (passed.n_tokens, pieces[-1].finish) == (expected, "length")


def test_more_than_may_wait_are_turned_away(
    language: RemoteLanguage, prompt: Any, far: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsplit.server.engine.remote_scheduler._AT_ONCE", 1)
    relay, told = Relay(language, queue=1), Queue[Piece | Exception]()
    list(language.hear(prompt, Sampling(1), seconds=60))  # the probe has been sent
    far.pause = 0.3
    relay.submit(prompt, Sampling(2), told.put)
    until(lambda: relay.n_running == 1)
    relay.submit(prompt, Sampling(2), told.put)
    with pytest.raises(QueueFull):
        relay.submit(prompt, Sampling(2), told.put)
    with pytest.raises(UsageError, match="never exact"):
        relay.submit(prompt, Sampling(2), told.put, exact=True)
    assert (relay.n_waiting, relay.n_running) == (1, 1)
    far.pause = 0.0
    relay.close()
    finished = [
        one for one in (told.get_nowait() for _ in range(told.qsize())) if isinstance(one, Piece) and one.finish
    ]
    assert len(finished) == 2


def test_an_answer_without_an_end_is_none(
    language: RemoteLanguage, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = language._server.hear
    monkeypatch.setattr(language._server, "hear", lambda *a, **b: (one for one in hear(*a, **b) if not one.finish))
    relay, told = Relay(language), Queue[Piece | Exception]()
    monkeypatch.setattr(language, "_known", True)
    relay.submit(prompt, Sampling(4), told.put)
    relay.close()
    pieces = [told.get_nowait() for _ in range(told.qsize())]
    assert isinstance(pieces[-1], RemoteError)


def test_a_failure_nobody_foresaw_is_told_and_the_next_is_answered(
    language: RemoteLanguage, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """What a library that is written in Rust raises where it gives up."""

    def fail(*_: Any, **__: Any) -> Any:
        raise Panic("http://secret")

    relay, told = Relay(language), Queue[Piece | Exception]()
    with monkeypatch.context() as patched:
        patched.setattr(language, "hear", fail)
        relay.submit(prompt, Sampling(2), told.put)
        failed = told.get(timeout=PATIENCE)
    assert isinstance(failed, AnswerFailed)
    assert "secret" not in str(failed)
    relay.submit(prompt, Sampling(1), told.put)
    assert isinstance(told.get(timeout=PATIENCE), Piece)
    relay.close()
