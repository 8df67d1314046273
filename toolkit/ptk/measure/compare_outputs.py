"""Compares the verdicts on any two outputs, row by row."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.measure.paired import LEFT, RIGHT, Scoring, paired_table, score
from ptk.measure.table import short_id
from ptk.operator import KEY, reshape
from ptk.params import COLUMN, suggestion

__all__ = ["CompareOutputs", "compare_outputs"]

_ON = "_on"


class CompareOutputs(Scoring):
    """Settings of compare_outputs."""

    value: Annotated[str, COLUMN] = Field(
        description="Column to compare, in both: verdicts, true and false (such as chosen_persona_right), or numbers."
    )
    right_value: str | None = Field(None, description="Its name in `right`, where it differs.")
    on: Annotated[tuple[str, ...] | None, COLUMN] = Field(
        None, min_length=1, description="Columns by whose values rows are paired, in both; null pairs rows with the same key."
    )


@reshape(key="name", apart=True, version=1)
def compare_outputs(left: pl.LazyFrame, right: pl.LazyFrame, params: CompareOutputs) -> pl.LazyFrame:
    """Make a table of how two outputs compare on the rows they share: means, difference, who is better, and paired tests."""
    left_schema, right_schema = left.collect_schema(), right.collect_schema()
    other = params.right_value or params.value
    on = params.on or (KEY,)
    for name in (*on, other):
        if name not in right_schema:
            raise ValueError(f"`right` has no column '{name}'{suggestion(name, (one for one in right_schema if one != KEY))}")
    for name in on:
        if left_schema[name] != right_schema[name]:
            raise TypeError(
                f"'{name}' is {left_schema[name]} in `left` and {right_schema[name]} in `right`, so no rows would pair"
            )
    clusters = params.cluster if params.cluster is not None else ("prompt",) if "prompt" in left_schema else ()
    carried = list(dict.fromkeys((*params.by, *clusters)))
    # Rows that `right` has alone are told in their group where it has the columns too.
    shared = [name for name in carried if right_schema.get(name) == left_schema[name]]
    ours = left.select(
        short_id(left_schema, on).alias(_ON),
        *carried,
        score(params.value, left_schema[params.value], params.scores).alias(LEFT),
    )
    theirs = right.select(
        short_id(right_schema, on).alias(_ON),
        *(pl.col(name).alias(f"_right_{number}") for number, name in enumerate(shared)),
        score(other, right_schema[other], params.scores).alias(RIGHT),
        _there=pl.lit(True),
    )
    joined = ours.with_columns(_here=pl.lit(True)).join(theirs, on=_ON, how="full", coalesce=True, validate="1:1")
    filled = [
        pl.when(pl.col("_here")).then(pl.col(name)).otherwise(pl.col(f"_right_{number}")).alias(name)
        for number, name in enumerate(shared)
    ]
    rows = joined.with_columns(filled).select(pl.col(_ON).alias(KEY), *carried, LEFT, RIGHT)
    return paired_table(rows, None, params)
