"""How much a judge's verdicts depend on what stood first."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from ptk.measure.judgements import columns_of, doubt_statistics, doubt_sums
from ptk.measure.table import Measuring, Statistic, measured, need
from ptk.operator import reshape

__all__ = ["MeasurePosition", "measure_position"]


class MeasurePosition(Measuring):
    """Settings of measure_position."""

    judgements: tuple[str, ...] = Field(
        min_length=1,
        description="What was judged: `into` of judge_responses, columns of personas of judge_personas, preferred_persona.",
    )


@reshape(key="name", version=1)
def measure_position(frame: pl.LazyFrame, params: MeasurePosition) -> pl.LazyFrame:
    """Make a table of a judge's leaning to a place: verdicts for what stood first, verdicts that flip, answers without one."""
    need(frame, [column for name in params.judgements for column in columns_of(name)], "a judge of that name")
    sums: dict[str, pl.Expr] = {}
    statistics: list[Statistic] = []
    for name in params.judgements:
        sums |= doubt_sums(name, f"{name}/")
        statistics.extend(doubt_statistics(name, f"{name}/"))
    return measured(frame, sums, statistics, params)
