"""OpenAI's own client against the service: answers, streams, chances, refusals, and who waits for whom."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from listening import Gate, heard, listening, until
from models import make_checkpoint
from patience import PATIENCE
from PIL import Image
from serving import KEY, READ_ONLY, made_album, serving

from qsplit import bundled
from qsplit.album import Album
from qsplit.media.sandbox.decoder import Decoder
from qsplit.models.language.kv_cache import PrefixCache
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.engine.recent_features import Recent
from qsplit.server.engine.scheduler import Together
from qsplit.server.service import Service

QUESTIONS = ("Is the picture bright or dark?", "What colour is the ball?", "Is there a dog?")
REUSED = "x-qsplit-reused"
NAMED = {"type": "function", "function": {"name": "look"}}
CHOICES: list[dict[str, Any]] = [{}, {"tool_choice": None}, {"tool_choice": "auto"}, {"tool_choice": "none"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory,
    photos: list[Path],
    mini_vision: VisionEncoder,
    mini_language: LanguageModel,
) -> Album:
    return made_album(tmp_path_factory.mktemp("chat"), photos[:2], mini_vision, mini_language)


@pytest.fixture(scope="module")
def served(album: Album) -> Iterator[tuple[str, Service]]:
    with listening(album, queue=8, keys=(KEY,), read_only_keys=(READ_ONLY,)) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: tuple[str, Service]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_known(mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_language, "prefixes", PrefixCache(2**30))


def image_id(album: Album, path: Path) -> str:
    return album.locate(path).image.image_id


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def drawn(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(data, "PNG")
    return data.getvalue()


def asking(question: str, *pictures: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def stored(name: str) -> dict[str, Any]:
    return {"type": "qsplit_image", "id": name}


def sent(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(model="", messages=messages, **options)


def test_an_answer_is_that_of_the_command_line(client: openai.OpenAI, album: Album, photos: list[Path]) -> None:
    for exact in (False, True):
        for question in QUESTIONS:
            (expected,) = album.ask(photos[0], question, exact=True)
            answer = ask(client, asking(question, stored(image_id(album, photos[0])[:12])), extra_body={"exact": exact})
            assert answer.choices[0].message.content == expected.answer
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage.completion_tokens == len(expected.tokens)
            if exact:
                assert answer.model_extra["qsplit"]["exact"]
                assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_the_answer_says_what_was_not_computed(client: openai.OpenAI, album: Album, photos: list[Path]) -> None:
    shown = stored(image_id(album, photos[0]))
    first, again = (
        client.chat.completions.with_raw_response.create(model="", messages=asking(question, shown))
        for question in QUESTIONS[:2]
    )
    assert first.headers[REUSED].startswith("features=1/1, prefix=0/")
    usage = again.parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    known = usage.prompt_tokens_details.cached_tokens
    assert known
    assert again.headers[REUSED] == f"features=1/1, prefix={known}/{usage.prompt_tokens}"
    (expected,) = album.ask(photos[0], QUESTIONS[1], exact=True)
    assert again.parse().choices[0].message.content == expected.answer


def test_a_picture_that_comes_along_is_looked_at_once(
    client: openai.OpenAI, served: tuple[str, Service], album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = asking(QUESTIONS[0], sent(drawn("red")))
    create = client.chat.completions.with_raw_response.create
    first = create(model="", messages=messages)
    assert first.headers[REUSED].startswith("features=0/1")
    kept, size = sorted(served[1].uploads.folder.iterdir()), album.store.bytes()

    def never(*_: Any) -> Any:
        raise AssertionError("it is known")

    monkeypatch.setattr(Decoder, "picture", never)
    monkeypatch.setattr(album.vision, "encode_prepared", never)
    again = create(model="", messages=messages)
    assert again.headers[REUSED].startswith("features=1/1")
    assert again.parse().choices[0].message.content == first.parse().choices[0].message.content
    assert (sorted(served[1].uploads.folder.iterdir()), album.store.bytes()) == (kept, size)
    with openai.OpenAI(base_url=client.base_url, api_key=READ_ONLY, max_retries=0) as reading:
        assert ask(reading, messages).choices[0].message.content
        with pytest.raises(openai.PermissionDeniedError, match="new to the album"):
            ask(reading, asking(QUESTIONS[0], sent(drawn("blue"))))


def test_a_conversation_goes_through_the_template_as_it_is(
    client: openai.OpenAI, album: Album, photos: list[Path], mini_language: LanguageModel
) -> None:
    first, second = (image_id(album, path) for path in photos[:2])
    messages: list[Any] = [
        {"role": "system", "content": "Answer with one word."},
        {"role": "user", "content": [{"type": "text", "text": "One:"}, stored(first)]},
        {"role": "assistant", "content": "dark"},
        {"role": "user", "content": [stored(second), {"type": "text", "text": QUESTIONS[0]}]},
    ]
    features = [features_of(album, one) for one in (first, second)]
    told = [
        {"role": "user", "content": [{"type": "text", "text": "One:"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "dark"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]},
    ]
    prompt = mini_language.prompt_of(features, told, system="Answer with one word.")
    expected = mini_language.logits(prompt)[-1].float().log_softmax(-1)
    answer = ask(client, messages, logprobs=True, top_logprobs=2, max_tokens=1, extra_body={"exact": True})
    said = answer.choices[0].logprobs.content[0]
    assert said.logprob == pytest.approx(float(expected.max()))
    assert [one.logprob for one in said.top_logprobs] == pytest.approx(expected.topk(2).values.tolist())
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 1)
    assert answer.usage.prompt_tokens == prompt.input_ids.shape[1]


def features_of(album: Album, name: str) -> Any:
    picture = album.locate(name)
    (head,) = album.store.heads([picture.image.pixels_digest])
    return album.store.get_features([head.key])[head.key]


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, album: Album, photos: list[Path]) -> None:
    messages = asking(QUESTIONS[1], stored(image_id(album, photos[0])))
    whole = ask(client, messages, logprobs=True, top_logprobs=1)
    chunks = list(
        ask(client, messages, logprobs=True, top_logprobs=1, stream=True, stream_options={"include_usage": True})
    )
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in said) == whole.choices[0].message.content
    assert (said[0].delta.role, said[-1].finish_reason) == ("assistant", "stop")
    assert [one.finish_reason for one in said[:-1]] == [None] * (len(said) - 1)
    tokens = [one.logprobs.content[0].token for one in said if one.logprobs]
    assert tokens == [one.token for one in whole.choices[0].logprobs.content]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == len(tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_is_what_it_is_in_python(
    client: openai.OpenAI, album: Album, photos: list[Path], mini_language: LanguageModel
) -> None:
    features = features_of(album, image_id(album, photos[0]))
    for sampling in (Sampling(12, 1.5, 7), Sampling(12, 0.9, 3, 0.7), Sampling(64, stop=("a",))):
        expected = mini_language.answer([features], QUESTIONS[0], sampling=sampling)
        answer = ask(
            client,
            asking(QUESTIONS[0], stored(image_id(album, photos[0]))),
            max_completion_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            top_p=sampling.top_p,
            stop=list(sampling.stop),
            extra_body={"exact": True},
        )
        assert answer.choices[0].message.content == expected.text
        assert answer.usage.completion_tokens == len(expected.tokens)


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"messages": []}, 422, "at least 1"),
        ({"messages": [{"role": "assistant", "content": "Yes."}]}, 400, "last message is not the user's"),
        ({"messages": asking("?"), "model": "gpt-9"}, 404, "no model 'gpt-9'"),
        ({"messages": asking("?"), "n": 2}, 400, "n is not supported"),
        ({"messages": asking("?"), "tools": TOOLS, "tool_choice": "required"}, 400, "Tools are not supported"),
        ({"messages": asking("?"), "tools": TOOLS, "tool_choice": NAMED}, 400, "tool_choice requires one"),
        ({"messages": asking("?"), "function_call": {"name": "look"}}, 400, "function_call requires one"),
        (
            {"messages": asking("?"), "response_format": {"type": "json_object"}},
            400,
            "response_format is not supported",
        ),
        ({"messages": asking("?"), "logit_bias": {"1": 5}}, 400, "logit_bias is not supported"),
        ({"messages": asking("?", stored("0" * 12))}, 404, "No image id"),
        ({"messages": asking("?", stored("/etc/passwd"))}, 404, "no image id"),
        ({"messages": asking("?", sent(b"no picture"))}, 415, "no picture"),
        ({"messages": asking("?", {"type": "image_url", "image_url": {"url": "data:,"}})}, 415, "empty"),
        ({"messages": asking("?", {"type": "image_url", "image_url": {"url": "data:;base64,?"}})}, 400, "not base64"),
        ({"messages": asking("?", {"type": "image_url", "image_url": {"url": "http://a.b/c"}})}, 400, "not fetched"),
        ({"messages": asking("?", {"type": "input_audio"})}, 422, "input_audio"),
        ({"messages": asking("<|image_pad|>")}, 400, "stands for an image"),
        ({"messages": asking("?"), "max_tokens": 10**9}, 400, "context"),
        ({"messages": asking("?"), "max_tokens": 0}, 422, "max_tokens"),
        ({"messages": asking("?"), "max_tokens": -2}, 422, "max_tokens"),
        ({"messages": [{"role": "system", "content": [stored("0" * 12)]}, *asking("?")]}, 400, "not the user's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_answered_is_refused(
    served: tuple[str, Service], request_: dict[str, Any], status: int, said: str
) -> None:
    answer = httpx.post(f"{served[0]}/v1/chat/completions", json=request_, headers={"authorization": f"Bearer {KEY}"})
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "options",
    [
        *({"tools": TOOLS, "parallel_tool_calls": True} | one for one in CHOICES),
        *({"tools": [], "functions": []} | one for one in CHOICES),
        {"functions": [{"name": "look"}], "function_call": "auto"},
        {"function_call": "none"},
        {"n": 1, "best_of": 1, "echo": False, "modalities": ["text"], "response_format": {"type": "text"}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {}},
        {"top_k": -1, "min_p": 0.0, "skip_special_tokens": True, "user": None, "stop": None, "seed": None},
        {"messages": [{"role": "user", "name": None, "content": QUESTIONS[0]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": None}, *asking(QUESTIONS[0])]},
    ],
    ids=json.dumps,
)
def test_what_clients_send_along_changes_no_answer(served: tuple[str, Service], options: dict[str, Any]) -> None:
    request = {"messages": asking(QUESTIONS[0]), "max_tokens": 3, "exact": True}
    url, headers = f"{served[0]}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    found = httpx.post(url, json=request | options, headers=headers)
    assert found.status_code == 200, found.text
    said = {name: options[name] for name in ("messages",) if name in options}
    expected = httpx.post(url, json=request | said, headers=headers)
    assert found.json()["choices"] == expected.json()["choices"]


def test_a_picture_without_a_detail_is_a_picture(client: openai.OpenAI) -> None:
    shown = {"type": "image_url", "image_url": {"url": data_url(drawn("red")), "detail": None}}
    assert ask(client, asking(QUESTIONS[0], shown)).choices[0].message.content


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["You are a helpful assistant.", "assistant", " ", "", [], None])
def test_any_system_prompt_is_taken(
    client: openai.OpenAI, mini_language: LanguageModel, role: str, content: str | list[Any] | None
) -> None:
    answer = ask(client, [{"role": role, "content": content}, *asking(QUESTIONS[0])], max_tokens=1)
    system = content if isinstance(content, str) else ""
    assert answer.usage.prompt_tokens == mini_language.prompt([], QUESTIONS[0], system=system).input_ids.shape[1]
    many = [{"role": role, "content": one} for one in ("Be brief.", content, "Be kind.")]
    answer = ask(client, [*many, *asking(QUESTIONS[0])], max_tokens=1)
    system = "\n".join(["Be brief.", system, "Be kind."] if system.strip() else ["Be brief.", "Be kind."])
    assert answer.usage.prompt_tokens == mini_language.prompt([], QUESTIONS[0], system=system).input_ids.shape[1]


def test_what_a_template_refuses_is_a_bad_request_in_its_words(tmp_path: Path) -> None:
    shutil.copytree(bundled.checkpoint(), tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(
        "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
        "{%- if messages[1:] and messages[1]['role'] == 'user' -%}{{- raise_exception('Roles must alternate') -}}"
        "{%- endif -%}" + template.read_text()
    )
    with serving(Album(tmp_path / "album.qsplit", model=str(tmp_path / "model"), device="cpu")) as client:

        def answer(*messages: tuple[str, str]) -> Any:
            said = [{"role": role, "content": content} for role, content in messages]
            return client.post("/v1/chat/completions", json={"messages": said, "max_tokens": 1})

        assert answer(("user", "Hello?")).status_code == 200
        for messages, words in (
            ([("user", "Hello?"), ("user", "Hello?")], "Roles must alternate"),
            ([("system", "Be brief."), ("user", "Hello?")], "System role not supported"),
        ):
            refused = answer(*messages)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "UsageError")
            assert words in refused.json()["error"]["message"]
            assert str(tmp_path) not in refused.text


@pytest.mark.parametrize("content", ["", [], None])
def test_an_empty_message_is_answered_by_templates_that_read_its_first_part(tmp_path: Path, content: Any) -> None:
    model = make_checkpoint(tmp_path / "model", "smolvlm")
    with serving(Album(tmp_path / "album.qsplit", model=str(model), device="cpu")) as client:
        said = [*asking("?"), {"role": "assistant", "content": content}, {"role": "user", "content": content}]
        answer = client.post("/v1/chat/completions", json={"messages": said, "max_tokens": 1})
        assert answer.status_code == 200, answer.text


def test_ten_times_what_may_wait_is_answered_or_turned_away(served: tuple[str, Service]) -> None:
    url, service = served

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            asked = (
                client.chat.completions.create(model="", messages=asking(f"{QUESTIONS[0]} {i}")) for i in range(80)
            )
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(all_at_once())
    refused = [one for one in found if isinstance(one, openai.RateLimitError)]
    answered = [one for one in found if not isinstance(one, Exception)]
    assert len(refused) + len(answered) == 80
    assert len(refused) > 0
    assert len(answered) >= 8
    assert all(int(one.response.headers["retry-after"]) > 0 for one in refused)
    assert all(one.choices[0].finish_reason for one in answered)
    assert (service.engine.n_waiting, service.engine.n_running) == (0, 0)


@pytest.fixture
def endless(mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """One whose answers end where they have to."""
    monkeypatch.setattr(mini_language, "ends", frozenset())
    return mini_language


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_no_longer_answered(
    served: tuple[str, Service], endless: LanguageModel, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    gate, (url, service) = Gate(endless, monkeypatch), served
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    body = json.dumps({"messages": asking(QUESTIONS[0]), "stream": stream, "max_tokens": 500})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    assert gate.reached.wait(PATIENCE)
    together = service.engine.together
    assert isinstance(together, Together)
    (group,) = together._groups
    (ticket,) = group.tickets
    if stream:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        response.close()
    connection.close()
    until(lambda: ticket.is_cancelled)
    gate.open()
    until(lambda: service.engine.n_running == 0)
    assert len(gate.sizes) == 1


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 2}], ids=["text", "chances"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_has_begun_is_never_too_late(
    served: tuple[str, Service],
    client: openai.OpenAI,
    endless: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
    options: dict[str, Any],
) -> None:
    """Whoever notices first that the deadline has passed: the engine, or who waits for its next token."""
    monkeypatch.setattr(served[1], "options", replace(served[1].options, deadline_s=2.0))
    if stream:
        options = {**options, "stream": True, "stream_options": {"include_usage": True}}
    for _ in range(2):
        text, finish, usage = heard(ask(client, asking(QUESTIONS[0]), max_tokens=5000, **options))
        assert (bool(text), finish) == (True, "length")
        assert 1 <= usage.completion_tokens < 5000


@pytest.mark.parametrize("stream", [True, False])
def test_at_the_deadline_an_answer_ends_where_it_is(
    served: tuple[str, Service],
    client: openai.OpenAI,
    endless: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
) -> None:
    gate, service = Gate(endless, monkeypatch), served[1]
    options: dict[str, Any] = {"logprobs": True, "max_tokens": 500}
    if stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, asking(QUESTIONS[0]), **options)
        assert gate.reached.wait(PATIENCE)
        together = service.engine.together
        assert isinstance(together, Together)
        (group,) = together._groups
        group.tickets[0].deadline = 0.0
        gate.open()
        answer = asked.result(60)
    if stream:
        *chunks, last = list(answer)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        tokens = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
        finish, usage = chunks[-1].choices[0].finish_reason, last.usage
        assert chunks[-1].model_extra["qsplit"]["pictures"] == 0
    else:
        (choice,) = answer.choices
        said, tokens = choice.message.content, choice.logprobs.content
        finish, usage = choice.finish_reason, answer.usage
    assert (finish, usage.completion_tokens) == ("length", len(tokens))
    assert 1 <= len(tokens) <= 2
    assert said == "".join(one.token for one in tokens)


@pytest.mark.parametrize(
    "bound", [{}, {"max_tokens": None}, {"max_tokens": -1}, {"max_completion_tokens": -1}], ids=str
)
def test_an_answer_without_a_bound_ends_with_the_context(
    served: tuple[str, Service], endless: LanguageModel, monkeypatch: pytest.MonkeyPatch, bound: dict[str, Any]
) -> None:
    context = endless.prompt([], QUESTIONS[0]).input_ids.shape[1] + 140
    monkeypatch.setattr(endless._model.config.get_text_config(), "max_position_embeddings", context)
    request = {"messages": asking(QUESTIONS[0]), **bound}
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{served[0]}/v1/chat/completions", json=request, headers=headers, timeout=PATIENCE).json()
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 140)


def test_an_answer_is_cut_where_the_service_is_told_to(album: Album, endless: LanguageModel) -> None:
    del endless
    with serving(album, max_answer_tokens=5) as client:
        for bound, expected in ((None, 5), (-1, 5), (9, 5), (3, 3)):
            request = {"messages": asking(QUESTIONS[0]), "max_tokens": bound}
            answer = client.post("/v1/chat/completions", json=request).json()
            assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", expected)


def test_a_deadline_that_has_passed_is_a_status(album: Album) -> None:
    with listening(album, deadline_s=0.0) as (url, _):
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": asking(QUESTIONS[0])})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "DeadlineExceeded"


def test_models_are_listed_without_their_place(client: openai.OpenAI, album: Album) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    assert "/" not in model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    answer = client.chat.completions.create(model=model.id, messages=asking(QUESTIONS[0]))
    assert answer.model == model.id


def test_a_picture_that_was_forgotten_is_new(client: openai.OpenAI, served: tuple[str, Service], album: Album) -> None:
    data = drawn("green")
    create = client.chat.completions.with_raw_response.create
    reused = [create(model="", messages=asking(QUESTIONS[0], sent(data))).headers[REUSED] for _ in range(2)]
    name = hashlib.sha256(data).hexdigest()
    answer = httpx.delete(f"{served[0]}/api/v1/images/{name}", headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    with pytest.raises(openai.NotFoundError):
        ask(client, asking(QUESTIONS[0], stored(name)))
    reused.append(create(model="", messages=asking(QUESTIONS[0], sent(data))).headers[REUSED])
    assert [one.partition(",")[0] for one in reused] == ["features=0/1", "features=1/1", "features=0/1"]


def test_what_is_held_of_pictures_stays_within_its_bound(album: Album, photos: list[Path]) -> None:
    features = {name: features_of(album, image_id(album, path)) for name, path in zip("ab", photos, strict=False)}
    recent = Recent(max(one.nbytes for one in features.values()))
    state, found = recent.get(album.store, ["a"])
    assert not found
    for name, one in features.items():
        recent.put(state, {name: one})
    assert list(recent.get(album.store, ["a", "b"])[1]) == ["b"]
    recent.put((0, 0), features)  # of another state
    assert list(recent.get(album.store, ["a", "b"])[1]) == ["b"]
