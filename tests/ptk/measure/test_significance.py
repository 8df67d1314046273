from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ptk.measure.significance import adjusted, paired_bootstrap, sign_test, wilcoxon

counts = st.integers(0, 400)


@given(counts, counts)
def test_the_sign_test_is_the_binomial_test_and_mcnemars(plus: int, minus: int) -> None:
    found = sign_test(plus, minus)
    if plus + minus == 0:
        assert found is None
        return
    assert found == pytest.approx(stats.binomtest(plus, plus + minus, 0.5).pvalue, abs=1e-9)
    assert found == pytest.approx(mcnemar([[5, plus], [minus, 9]], exact=True).pvalue, abs=1e-9)


def test_the_sign_test_does_not_mind_a_million_pairs() -> None:
    assert sign_test(500_000, 500_000) == 1.0
    assert sign_test(500_500, 499_500) == pytest.approx(stats.binomtest(500_500, 1_000_000).pvalue, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=60))
def test_the_signed_rank_test_is_that_of_scipy(values: list[int]) -> None:
    kinds, times = np.unique(np.array(values, dtype=float), return_counts=True)
    found = wilcoxon(kinds, times)
    if not any(values):
        assert found is None
        return
    theirs = stats.wilcoxon(values, zero_method="wilcox", correction=False, method="asymptotic").pvalue
    assert found == pytest.approx(theirs, abs=1e-9)


probabilities = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30)


@pytest.mark.parametrize(("method", "theirs"), [("bh", "fdr_bh"), ("holm", "holm")])
@given(values=probabilities)
def test_adjusted_probabilities_are_those_of_statsmodels(values: list[float | None], method: str, theirs: str) -> None:
    found = adjusted(values, method)  # type: ignore[arg-type]
    given_ones = [value for value in values if value is not None]
    wanted = iter(multipletests(given_ones, method=theirs)[1] if given_ones else [])
    for before, after in zip(values, found, strict=True):
        assert after is None if before is None else after == pytest.approx(next(wanted), abs=1e-9)


def test_a_bootstrap_probability_is_never_zero() -> None:
    assert paired_bootstrap(np.ones(999)) == 2 / 1000
    assert paired_bootstrap(np.array([-1.0, 1.0] * 50)) == 1.0
    assert paired_bootstrap(np.array([np.nan])) is None
    assert paired_bootstrap(np.ones(9) * 0.5, null=0.5) == 1.0
