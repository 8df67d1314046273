from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ptk.measure.bootstrap import Clusters, Floats, Interval, clusters_of, estimate, jackknife, resampled
from ptk_kernels.resample import resampled_sums


def mean(totals: Floats) -> Floats:
    """Mean of column 0 where column 1 counts."""
    return np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] != 0)


def counted(values: list[float]) -> Clusters:
    return clusters_of(np.column_stack([values, np.ones(len(values))]))


def test_clusters_with_equal_sums_are_one_kind_in_any_order() -> None:
    one = clusters_of(np.array([[1, 2], [0, 1], [1, 2], [0, 3]]))
    other = clusters_of(np.array([[0, 3], [1, 2], [0, 1]]), np.array([1, 2, 1]))
    assert one.sums.tolist() == other.sums.tolist() == [[0, 1], [0, 3], [1, 2]]
    assert one.counts.tolist() == other.counts.tolist() == [1, 1, 2]
    assert (one.number, one.totals.tolist()) == (4, [2, 8])


numbers = st.lists(st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_the_error_of_a_mean_is_that_of_scipy(values: list[float]) -> None:
    found = estimate(counted(values), mean, Interval(rounds=0))
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.standard_error == pytest.approx(stats.sem(values), abs=1e-9)
    assert found.low is None and found.high is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=2, max_size=25), st.sampled_from(["percentile", "bca"])
)
def test_a_ratio_of_clusters_is_that_of_the_slow_way(pairs: list[tuple[int, int]], method: Any) -> None:
    sums = np.array(pairs, dtype=float)
    clusters = clusters_of(sums)
    interval = Interval(rounds=200, method=method, confidence=0.9, seed=3)
    found = estimate(clusters, mean, interval)
    without = [sums[np.arange(len(sums)) != left_out].sum(axis=0) for left_out in range(len(sums))]
    values = np.array([part / whole for part, whole in without])
    error = math.sqrt((len(sums) - 1) / len(sums) * ((values - values.mean()) ** 2).sum())
    assert found.standard_error == pytest.approx(error, abs=1e-9)
    draws = mean(resampled(clusters, 200, 3))
    value = sums[:, 0].sum() / sums[:, 1].sum()
    ends = [0.05, 0.95]
    below = np.mean([1.0 if draw < value else 0.5 if draw == value else 0.0 for draw in draws])
    apart = values.mean() - values
    if method == "bca" and 0 < below < 1 and (apart**2).sum() > 0:
        z0 = stats.norm.ppf(below)
        a = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
        ends = [stats.norm.cdf(z0 + (z0 + stats.norm.ppf(q)) / (1 - a * (z0 + stats.norm.ppf(q)))) for q in ends]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, ends)), abs=1e-9)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("kinds", ["few", "many"])
def test_intervals_are_those_of_scipy_up_to_chance(method: Any, kinds: str) -> None:
    chance = np.random.default_rng(0)
    values = chance.exponential(size=300)
    values = np.round(values, 1) if kinds == "few" else values
    found = estimate(counted(values.tolist()), mean, Interval(rounds=20_000, method=method))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method={"bca": "BCa"}.get(method, method), rng=np.random.default_rng(1)
    )
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)


def test_draws_are_seeded_and_blind_to_the_order_of_rows() -> None:
    values = np.random.default_rng(2).normal(size=(5_000, 2))
    for some in (values, np.round(values)):
        shuffled = np.random.default_rng(3).permutation(some)
        assert np.array_equal(resampled(clusters_of(some), 50, 7), resampled(clusters_of(shuffled), 50, 7))
        assert not np.array_equal(resampled(clusters_of(some), 50, 7), resampled(clusters_of(some), 50, 8))


def test_each_round_draws_as_many_clusters_as_there_are() -> None:
    for values in (np.ones((5_000, 1)), np.column_stack([np.arange(5_000.0), np.ones(5_000)])):
        assert (resampled(clusters_of(values), 20, 0)[:, -1] == 5_000).all()


def test_the_compiled_draws_are_even() -> None:
    drawn = resampled_sums(np.eye(50), 4_000, 5)
    # 200,000 draws over 50 rows: each is drawn 4,000 times, give or take 63.
    assert abs(drawn.sum(axis=0) - 4_000).max() < 5 * 63
    assert stats.chisquare(drawn.sum(axis=0)).pvalue > 1e-4
    assert drawn.std(axis=0).mean() == pytest.approx(math.sqrt(50 * 0.02 * 0.98), rel=0.05)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(4)
    held = 0
    for trial in range(300):
        # Clusters of four verdicts that mostly agree: rows drawn one by one would give far too narrow intervals.
        leaning = chance.beta(2, 2, size=150)
        wins = chance.binomial(4, leaning)
        found = estimate(clusters_of(np.column_stack([wins, np.full(150, 4)])), mean, Interval(rounds=300, seed=trial))
        assert found.low is not None and found.high is not None
        held += found.low <= 0.5 <= found.high
    assert 0.91 <= held / 300 <= 0.985


def test_what_can_not_be_told_is_none() -> None:
    assert estimate(clusters_of(np.zeros((0, 2))), mean, Interval()).value is None
    assert estimate(counted([0.25]), mean, Interval()) == estimate(counted([0.25]), mean, Interval(rounds=0))
    nothing = clusters_of(np.zeros((3, 2)))
    assert estimate(nothing, mean, Interval()).value is None
    # Without the one cluster that was judged there is no mean, so no error; the draws that have it still say something.
    lone = estimate(clusters_of(np.array([[1.0, 1.0], [0, 0], [0, 0]])), mean, Interval(rounds=100))
    assert (lone.value, lone.low, lone.high, lone.standard_error) == (1.0, 1.0, 1.0, None)


def test_no_spread_is_an_interval_of_one_point() -> None:
    for method in ("percentile", "bca"):
        found = estimate(counted([1.0] * 10), mean, Interval(rounds=50, method=method))  # type: ignore[arg-type]
        assert (found.low, found.high, found.standard_error) == (1.0, 1.0, 0.0)


def test_the_jackknife_leaves_out_one_cluster_of_a_kind() -> None:
    clusters = counted([1.0, 1.0, 4.0])
    assert jackknife(clusters, mean).tolist() == [2.5, 1.0]
