"""Measure where good matches end for a checkpoint that `qsplit.mini.train` made: ``python -m
qsplit.mini.calibrate_search``.

Drawn scenes that neither training nor the evaluation sees are searched for what some of them show and for what none
does. From that come the bounds of `qsplit.search.relevance`: where one of the nearest fits, at most one search in 25
may be told that nothing does. They and the questions that the checkpoint was taught go into its ``retrieval.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

import qsplit
from qsplit import bundled
from qsplit.album import Album
from qsplit.mini import scenes
from qsplit.mini.rerank_questions import QUESTIONS
from qsplit.mini.scenes import Scene
from qsplit.mini.search_queries import Query, album, queries
from qsplit.models.retrieval_config import Retrieval
from qsplit.search import rerank
from qsplit.search.query_parser import Term
from qsplit.search.query_vector import aim
from qsplit.search.relevance import Cut, Spread, agreement

__all__ = ["ASKS", "Searched", "measured", "searched", "shown", "write_bounds"]

SEED = 30_000_000  # training seeds its pictures by step, and the evaluation from 20,000,000 on
SIZES = (60, 600)  # pictures of an album
EACH = 24  # queries of a kind
ASKS = 20  # what a page shows
WEIGHTS = [i / 4 for i in range(21)]  # of a standing beside log odds
WRONGLY = 0.04


@dataclass(frozen=True, slots=True)
class Searched:
    """A query, whether one of the nearest pictures fits it, and of each how far it stands out and how likely it is what
    the query says; ``chance`` is as for `qsplit.search.relevance.agreement`.
    """

    query: Query
    fits: bool
    standings: tuple[float, ...]
    probabilities: tuple[float, ...]
    chance: float = 0.0

    def agreement(self, weight: float) -> float:
        """That of the picture that most speaks for, as `Cut.has_good` has it."""
        asked = zip(self.probabilities, self.standings, strict=True)
        return max(agreement(p, s, weight, self.chance) for p, s in asked)


def shown(folder: Path, made: Sequence[Scene], rng: np.random.Generator, checkpoint: Path) -> Album:
    """An album of drawn scenes that can be searched by texts; the picture of scene i is ``i.png``."""
    (folder / "pictures").mkdir(parents=True)
    for i, scene in enumerate(made):
        scenes.draw(scene, rng).save(folder / "pictures" / f"{i}.png")
    opened = qsplit.open(folder / "album.qsplit", model=str(checkpoint))
    opened.index(folder / "pictures", semantic=True)
    return opened


def searched(opened: Album, asked: Sequence[Query]) -> Iterator[Searched]:
    """Search an album of numbered scenes."""
    store, encoder_id = opened.store, opened.store.settings().encoder
    for query in asked:
        target = aim(store, encoder_id, [Term("text", query.text)], (), opened.halves)
        vectors = store.vectors(encoder_id, target.semantics_id)
        best = vectors.nearest("semantic", target.vector, ASKS)
        ids = [image_id for image_id, _ in best]
        pictures = {one: str(row["pixels_digest"]) for one, row in vectors.rows(ids, ["pixels_digest"]).items()}
        answered = rerank.probability(store, opened.language, encoder_id, pictures, [query.text])
        spread = Spread.of(vectors.scores("semantic", target.vector))
        numbers = {int(Path(path).stem) for paths in store.paths_of(ids).values() for path in paths}
        standings = tuple(spread.standing(cosine) for _, cosine in best)
        chance = rerank.chance([query.text], rerank.forms_of(opened.language))
        yield Searched(query, bool(numbers & query.right), standings, tuple(answered[one] for one in ids), chance)


def measured(found: Sequence[Searched]) -> Cut:
    """The cut that says most often that nothing fits where nothing does, and of at most `WRONGLY` of those where one of
    the nearest fits.
    """
    there = np.array([one.fits for one in found])

    def least(best: Sequence[float]) -> float:
        return float(np.quantile(np.array(best)[there], WRONGLY))

    def said(weight: float) -> float:
        agreements = [one.agreement(weight) for one in found]
        return float(np.mean(np.array(agreements)[~there] < least(agreements)))

    weight = max(WEIGHTS, key=said)
    return Cut(
        standing=round(least([max(one.standings) for one in found]), 4),
        asks=ASKS,
        weight=weight,
        agreement=round(least([one.agreement(weight) for one in found]), 4),
        probable=round(least([max(one.probabilities) for one in found]), 4),
    )


def write_bounds(checkpoint: Path, sizes: Sequence[int] = SIZES, each: int = EACH) -> Cut:
    """Measure a checkpoint's cut and write it, with the questions, into its ``retrieval.json``."""
    retrieval = replace(Retrieval.read(checkpoint), questions=QUESTIONS, cut=None)
    retrieval.write(checkpoint)
    found: list[Searched] = []
    for size in sizes:
        rng = np.random.default_rng([SEED, size])
        made = album(rng, size)
        with tempfile.TemporaryDirectory() as folder:
            opened = shown(Path(folder), made, rng, checkpoint)
            found += searched(opened, queries(made, rng, each))
    cut = measured(found)
    replace(retrieval, cut=cut.written()).write(checkpoint)
    return cut


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path, exists=True), default=bundled.checkpoint(), help="The checkpoint."
)
def main(folder: Path) -> None:
    """Measure the cut of the checkpoint in FOLDER and write it into its retrieval.json."""
    click.echo(write_bounds(folder))


if __name__ == "__main__":
    main()
