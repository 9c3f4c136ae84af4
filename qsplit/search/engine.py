"""A query -> a page of matches: by pictures, by meaning, by words, by both, or asked; filtered, cut and sorted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from PIL import Image

from qsplit.errors import NotIndexed, UsageError
from qsplit.media.images import pixels_digest
from qsplit.search import rerank
from qsplit.search.filters import Filters, Hit, Scope, scope_of
from qsplit.search.pagination import Cursor, Found, Kind, Match, Pages, digest_of
from qsplit.search.query_parser import Term, texts
from qsplit.search.query_vector import Halves, Like, Target, aim
from qsplit.search.rank_fusion import fused
from qsplit.search.relevance import Cut, Spread
from qsplit.store.feature_store import FeatureStore
from qsplit.store.tables.vectors import Vector, Vectors

__all__ = ["BY", "SORTS", "By", "Found", "Match", "Request", "Sort", "nearest", "search"]

By = Literal["meaning", "words", "hybrid"]
Sort = Literal["relevance", "date"]
BY: tuple[By, ...] = ("meaning", "words", "hybrid")
SORTS: tuple[Sort, ...] = ("relevance", "date")

DEEP = 1000  # of a ranking, what is fused, and what is sorted by date where nothing says how many are good
_SAMPLE = 4096  # so many cosines tell how those of an album lie


@dataclass(frozen=True, slots=True)
class Request:
    """What is searched for, and how; `qsplit.album.Album.search` says what each means.

    Raises `UsageError` for what makes no sense together.
    """

    terms: tuple[Term, ...] = ()
    like: tuple[Like, ...] = ()
    limit: int = 20
    after: str = ""
    where: Filters = field(default_factory=Filters)
    sort: Sort = "relevance"
    by: By = "meaning"
    rerank: int = 0
    everything: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("limit", self.limit, 1), ("rerank", self.rerank, 0)):
            if value < least:
                raise UsageError(f"{name} is {value}, but must be at least {least}.")
        for name, chosen, known in (("sort", self.sort, SORTS), ("by", self.by, BY)):
            if chosen not in known:
                raise UsageError(f"{name} is {chosen!r}.", fix=f"Choose {', '.join(known)}.")
        if not (self.terms or self.like or self.where or self.sort == "date"):
            raise UsageError("There is nothing to search for.", fix="Give a text, a picture, or a condition.")
        if not self.texts and (self.by != "meaning" or self.rerank):
            raise UsageError("Words and questions are made of a text, and there is none.", fix="Give a text, too.")
        if self.by == "words" and (self.like or len(self.texts) < len(self.terms)):
            raise UsageError("Pictures, and what is taken away, have no words.", fix="Leave out --words.")

    @property
    def texts(self) -> list[str]:
        return texts(self.terms)

    @property
    def digest(self) -> str:
        """What tells this search from others, whatever page of it is asked for."""
        like = [pixels_digest(one) if isinstance(one, Image.Image) else str(one) for one in self.like]
        terms = [(term.kind, term.value, term.weight) for term in self.terms]
        return digest_of(terms, like, asdict(self.where), self.sort, self.by, self.rerank, self.everything)


def nearest(
    store: FeatureStore, encoder_id: str, vector: Vector, *, limit: int = 20, without: Collection[str] = ()
) -> list[Match]:
    """The images whose pooled features are most like a vector ``(width,)``, best first, those of ``without`` left out.

    An image of which no file is left is not found. Equal scores are ordered by id. Raises `UsageError` for a limit
    below 1.
    """
    request = Request(like=("a vector",), limit=limit)
    target = Target("pooled", vector, without=frozenset(without))
    return _Search(store, encoder_id, request, target=target).by_cosine(target, "cosine")


def search(store: FeatureStore, encoder_id: str, request: Request, halves: Halves) -> Found:
    """A page of what a request finds among the pictures of an encoder.

    Raises `NotIndexed` where the album lacks the vectors or captions that this takes, `UsageError` for a cursor of
    another search, and as `targets.aim` does.
    """
    if not (request.terms or request.like):
        return _Search(store, encoder_id, request).by_date()
    if request.by == "words":
        return _Search(store, encoder_id, request, halves).by_words()
    target = aim(store, encoder_id, request.terms, request.like, halves)
    made = _Search(store, encoder_id, request, halves, target)
    return made.by_cosine(target, "cosine") if target.column == "pooled" else made.by_meaning(target)


class _Search:
    """One request over one store; ``halves`` are those that answer questions."""

    def __init__(
        self,
        store: FeatureStore,
        encoder_id: str,
        request: Request,
        halves: Halves | None = None,
        target: Target | None = None,
    ) -> None:
        self._store, self._encoder_id, self._request, self._halves = store, encoder_id, request, halves
        self._vectors: Vectors = store.vectors(encoder_id, target.semantics_id if target else "")
        self._scope: Scope = scope_of(store, self._vectors, request.where).less(target.without if target else ())
        cursor = Cursor.read(request.after, request.digest) if request.after else None
        self._pages = Pages(store, self._scope, request.limit, request.digest, cursor)

    def by_date(self) -> Found:
        """All that fulfils the conditions, the newest first."""
        return self._dated([(image_id, 1.0) for image_id in self._vectors.rows(None, [], self._scope.where)], "date")

    def by_cosine(self, target: Target, kind: Kind, floor: float = -math.inf) -> Found:
        """By the vectors of a column, down to a floor."""

        def ranked(number: int) -> list[Hit]:
            found = self._vectors.nearest(target.column, target.vector, number, self._scope.where)
            return [(image_id, round(cosine, 6)) for image_id, cosine in found]

        if self._request.sort == "relevance":
            return self._pages.read(ranked, kind, floor)
        number = DEEP if floor == -math.inf else max(1, self._vectors.count(target.column))
        return self._dated([hit for hit in ranked(number) if hit[1] >= floor], kind)

    def by_words(self) -> Found:
        """By captions that hold the words: all of them, or with ``everything`` some."""
        self._check_captions()
        if self._request.rerank:
            return self._asked(self._saying(every=False))
        said = self._saying(every=not self._request.everything)
        found = self._listed([(image_id, round(score / said[0][1], 6)) for image_id, score in said], "words")
        return Found(found, is_cut=not said and bool(self._saying(every=False)))

    def by_meaning(self, target: Target) -> Found:
        """By semantic vectors, with the captions' words where that is asked for."""
        hybrid = self._request.by == "hybrid"
        if hybrid:
            self._check_captions()
        meant = self._scope.of(self._vectors.nearest("semantic", target.vector, DEEP, self._scope.where))
        said = self._saying(every=False) if hybrid else []
        ranking = fused([[image_id for image_id, _ in one] for one in (meant, said)]) if hybrid else meant
        if self._request.rerank:
            return self._asked(ranking)
        floor = self._floor(target, ranking, dict(meant))
        if not hybrid:
            return Found(is_cut=bool(meant)) if floor is None else self.by_cosine(target, "semantic", floor)
        if not self._request.everything:
            ranking = self._good(ranking, dict(meant), floor)
        found = self._listed(ranking, "hybrid")
        return Found(found, is_cut=found.is_cut and bool(meant or said))

    def _good(self, ranking: Sequence[Hit], cosines: Mapping[str, float], floor: float | None) -> list[Hit]:
        """What lies near enough, or has a caption that holds all words; what was asked in vain is not good for that."""
        if floor is None and self._cut().asks:
            return []
        saying = {image_id for image_id, _ in self._saying(every=True)}
        least = math.inf if floor is None else floor
        return [hit for hit in ranking if hit[0] in saying or cosines.get(hit[0], -math.inf) >= least]

    def _asked(self, ranking: Sequence[Hit]) -> Found:
        """The best of a ranking, by how likely they are what the texts say."""
        best = self._pages.there(ranking)[: self._request.rerank]
        least = 0.0 if self._request.everything else self._cut().probable
        asked = self._probabilities([image_id for image_id, _ in best])
        good = [(image_id, round(value, 6)) for image_id, value in asked.items() if value >= least]
        found = self._listed(good, "probability")
        return Found(found, is_cut=found.is_cut and bool(best))

    def _floor(self, target: Target, ranking: Sequence[Hit], cosines: Mapping[str, float]) -> float | None:
        """The lowest cosine of a good match; None if nothing is one, by the best of a ranking."""
        if self._request.everything:
            return -math.inf
        cut = self._cut() if target.is_text else Cut()
        spread = Spread.of(self._vectors.scores("semantic", target.vector, sample=_SAMPLE))
        if self._pages.cursor:  # a page with one before it has good matches before it
            return cut.floor(spread)
        best = [image_id for image_id, _ in self._pages.there(ranking)[: max(1, cut.asks)]]
        asked = self._probabilities(best) if cut.asks else {}
        near = [cosines.get(image_id, spread.middle) for image_id in best]
        if not best or not cut.has_good(spread, near, list(asked.values()), self._chance() if asked else 0.0):
            return None
        return min(cut.floor(spread), max(near))

    def _cut(self) -> Cut:
        assert self._halves is not None, "only a text is cut, and who reads texts has halves"
        return Cut.read(self._halves.language().checkpoint.retrieval.cut)

    def _chance(self) -> float:
        assert self._halves is not None, "only texts are asked about, and who reads texts has halves"
        return rerank.chance(self._request.texts, rerank.forms_of(self._halves.language()))

    def _probabilities(self, image_ids: Sequence[str]) -> dict[str, float]:
        assert self._halves is not None, "only texts are asked about, and who reads texts has halves"
        rows = self._vectors.rows(image_ids, ["pixels_digest"])
        digests = {image_id: rows[image_id]["pixels_digest"] for image_id in image_ids}
        language = self._halves.language()
        return rerank.probability(self._store, language, self._encoder_id, digests, self._request.texts)

    def _saying(self, *, every: bool) -> list[Hit]:
        """What the captions' words find."""
        words = " ".join(self._request.texts)
        return self._scope.of(self._vectors.matching(words, DEEP, self._scope.where, every=every))

    def _check_captions(self) -> None:
        if not self._vectors.count("caption"):
            raise NotIndexed(
                "The album has no captions to find words in.", fix="Make them: `qsplit refresh --captions`."
            )

    def _listed(self, hits: Sequence[Hit], kind: Kind) -> Found:
        if self._request.sort == "date":
            return self._dated(hits, kind)
        # A new picture changes what ranks and BM25 are of all others.
        return self._pages.ranked(hits, kind) if kind == "probability" else self._pages.relative(hits, kind)

    def _dated(self, hits: Sequence[Hit], kind: Kind) -> Found:
        wanted = [image_id for image_id, _ in hits]
        rows = self._vectors.rows(None if len(wanted) > DEEP else wanted, ["taken_at"])
        return self._pages.dated(hits, kind, {image_id: row["taken_at"] for image_id, row in rows.items()})
