"""Cuts long texts to a number of words: at the last sentence that is whole, or at the last word."""

from __future__ import annotations

from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import is_turns, texts_of

__all__ = ["CutText", "cut_text"]

_SENTENCES = r"(?s)^(.*[.!?…][\"'”’)\]]*)(?:\s|$)"


class CutText(Params):
    """Settings of cut_text."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        min_length=1, description="Columns of text or turns; every turn is cut."
    )
    words: int = Field(ge=1, description="The most words that are left; a word ends at white space.")
    at: Literal["sentence", "word"] = Field(
        "sentence", description="sentence, the last sentence that is whole, where there is one; word, the last word."
    )


@frame_operator(scope="rows", version=1)
def cut_text(frame: pl.LazyFrame, params: CutText) -> pl.LazyFrame:
    """Cut texts to a number of words, at the end of a sentence where one ends before."""
    texts_of(frame, params.columns)  # raises where a column is neither text nor turns
    schema = frame.collect_schema()
    made = []
    for column in params.columns:
        if is_turns(schema[column]):
            fields = [field.name for field in schema[column].inner.fields]  # type: ignore[attr-defined]
            turn = [
                (_cut(pl.element().struct.field(name), params) if name == "content" else pl.element().struct.field(name)).alias(
                    name
                )
                for name in fields
            ]
            made.append(pl.col(column).list.eval(pl.struct(turn)).alias(column))
        else:
            made.append(_cut(pl.col(column).cast(pl.String), params).alias(column))
    return frame.select(KEY, *made)


def _cut(text: pl.Expr, params: CutText) -> pl.Expr:
    left = text.str.extract(rf"^(\s*\S+(?:\s+\S+){{0,{params.words - 1}}})").str.strip_chars_end()
    is_long = text.str.count_matches(r"\S+") > params.words
    if params.at == "sentence":
        left = pl.coalesce(left.str.extract(_SENTENCES), left)
    return pl.when(is_long).then(left).otherwise(text)
