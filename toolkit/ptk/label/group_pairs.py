"""Puts the pairs of one user, or of whatever a column names, into one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.errors import PtkError
from ptk.operator import KEY, reshape
from ptk.params import COLUMN, Params

__all__ = ["GroupPairs", "group_pairs"]

_OWN = ("group_id", "pairs", "pair_count")


class GroupPairs(Params):
    """Settings of group_pairs."""

    by: Annotated[str, COLUMN] = Field(description="Column whose values become rows, such as user.")
    most: int = Field(50, ge=1, description="Most pairs that a row gets; of more, those whose keys sort first.")


def _key(params: GroupPairs, keys: Sequence[str]) -> str:
    if params.by in _OWN:
        raise ValueError(f"the new rows have a column '{params.by}' of their own; rename it with select_columns")
    return "group_id"


@reshape(key=_key, version=1)
def group_pairs(frame: pl.LazyFrame, params: GroupPairs) -> pl.LazyFrame:
    """Put the pairs that are equal in a column, such as the user, into one row."""
    missing = frame.select(pl.col(params.by).is_null().sum()).collect(engine="streaming").item()
    if missing:
        raise PtkError(
            f"{missing:,} rows have no value in '{params.by}'; leave them out with filter_rows before they are grouped"
        )
    pair = pl.struct(pl.col(KEY).alias("pair"), "prompt", "chosen", "rejected")
    grouped = frame.group_by(params.by).agg(
        pair.sort_by(KEY).head(params.most).alias("pairs"), pl.len().cast(pl.Int64).alias("pair_count")
    )
    return grouped.select(pl.col(params.by).cast(pl.String).alias(KEY), params.by, "pairs", "pair_count").sort(KEY)
