"""Tests of hypotheses: exact ones for paired verdicts, the signed rank test, and control of what many tests find by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["adjusted", "paired_bootstrap", "sign_test", "wilcoxon"]


def sign_test(plus: int, minus: int) -> float | None:
    """Return the exact two-sided probability of a split as uneven, where both signs are equally likely; None where there is none.

    Of pairs of verdicts that are right or wrong this is McNemar's exact test (Q. McNemar, Psychometrika 12, 1947, p. 153).
    """
    if plus + minus == 0:
        return None
    from scipy.special import bdtr

    # bdtr(k, n, p) is P(X <= k).
    return float(min(1.0, 2 * bdtr(min(plus, minus), plus + minus, 0.5)))


def wilcoxon(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float | None:
    """Return the two-sided probability of Wilcoxon's signed rank test of differences, each of which occurs so many times.

    Zeros are left out, equal ones share their mean rank, and the normal approximation with the correction for ties is used, without
    one for continuity (F. Wilcoxon, Biometrics Bulletin 1, 1945, p. 80). None for no difference other than zero. It is a rough one for
    fewer than about ten differences.
    """
    kept = (values != 0) & (counts > 0)
    values, counts = values[kept], counts[kept].astype(np.float64)
    number = float(counts.sum())
    if number == 0:
        return None
    sizes, place = np.unique(np.abs(values), return_inverse=True)
    ties = np.bincount(place, weights=counts, minlength=len(sizes))
    ranks = np.cumsum(ties) - (ties - 1) / 2
    positive = float((ranks[place] * counts)[values > 0].sum())
    mean = number * (number + 1) / 4
    variance = number * (number + 1) * (2 * number + 1) / 24 - float((ties**3 - ties).sum()) / 48
    from scipy.special import ndtr

    return float(2 * ndtr(-abs(positive - mean) / np.sqrt(variance)))


def paired_bootstrap(draws: NDArray[np.float64], null: float = 0.0) -> float | None:
    """Return twice the smaller share of draws of a difference on either side of `null`, at most 1; a draw at `null` is on both.

    One is added to both counts, since the observed sample is one of those that may be drawn, so no probability is 0 (Davison and
    Hinkley, 1997, p. 141).
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    smaller = min(int((draws <= null).sum()), int((draws >= null).sum()))
    return float(min(1.0, 2 * (smaller + 1) / (len(draws) + 1)))


def adjusted(p_values: Sequence[float | None], method: Literal["bh", "holm"] = "bh") -> list[float | None]:
    """Return p-values adjusted for how many there are; None stays None and is not counted.

    `bh` bounds the share of false ones among those called significant (Y. Benjamini and Y. Hochberg, J. R. Stat. Soc. B 57, 1995, p.
    289), `holm` the probability of any (S. Holm, Scand. J. Stat. 6, 1979, p. 65).
    """
    given = [number for number, p in enumerate(p_values) if p is not None]
    found: list[float | None] = [None] * len(p_values)
    if not given:
        return found
    values = np.array([p_values[number] for number in given], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ranks = np.arange(1, len(values) + 1)
    if method == "bh":
        raised = np.minimum.accumulate((values[order] * len(values) / ranks)[::-1])[::-1]
    else:
        raised = np.maximum.accumulate(values[order] * (len(values) - ranks + 1))
    for place, value in zip(order, np.minimum(raised, 1.0), strict=True):
        found[given[int(place)]] = float(value)
    return found
