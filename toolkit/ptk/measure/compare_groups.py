"""Compares every two groups of rows, such as models, on what they have in common."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.measure.paired import LEFT, RIGHT, Scoring, paired_table, score
from ptk.measure.significance import adjusted
from ptk.measure.table import group_columns, schema_of, short_id, with_clusters
from ptk.operator import KEY, reshape
from ptk.params import COLUMN

__all__ = ["CompareGroups", "compare_groups"]

_MOST = 50


class CompareGroups(Scoring):
    """Settings of compare_groups."""

    value: Annotated[str, COLUMN] = Field(
        description="Column to compare: verdicts, true and false (such as chosen_persona_right), or numbers."
    )
    of: Annotated[str, COLUMN] = Field(description="Column whose values are compared, every two of them, such as model.")
    on: Annotated[tuple[str, ...], COLUMN] = Field(
        min_length=1, description="Columns by whose values rows are paired, such as pair_id."
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.of in self.by or self.of in self.on:
            raise ValueError(f"'{self.of}' is compared, so it can't be grouped or paired by")
        return self


@reshape(key="name", version=1)
def compare_groups(frame: pl.LazyFrame, params: CompareGroups) -> pl.LazyFrame:
    """Make a table of how every two values of a column compare on the rows they share, with paired tests, adjusted for all pairs."""
    schema = frame.collect_schema()
    rows = frame.select(
        short_id(schema, params.on).alias(KEY),
        with_clusters(frame, params).alias("_drawn"),
        pl.col(params.of).cast(pl.String).alias("_of"),
        *group_columns(params),
        score(params.value, schema[params.value], params.scores).alias("_score"),
    ).filter(pl.col("_of").is_not_null())
    result = schema_of(params)

    def made(found: pl.DataFrame) -> pl.DataFrame:
        groups = {str(part["_of"][0]): part.drop("_of") for part in found.partition_by("_of")}
        if len(groups) > _MOST:
            raise ValueError(f"'{params.of}' has {len(groups)} values; {_MOST} can be compared with each other")
        inner = params.model_copy(update={"cluster": ("_drawn",)})
        tables = []
        for left, right in combinations(sorted(groups), 2):
            ours, theirs = groups[left].rename({"_score": LEFT}), groups[right].rename({"_score": RIGHT})
            joined = ours.join(theirs, on=[KEY, "_drawn", *params.by], how="full", coalesce=True, validate="1:1")
            tables.append(paired_table(joined.lazy(), f"{left} - {right}", inner).collect())
        if not tables:
            return result.to_frame()
        table = pl.concat(tables).sort("name")
        return table.with_columns(
            p_adjusted=pl.concat(
                [
                    part.select("name", pl.Series("p", adjusted(part["p_value"].to_list()), dtype=pl.Float64))
                    for part in table.partition_by("measure")
                ]
            ).sort("name")["p"]
        )

    return rows.map_batches(made, schema=result, projection_pushdown=False, predicate_pushdown=False, slice_pushdown=False)
