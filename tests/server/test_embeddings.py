"""Embeddings by OpenAI's client: the vectors that a search compares, of texts and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from listening import listening
from serving import made_album

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.search.semantic_vectors import known, text_vectors

TEXTS = ["a red circle", "a cat"]


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory,
    photos: list[Path],
    mini_vision: VisionEncoder,
    mini_language: LanguageModel,
) -> Album:
    return made_album(tmp_path_factory.mktemp("embeddings"), photos[:2], mini_vision, mini_language)


@pytest.fixture(scope="module")
def url(album: Album) -> Iterator[str]:
    with listening(album) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(client: openai.OpenAI, given: Any, **options: Any) -> np.ndarray[Any, Any]:
    found = client.embeddings.create(model="", input=given, **options)
    assert [one.index for one in found.data] == list(range(len(found.data)))
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0
    return np.array([one.embedding for one in found.data], np.float32)


def test_vectors_are_those_that_a_search_compares(
    client: openai.OpenAI, album: Album, photos: list[Path], mini_language: LanguageModel
) -> None:
    picture = {"type": "qsplit_image", "id": album.locate(photos[0]).image.image_id}
    before = vectors(client, [TEXTS[0], picture])
    album.refresh(semantic=True)
    found = vectors(client, [*TEXTS, picture])
    assert np.allclose(before[1], found[2], atol=1e-6)  # of so few pictures, no mean is taken off
    semantics = known(album.store, mini_language, album.store.settings().encoder)
    assert semantics is not None
    assert np.allclose(found[:2], text_vectors(mini_language, semantics, TEXTS), atol=1e-6)
    table = album.store.vectors(album.store.settings().encoder, semantics.id)
    kept = table.rows([picture["id"]], ["semantic"])[picture["id"]]["semantic"]
    assert np.allclose(found[2], kept, atol=1e-2)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_numbers_and_base64_are_the_same(client: openai.OpenAI) -> None:
    # Unless it is told, the client asks for base64, and decodes it.
    assert np.array_equal(vectors(client, TEXTS, encoding_format="float"), vectors(client, TEXTS))
    assert vectors(client, TEXTS[0]).shape[0] == 1


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"input": []}, 422, "at least 1"),
        ({"input": [1, 2]}, 422, "input"),
        ({"input": [""]}, 400, "empty text"),
        ({"input": "a", "dimensions": 8}, 400, "192 dimensions"),
        ({"input": "a", "model": "another"}, 404, "no model"),
        ({"input": ["a"] * 257}, 400, "256 are taken"),
        ({"input": [{"type": "qsplit_image", "id": "f" * 12}]}, 404, "No image id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_vector_is_refused(url: str, request_: dict[str, Any], status: int, said: str) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json=request_)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
