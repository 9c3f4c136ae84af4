"""Fashion-MNIST's test pictures as an album: from files to the ten best for "a pair of trousers" and the like.

The bundled checkpoint learnt what garments are, and to describe them, on the training pictures. Vectors to search by
it learnt of drawn scenes alone: what meaning finds here says how far that goes, and words find what captions say.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import qsplit
from benchmarks.common.report import Goal, at_least, timed
from qsplit import bundled
from qsplit.album import Album
from qsplit.mini import download
from qsplit.mini.evaluate import GARMENT_SIDE
from qsplit.mini.questions import LANGUAGES

__all__ = ["GOALS", "add_options", "run"]

# In the order of Fashion-MNIST's labels.
QUERIES = {
    "en": (
        "a T-shirt", "a pair of trousers", "a warm pullover", "a dress", "a coat", "a sandal", "a shirt", "a sneaker",
        "a bag", "an ankle boot",
    ),
    "zh": ("T恤", "一条裤子", "毛衣", "连衣裙", "外套", "凉鞋", "衬衫", "运动鞋", "包", "短靴"),
}  # fmt: skip
RERANKED = 50
WAYS: dict[str, dict[str, Any]] = {
    "meaning": {},
    "words": {"by": "words"},
    "hybrid": {"by": "hybrid"},
    "hybrid, reranked": {"by": "hybrid", "rerank": RERANKED},
}
GOALS: dict[str, Goal] = {
    f"garments {language}, precision@10 by {way}": at_least(0.8)
    for language in LANGUAGES
    for way in ("words", "hybrid, reranked")
}
CACHE = Path("~/.cache/qsplit-pictures")

Figures = dict[str, float]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10_000, help="Garments in the album [10,000].")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"Where the pictures are, or go to [{CACHE}].")


def run(options: argparse.Namespace, folder: Path) -> tuple[Figures, Figures]:
    """Figures, and those that have goals."""
    download.fetch(options.cache.expanduser())
    images, labels = download.load_garments(options.cache.expanduser(), "test")
    images, labels = images[: options.count], labels[: options.count]
    (folder / "garments").mkdir()
    for i, image in enumerate(images):
        large = Image.fromarray(image).resize((GARMENT_SIDE, GARMENT_SIDE), Image.Resampling.BICUBIC)
        large.convert("RGB").save(folder / "garments" / f"{i}.png")
    opened = qsplit.open(folder / "garments.qsplit", model=str(bundled.checkpoint()))
    figures: Figures = {"garments": float(len(images))}
    figures["garments: index s"], _ = timed(opened.index, folder / "garments")
    figures["garments: semantic vectors s"], _ = timed(lambda: opened.refresh(semantic=True))
    figures["garments: captions s"], _ = timed(lambda: opened.refresh(captions=True))
    for way, how in WAYS.items():
        for language, asked in QUERIES.items():
            took, shares = timed(precisions, opened, asked, labels, how)
            figures[f"garments {language}, precision@10 by {way}"] = float(np.mean(shares))
            figures[f"garments {language}, a search by {way} s"] = took / len(asked)
    whole = sum(figures[f"garments: {step} s"] for step in ("index", "semantic vectors", "captions"))
    figures["garments: files to answers s"] = whole
    return figures, {name: figures[name] for name in GOALS}


def precisions(opened: Album, asked: Sequence[str], labels: np.ndarray, how: Mapping[str, Any]) -> list[float]:
    """Of each garment's query, how many of the ten best are that garment."""
    return [
        share(opened.search(text, limit=10, everything=True, **how), labels, label) for label, text in enumerate(asked)
    ]


def share(found: Any, labels: np.ndarray, label: int) -> float:
    """Of the matches, how many are what was asked for."""
    return float(np.mean([labels[int(Path(str(match.path)).stem)] == label for match in found])) if found else 0.0
