"""Flags generated texts that are empty, repeat themselves or break off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from ptk.label.flaws import FLAWS, flaws
from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import texts_of

__all__ = ["FlagOutputs", "flag_outputs"]


class FlagOutputs(Params):
    """Settings of flag_outputs."""

    column: Annotated[str, COLUMN] = Field("response", description="Column of the generated text, or turns.")
    finish_reason: Annotated[str | None, COLUMN] = Field(
        None,
        description="Column that says why the model stopped, `length` for a text that reached its limit; else it is guessed.",
    )
    most_repeated: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="A text is repetitive where a larger share of its runs of four words stood in it before.",
    )
    into: str = Field("output_flags", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the new column, of lists of words.")
    reject: tuple[Literal["empty", "repetitive", "truncated"], ...] = Field(
        (), description="Flags whose rows are rejected, so that no judge sees them."
    )


@frame_operator(scope="rows", flags="output_flags", version=1)
def flag_outputs(frame: pl.LazyFrame, params: FlagOutputs) -> pl.LazyFrame:
    """Flag generated texts that are empty, repeat themselves or break off."""
    text = texts_of(frame, (params.column,))[params.column]
    reason = pl.lit(None, pl.String) if params.finish_reason is None else pl.col(params.finish_reason).cast(pl.String)
    most_repeated = params.most_repeated

    def flags_of(columns: Sequence[pl.Series]) -> pl.Series:
        pairs = zip(*columns, strict=True)
        return pl.Series([flaws(*pair, most_repeated=most_repeated) for pair in pairs], dtype=pl.List(pl.String))

    shown = frame.select(KEY, _text=text, _reason=reason)
    flagged = shown.select(
        KEY,
        pl.map_batches(["_text", "_reason"], flags_of, return_dtype=pl.List(pl.String), is_elementwise=True).alias(params.into),
    )
    if not params.reject:
        return flagged
    found = pl.col(params.into).list.filter(pl.element().is_in(params.reject)).list.first()
    return flagged.with_columns(_reject=found, _detail=found.replace_strict(FLAWS, default=None, return_dtype=pl.String))
