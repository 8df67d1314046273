"""Keeps a seeded sample of the rows."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import Params
from ptk_catalog.digest import row_id

__all__ = ["SampleRows", "sample_rows"]


class SampleRows(Params):
    """Settings of sample_rows."""

    n: int = Field(ge=1, description="How many rows to keep; all where there are fewer.")
    seed: int = Field(0, description="Another seed, another sample.")


@frame_operator(scope="dataset", version=1)
def sample_rows(frame: pl.LazyFrame, params: SampleRows) -> pl.LazyFrame:
    """Keep n rows, chosen by a seeded hash of their keys: the same rows for the same seed, in whatever order they come."""
    lottery = frame.select(KEY).with_columns(_seed=pl.lit(params.seed, pl.Int64))
    drawn = lottery.with_columns(_number=row_id({"_seed": pl.Int64(), KEY: pl.String()}))
    return drawn.select(KEY, _reject=pl.when(pl.col("_number").rank("ordinal") > params.n).then(pl.lit("not_sampled")))
