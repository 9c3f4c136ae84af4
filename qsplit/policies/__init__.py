"""Policies that come with qsplit; ``qsplit check NAME`` takes them by their names."""

from __future__ import annotations

from pathlib import Path

__all__ = ["path", "ready"]


def ready() -> list[str]:
    """The names of the policies here.

    >>> ready()
    ['album-tags', 'moderation']
    """
    return sorted(file.stem for file in Path(__file__).parent.glob("*.toml"))


def path(name: str) -> Path:
    """The file of a policy by its name, which may be of none."""
    return Path(__file__).parent / f"{name}.toml"
