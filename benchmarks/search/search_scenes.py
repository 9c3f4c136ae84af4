"""Text to picture over drawn scenes: what is found by meaning, with words, and asked; and when nothing fits.

The pictures are those of the bundled checkpoint's evaluation, which neither its training nor
`qsplit.mini.calibrate_search` saw. Whole descriptions are phrased as training never did, and each fits one picture.
Short queries (a thing, two things, how two lie, how many there are) were never trained as such; several pictures may
fit one, and more nearly do, so what counts is whether the first does. Each query goes through `Album.search`, as a
user's would.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.report import Goal, at_least, at_most, timed
from qsplit import bundled
from qsplit.album import Album
from qsplit.mini import calibrate_search, evaluate
from qsplit.mini.questions import LANGUAGES
from qsplit.mini.search_queries import KINDS, Query, album, queries
from qsplit.search.engine import By
from qsplit.search.pagination import Found, Match

__all__ = ["GOALS", "add_options", "run"]

RERANKED = 20
WAYS: dict[str, dict[str, Any]] = {
    "meaning": {},
    "asked": {"rerank": RERANKED},
    "hybrid": {"by": "hybrid"},
    "hybrid, asked": {"by": "hybrid", "rerank": RERANKED},
}
GOALS: dict[str, Goal] = {
    "whole en, recall@1 by meaning": at_least(0.95),
    "whole zh, recall@1 by meaning": at_least(0.9),
    "short, recall@1 by asked less meaning": at_least(0.1),
    "short, recall@1 by hybrid, asked less hybrid": at_least(0.1),
    "cut: whole, nothing fits and it is said so": at_least(0.9),
    "cut: whole, something fits and it is denied": at_most(0.05),
    "cut: short, nothing fits and it is said so": at_least(0.9),
    "cut: short, something is shown and it is denied": at_most(0.05),
}

Figures = dict[str, float]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", type=int, default=1000, help="Pictures in the album [1,000].")
    parser.add_argument("--queries", type=int, default=100, help="Of each kind and language [100].")


def run(options: argparse.Namespace, folder: Path) -> tuple[Figures, Figures]:
    """Figures, and those that have goals."""
    rng = np.random.default_rng([evaluate.SEED, 4])
    made = album(rng, options.scenes)
    took, opened = timed(calibrate_search.shown, folder / "scenes", made, rng, bundled.checkpoint())
    figures = {"scenes": float(len(made)), "scenes: files to semantic vectors s": took}
    figures["scenes: captions s"], _ = timed(lambda: opened.refresh(captions=True))
    asked = queries(made, rng, options.queries)
    figures |= ranking(opened, [one for one in asked if one.right])
    figures |= cutting(opened, asked)
    return figures, ratios(figures)


def ranking(opened: Album, asked: Sequence[Query]) -> Figures:
    """The share of queries whose first match is right, and that have a right one among the first ten."""
    figures: Figures = {}
    for way, how in WAYS.items():
        first: dict[str, list[bool]] = defaultdict(list)
        among: dict[str, list[bool]] = defaultdict(list)
        began = time.perf_counter()
        for one in asked:
            found = opened.search(one.text, limit=10, everything=True, **how)
            right = [number(match) in one.right for match in found]
            first[group(one)].append(any(right[:1]))
            among[group(one)].append(any(right))
        figures[f"a search by {way} s"] = (time.perf_counter() - began) / len(asked)
        figures |= {f"{name}, recall@1 by {way}": float(np.mean(each)) for name, each in first.items()}
        figures |= {f"{name}, recall@10 by {way}": float(np.mean(each)) for name, each in among.items()}
    return figures


def cutting(opened: Album, asked: Sequence[Query]) -> Figures:
    """How often "no good match" is said: where nothing fits, where something does, and where a page would show that.

    By meaning and by both, as measured and as for a checkpoint of which nothing was measured.
    """
    figures: Figures = {}
    shown = [any(number(match) in one.right for match in opened.search(one.text, everything=True)) for one in asked]
    ways: dict[str, dict[str, Any]] = {"cut": {}, "hybrid cut": {"by": "hybrid"}, "unmeasured cut": {"measured": False}}
    for way, how in ways.items():
        said: dict[str, list[bool]] = defaultdict(list)
        kept: list[float] = []
        for one, is_shown in zip(asked, shown, strict=True):
            found = search(opened, one.text, **how)
            for kind in ("whole" if one.kind == "whole" else "short", group(one)):
                if not one.right:
                    said[f"{kind}, nothing fits and it is said so"].append(found.is_cut)
                    continue
                said[f"{kind}, something fits and it is denied"].append(found.is_cut)
                if is_shown:
                    said[f"{kind}, something is shown and it is denied"].append(found.is_cut)
            if one.right and found:
                kept.append(float(np.mean([number(match) in one.right for match in found])))
        figures |= {f"{way}: {name}": float(np.mean(each)) for name, each in said.items()}
        figures[f"{way}: right among what is kept"] = float(np.mean(kept))
    return figures


def search(opened: Album, text: str, *, measured: bool = True, by: By = "meaning") -> Found:
    """A page, as for this checkpoint or as for one of which nothing was measured."""
    held, kept = opened.language.checkpoint.__dict__, opened.language.checkpoint.retrieval
    held["retrieval"] = kept if measured else replace(kept, cut=None)
    try:
        return opened.search(text, by=by)
    finally:
        held["retrieval"] = kept


def ratios(figures: Mapping[str, float]) -> Figures:
    found = {name: figures[name] for name in GOALS if name in figures}
    short = {
        way: float(
            np.mean([figures[f"{kind} {language}, recall@1 by {way}"] for kind in KINDS for language in LANGUAGES])
        )
        for way in WAYS
    }
    found |= {f"short, recall@1 by {way}": share for way, share in short.items()}
    for way in ("meaning", "hybrid"):
        asked = "asked" if way == "meaning" else "hybrid, asked"
        found[f"short, recall@1 by {asked} less {way}"] = short[asked] - short[way]
    return found


def group(query: Query) -> str:
    return f"{query.kind} {query.language}"


def number(match: Match) -> int:
    return int(Path(str(match.path)).stem)
