"""MinHash signatures of sets of 64-bit hashes, and the hashes of their bands.

The k-th number of a signature is the smallest value that the k-th function takes on the set. A function is `a * x + b` modulo 2^32, a odd,
over the upper half x of a hash. Hashes are well mixed, so each function puts a set into an order in which every element is the
first with the same chance, and the share of equal numbers in two signatures is an unbiased estimate of the Jaccard similarity.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ptk_kernels.compiled import in_parts
from ptk_kernels.loops import band_rows, sign_rows
from ptk_kernels.shingle import shingles_of_rows
from ptk_kernels.views import string_views

__all__ = ["Banding", "band_hashes", "banding", "signatures"]

_BLOCK = 1_024
"""Texts whose n-grams are held at once by a thread: few enough to stay in its cache."""
_LEAST_ROWS = 256


class Banding(NamedTuple):
    """How a signature is cut: two sets meet where all `rows` numbers of one of the `bands` are equal."""

    bands: int
    rows: int

    def recall(self, similarity: float) -> float:
        """Return how likely two sets of that Jaccard similarity meet: 1 - (1 - s^r)^b."""
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


def banding(threshold: float, permutations: int, recall: float = 0.98) -> Banding:
    """Return the banding of at most `permutations` numbers that finds pairs at the threshold with at least that chance.

    The more rows a band has, the fewer dissimilar sets meet: rows are as many as the recall allows, and bands then as many as it needs
    (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). One row each where even that is not enough.
    """
    for rows in range(permutations, 0, -1):
        if Banding(permutations // rows, rows).recall(threshold) >= recall:
            return Banding(next(b for b in range(1, permutations + 1) if Banding(b, rows).recall(threshold) >= recall), rows)
    return Banding(permutations, 1)


@cache
def _functions(count: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return a and b of the first `count` functions; they are the same everywhere and for ever."""
    drawn = []
    state = 0
    for _ in range(count):  # SplitMix64
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        drawn.append(value ^ (value >> 31))
    a, b = [value >> 32 | 1 for value in drawn], [value & 0xFFFFFFFF for value in drawn]
    return np.array(a, np.uint32), np.array(b, np.uint32)


def signatures(hashes: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64], permutations: int) -> npt.NDArray[np.uint32]:
    """Return the signatures of the sets `hashes[offsets[i]:offsets[i + 1]]`, one a row; an empty set's is all ones.

    Repeated hashes change nothing.
    """
    a, b = _functions(permutations)
    out = np.empty((len(offsets) - 1, permutations), np.uint32)
    in_parts(lambda start, stop: sign_rows(hashes, offsets, start, stop, a, b, out), len(out), _LEAST_ROWS)
    return out


def band_hashes(
    texts: pl.Series, ngram: int, bands: Banding
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return for each text the buckets it falls into, its tie in each, and whether it has any n-grams; without, both are 0.

    There is a bucket for each band, whose hash has the number of the band in it, and then one for texts with the same n-grams in the
    same order: a 64-bit digest of them. A tie orders the texts of a bucket by what they are, alike ones together: its upper half is
    the hash of the next band, the lower that digest. Neither n-grams nor signatures are there for more than a block of texts.
    """
    views = string_views(texts)
    a, b = _functions(bands.bands * bands.rows)
    buckets, ties = np.zeros((2, views.height, bands.bands + 1), np.uint64)
    present = np.zeros(views.height, np.bool_)

    def part(start: int, stop: int) -> None:
        scratch = np.empty(1 << 17, np.uint64)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            hashes, offsets = shingles_of_rows(views, first, last, ngram, scratch)
            out = buckets[first:last], ties[first:last], present[first:last]
            band_rows(hashes, offsets, a, b, bands.bands, bands.rows, *out)

    in_parts(part, views.height, _LEAST_ROWS)
    return buckets, ties, present
