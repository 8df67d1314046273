"""Rejects pairs whose two responses are the same."""

from __future__ import annotations

from typing import Annotated, Literal

import polars as pl
from pydantic import Field, field_validator

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import texts_of

__all__ = ["DropIdentical", "drop_identical"]


class DropIdentical(Params):
    """Settings of drop_identical."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("chosen", "rejected"), min_length=2, max_length=2, description="The two columns of text or turns to compare."
    )
    normalise: tuple[Literal["whitespace", "case"], ...] = Field((), description="Differences to look past: whitespace, case.")

    @field_validator("columns")
    @classmethod
    def _two(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if columns[0] == columns[1]:
            raise ValueError(f"`columns` names '{columns[0]}' twice; every row would be rejected")
        return columns


@frame_operator(scope="rows", version=1)
def drop_identical(frame: pl.LazyFrame, params: DropIdentical) -> pl.LazyFrame:
    """Reject pairs whose two responses have the same text, exactly or but for white space or case."""
    left, right = (_normal(text, params) for text in texts_of(frame, params.columns).values())
    but_for = f", but for {' and '.join(dict.fromkeys(params.normalise))}" if params.normalise else ""
    same = left.eq_missing(right)
    return frame.select(
        KEY,
        _reject=pl.when(same).then(pl.lit("identical")),
        _detail=pl.when(same).then(pl.lit(f"{' and '.join(params.columns)} are the same{but_for}")),
    )


def _normal(text: pl.Expr, params: DropIdentical) -> pl.Expr:
    if "whitespace" in params.normalise:
        text = text.str.replace_all(r"\s+", " ").str.strip_chars()
    return text.str.to_lowercase() if "case" in params.normalise else text
