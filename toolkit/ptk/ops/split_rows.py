"""Splits rows into named parts that share no prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from ptk.operator import DETAIL, KEY, REJECT, ROW, Stage, staged_operator
from ptk.ops.near_duplicates import CLUSTER, cluster_stages
from ptk.params import COLUMN, Params
from ptk_catalog.digest import row_id

__all__ = ["SplitRows", "split_rows"]

_ID = "_id"
"""Id of the values of `disjoint_by`: rows with the same stay together."""
_ROOT = "_root"
"""The smallest id of those that stay together; which part they go to depends on nothing else."""
_SIZE, _PER, _PART = "_size", "_per", "_part"
_DIGITS = 15
_WHOLE = 16**_DIGITS
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class NearDuplicates(Params):
    """Which prompts are nearly the same."""

    on: Annotated[tuple[str, ...], COLUMN] = Field(("prompt",), min_length=1, description="Columns whose text is compared.")
    threshold: float = Field(0.7, gt=0.0, le=1.0, description="Least share of common word n-grams (Jaccard similarity).")
    ngram: int = Field(5, ge=1, description="Words in an n-gram.")


class SplitRows(Params):
    """Settings of split_rows."""

    parts: dict[str, int | float] = Field(
        min_length=1,
        description="Size of each part: a whole number is a count of rows, a fraction a share of what the counts leave.",
    )
    rest: str = Field("reject", description="Part of the rows that no share takes; `reject` sets them aside.")
    column: str = Field("split", min_length=1, description="New column with the name of the part.")
    disjoint_by: Annotated[tuple[str, ...], COLUMN] = Field(
        ("prompt",), min_length=1, description="Columns: rows that are equal in all of them go to the same part."
    )
    near_duplicates: NearDuplicates | None = Field(
        None, description="Keep rows with nearly the same prompt together too; null compares nothing."
    )
    per: Annotated[str | None, COLUMN] = Field(None, description="Column: counts are taken for each of its values.")
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63, description="Another seed, another split.")

    @field_validator("parts")
    @classmethod
    def _are_sizes(cls, parts: dict[str, int | float]) -> dict[str, int | float]:
        for name, size in parts.items():
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' is no name of a part; it has letters, digits, '_', '-' and '.', and no '.' at its beginning"
                )
            if isinstance(size, int) and size < 1:
                raise ValueError(f"part '{name}' has {size} rows; a count is at least 1")
            if isinstance(size, float) and not 0.0 < size <= 1.0:
                raise ValueError(f"part '{name}' has the share {size}; a share is above 0 and at most 1")
        total = sum(_shares(parts).values())
        if total > 1:
            raise ValueError(f"the shares sum to {total}, which is more than 1")
        return parts

    @model_validator(mode="after")
    def _names_are_free(self) -> SplitRows:
        if self.column.startswith("_"):
            raise ValueError(f"'{self.column}' can't be a column; names that begin with '_' are taken")
        if self.rest in self.parts:
            raise ValueError(f"'{self.rest}' has a size already, so it can't be the rest; leave it out of `parts`")
        if not _NAME.fullmatch(self.rest):
            raise ValueError(
                f"'{self.rest}' is no name of a part; it has letters, digits, '_', '-' and '.', and no '.' at its beginning"
            )
        return self


@staged_operator(version=1)
def split_rows(params: SplitRows) -> tuple[Stage, ...]:
    """Put each row into one of several named parts; rows with the same prompt, or nearly the same, go to the same part."""
    near, counted = params.near_duplicates, bool(_counts(params.parts))
    roots = () if near is None else ("roots",)
    stages: list[Stage] = []
    if near is not None or counted:
        stages.append(Stage("named", "rows", _named, ("frame",)))
    if near is not None:
        stages.extend(cluster_stages(near.on, threshold=near.threshold, ngram=near.ngram))
        stages.append(Stage("roots", "dataset", _roots, ("named", stages[-1].name)))
    if counted:
        stages.append(Stage("rooted", "rows", _rooted, ("named", *roots)))
        stages.append(Stage("sizes", "key", _sizes, ("rooted",), (_ROOT,)))
        stages.append(Stage("counted", "dataset", _counted, ("sizes",)))
    stages.append(Stage("decide", "rows", _decide, ("frame", *roots, *(("counted",) if counted else ()))))
    return tuple(stages)


def _shares(parts: Mapping[str, int | float]) -> dict[str, Decimal]:
    """Return the shares as they were written. Sorted: in which order parts are written must not matter."""
    return {name: Decimal(str(size)) for name, size in sorted(parts.items()) if isinstance(size, float)}


def _counts(parts: Mapping[str, int | float]) -> list[tuple[str, int]]:
    """Return the counts, the smallest first, so that few rows do not go to a large part alone."""
    counts = [(name, size) for name, size in parts.items() if isinstance(size, int)]
    return sorted(counts, key=lambda item: (item[1], item[0]))


def _id(frame: pl.LazyFrame, columns: tuple[str, ...]) -> pl.Expr:
    schema = frame.collect_schema()
    for column in columns:
        if column not in schema:
            raise ValueError(f"there is no column '{column}'")
    return row_id({column: schema[column] for column in columns})


def _lottery(frame: pl.LazyFrame, seed: int, purpose: str) -> pl.LazyFrame:
    """Add `_number`, 32 hexadecimal digits that follow from the root, the seed and the purpose."""
    seeded = frame.with_columns(_seed=pl.lit(f"{purpose} {seed}"))
    return seeded.with_columns(_number=row_id({"_seed": pl.String(), _ROOT: pl.String()})).drop("_seed")


def _named(frame: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    per = pl.lit("") if params.per is None else _id(frame, (params.per,))
    return frame.select(ROW, _id(frame, params.disjoint_by).alias(_ID), per.alias(_PER))


def _roots(named: pl.LazyFrame, clusters: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    """Return the root of each id of which a row lies in a cluster."""
    edges = clusters.join(named, on=ROW).select(_ID, CLUSTER).unique()
    return edges.map_batches(
        _least_of_each_component,
        schema={_ID: pl.String(), _ROOT: pl.String()},
        projection_pushdown=False,
        predicate_pushdown=False,
    )


def _least_of_each_component(edges: pl.DataFrame) -> pl.DataFrame:
    """Return for each id the smallest id that clusters tie it to, through however many others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = edges.select(pl.col(_ID, CLUSTER).rank("dense").cast(pl.Int64) - 1)
    ids, clusters = nodes[_ID].to_numpy(), nodes[CLUSTER].to_numpy()
    first = int(ids.max(initial=-1)) + 1
    count = first + int(clusters.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(ids), np.bool_), (ids, clusters + first)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    tied = edges.select(_ID, pl.Series("_component", component[ids]))
    return tied.select(_ID, pl.col(_ID).min().over("_component").alias(_ROOT)).unique()


