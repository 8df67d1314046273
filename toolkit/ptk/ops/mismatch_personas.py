"""Gives each row personas that were made for other rows: what a judge must not be able to tell apart."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.operator import KEY, REJECT, frame_operator
from ptk.params import COLUMN, Params
from ptk_catalog.digest import row_id

__all__ = ["MismatchPersonas", "mismatch_personas"]

_NUMBER = "_number"


class MismatchPersonas(Params):
    """Settings of mismatch_personas."""

    personas: Annotated[tuple[str, ...], COLUMN] = Field(
        ("chosen_persona", "rejected_persona"), min_length=1, description="Columns with personas."
    )
    prefix: str = Field(
        "other_", pattern=r"^[a-z][a-z0-9_]*$", description="The new columns are named like the old ones, with this before."
    )
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63, description="Another seed, other personas.")


@frame_operator(scope="dataset", version=1)
def mismatch_personas(frame: pl.LazyFrame, params: MismatchPersonas) -> pl.LazyFrame:
    """Give each row, for each persona it has, one of another row, of a side drawn at random: the control of a judge."""
    dtype = frame.collect_schema()[KEY]
    # Which row gives to which is decided by seed and keys alone, in whatever order the rows come.
    number = row_id({"_seed": pl.Int64(), KEY: dtype}).alias(_NUMBER)
    seeded = frame.with_columns(_seed=pl.lit(params.seed, pl.Int64)).with_columns(number)
    place = pl.col(_NUMBER).rank("ordinal")
    columns = [
        _drawn(params.personas, side).gather((place + side) % pl.len()).alias(f"{params.prefix}{persona}")
        for side, persona in enumerate(params.personas)
    ]
    too_few = pl.when(pl.len() <= len(params.personas)).then(pl.lit("too_few_rows")).alias(REJECT)
    return seeded.select(KEY, *columns, too_few)


def _drawn(personas: tuple[str, ...], side: int) -> pl.Expr:
    """Return, in the order of the rows' numbers, the persona that each row gives away for `side`."""
    # The last digits of a number: the first ones are alike for rows that follow each other.
    digits = pl.col(_NUMBER).str.slice(28 - 4 * (side % 7), 4).str.to_integer(base=16)
    drawn = pl.lit(None, pl.String)
    for index, persona in enumerate(personas):
        drawn = pl.when(digits % len(personas) == index).then(pl.col(persona)).otherwise(drawn)
    return drawn.sort_by(_NUMBER)
