"""Rejects pairs whose responses are too short or too long."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import Params

__all__ = ["KeepLengths", "keep_lengths"]


class KeepLengths(Params):
    """Settings of keep_lengths."""

    minimum: int = Field(1, ge=0, description="Fewest words a response may have.")
    maximum: int = Field(100_000, ge=1, description="Most words a response may have.")


@frame_operator(scope="rows", version=1)
def keep_lengths(frame: pl.LazyFrame, params: KeepLengths) -> pl.LazyFrame:
    """Reject pairs one of whose responses has fewer or more words than allowed."""
    words = [
        pl.col(side).list.eval(pl.element().struct.field("content").str.count_matches(r"\S+")).list.sum()
        for side in ("chosen", "rejected")
    ]
    shortest, longest = pl.min_horizontal(words), pl.max_horizontal(words)
    return frame.select(
        KEY,
        _reject=pl.when(shortest < params.minimum)
        .then(pl.lit("too_short"))
        .when(longest > params.maximum)
        .then(pl.lit("too_long")),
        _detail=pl.format("{} to {} words", shortest, longest),
    )
