"""What the README shows runs as it stands, with the bundled checkpoint in place of a downloaded one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
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
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for command in re.findall(r"\$ make (\w+)", README):
        assert f"\n{command}: $(READY)" in makefile
