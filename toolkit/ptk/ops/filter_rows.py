"""Keeps the rows that fulfil conditions written in SQL."""

from __future__ import annotations

import re
from typing import Any

import polars as pl
from polars.exceptions import SchemaError
from pydantic import Field, field_validator

from ptk.operator import KEY, frame_operator
from ptk.ops.sql import RowExpression, read_expression
from ptk.params import Params

__all__ = ["FilterRows", "filter_rows"]

_REASON = re.compile(r"[a-z][a-z0-9_]*")
_DEFAULT_REASON = "filtered"
_HOLDS = "_holds"

Conditions = str | tuple[str, ...] | dict[str, str]


class FilterRows(Params):
    """Settings of filter_rows."""

    where: Conditions = Field(
        min_length=1,
        description="SQL conditions that a row must fulfil: one, a list, or a mapping from reject reasons to conditions.",
    )

    @field_validator("where", mode="before")
    @classmethod
    def _text(cls, where: Any) -> Any:
        conditions = where.values() if isinstance(where, dict) else where if isinstance(where, (list, tuple)) else [where]
        for condition in conditions:
            if not isinstance(condition, str):
                raise ValueError(f"a condition is text, such as 'score > 2', not {condition!r}")
        return tuple(where) if isinstance(where, list) else where

    @field_validator("where")
    @classmethod
    def _checked(cls, where: Conditions) -> Conditions:
        for reason, sql in _conditions(where):
            if not _REASON.fullmatch(reason):
                raise ValueError(f"'{reason}' is no reason: lower-case letters, digits and '_', beginning with a letter")
            read_expression(sql)
        return where


def _conditions(where: Conditions) -> list[tuple[str, str]]:
    if isinstance(where, dict):
        return list(where.items())
    return [(_DEFAULT_REASON, sql) for sql in ((where,) if isinstance(where, str) else where)]


@frame_operator(scope="rows", version=2)
def filter_rows(frame: pl.LazyFrame, params: FilterRows) -> pl.LazyFrame:
    """Reject rows that do not fulfil conditions written in SQL; a condition whose result is null is not fulfilled."""
    conditions = [(reason, read_expression(sql)) for reason, sql in _conditions(params.where)]
    names = [f"{_HOLDS}{number}" for number in range(len(conditions))]
    judged = frame
    for name, (_, condition) in zip(names, conditions, strict=True):
        judged = _with_condition(judged, name, condition)
    reasons, details = [], []
    for name, (reason, condition) in zip(names, conditions, strict=True):
        fails = ~pl.col(name).fill_null(False)
        reasons.append(pl.when(fails).then(pl.lit(reason)))
        unknown = pl.when(pl.col(name).is_null()).then(pl.lit(" (its result is null)")).otherwise(pl.lit(""))
        details.append(pl.when(fails).then(pl.concat_str(pl.lit(f"not fulfilled: {condition.sql}"), unknown)))
    return judged.select(KEY, _reject=pl.coalesce(reasons), _detail=pl.coalesce(details))


def _with_condition(frame: pl.LazyFrame, name: str, condition: RowExpression) -> pl.LazyFrame:
    judged = condition.over(frame, name)
    dtype = judged.collect_schema()[name]
    if dtype == pl.Null:
        return judged.with_columns(pl.col(name).cast(pl.Boolean))
    if dtype != pl.Boolean:
        raise SchemaError(f"`{condition.sql}` gives {dtype}, and a condition is true or false")
    return judged
