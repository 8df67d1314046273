"""Sets of 64-bit hashes: which are equal, how much they share, and which values occur again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ptk_kernels.compiled import in_parts
from ptk_kernels.loops import fill_table, flatten, link, look_again, mark_again, overlap_rows, pair_rows, unique_rows
from ptk_kernels.shingle import Ragged, joined, shingles_of_rows
from ptk_kernels.views import string_views

__all__ = ["Members", "bucket_pairs", "components", "ngram_counts", "occurs_again", "shingle_sets"]

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

_U = np.uint64
_LEAST_ROWS = 256
_BLOCK = 1_024


def shingle_sets(texts: pl.Series, ngram: int) -> Ragged:
    """Return the n-grams of all texts as sets, each sorted and without repetition, one after another, and their offsets."""
    views = string_views(texts)

    def part(start: int, stop: int) -> Ragged:
        hashes, offsets = shingles_of_rows(views, start, stop, ngram)
        kept = np.empty_like(offsets)
        used = unique_rows(hashes, offsets, kept)
        return hashes[:used].copy(), kept

    return joined(in_parts(part, views.height, _LEAST_ROWS))


def ngram_counts(texts: pl.Series, ngram: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each text how many n-grams it has, and how many different ones."""
    views = string_views(texts)
    size, different = np.empty(views.height, np.int64), np.empty(views.height, np.int64)

    def part(start: int, stop: int) -> None:
        scratch = np.empty(1 << 17, np.uint64)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            hashes, offsets = shingles_of_rows(views, first, last, ngram, scratch)
            kept = np.empty_like(offsets)
            unique_rows(hashes, offsets, kept)
            size[first:last], different[first:last] = np.diff(offsets), np.diff(kept)

    in_parts(part, views.height, _LEAST_ROWS)
    return size, different


def components(
    count: int, linked: Pairs, compared: Pairs | None = None, sets: Ragged | None = None, threshold: float = 1.0
) -> npt.NDArray[np.int64]:
    """Return for each of `count` nodes the smallest one of its connected component.

    Pairs in `linked` are edges. Those in `compared` are where the Jaccard similarity of their `sets`, as `shingle_sets` gives them, is at
    least `threshold`; it is not computed for nodes that are connected already.
    """
    parents = np.arange(count)
    nothing = np.empty(0, np.uint64), np.zeros(count + 1, np.int64)
    link(*linked, *nothing, 0.0, parents)
    if compared is not None:
        link(*compared, *(sets or nothing), threshold, parents)
    flatten(parents)
    return parents


def bucket_pairs(
    buckets: npt.NDArray[np.uint64], ties: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint64], most: int, window: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return pairs of rows in the same bucket, and which of them have the same n-grams; the rows come sorted by bucket, tie and row.

    Of rows with the same tie the first alone is paired with others: with all up to `most` of them, and in larger buckets with the next
    `window` in the order of ties and with the very first. Where the tie is the bucket, rows have the same n-grams.
    """
    nothing = np.empty(0, np.uint64)
    count = pair_rows(buckets, ties, rows, most, window, nothing, nothing, np.empty(0, np.bool_))
    left, right, same = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.bool_)
    pair_rows(buckets, ties, rows, most, window, left, right, same)
    return left, right, same


def occurs_again(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return a mask of at least all values that occur more than once; about one in thirty of the others is in it.

    It takes two passes and a byte or so a value, where sorting takes many.
    """
    bits = max(10, int(len(values) * 16).bit_length())
    seen, again = np.zeros(1 << (bits - 6), np.uint64), np.zeros(1 << (bits - 6), np.uint64)
    shift = _U(64 - bits)
    mark_again(values, seen, again, shift)
    out = np.empty(len(values), np.bool_)
    look_again(values, again, shift, out)
    return out


class Members:
    """A set of hashes that can be asked what others share with it."""

    def __init__(self, values: npt.NDArray[np.uint64]) -> None:
        size = 1 << max(4, int(len(values) * 2).bit_length())
        self._table = np.zeros(size, np.uint64)
        self._mask = _U(size - 1)
        self._zero = int(bool((values == 0).any()))
        fill_table(values[values != 0] if self._zero else values, self._table, self._mask)

    def overlap(self, texts: pl.Series, ngram: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return for each text how many of its n-grams are in the set, and how many it has; those that repeat count each time."""
        views = string_views(texts)
        shared, size = np.empty(views.height, np.int64), np.empty(views.height, np.int64)

        def part(start: int, stop: int) -> None:
            scratch = np.empty(1 << 17, np.uint64)
            for first in range(start, stop, _BLOCK):
                last = min(first + _BLOCK, stop)
                hashes, offsets = shingles_of_rows(views, first, last, ngram, scratch)
                overlap_rows(hashes, offsets, self._table, self._mask, self._zero, shared[first:last], size[first:last])

        in_parts(part, views.height, _LEAST_ROWS)
        return shared, size
