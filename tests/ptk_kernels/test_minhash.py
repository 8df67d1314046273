from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptk_kernels.minhash import Banding, _functions, band_hashes, banding, signatures

from . import reference

HASHES = st.lists(st.lists(st.integers(0, reference.M), max_size=11), max_size=8)


def flat(sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([value for row in sets for value in row], np.uint64),
        np.cumsum([0, *(len(row) for row in sets)], dtype=np.int64),
    )


def slow_signature(values: list[int], count: int) -> list[int]:
    a, b = _functions(count)
    functions = list(zip(a.tolist(), b.tolist(), strict=True))
    return [min([((value >> 32) * x + y) % (1 << 32) for value in values], default=(1 << 32) - 1) for x, y in functions]


@settings(deadline=None)  # the first call compiles
@given(HASHES, st.integers(1, 40))
def test_signatures_are_those_of_the_reference(sets: list[list[int]], count: int) -> None:
    assert signatures(*flat(sets), count).tolist() == [slow_signature(values, count) for values in sets]


@pytest.mark.parametrize(("shared", "own"), [(850, 75), (350, 75), (20, 40), (8, 1), (40, 460)])
def test_the_estimate_is_unbiased(shared: int, own: int) -> None:
    draw = np.random.default_rng(shared)
    pairs, count = 400, 128
    sets = []
    for _ in range(pairs):
        values = draw.integers(0, 1 << 64, shared + 2 * own, np.uint64)
        sets += [values[: shared + own].tolist(), [*values[:shared].tolist(), *values[shared + own :].tolist()]]
    signed = signatures(*flat(sets), count)
    estimates = (signed[0::2] == signed[1::2]).mean(axis=1)
    exact = shared / (shared + 2 * own)
    error = np.sqrt(exact * (1 - exact) / (pairs * count))
    assert abs(estimates.mean() - exact) < 5 * error
    # Each number of the signature for itself, too, and as much spread as independent functions have.
    each = (signed[0::2] == signed[1::2]).mean(axis=0)
    assert abs(each - exact).max() < 5.5 * np.sqrt(exact * (1 - exact) / pairs)
    assert 0.7 < estimates.var() / (exact * (1 - exact) / count) < 1.4


def test_the_functions_never_change() -> None:
    a, b = _functions(3)
    assert (a.tolist(), b.tolist()) == GOLDEN
    assert _functions(1024)[0][:3].tolist() == a.tolist()


GOLDEN = ([3793791033, 1853398635, 113532185], [2065550767, 2713282036, 2148091215])


@settings(deadline=None)  # the first call compiles
@given(st.floats(0.1, 1.0), st.integers(16, 512))
def test_a_banding_finds_pairs_at_the_threshold(threshold: float, permutations: int) -> None:
    chosen = banding(threshold, permutations)
    assert chosen.bands * chosen.rows <= permutations
    possible = [Banding(permutations // rows, rows) for rows in range(1, permutations + 1)]
    enough = [option for option in possible if option.recall(threshold) >= 0.98]
    if enough:
        assert chosen.rows == max(option.rows for option in enough)
        assert chosen.recall(threshold) >= 0.98
        assert chosen.bands == 1 or Banding(chosen.bands - 1, chosen.rows).recall(threshold) < 0.98
    else:
        assert chosen == (permutations, 1)


def test_bandings_of_usual_thresholds() -> None:
    assert {threshold: tuple(banding(threshold, 128)) for threshold in (0.5, 0.7, 0.8, 0.9, 1.0)} == {
        0.5: (30, 3),
        0.7: (22, 5),
        0.8: (17, 7),
        0.9: (11, 11),
        1.0: (1, 128),
    }


def test_texts_meet_in_as_many_buckets_as_theory_says() -> None:
    draw = np.random.default_rng(5)
    bands = Banding(20, 4)
    similar = met = 0.0
    for _ in range(200):
        words = draw.integers(0, 10**9, 60)
        other = words.copy()
        other[30] = 0
        texts = pl.Series([" ".join(map(str, row)) for row in (words, other)])
        buckets, _, _ = band_hashes(texts, 3, bands)
        similar += (55 / 61) ** 4
        met += (buckets[0, :-1] == buckets[1, :-1]).mean()
    assert abs(met - similar) / 200 < 0.02


def test_texts_without_words_fall_into_no_bucket() -> None:
    buckets, ties, present = band_hashes(pl.Series(["", None, "...", "word"]), 5, Banding(4, 2))
    assert present.tolist() == [False, False, False, True]
    assert not buckets[:3].any() and not ties[:3].any() and buckets[3].all()


def test_the_same_band_at_another_place_is_another_bucket() -> None:
    buckets, _, _ = band_hashes(pl.Series(["one word and some more"]), 5, Banding(64, 1))
    assert len(set(buckets[0].tolist())) == 65


def test_the_last_bucket_is_that_of_the_same_n_grams() -> None:
    texts = pl.Series(["a b c a b", "A, b! c; a? b.", "a b c a b a", "a b c"])
    buckets, ties, _ = band_hashes(texts, 2, Banding(4, 2))
    assert (buckets[:, -1] == ties[:, -1]).all()
    assert buckets[0].tolist() == buckets[1].tolist()
    assert len(set(buckets[1:, -1].tolist())) == 3
