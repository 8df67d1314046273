"""Nearness of texts by the words they share, BM25: a thin coat over bm25s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptk.text import words

__all__ = ["Bm25"]

_K1, _B = 1.2, 0.75


class Bm25:
    """An index of texts (S. Robertson et al., TREC-3, 1994; k1 1.2, b 0.75; no weight is below 0, as in Lucene)."""

    def __init__(self, texts: Sequence[str]) -> None:
        from bm25s import BM25

        found = [words(text) for text in texts]
        self._number = len(found)
        self._index = None
        if any(found):
            self._index = BM25(k1=_K1, b=_B, method="lucene", dtype="float64")
            self._index.index(found, show_progress=False)

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """Return how near each text is to `query`, (n,), 0 where they share no word; a word counts once in the query."""
        if self._index is None:
            return np.zeros(self._number)
        # Sums go in the order of the words, not in that of their numbers in the index, which differs between processes.
        numbers = self._index.get_tokens_ids(sorted(set(words(query))))
        found: npt.NDArray[np.float64] = self._index.get_scores_from_ids(numbers)
        return found
