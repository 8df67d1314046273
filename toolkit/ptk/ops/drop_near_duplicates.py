"""Rejects rows whose text is nearly that of another row."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, field_validator

from ptk.operator import DETAIL, KEY, REJECT, ROW, Stage, staged_operator
from ptk.ops.near_duplicates import CLUSTER, cluster_stages
from ptk.params import COLUMN, Params

__all__ = ["DropNearDuplicates", "Preference", "drop_near_duplicates"]

_KEPT = "_kept"


class Preference(Params):
    """A column by which rows are preferred."""

    column: Annotated[str, COLUMN] = Field(min_length=1, description="Column that is compared.")
    order: Literal["asc", "desc"] = Field(
        "asc", description="Whether the smallest (`asc`) or the largest value (`desc`) is best."
    )


class DropNearDuplicates(Params):
    """Settings of drop_near_duplicates."""

    on: Annotated[tuple[str, ...], COLUMN] = Field(min_length=1, description="Columns whose texts, joined, are compared.")
    threshold: float = Field(0.7, ge=0.1, le=1.0, description="Least similarity of near-duplicates, from 0.1 to 1.")
    ngram: int = Field(5, ge=1, le=64, description="Words in the n-grams that texts are compared by.")
    permutations: int = Field(128, ge=16, le=1024, description="Most hash functions to find pairs with.")
    keep: tuple[Preference, ...] = Field(
        (), description="Which row of a cluster stays; the smallest key where that leaves several."
    )
    cluster: str | None = Field(
        None, min_length=1, description="New column for the cluster's name, null for rows that are alone."
    )

    @field_validator("cluster")
    @classmethod
    def _is_no_name_of_ours(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("_"):
            raise ValueError(f"a column may not be called '{name}': names that begin with '_' are ptk's")
        return name


@staged_operator(version=1)
def drop_near_duplicates(params: DropNearDuplicates) -> tuple[Stage, ...]:
    """Reject rows whose text is nearly that of another row; of each cluster of near-duplicates the best row stays."""
    orders = tuple(dict.fromkeys(preference.column for preference in params.keep))
    found = cluster_stages(params.on, threshold=params.threshold, ngram=params.ngram, permutations=params.permutations)
    return (
        *found,
        Stage("kept", "dataset", _kept, (found[-1].name, "frame"), reads={"frame": orders}),
        Stage("decide", "rows", _decided, ("frame", "kept")),
    )


def _kept(clusters: pl.LazyFrame, frame: pl.LazyFrame, params: Any) -> pl.LazyFrame:
    """Return for each row that has near-duplicates the key of the one that stays."""
    schema = frame.collect_schema()
    by = [_comparable(preference.column, schema[preference.column]) for preference in params.keep]
    descending = [*(preference.order == "desc" for preference in params.keep), False]
    best = pl.col(KEY).sort_by([*by, KEY], descending=descending, nulls_last=True).first().over(CLUSTER)
    return frame.join(clusters, on=ROW, build_side="force_right").select(ROW, CLUSTER, best.alias(_KEPT))


def _comparable(column: str, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_nested() or dtype in (pl.Object, pl.Null):
        raise TypeError(f"rows can't be preferred by column '{column}': it is {dtype}, which has no order")
    if isinstance(dtype, pl.Categorical):
        return pl.col(column).cast(pl.String)
    return pl.col(column).fill_nan(None) if dtype.is_float() else pl.col(column)


def _decided(frame: pl.LazyFrame, kept: pl.LazyFrame, params: Any) -> pl.LazyFrame:
    rows = frame.select(KEY, ROW).join(kept, on=ROW, how="left", maintain_order="left")
    drops = pl.col(KEY) != pl.col(_KEPT)
    decision: dict[str, pl.Expr] = {
        REJECT: pl.when(drops).then(pl.lit("near_duplicate")),
        DETAIL: pl.when(drops).then(pl.format("near-duplicate of {}", _KEPT)),
    }
    if params.cluster is not None:
        decision[params.cluster] = pl.col(CLUSTER)
    return rows.select(KEY, **decision)
