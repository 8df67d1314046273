"""Paired comparison of scores of the same rows: the difference, who is better how often, and three tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ptk.measure.significance import paired_bootstrap, wilcoxon
from ptk.measure.table import Measuring, Statistic, Totals, measured, ratio

__all__ = ["LEFT", "RIGHT", "Scoring", "paired_table", "score"]

LEFT, RIGHT = "_left", "_right"
"""Columns of the two scores; null where a row has none."""


class Scoring(Measuring):
    """Settings of comparisons: how verdicts become numbers."""

    scores: Mapping[str, float] = Field(
        {"first": 1.0, "tie": 0.5, "second": 0.0},
        description="What each label counts, where the column holds labels; others count as missing. true is 1 and false 0.",
    )

    @model_validator(mode="after")
    def _finite(self) -> Scoring:
        for label, value in self.scores.items():
            if not np.isfinite(value):
                raise ValueError(f"the score of '{label}' is no number")
        return self


def score(column: str, dtype: pl.DataType, scores: Mapping[str, float]) -> pl.Expr:
    """Return a column of numbers, of true and false or of labels as numbers. Raises TypeError for anything else."""
    value = pl.col(column)
    if dtype == pl.Boolean or dtype.is_numeric():
        number = value.cast(pl.Float64)
        return pl.when(number.is_finite()).then(number)
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)) or dtype == pl.Null:
        labels, numbers = list(scores), list(scores.values())
        return value.cast(pl.String).replace_strict(labels, numbers, default=None, return_dtype=pl.Float64)
    raise TypeError(f"column '{column}' is {dtype}, neither numbers nor labels")


def paired_table(rows: pl.LazyFrame, about: str | None, params: Measuring) -> pl.LazyFrame:
    """Return the table of a comparison; `rows` have LEFT and RIGHT beside the columns to group and to cluster by."""
    left, right = pl.col(LEFT), pl.col(RIGHT)
    both = left.is_not_null() & right.is_not_null()
    sums = {
        "left": pl.when(both).then(left),
        "right": pl.when(both).then(right),
        "difference": left - right,
        "pairs": both,
        "better": left > right,
        "worse": left < right,
        "equal": left == right,
        "decided": both & (left != right),
        "left_alone": left.is_not_null() & right.is_null(),
        "right_alone": left.is_null() & right.is_not_null(),
    }

    def share(name: str, of: str = "pairs") -> Statistic:
        return Statistic(name, about, lambda t: ratio(t[name], t[of]), of)

    def difference(measure: str, test: Any) -> Statistic:
        return Statistic(measure, about, lambda t: ratio(t["difference"], t["pairs"]), "pairs", test=test)

    statistics = [
        share("left"),
        share("right"),
        difference("difference", _by_bootstrap),
        difference("signed_rank", _by_rank),
        Statistic("better", about, lambda t: ratio(t["better"], t["decided"]), "decided", against=("better", "worse")),
        share("equal"),
        *(
            Statistic(name, about, lambda t, name=name: t[name], name, counted=True)  # type: ignore[misc]
            for name in ("left_alone", "right_alone")
        ),
    ]
    return measured(rows, sums, statistics, params, reals=("left", "right", "difference"))


def _by_bootstrap(sums: Totals, counts: NDArray[np.int64], draws: Totals | None) -> float | None:
    return None if draws is None else paired_bootstrap(ratio(draws["difference"], draws["pairs"]))


def _by_rank(sums: Totals, counts: NDArray[np.int64], draws: Totals | None) -> float | None:
    """Clusters are what is ranked, by their mean difference."""
    means = ratio(sums["difference"], sums["pairs"], 0.0)
    return wilcoxon(means, counts)
