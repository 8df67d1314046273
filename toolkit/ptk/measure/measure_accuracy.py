"""How often a judge finds that inferred personas prefer the response they were inferred from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from ptk.measure.bootstrap import Floats
from ptk.measure.judgements import columns_of, doubt_statistics, doubt_sums
from ptk.measure.table import Measuring, Statistic, Totals, measured, need, ratio
from ptk.operator import reshape
from ptk.params import COLUMN

__all__ = ["MeasureAccuracy", "measure_accuracy"]

_SIDES = ("chosen", "rejected")


class MeasureAccuracy(Measuring):
    """Settings of measure_accuracy."""

    chosen_persona: Annotated[str, COLUMN] = Field(
        "chosen_persona",
        description="Column with the persona who would prefer the chosen response, as judge_personas was given it.",
    )
    rejected_persona: Annotated[str, COLUMN] = Field(
        "rejected_persona", description="Column with the persona who would prefer the rejected response."
    )


@reshape(key="name", version=1)
def measure_accuracy(frame: pl.LazyFrame, params: MeasureAccuracy) -> pl.LazyFrame:
    """Make a table of how often judged personas are right: by side and group, each judgement counted, and both orders together."""
    sums: dict[str, pl.Expr] = {}
    columns = dict(zip(_SIDES, (params.chosen_persona, params.rejected_persona), strict=True))
    need(frame, [name for column in columns.values() for name in (f"{column}_right", *columns_of(column))], "judge_personas")
    for side, column in columns.items():
        sums |= {f"{side}_{name}": value for name, value in _sums_of(column).items()}
    for name in _sums_of(params.chosen_persona):
        sums[f"both_{name}"] = sum((sums[f"{side}_{name}"].cast(pl.Int64).fill_null(0) for side in _SIDES), pl.lit(0))
    statistics = [statistic for side in ("both", *_SIDES) for statistic in _statistics(side)]
    return measured(frame, sums, statistics, params)


def _sums_of(column: str) -> dict[str, pl.Expr]:
    right, flipped = pl.col(f"{column}_right"), pl.col(f"{column}_flipped")
    both = flipped.is_not_null()
    # Of two answers that disagree one is right.
    single = pl.when(flipped).then(1).when(~flipped & right).then(2).otherwise(0)
    judgements = pl.when(both).then(2).otherwise(0)
    return {
        "right": single,
        "wrong": judgements - single,
        "judgements": judgements,
        "mean_right": right,
        "mean_judged": right.is_not_null(),
        "tied": both & right.is_null(),
        **doubt_sums(column),
    }


def _statistics(side: str) -> Iterator[Statistic]:
    of = f"{side}_"

    def binomial_error(totals: Totals) -> Floats:
        share = ratio(totals[f"{of}right"], totals[f"{of}judgements"])
        error: Floats = np.sqrt(ratio(share * (1 - share), totals[f"{of}judgements"]))
        return error

    yield Statistic(
        "accuracy",
        side,
        lambda t: ratio(t[f"{of}right"], t[f"{of}judgements"]),
        f"{of}judgements",
        against=(f"{of}right", f"{of}wrong"),
    )
    yield Statistic("accuracy_binomial_error", side, binomial_error, f"{of}judgements", counted=True)
    yield Statistic(
        "order_averaged_accuracy", side, lambda t: ratio(t[f"{of}mean_right"], t[f"{of}mean_judged"]), f"{of}mean_judged"
    )
    yield Statistic("tied", side, lambda t: ratio(t[f"{of}tied"], t[f"{of}both"]), f"{of}both")
    yield from doubt_statistics(side, of)
