"""Every route, with what its schema allows and what it does not: nothing fails here, and every answer is declared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from listening import listening
from patience import PATIENCE
from schemathesis import Case, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import made_album

from qsplit.album import Album
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.app import create_app

SPEC = create_app(Album("none.qsplit")).openapi()


def takes_what_can_be_wrong(operation: dict[str, Any]) -> bool:
    """Of paths every text may be meant: a wrong one is only not found."""
    return "requestBody" in operation or any(one["in"] == "query" for one in operation.get("parameters", ()))


ROUTES = sorted(
    (path, method, mode)
    for path, methods in SPEC["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or takes_what_can_be_wrong(operation)
)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory,
    photos: list[Path],
    mini_vision: VisionEncoder,
    mini_language: LanguageModel,
) -> Iterator[str]:
    album = made_album(tmp_path_factory.mktemp("schema"), photos[:3], mini_vision, mini_language)
    with listening(album) as (url, _):
        yield url


@pytest.mark.parametrize(("path", "method", "mode"), ROUTES)
def test_every_answer_is_declared(url: str, path: str, method: str, mode: GenerationMode) -> None:
    operation = openapi.from_dict(SPEC)[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=settings().max_examples // 5, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def answers_as_declared(case: Case[Any]) -> None:
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=PATIENCE)

    answers_as_declared()
