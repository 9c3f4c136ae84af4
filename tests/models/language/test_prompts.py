"""Conversations as chat templates write them: system prompts that they take, drop or refuse, and empty messages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from models import make_checkpoint
from tiled import TILED

from qsplit import bundled
from qsplit.errors import CheckpointError, UsageError
from qsplit.models.checkpoint import resolve
from qsplit.models.language.prompts import Chat

DEFAULT = "You are a helpful assistant."  # what templates of Qwen2-VL and Qwen2.5-VL write by themselves
SYSTEMS = (DEFAULT, "a helpful assistant", "assistant", "user", "What is it?", "?", "Answer in one word.\n\nBe brief. ")
ASKED: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]

# As published templates write it; each with what it says of a system prompt, where it refuses one.
FIRST_TURN = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] | trim ~ '\\n\\n' -%}
    {%- else -%}{%- set first = messages[0]['content'][0]['text'] | trim ~ '\\n\\n' -%}{%- endif -%}
    {%- set messages = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") -}}
    {%- endif -%}
    {{- '<start_of_turn>' ~ message['role'] ~ '\\n' ~ (first if loop.first else '') -}}
    {%- for part in message['content'] -%}{{- part['text'] | trim -}}{%- endfor -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
"""
REFUSES = """\
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for message in messages -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endfor -%}
"""
DROPS = """\
{%- for message in messages if message['role'] != 'system' -%}
    {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
{%- endfor -%}
"""
JOINS_TEXTS = "{%- for message in messages -%}{{- message['role'] + ': ' + message['content'] + '\\n' -}}{%- endfor -%}"


def chat_of(folder: Path, template: str = "") -> Chat:
    """The bundled checkpoint's conversations, by another template."""
    shutil.copytree(bundled.checkpoint(), folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return Chat(resolve(str(folder), "language"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    folder = tmp_path_factory.mktemp("families")
    tiled = {name: Chat(resolve(str(make_checkpoint(folder / name, name)), "language")) for name in TILED}
    return {"qwen2_vl": Chat(resolve("", "language")), **tiled}


@pytest.mark.parametrize("family", ["qwen2_vl", *TILED])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_prompt_is_taken_whatever_the_template_and_the_question_say(
    families: dict[str, Chat], family: str, system: str
) -> None:
    text = families[family].text(ASKED, system)
    other = families[family].text(ASKED, "Another one.")
    assert text == other.replace("Another one.", system)
    assert families[family].prompt((), "What is it?", system=system).said[0] == {"role": "system", "content": system}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_prompt_may_stand_trimmed_in_the_first_question(tmp_path: Path, system: str) -> None:
    text = chat_of(tmp_path / "model", FIRST_TURN).text(ASKED, system)
    assert text == f"<start_of_turn>user\n{system.strip()}\n\nWhat is it?<end_of_turn>\n"


@pytest.mark.parametrize("family", ["qwen2_vl", *TILED])
@pytest.mark.parametrize("system", ["", " ", "\n", "\t \n"])
def test_a_blank_system_prompt_is_none(families: dict[str, Chat], family: str, system: str) -> None:
    expected = families[family].prompt((), "What is it?")
    found = families[family].prompt((), "What is it?", system=system)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    assert found.said == expected.said == tuple(ASKED)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    ("template", "words"), [(REFUSES, "System role not supported"), (DROPS, "leaves a system prompt out")]
)
def test_a_system_prompt_that_is_lost_is_refused_with_the_reason(
    tmp_path: Path, template: str, words: str, system: str
) -> None:
    chat = chat_of(tmp_path / "model", template)
    assert chat.text(ASKED) == chat.text(ASKED, " ") == "What is it?"
    with pytest.raises(UsageError, match=words) as refused:
        chat.text([*ASKED, *ASKED], system)
    assert refused.value.fix == "Say it in the question."


@pytest.mark.parametrize("system", ["", "Answer in one word."])
def test_a_conversation_that_is_refused_is_refused_in_the_templates_words(tmp_path: Path, system: str) -> None:
    chat = chat_of(tmp_path / "model", FIRST_TURN)
    with pytest.raises(UsageError, match="roles must alternate user/assistant") as refused:
        chat.text([*ASKED, *ASKED], system)
    assert "question" not in refused.value.fix


@pytest.mark.parametrize("content", ["", []])
@pytest.mark.parametrize("family", ["qwen2_vl", *TILED])
def test_an_empty_message_is_written_as_one_without_words(
    families: dict[str, Chat], family: str, content: str | list[Any]
) -> None:
    conversation = [*ASKED, {"role": "assistant", "content": content}, {"role": "user", "content": content}]
    text = families[family].text(conversation)
    assert text.startswith(families[family]._written(ASKED, asks=False))
    filled = [{"role": role, "content": [{"type": "text", "text": "filled"}]} for role in ("assistant", "user")]
    assert text.replace("\n", "") == families[family].text([*ASKED, *filled]).replace("filled", "").replace("\n", "")


def test_a_template_that_joins_texts_is_given_texts(tmp_path: Path) -> None:
    chat = chat_of(tmp_path / "model", JOINS_TEXTS)
    assert chat.text(ASKED, "Be brief.") == "system: Be brief.\nuser: What is it?\n"
    with pytest.raises(UsageError, match=r"refuses the conversation: .*concatenate"):
        chat.text([{"role": "user", "content": [{"type": "image"}]}])


def test_a_template_that_is_no_template_is_the_checkpoints_fault(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        chat_of(tmp_path / "model", "{% for message in %}").text(ASKED)
