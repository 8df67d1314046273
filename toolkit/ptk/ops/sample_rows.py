"""Keeps a seeded sample of the rows."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field, model_validator

from ptk.operator import GROUP, KEY, ROW, Stage, staged_operator
from ptk.params import COLUMN, Params
from ptk_catalog.digest import row_id

__all__ = ["SampleRows", "sample_rows"]

_NUMBER = "_number"


class SampleRows(Params):
    """Settings of sample_rows."""

    n: int | None = Field(None, ge=1, description="How many rows to keep; all where there are fewer.")
    share: float | None = Field(None, gt=0.0, le=1.0, description="The share of the rows to keep, instead of `n`.")
    per: Annotated[tuple[str, ...], COLUMN] = Field((), description="Columns: `n` rows are kept for each of their values.")
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63, description="Another seed, another sample.")

    @model_validator(mode="after")
    def _one_measure(self) -> SampleRows:
        if (self.n is None) == (self.share is None):
            raise ValueError("say either how many rows to keep, `n`, or which share of them, `share`")
        if self.share is not None and self.per:
            raise ValueError("`share` draws each row by itself, so every group keeps about that share; leave `per` out")
        return self


@staged_operator(version=2)
def sample_rows(params: SampleRows) -> tuple[Stage, ...]:
    """Keep n rows or a share, chosen by a seeded hash of their keys: the same rows for the same seed, in whatever order they come."""
    if params.share is not None:
        return (Stage("decide", "rows", _by_share, ("frame",)),)
    draw = Stage("draw", "key" if params.per else "dataset", _drawn, ("frame",), params.per, {"frame": ()})
    return (draw, Stage("decide", "rows", _by_number, ("frame", "draw")))


def _with_number(frame: pl.LazyFrame, params: SampleRows) -> pl.LazyFrame:
    """Return `frame` with each row's number in the lottery: 32 hexadecimal digits that only seed and key decide."""
    dtype = frame.collect_schema()[KEY]
    seeded = frame.with_columns(_seed=pl.lit(params.seed, pl.Int64))
    return seeded.with_columns(row_id({"_seed": pl.Int64(), KEY: dtype}).alias(_NUMBER)).drop("_seed")


def _by_share(frame: pl.LazyFrame, params: SampleRows) -> pl.LazyFrame:
    assert params.share is not None
    # Lower-case hexadecimal digits of one length sort as the numbers they write.
    limit = "g" if params.share == 1.0 else f"{int(params.share * (1 << 128)):032x}"
    drawn = _with_number(frame.select(KEY), params)
    return drawn.select(KEY, _reject=pl.when(pl.col(_NUMBER) >= limit).then(pl.lit("not_sampled")))


def _drawn(frame: pl.LazyFrame, params: SampleRows) -> pl.LazyFrame:
    """Return the rows that are drawn, as numbers of rows."""
    rank = pl.col(_NUMBER).rank("ordinal")
    place = rank.over(GROUP) if params.per else rank
    return _with_number(frame, params).filter(place <= params.n).select(ROW)


def _by_number(frame: pl.LazyFrame, draw: pl.LazyFrame, params: SampleRows) -> pl.LazyFrame:
    judged = frame.select(KEY, ROW).join(draw.with_columns(_drawn=pl.lit(True)), on=ROW, how="left", maintain_order="left")
    return judged.select(KEY, _reject=pl.when(pl.col("_drawn").is_null()).then(pl.lit("not_sampled")))
