"""The nearest texts of a text by one ranking or by several: shared words, vectors, vectors of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ptk.llm.bm25 import Bm25
from ptk.llm.encoder import Encoder, Vectors
from ptk_kernels.sets import shingle_sets

__all__ = ["POOL", "Likeness", "Neighbour", "Ranking", "fused", "nearest", "rankers"]

Ranking = Literal["bm25", "dense", "late_interaction"]
Floats = npt.NDArray[np.floating[Any]]

POOL = 100
"""How far down several rankings are read when they are fused."""
_FUSION = 60
"""G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009: what is added to a rank before its reciprocal is taken."""
_CELLS = 1 << 22
"""Products of vectors that are held at once: 16 MiB."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A text by its number among those that are searched, and how near it is."""

    number: int
    score: float


def rankers(
    rankings: Sequence[Ranking], queries: Sequence[str], texts: Sequence[str], encoder: Encoder | None
) -> dict[Ranking, Callable[[int], Floats]]:
    """Return for each ranking the function from a query's number to how near each of the texts, of which there are some, is: (n,)."""
    made: dict[Ranking, Callable[[int], Floats]] = {}
    # A text that occurs several times, or among the queries too, is encoded once.
    different, places = np.unique(np.array([*texts, *queries], dtype=object), return_inverse=True)
    known, asked = places[: len(texts)], places[len(texts) :]
    for ranking in rankings:
        if ranking == "bm25":
            made[ranking] = _by_words(Bm25(texts), queries)
            continue
        assert encoder is not None
        if ranking == "dense":
            vectors = encoder.vectors(list(different))
            made[ranking] = _by_vectors(vectors[known], vectors[asked])
        else:
            by_token = encoder.token_vectors(list(different))
            made[ranking] = _by_tokens([by_token[place] for place in known], [by_token[place] for place in asked])
    return made


def _by_words(index: Bm25, queries: Sequence[str]) -> Callable[[int], Floats]:
    def scores(number: int) -> Floats:
        found = index.scores(queries[number])
        # A text that shares no word is no neighbour at all.
        return np.where(found > 0, found, -np.inf)

    return scores


def _by_vectors(known: Vectors, asked: Vectors) -> Callable[[int], Floats]:
    def scores(number: int) -> Floats:
        found: Floats = known @ asked[number]
        return found

    return scores


def _by_tokens(known: Sequence[Vectors], asked: Sequence[Vectors]) -> Callable[[int], Floats]:
    """Return the mean over a query's tokens of the greatest product with a token of the text (O. Khattab, M. Zaharia, SIGIR 2020)."""
    sizes = np.array([len(vectors) for vectors in known])
    tokens = np.concatenate(known)
    firsts = np.concatenate([[0], np.cumsum(sizes)])

    def scores(number: int) -> Floats:
        query = asked[number]
        found = np.empty(len(known), np.float64)
        start = 0
        while start < len(known):
            stop = int(np.searchsorted(firsts, firsts[start] + max(1, _CELLS // len(query)), side="right")) - 1
            stop = min(max(stop, start + 1), len(known))
            products = query @ tokens[firsts[start] : firsts[stop]].T
            found[start:stop] = np.maximum.reduceat(products, firsts[start:stop] - firsts[start], axis=1).mean(0)
            start = stop
        return found

    return scores


class Likeness:
    """Tells which texts are near-duplicates of a query: Jaccard similarity of word n-grams, as in drop_near_duplicates."""

    def __init__(self, queries: Sequence[str], texts: Sequence[str], ngram: int, threshold: float) -> None:
        self._threshold = threshold
        self._queries, self._texts = queries, np.array(texts, dtype=object)
        self._asked, self._asked_at = shingle_sets(pl.Series(list(queries), dtype=pl.String), ngram)
        self._known, self._known_at = shingle_sets(pl.Series(list(texts), dtype=pl.String), ngram)

    def alike(self, query: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the numbered texts are near-duplicates of the query."""
        own = self._asked[self._asked_at[query] : self._asked_at[query + 1]]
        starts, stops = self._known_at[numbers], self._known_at[numbers + 1]
        sizes = stops - starts
        edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        places = np.arange(edges[-1]) + np.repeat(starts - edges[:-1], sizes)
        here = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.isin(self._known[places], own))])
        shared = here[edges[1:]] - here[edges[:-1]]
        union = len(own) + sizes - shared
        alike: npt.NDArray[np.bool_] = (shared > 0) & (shared >= self._threshold * union)
        # A text without words has no n-grams, but it is like itself.
        alike |= self._texts[numbers] == self._queries[query]
        return alike


def nearest(
    scores: Floats, most: int, allowed: npt.NDArray[np.bool_], barred: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
) -> list[Neighbour]:
    """Return the `most` nearest of the texts that are `allowed` and not `barred`, nearest first; of equally near ones the first."""
    scores = np.where(allowed, scores, -np.inf)
    possible = int(np.isfinite(scores).sum())
    wanted = most
    while possible:
        wanted = min(2 * wanted + 8, possible)
        least = np.partition(scores, -wanted)[-wanted]
        found = np.flatnonzero(scores >= least)
        found = found[np.lexsort((found, -scores[found]))]
        kept = found[~barred(found)]
        if len(kept) >= most or len(found) >= possible:
            return [Neighbour(int(number), float(scores[number])) for number in kept[:most]]
    return []


def fused(rankings: Mapping[Ranking, Sequence[Neighbour]], most: int) -> list[Neighbour]:
    """Return the `most` best of several rankings: the sum of 1 / (60 + rank) over those that a text is in."""
    scores: dict[int, float] = {}
    for ranking in sorted(rankings):
        for rank, neighbour in enumerate(rankings[ranking], start=1):
            scores[neighbour.number] = scores.get(neighbour.number, 0.0) + 1 / (_FUSION + rank)
    best = sorted(scores, key=lambda number: (-scores[number], number))[:most]
    return [Neighbour(number, scores[number]) for number in best]
