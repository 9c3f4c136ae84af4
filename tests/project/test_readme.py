"""What the README shows runs as it stands, with the bundled checkpoint in place of a downloaded one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_sessions_run(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Pictures").mkdir()
    shutil.copy(photos[0], tmp_path / "Pictures" / "IMG_0412.jpg")
    shutil.copy(photos[0], tmp_path / "IMG_0412.jpg")
    shutil.copy(photos[1], tmp_path / "Pictures" / "other.jpg")
    shutil.copy(photos[1], tmp_path / "Pictures" / "copy.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block.replace("Qwen/Qwen2-VL-2B-Instruct", ""), names)
    printed = capsys.readouterr().out
    assert "other.jpg" in printed
    assert "exact" in printed
    assert len(BLOCKS) == 3


def test_the_first_commands_are_those_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    commands = re.findall(r"\$ make (\w+)", README)
    assert "test" in commands
    for command in commands:
        assert f"\n{command}: $(READY)" in makefile


def headings(text: str) -> list[str]:
    """The levels of a page's headings, in order."""
    return re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def blocks(text: str) -> list[str]:
    """What a page's blocks of code say, without the comments."""
    found = re.findall(r"```(\w+\n.*?)```", text, re.DOTALL)
    return [re.sub(r"\s+#.*", "", block) for block in found]


def test_the_chinese_readme_has_the_same_headings_commands_and_code() -> None:
    chinese = (Path(__file__).parents[2] / "README.zh-CN.md").read_text(encoding="utf-8")
    assert headings(chinese) == headings(README)
    assert blocks(chinese) == blocks(README)
    command = re.compile(r"^\| `(qsplit [^`]+)`", re.MULTILINE)
    assert command.findall(chinese) == command.findall(README)
    named = re.compile(r"`(--[\w-]+|QSPLIT_\w+)")
    of_the_rest = set(named.findall(README.partition("## Measured")[0]))
    assert set(named.findall(chinese)) == of_the_rest
