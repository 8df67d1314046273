"""Gives each row the solved cases that its prompt is shown with: few-shot tailoring, which trains nothing."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import texts_of
from ptk_catalog.digest import row_id

__all__ = ["AssignCases", "assign_cases"]

_FIELDS = ("prompt", "persona", "preferred")
_NUMBER = "_number"


class AssignCases(Params):
    """Settings of assign_cases."""

    count: int = Field(5, ge=1, le=64, description="How many cases a row is given, the same for all rows.")
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63, description="Another seed, other cases.")
    on: Annotated[tuple[str, ...], COLUMN] = Field(
        (), description="Columns, such as domain: a row is given cases with equal values there."
    )
    into: str = Field("cases", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the new column.")


def _reads(params: AssignCases) -> dict[str, tuple[str, ...]]:
    return {"frame": params.on, "cases": (*_FIELDS, *params.on)}


@frame_operator(scope="dataset", reads=_reads, version=1)
def assign_cases(frame: pl.LazyFrame, cases: pl.LazyFrame, params: AssignCases) -> pl.LazyFrame:
    """Give each row solved cases out of few-shot records, drawn by seed: for generate_responses to show first."""
    texts_of(cases, _FIELDS)  # raises where a column is missing
    dtype = cases.collect_schema()[KEY]
    # Which cases are drawn is decided by seed and keys alone, in whatever order the rows come.
    seeded = cases.with_columns(_seed=pl.lit(params.seed, pl.Int64)).with_columns(
        row_id({"_seed": pl.Int64(), KEY: dtype}).alias(_NUMBER)
    )
    drawn = seeded.sort(_NUMBER).select(pl.struct(_FIELDS).alias(params.into), *params.on)
    if params.on:
        chosen = drawn.group_by(params.on).agg(pl.col(params.into).head(params.count))
        joined = frame.select(KEY, *params.on).join(chosen, on=list(params.on), how="left", maintain_order="left")
    else:
        chosen = drawn.select(pl.col(params.into).head(params.count).implode())
        joined = frame.select(KEY).join(chosen, how="cross", maintain_order="left")
    lacking = pl.col(params.into).list.len().fill_null(0) == 0
    reject = pl.when(lacking).then(pl.lit("no_cases")).alias("_reject")
    return joined.select(KEY, params.into, reject)
