"""Rejects rows that repeat the values of some columns."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.operator import GROUP, KEY, frame_operator
from ptk.params import COLUMN, Params

__all__ = ["DropDuplicates", "drop_duplicates"]


class DropDuplicates(Params):
    """Settings of drop_duplicates."""

    on: Annotated[tuple[str, ...], COLUMN] = Field(min_length=1, description="Columns whose values may occur together once.")


@frame_operator(scope="key", by=lambda params: params.on, reads=lambda params: (), version=1)
def drop_duplicates(frame: pl.LazyFrame, params: DropDuplicates) -> pl.LazyFrame:
    """Reject rows that repeat the values of some columns; of equal rows the one with the smallest key stays."""
    first = pl.col(KEY).min().over(GROUP)
    repeats = pl.col(KEY) != first
    return frame.select(
        KEY,
        _reject=pl.when(repeats).then(pl.lit("duplicate")),
        _detail=pl.when(repeats).then(pl.concat_str(pl.lit(f"same {', '.join(params.on)} as "), first)),
    )
