"""Rejects rows in which a text is missing."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import texts_of

__all__ = ["DropEmpty", "drop_empty"]


class DropEmpty(Params):
    """Settings of drop_empty."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("prompt", "chosen", "rejected"), min_length=1, description="Columns of text or turns that must hold text."
    )


@frame_operator(scope="rows", version=1)
def drop_empty(frame: pl.LazyFrame, params: DropEmpty) -> pl.LazyFrame:
    """Reject rows in which one of some columns holds nothing, no turns, or white space alone."""
    empty = {column: ~text.str.contains(r"\S").fill_null(False) for column, text in texts_of(frame, params.columns).items()}
    named = pl.concat_str(
        *(pl.when(is_empty).then(pl.lit(column)) for column, is_empty in empty.items()), separator=", ", ignore_nulls=True
    )
    any_empty = pl.any_horizontal(*empty.values())
    return frame.select(
        KEY,
        _reject=pl.when(any_empty).then(pl.lit("empty")),
        _detail=pl.when(any_empty).then(pl.concat_str(pl.lit("no text in "), named)),
    )
