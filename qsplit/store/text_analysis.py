"""What full-text search reads of a text: its words, and of writing without spaces its letters and their pairs.

The index then splits at spaces, takes English words to their stems and leaves the commonest out.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["terms_of"]

# Writing that puts no spaces between words: Chinese, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_RUNS = re.compile(rf"{_UNSPACED}+|(?:(?!{_UNSPACED})[^\W_])+")
_IS_UNSPACED = re.compile(_UNSPACED)
_PARTICLES = re.compile("[的了是在和与有个着之地得]")  # what every sentence has


def terms_of(text: str) -> str:
    """The terms of a text, between spaces and in its order.

    >>> terms_of("A red boat, 红色的小船")
    'a red boat 红 色 红色 小 船 小船'
    >>> terms_of("猫")
    '猫'
    """
    return " ".join(term for run in _runs(text) for term in _split(run))


def _runs(text: str) -> list[str]:
    return _RUNS.findall(unicodedata.normalize("NFKC", text).casefold())


def _split(run: str) -> list[str]:
    if not _IS_UNSPACED.match(run):
        return [run]
    parts = [part for part in _PARTICLES.split(run) if part] or [run]
    return [term for part in parts for term in (*part, *(part[i : i + 2] for i in range(len(part) - 1)))]
