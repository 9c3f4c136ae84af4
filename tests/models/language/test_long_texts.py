"""A text that no prompt can hold is refused before it is tokenised, and nobody waits for the tokens of another's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from listening import listening, until
from patience import PATIENCE
from PIL import Image
from serving import made_album, serving

from qsplit.album import Album
from qsplit.errors import UsageError
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder

CHATS = "/v1/chat/completions"


class Counted:
    """How many characters a language half's tokenizer was given; it can hold whoever gives it some text."""

    def __init__(self, language: LanguageModel, monkeypatch: pytest.MonkeyPatch, hold: str = "") -> None:
        self.characters = 0
        self.reached, self.go_on = Event(), Event()
        self._hold, self._tokenizer = hold, language.chat.tokenizer
        monkeypatch.setattr(language.chat, "tokenizer", self)

    def __call__(self, text: str, **how: Any) -> Any:
        if self._hold and self._hold in text:
            self.reached.set()
            assert self.go_on.wait(2 * PATIENCE)
        self.characters += len(text)
        return self._tokenizer(text, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "red.png"
    Image.new("RGB", (56, 56), "red").save(path)
    return path


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory, photo: Path, mini_vision: VisionEncoder, mini_language: LanguageModel
) -> Album:
    album = made_album(tmp_path_factory.mktemp("long"), [photo], mini_vision, mini_language)
    album.refresh(semantic=True)
    return album


@pytest.fixture
def longest(mini_language: LanguageModel) -> int:
    """Characters that a full context may have at most."""
    return mini_language.checkpoint.context * max(map(len, mini_language.chat.tokenizer.get_vocab()))


@pytest.mark.parametrize("placed", ["question", "system", "history", "spread"])
def test_more_characters_than_a_context_holds_are_never_tokenised(
    mini_language: LanguageModel, longest: int, placed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(mini_language, monkeypatch)
    text = "word " * (longest // 5 + 1)
    third = text[: len(text) // 3 + 1]
    placings: dict[str, dict[str, Any]] = {
        "question": {"question": text},
        "system": {"question": "?", "system": text},
        "history": {"question": "?", "history": [("a", text)]},
        "spread": {"question": third, "system": third, "history": [(third, "b")]},
    }
    with pytest.raises(UsageError, match=rf"characters; the model's context of 32,768 tokens holds {longest:,}"):
        mini_language.prompt([], **placings[placed])
    assert not counted.characters


def test_a_text_far_beyond_the_context_is_refused_when_a_part_of_it_was_tokenised(
    mini_language: LanguageModel, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(mini_language, monkeypatch)
    text = "x9 " * (longest // 3 - 100)
    for ask in (lambda: mini_language.prompt([], text), lambda: mini_language.tokens_of(text)):
        counted.characters = 0
        with pytest.raises(UsageError, match=r"characters are some .* tokens; the model's context is 32,768"):
            ask()
        assert counted.characters < len(text) / 2


def test_what_fits_is_tokenised_as_ever(mini_language: LanguageModel) -> None:
    text = "the red car " * 9000
    prompt = mini_language.prompt([], text)
    written = mini_language.chat.text([{"role": "user", "content": [{"type": "text", "text": text}]}])
    ids = mini_language.chat.tokenizer.backend_tokenizer.encode(written).ids
    assert len(text) > 100_000
    assert prompt.input_ids[0].tolist() == ids
    assert mini_language.tokens_of(text)


def test_pictures_beyond_the_context_are_refused_before_they_are_written(
    mini_language: LanguageModel, mini_vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = mini_vision.encode([Image.new("RGB", (112, 112), "red")])
    counted = Counted(mini_language, monkeypatch)
    with pytest.raises(UsageError, match="The pictures have"):
        mini_language.prompt([shown] * (mini_language.checkpoint.context // len(shown) + 1), "?")
    assert not counted.characters


def test_threads_share_a_tokenizer(mini_language: LanguageModel) -> None:
    texts = [f"{i} the red car " * (500 + 100 * i) for i in range(8)]
    expected = [mini_language.tokens_of(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            assert list(pool.map(mini_language.tokens_of, texts)) == expected


def said(*texts: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text} for text in texts]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}


def test_a_giant_conversation_is_a_bad_request(
    album: Album, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(mini_language, monkeypatch)
    with serving(album) as client:
        answer = client.post(CHATS, json=said(*["word " * 390_000] * 10))
        assert answer.status_code == 400, answer.text
        assert "characters" in answer.json()["error"]["message"]
        answer = client.post("/v1/embeddings", json={"input": ["a dog", "word " * 390_000]})
        assert answer.status_code == 400, answer.text
        assert counted.characters < 1000
        assert client.post(CHATS, json=said("hi")).status_code == 200


@pytest.mark.parametrize("path", [CHATS, "/v1/embeddings"])
def test_nobody_waits_for_the_tokens_of_another_text(
    album: Album, mini_language: LanguageModel, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(mini_language, monkeypatch, hold="stay")
    text = "stay " * 1000
    body = said(text) if path == CHATS else {"input": text}
    with listening(album) as (url, _), ThreadPoolExecutor(1) as pool:
        try:
            held = pool.submit(httpx.post, f"{url}{path}", json=body, timeout=4 * PATIENCE)
            until(counted.reached.is_set)
            assert httpx.post(f"{url}{CHATS}", json=said("hi"), timeout=PATIENCE).status_code == 200
            assert httpx.post(f"{url}/v1/embeddings", json={"input": "a dog"}, timeout=PATIENCE).status_code == 200
            assert httpx.post(f"{url}/api/v1/search", json={"text": "a dog"}, timeout=PATIENCE).status_code == 200
            assert not held.done()
        finally:
            counted.go_on.set()
        assert held.result().status_code == 200


def test_giant_questions_and_searches_of_an_album_are_refused(
    album: Album, photo: Path, mini_language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(mini_language, monkeypatch)
    for ask in (lambda text: album.ask(photo, text), album.search):
        with pytest.raises(UsageError, match="characters"):
            ask("word " * 4_000_000)
    assert counted.characters < 1000
