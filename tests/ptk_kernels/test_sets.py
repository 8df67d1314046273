from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ptk_kernels.sets import Members, bucket_pairs, components, ngram_counts, occurs_again, shingle_sets

from . import reference

TEXTS = st.lists(st.none() | st.text(st.sampled_from("ab ."), max_size=30), max_size=20)


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 4))
def test_sets_are_sorted_and_without_repetition(texts: list[str | None], ngram: int) -> None:
    values, offsets = shingle_sets(pl.Series(texts, dtype=pl.String), ngram)
    found = [values[first:last].tolist() for first, last in pairwise(offsets)]
    assert found == [sorted(set(reference.shingles(text, ngram))) for text in texts]


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 4))
def test_ngrams_are_counted_with_and_without_repetition(texts: list[str | None], ngram: int) -> None:
    size, different = ngram_counts(pl.Series(texts, dtype=pl.String), ngram)
    grams = [reference.shingles(text, ngram) for text in texts]
    assert size.tolist() == [len(row) for row in grams]
    assert different.tolist() == [len(set(row)) for row in grams]


NODES = st.integers(0, 11)
EDGES = st.lists(st.tuples(NODES, NODES), max_size=10)


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 9)), min_size=12, max_size=12), EDGES, EDGES, st.sampled_from([0.2, 0.5, 0.7, 1.0]))
def test_components_are_those_of_the_pairs_that_are_similar_enough(
    sets: list[set[int]], linked: list[tuple[int, int]], compared: list[tuple[int, int]], threshold: float
) -> None:
    edges = linked + [(i, j) for i, j in compared if reference.jaccard(sets[i], sets[j]) >= threshold]
    smallest = list(range(12))
    for _ in smallest:
        for i, j in edges:
            smallest[i] = smallest[j] = min(smallest[i], smallest[j])

    def ends(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([i for i, _ in pairs], np.int64), np.array([j for _, j in pairs], np.int64)

    values = np.array([value for row in sets for value in sorted(row)], np.uint64)
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    assert components(12, ends(linked), ends(compared), (values, offsets), threshold).tolist() == smallest


def test_nodes_without_pairs_are_components_of_their_own() -> None:
    nothing = np.empty(0, np.int64), np.empty(0, np.int64)
    assert components(3, nothing).tolist() == [0, 1, 2]
    assert components(0, nothing).tolist() == []


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 40) | st.integers(0, reference.M), max_size=60))
def test_no_value_that_occurs_again_is_missed(values: list[int]) -> None:
    marked = occurs_again(np.array(values, np.uint64))
    assert all(mark for value, mark in zip(values, marked, strict=True) if values.count(value) > 1)


def test_few_values_that_occur_once_are_marked() -> None:
    values = np.random.default_rng(1).integers(0, 1 << 64, 300_000, np.uint64)
    assert occurs_again(values).mean() < 0.07


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 30) | st.integers(0, reference.M)), TEXTS, st.integers(1, 3))
def test_members_count_what_texts_share_with_them(values: list[int], texts: list[str | None], ngram: int) -> None:
    known = {*values, *reference.shingles("a b a a b", ngram)}
    shared, size = Members(np.array(list(known), np.uint64)).overlap(pl.Series(texts, dtype=pl.String), ngram)
    grams = [reference.shingles(text, ngram) for text in texts]
    assert shared.tolist() == [sum(gram in known for gram in row) for row in grams]
    assert size.tolist() == [len(row) for row in grams]


def test_no_members_share_nothing() -> None:
    shared, size = Members(np.empty(0, np.uint64)).overlap(pl.Series(["a b"]), 1)
    assert (shared.tolist(), size.tolist()) == ([0], [2])


def pairs(members: list[tuple[int, int, int]], most: int, window: int) -> list[tuple[int, int, bool]]:
    columns = [np.array(column, np.uint64) for column in zip(*sorted(members), strict=True)]
    left, right, same = bucket_pairs(*columns, most=most, window=window)
    return list(zip(left.tolist(), right.tolist(), same.tolist(), strict=True))


def test_in_a_small_bucket_each_is_paired_with_each() -> None:
    members = [(7, 10, 1), (7, 20, 2), (7, 30, 3), (8, 10, 4), (9, 10, 5), (9, 11, 1)]
    assert pairs(members, 3, 1) == [(1, 2, False), (1, 3, False), (2, 3, False), (5, 1, False)]


def test_of_rows_with_one_tie_the_first_alone_is_paired() -> None:
    assert pairs([(7, 10, 1), (7, 10, 2), (7, 20, 3), (7, 20, 4)], 9, 1) == [(1, 3, False)]


def test_where_the_tie_is_the_bucket_rows_are_the_same() -> None:
    assert pairs([(7, 7, 4), (7, 7, 5), (7, 7, 9)], 9, 1) == [(4, 5, True), (4, 9, True)]


def test_in_a_large_bucket_pairs_grow_with_its_size_not_with_its_square() -> None:
    found = pairs([(7, 10 + number, number) for number in range(1_000)], 32, 8)
    assert len(found) < 9 * 1_000
    assert {(0, other, False) for other in range(1, 1_000)} <= set(found)
    assert {(number, number + by, False) for number in range(1, 990) for by in range(1, 9)} <= set(found)