def _with_root(named: pl.LazyFrame, roots: pl.LazyFrame | None) -> pl.LazyFrame:
    if roots is None:
        return named.with_columns(pl.col(_ID).alias(_ROOT))
    joined = named.join(roots, on=_ID, how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(_ROOT, _ID).alias(_ROOT))


def _rooted(named: pl.LazyFrame, *roots: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    return _with_root(named, *(roots or (None,))).select(_ROOT, _PER)


def _sizes(rooted: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    return rooted.group_by(_ROOT).agg(pl.len().cast(pl.Int64).alias(_SIZE), pl.col(_PER).min())


def _counted(sizes: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    """Return the part of each root that a count takes."""
    counts = _counts(params.parts)
    return _lottery(sizes, params.seed, "count").map_batches(
        lambda drawn: _taken(drawn, counts),
        schema={_ROOT: pl.String(), _PART: pl.String()},
        projection_pushdown=False,
        predicate_pushdown=False,
    )


def _taken(drawn: pl.DataFrame, counts: list[tuple[str, int]]) -> pl.DataFrame:
    taken = [pl.DataFrame(schema={_ROOT: pl.String(), _PART: pl.String()})]
    for group in drawn.sort(_PER, "_number").partition_by(_PER, maintain_order=True):
        sizes, left = group[_SIZE].to_numpy(), np.arange(group.height)
        for name, count in counts:
            fits = fitting(sizes[left], count)
            taken.append(group[left[fits]].select(_ROOT, pl.lit(name).alias(_PART)))
            left = np.delete(left, fits)
    return pl.concat(taken)


def fitting(sizes: np.ndarray[Any, Any], room: int) -> np.ndarray[Any, Any]:
    """Return the places of those `sizes` (integers of at least 1) that go, first come, first served, into `room`.

    What is larger than the room that is left is passed over.
    """
    places: list[np.ndarray[Any, Any]] = [np.arange(0)]
    left = np.arange(len(sizes))
    while room and len(left := left[sizes[left] <= room]):
        filled = np.cumsum(sizes[left])
        end = int(np.searchsorted(filled, room, side="right"))
        places.append(left[:end])
        room -= int(filled[end - 1])
        left = left[end:]
    return np.concatenate(places)


def _decide(frame: pl.LazyFrame, *tables: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
    given = iter(tables)
    named = frame.select(KEY, _id(frame, params.disjoint_by).alias(_ID))
    rows = _with_root(named, None if params.near_duplicates is None else next(given))
    part = _part_of_share(params)
    if _counts(params.parts):
        rows = rows.join(next(given), on=_ROOT, how="left", maintain_order="left")
        part = pl.coalesce(_PART, part)
    rows = _lottery(rows, params.seed, "share").select(KEY, part.alias(params.column))
    if params.rest != "reject":
        return rows.with_columns(pl.col(params.column).fill_null(params.rest))
    outside = pl.col(params.column).is_null()
    return rows.with_columns(
        pl.when(outside).then(pl.lit("in_no_part")).alias(REJECT),
        pl.when(outside).then(pl.lit("neither a count nor a share of `parts` takes it")).alias(DETAIL),
    )


def _part_of_share(params: SplitRows) -> pl.Expr:
    """Return the part between whose bounds the first 60 bits of `_number` lie, null where that is none."""
    number = pl.col("_number").str.slice(0, _DIGITS).str.to_integer(base=16)
    part, below = pl.lit(None, pl.String), Decimal(0)
    bounds: list[tuple[str, int]] = []
    for name, share in _shares(params.parts).items():
        below += share
        bounds.append((name, int(below * _WHOLE)))
    for name, bound in reversed(bounds):
        part = pl.when(number < bound).then(pl.lit(name)).otherwise(part)
    return part
