"""The album page: one document, rendered in the reader's language, and the modules and styles that it loads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

__all__ = ["LANGUAGES", "router", "static", "words_in"]

LANGUAGES = {"en": "en", "zh": "zh-CN"}  # as the words' files are called, and as browsers call them
_THEMES = ("auto", "light", "dark")
_HERE = Path(__file__).parent
_TEMPLATES = Jinja2Templates(_HERE / "templates")

router = APIRouter(include_in_schema=False)
static = StaticFiles(directory=_HERE / "static")


@router.get("/")
def page(request: Request) -> Response:
    """The page, in the language that was chosen on it, or the first that the browser asks for and it knows."""
    language = _language(request)
    chosen = request.cookies.get("qsplit-theme", "")
    values = {
        "words": words_in(language),
        "language": LANGUAGES[language],
        "theme": chosen if chosen in _THEMES else _THEMES[0],
    }
    return _TEMPLATES.TemplateResponse(request, "page.html", values, headers={"Cache-Control": "no-cache"})


@cache
def words_in(language: str) -> dict[str, str]:
    """All that the page says in one language, by key."""
    words: dict[str, str] = json.loads((_HERE / "templates" / f"{language}.json").read_text(encoding="utf-8"))
    return words


def _language(request: Request) -> str:
    asked = request.headers.get("accept-language", "").split(",")
    wanted = [request.cookies.get("qsplit-language", ""), *(one.strip()[:2].lower() for one in asked)]
    return next((one for one in wanted if one in LANGUAGES), "en")
