"""What is printed on a terminal."""

from __future__ import annotations

from qsplit.cli.output import printable


def test_a_terminal_never_sees_control_characters() -> None:
    assert printable("a\x1b[2Jb\x00\n\t图") == "a\ufffd[2Jb\ufffd\n\t图"
