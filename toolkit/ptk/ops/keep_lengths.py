"""Rejects pairs whose responses are too short, too long or of too different length."""

from __future__ import annotations

from typing import Annotated, Literal

import polars as pl
from pydantic import Field, model_validator

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import is_turns, texts_of

__all__ = ["KeepLengths", "keep_lengths"]


class KeepLengths(Params):
    """Settings of keep_lengths."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("chosen", "rejected"), min_length=1, description="Columns of text or turns whose lengths count."
    )
    unit: Literal["words", "characters"] = Field("words", description="What a length is counted in: words or characters.")
    minimum: int = Field(1, ge=0, description="Least length that each of them must have.")
    maximum: int = Field(100_000, ge=1, description="Greatest length that each of them may have.")
    most_ratio: float | None = Field(None, ge=1.0, description="How many times as long as the shortest the longest may be.")

    @model_validator(mode="after")
    def _fitting(self) -> KeepLengths:
        if self.minimum > self.maximum:
            raise ValueError(f"`minimum` {self.minimum} is more than `maximum` {self.maximum}: no row would stay")
        if self.most_ratio is not None and len(self.columns) < 2:
            raise ValueError("`most_ratio` compares lengths, so `columns` must name at least two")
        return self


@frame_operator(scope="rows", version=2)
def keep_lengths(frame: pl.LazyFrame, params: KeepLengths) -> pl.LazyFrame:
    """Reject pairs one of whose responses is shorter or longer than allowed, or much longer than the other."""
    texts = texts_of(frame, params.columns)
    schema = frame.collect_schema()
    lengths = [_length(column, text, schema[column], params.unit) for column, text in texts.items()]
    shortest, longest = pl.min_horizontal(lengths), pl.max_horizontal(lengths)
    reject = (
        pl.when(shortest < params.minimum).then(pl.lit("too_short")).when(longest > params.maximum).then(pl.lit("too_long"))
    )
    if params.most_ratio is not None:
        reject = reject.when(longest > shortest * params.most_ratio).then(pl.lit("uneven"))
    return frame.select(KEY, _reject=reject, _detail=pl.format(f"{{}} to {{}} {params.unit}", shortest, longest))


def _length(column: str, text: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    """Return the length of one column: 0 where there is no text; what joins the turns does not count."""
    if unit == "words":
        length = text.str.count_matches(r"\S+")
    elif is_turns(dtype):
        length = pl.col(column).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
    else:
        length = text.str.len_chars()
    return length.cast(pl.Int64).fill_null(0)
