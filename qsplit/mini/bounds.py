"""Measure where good matches end for a checkpoint that `qsplit.mini.train` made: ``python -m qsplit.mini.bounds``.

Drawn scenes that neither training nor the evaluation sees are searched for what some of them show and for what none
does. From that come the bounds of `qsplit.cutting`: where one of the nearest fits, at most one search in 30 may be told
that nothing does. They and the questions that the checkpoint was taught go into its ``retrieval.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

import qsplit
from qsplit import rerank
from qsplit.album import Album
from qsplit.cutting import Cut, Spread, agreement
from qsplit.mini import path, scenes
from qsplit.mini.scenes import Scene
from qsplit.mini.taught import QUESTIONS
from qsplit.mini.wanted import Query, album, queries
from qsplit.query import Term
from qsplit.retrieval import Retrieval
from qsplit.targets import aim

__all__ = ["ASKS", "Searched", "measured", "searched", "shown", "write_bounds"]

SEED = 30_000_000  # training seeds its pictures by step, and the evaluation from 20,000,000 on
SIZES = (60, 600)  # pictures of an album
EACH = 40  # queries of a kind
ASKS = 20  # what a page shows
_ROUNDS = 10
_MOST = 50.0  # a standing of one counts as much as near certainty
WRONGLY = 0.033


@dataclass(frozen=True, slots=True)
class Searched:
    """A query, whether one of the nearest pictures fits it, and of each how far it stands out and how likely it is what
    the query says.
    """

    query: Query
    fits: bool
    standings: tuple[float, ...]
    probabilities: tuple[float, ...]

    def best(self, weight: float) -> tuple[float, float]:
        """Log odds and standing of the picture in which they agree most."""
        both = [(agreement(p, 0, 0), min(s, 10.0)) for p, s in zip(self.probabilities, self.standings, strict=True)]
        return max(both, key=lambda one: one[0] + weight * one[1])

    def agreement(self, weight: float) -> float:
        """As `Cut.has_good` has it."""
        odds, standing = self.best(weight)
        return odds + weight * standing


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
        yield Searched(query, bool(numbers & query.right), standings, tuple(answered[one] for one in ids))


def measured(found: Sequence[Searched]) -> Cut:
    """The cut that tells best where one of the nearest fits, and says of at most `WRONGLY` of those that none does."""
    there = np.array([one.fits for one in found])
    weight = _weight(found, there)

    def least(best: Sequence[float]) -> float:
        return round(float(np.quantile(np.array(best)[there], WRONGLY)), 4)

    return Cut(
        standing=least([max(one.standings) for one in found]),
        asks=ASKS,
        weight=round(weight, 4),
        agreement=least([one.agreement(weight) for one in found]),
        probable=least([max(one.probabilities) for one in found]),
    )


def _weight(found: Sequence[Searched], there: np.ndarray) -> float:
    """What a standing counts beside log odds: the best picture of a query is that by both, so some rounds settle it."""
    weight = 1.0
    for _ in range(_ROUNDS):
        signs = np.array([one.best(weight) for one in found])
        weights = _logistic(signs, there)
        weight = float(np.clip(weights[1] / max(weights[0], 1e-3), 0, _MOST))
    return weight


def _logistic(signs: np.ndarray, there: np.ndarray, steps: int = 50) -> np.ndarray:
    """The weights of a logistic regression ``(signs,)``, by Newton's method, both outcomes counting alike."""
    x = np.column_stack([signs, np.ones(len(signs))])
    share = np.where(there, 0.5 / there.mean(), 0.5 / (1 - there.mean()))
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (share * (there - chance)) - 1e-3 * weights
        curve = (x * (share * chance * (1 - chance))[:, None]).T @ x + 1e-3 * np.eye(x.shape[1])
        weights = weights + np.linalg.solve(curve, slope)
    found: np.ndarray = weights[:-1]
    return found


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
@click.option("--folder", type=click.Path(path_type=Path, exists=True), default=path(), help="The checkpoint.")
def main(folder: Path) -> None:
    """Measure the cut of the checkpoint in FOLDER and write it into its retrieval.json."""
    click.echo(write_bounds(folder))


if __name__ == "__main__":
    main()
