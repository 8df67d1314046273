"""Which solved cases a question is shown with: the same for all, or those whose requests are nearest to its own."""

from __future__ import annotations

from functools import lru_cache

from ptk.llm.bm25 import Bm25
from ptk.llm.prompt_files import Exemplar, ExemplarFile

__all__ = ["fixed_cases", "nearest_cases"]


@lru_cache(maxsize=8)
def _index(cases: tuple[Exemplar, ...]) -> Bm25:
    return Bm25([case.prompt for case in cases])


def fixed_cases(file: ExemplarFile, count: int | None) -> tuple[int, ...]:
    """Return the numbers of the first `count` cases of a file, of all where there is none."""
    return tuple(range(len(file.exemplars)))[:count]


def nearest_cases(file: ExemplarFile, count: int | None, prompt: str) -> tuple[int, ...]:
    """Return the numbers of the `count` cases whose requests are nearest to `prompt`, in the order in which they stand in the file.

    Nearness is BM25 over the words of the requests; of equally near ones the first in the file goes first. They keep the file's
    order so that questions with the same cases begin alike, which an engine computes once.
    """
    scores = _index(file.exemplars).scores(prompt)
    ranked = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    return tuple(sorted(ranked[:count]))
