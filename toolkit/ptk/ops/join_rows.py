"""Adds columns of other rows to the rows with equal values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, model_validator

from ptk.operator import GROUP, KEY, MARKS, ROW, Stage, staged_operator
from ptk.params import COLUMN, Params, suggestion
from ptk_catalog.digest import row_id, type_name

__all__ = ["JoinRows", "join_rows"]

_VALUES = "_values"
"""An id of the values that are compared."""
_PART = "_part"
"""A short form of that id, by which rows that may match are brought together."""
_OTHER = "_other_row"
_MATCHES = "_matches"


class JoinRows(Params):
    """Settings of join_rows."""

    on: Annotated[tuple[str, ...], COLUMN] = Field(min_length=1, description="Columns whose values must be equal.")
    other_on: tuple[str, ...] | None = Field(None, description="Their names in `other`, where they differ.")
    columns: tuple[str, ...] | Literal["all"] = Field("all", description="Columns of `other` to add; `all` but those compared.")
    prefix: str = Field("", description="Put before the names of the added columns.")
    on_missing: Literal["reject", "null"] = Field("reject", description="What becomes of a row without a match.")

    @model_validator(mode="after")
    def _paired(self) -> JoinRows:
        if self.other_on is not None and len(self.other_on) != len(self.on):
            raise ValueError(f"`on` names {len(self.on)} columns and `other_on` {len(self.other_on)}; they go in pairs")
        if self.prefix.startswith("_"):
            raise ValueError("a name that begins with '_' is ptk's own; choose another `prefix`")
        if self.columns == ():
            raise ValueError("`columns` is empty: name those to add, or write `all`")
        return self


@staged_operator(inputs=("frame", "other"), version=1)
def join_rows(params: JoinRows) -> tuple[Stage, ...]:
    """Add columns of other rows to the rows with equal values; a row that matches several others is rejected."""
    return (
        Stage("asking", "rows", _asking, ("frame", "other")),
        Stage("offered", "rows", _offered, ("other",)),
        Stage("matched", "key", _matched, ("asking", "offered"), (_PART,)),
        Stage("decide", "rows", _decided, ("frame", "matched", "other")),
    )


def _asking(frame: pl.LazyFrame, other: pl.LazyFrame, params: JoinRows) -> pl.LazyFrame:
    _check(frame.collect_schema(), other.collect_schema(), params)
    return _with_values(frame, params.on, ROW)


def _offered(other: pl.LazyFrame, params: JoinRows) -> pl.LazyFrame:
    return _with_values(other, params.other_on or params.on, _OTHER)


def _with_values(frame: pl.LazyFrame, on: tuple[str, ...], row: str) -> pl.LazyFrame:
    """Return the number and the ids of the compared values of each row that has them all."""
    schema = frame.collect_schema()
    whole = frame.filter(pl.all_horizontal(pl.col(column).is_not_null() for column in on))
    made = whole.select(pl.col(ROW).alias(row), row_id({column: schema[column] for column in on}).alias(_VALUES))
    return made.with_columns(pl.col(_VALUES).str.slice(0, 15).str.to_integer(base=16, dtype=pl.Int64).alias(_PART))


def _matched(asking: pl.LazyFrame, offered: pl.LazyFrame, params: JoinRows) -> pl.LazyFrame:
    """Return for each row that matches others how many they are, and the number of one."""
    single = offered.group_by(_VALUES).agg(pl.col(_OTHER).min(), pl.len().alias(_MATCHES))
    return asking.join(single, on=_VALUES, how="inner").select(ROW, _OTHER, _MATCHES)


def _decided(frame: pl.LazyFrame, matched: pl.LazyFrame, other: pl.LazyFrame, params: JoinRows) -> pl.LazyFrame:
    taken = _taken(other.collect_schema(), params)
    added = other.select(pl.col(ROW).alias(_OTHER), *(pl.col(name).alias(new) for name, new in taken.items()))
    judged = frame.select(KEY, ROW).join(matched, on=ROW, how="left", maintain_order="left")
    # Of several matches none is taken.
    judged = judged.with_columns(pl.when(pl.col(_MATCHES) == 1).then(pl.col(_OTHER)).alias(_OTHER))
    joined = judged.join(added, on=_OTHER, how="left", maintain_order="left")
    several = pl.col(_MATCHES) > 1
    lacking = pl.col(_MATCHES).is_null() & (params.on_missing == "reject")
    same = f"the same {' and '.join(params.on)}"
    return joined.select(
        KEY,
        *taken.values(),
        _reject=pl.when(several).then(pl.lit("several_matches")).when(lacking).then(pl.lit("no_match")),
        _detail=pl.when(several)
        .then(pl.concat_str(pl.col(_MATCHES).cast(pl.String), pl.lit(f" rows have {same}")))
        .when(lacking)
        .then(pl.lit(f"no row has {same}")),
    )


def _taken(schema: Mapping[str, pl.DataType], params: JoinRows) -> dict[str, str]:
    """Return the columns to take from `other`, and their new names."""
    ours = (*MARKS, ROW, GROUP)
    compared = params.other_on or params.on
    others = (name for name in schema if name not in ours and name not in compared)
    return {name: params.prefix + name for name in (others if params.columns == "all" else params.columns)}


def _check(frame: Mapping[str, pl.DataType], other: Mapping[str, pl.DataType], params: JoinRows) -> None:
    """Raise ValueError or TypeError for columns that are not there, can't be compared or stand already."""
    compared = params.other_on or params.on
    offered = [name for name in other if name not in (*MARKS, ROW, GROUP)]
    for name in (*compared, *(params.columns if params.columns != "all" else ())):
        if name not in offered:
            raise ValueError(f"`other` has no column '{name}'{suggestion(name, offered)}")
    for left, right in zip(params.on, compared, strict=True):
        if left not in frame:
            raise ValueError(f"there is no column '{left}'")
        if _kind(frame[left]) != _kind(other[right]):
            raise TypeError(
                f"'{left}' is {_kind(frame[left])} and '{right}' of `other` is {_kind(other[right])}, so no values would be equal; "
                "make them one type with derive_columns"
            )
    clashes = [new for new in _taken(other, params).values() if new in frame]
    if clashes:
        raise ValueError(f"the rows have '{clashes[0]}' already; say which `columns` to add, or give a `prefix`")
    if not _taken(other, params):
        raise ValueError("`other` has no columns beside those compared, so there is nothing to add")


def _kind(dtype: pl.DataType) -> str:
    return "an integer" if dtype.is_integer() else type_name(dtype)
