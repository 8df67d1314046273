"""Bootstrap of measures that are functions of totals, resampled by cluster.

Verdicts on one prompt are not independent, so whole clusters are drawn with replacement (the cases of a cluster stay together;
A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). A measure sees the totals over the
clusters that were drawn, so a cluster is known by its sums alone, and clusters with equal sums are interchangeable: how often each
kind is drawn is one multinomial draw. A million verdicts have a few dozen kinds. Where nearly every cluster is a kind of its own,
a compiled loop draws them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clusters", "Estimate", "Interval", "clusters_of", "estimate", "jackknife", "resampled"]

Floats = NDArray[np.float64]
Measure = Callable[[Floats], Floats]
"""Values of a measure, one for each row of totals: (r, k) -> (r,). NaN where the totals do not define it."""

_KINDS = 4_096
"""Up to so many kinds of clusters are drawn by one multinomial draw."""
_CELLS = 4_000_000
"""Numbers of a block of draws: 32 MB."""

Method = Literal["percentile", "bca"]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Kinds of clusters: the sums of each, (t, k), and how many clusters are of it, (t,); sorted by the sums."""

    sums: Floats
    counts: NDArray[np.int64]

    @property
    def number(self) -> int:
        return int(self.counts.sum())

    @property
    def totals(self) -> Floats:
        """Sums over all clusters, (k,)."""
        totals: Floats = self.counts.astype(np.float64) @ self.sums
        return totals


@dataclass(frozen=True, slots=True)
class Interval:
    """How an interval is made: of `confidence`, from `rounds` draws; no rounds, no interval."""

    rounds: int = 2_000
    confidence: float = 0.95
    method: Method = "percentile"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval and its standard error; None where they are not defined."""

    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None


def clusters_of(sums: NDArray[Any], counts: NDArray[np.int64] | None = None) -> Clusters:
    """Return the kinds among clusters with `sums` (c, k), of which there are `counts` (c,) each, by default one."""
    sums = np.ascontiguousarray(sums, dtype=np.float64)
    counts = np.ones(len(sums), dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
    order = np.lexsort(sums.T[::-1]) if sums.shape[1] else np.arange(len(sums))
    ordered = sums[order]
    first = np.ones(len(ordered), dtype=bool)
    if len(ordered):
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kinds = np.cumsum(first) - 1
    found = np.bincount(kinds, weights=counts[order], minlength=int(first.sum())) if len(ordered) else np.zeros(0)
    return Clusters(ordered[first], found.astype(np.int64))


def resampled(clusters: Clusters, rounds: int, seed: int) -> Floats:
    """Return the totals over as many clusters as there are, drawn with replacement, for each round: (rounds, k)."""
    number, kinds = clusters.number, len(clusters.counts)
    if kinds > _KINDS:
        from ptk_kernels.resample import resampled_sums

        return resampled_sums(np.repeat(clusters.sums, clusters.counts, axis=0), rounds, seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    shares = clusters.counts / number
    block = max(1, _CELLS // kinds)
    blocks = [
        generator.multinomial(number, shares, size=min(block, rounds - start)).astype(np.float64) @ clusters.sums
        for start in range(0, rounds, block)
    ]
    return np.concatenate(blocks)


def jackknife(clusters: Clusters, measure: Measure) -> Floats:
    """Return the measure without one cluster, for each kind of cluster: (t,)."""
    return measure(clusters.totals - clusters.sums)


def estimate(clusters: Clusters, measure: Measure, interval: Interval, draws: Floats | None = None) -> Estimate:
    """Return a measure with its interval and its jackknife standard error.

    The standard error is sqrt((c - 1) / c * sum over clusters of (value without it - mean of these)^2): for the mean of independent
    values s / sqrt(n). `percentile` is the interval between quantiles of the draws; `bca` corrects it for bias and skewness (B. Efron,
    J. Am. Stat. Assoc. 82, 1987, p. 171). Interval and error need two clusters, and are None where a value they rest on is not defined.
    `draws` are those of `resampled`, where they are at hand.
    """
    if clusters.number == 0:
        return Estimate(None, None, None, None)
    value = float(measure(clusters.totals[None, :])[0])
    if not np.isfinite(value):
        return Estimate(None, None, None, None)
    number = clusters.number
    if number < 2:
        return Estimate(value, None, None, None)
    without = jackknife(clusters, measure)
    error = None
    if np.isfinite(without).all():
        mean = float(clusters.counts @ without) / number
        error = float(np.sqrt((number - 1) / number * (clusters.counts @ (without - mean) ** 2)))
    if interval.rounds == 0:
        return Estimate(value, None, None, error)
    values = measure(resampled(clusters, interval.rounds, interval.seed) if draws is None else draws)
    values = values[np.isfinite(values)]
    ends = np.array([(1 - interval.confidence) / 2, (1 + interval.confidence) / 2])
    if not len(values):
        return Estimate(value, None, None, error)
    if interval.method == "bca":
        if error is None:
            return Estimate(value, None, None, None)
        ends = _corrected(ends, value, values, without, clusters.counts)
    low, high = np.quantile(values, ends)
    return Estimate(value, float(low), float(high), error)


def _corrected(ends: Floats, value: float, values: Floats, without: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the shares of draws at which the BCa interval ends."""
    from scipy.special import ndtr, ndtri

    below = ((values < value).mean() + (values <= value).mean()) / 2
    apart = float(counts @ without) / counts.sum() - without
    spread = float(counts @ apart**2)
    # No draw on one side, or no draw that differs: there is nothing to correct by.
    if not 0 < below < 1 or spread == 0:
        return ends
    bias, skew = ndtri(below), float(counts @ apart**3) / (6 * spread**1.5)
    shifted = bias + ndtri(ends)
    corrected: Floats = ndtr(bias + shifted / (1 - skew * shifted))
    return corrected
