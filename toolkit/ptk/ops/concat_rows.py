"""Puts the rows of several inputs together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl
from pydantic import Field, field_validator, model_validator

from ptk.operator import KEY, reshape
from ptk.params import Params
from ptk_catalog.digest import row_id

__all__ = ["ConcatRows", "concat_rows"]

Scalar = str | bool | int | float


class ConcatRows(Params):
    """Settings of concat_rows."""

    columns: Literal["same", "union", "common"] = Field(
        "same", description="Whether the inputs must have the same columns, or all are kept, or those that all have."
    )
    on_repeat: Literal["error", "first", "rekey"] = Field(
        "error", description="What becomes of a key that a former input has too; rekey makes new keys of old ones and `values`."
    )
    origin: str | None = Field(None, min_length=1, description="A new column: the number of the input a row came from, from 1.")
    values: dict[str, tuple[Scalar, ...]] = Field(
        {}, description="New columns that tell the inputs apart: for each its values, one an input."
    )

    @field_validator("origin")
    @classmethod
    def _free(cls, origin: str | None) -> str | None:
        _check_name(origin)
        return origin

    @field_validator("values")
    @classmethod
    def _of_one_kind(cls, values: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
        for name, given in values.items():
            _check_name(name)
            _type_of(name, given)
        return values

    @model_validator(mode="after")
    def _tell_apart(self) -> ConcatRows:
        if self.on_repeat == "rekey":
            rows = list(zip(*self.values.values(), strict=False))
            if not rows or len(set(rows)) < len(rows):
                raise ValueError("on_repeat: rekey needs `values` that are different for every input")
        return self


def _check_name(name: str | None) -> None:
    if name is not None and name.startswith("_"):
        raise ValueError(f"'{name}' begins with '_', as ptk's own names do; choose another")


def _type_of(name: str, values: Iterable[Scalar]) -> pl.DataType:
    kinds = {type(value) for value in values}
    for types, dtype in (({str}, pl.String()), ({bool}, pl.Boolean()), ({int}, pl.Int64()), ({int, float}, pl.Float64())):
        if kinds <= types:
            return dtype
    raise ValueError(f"the values of '{name}' are of several kinds; a column holds text, numbers, or true and false")


def _key(params: ConcatRows, keys: Sequence[str]) -> str:
    for number, key in enumerate(keys, start=1):
        if key != keys[0]:
            raise ValueError(
                f"the key of {_input(1, params)} is '{keys[0]}' and that of {_input(number, params)} is '{key}'; "
                "rows of one kind go together"
            )
    return "_".join([*params.values, keys[0]]) if params.on_repeat == "rekey" else keys[0]


def _input(number: int, params: ConcatRows) -> str:
    """Return the name of an input in a message: its number, and its values where it has some."""
    values = [str(given[number - 1]) for given in params.values.values() if number <= len(given)]
    return f"input {number}{' (' + ', '.join(values) + ')' if values else ''}"


@reshape(key=_key, scope="dataset", version=1)
def concat_rows(*frames: pl.LazyFrame, params: ConcatRows) -> pl.LazyFrame:
    """Put the rows of one or more inputs together, those of the first input first."""
    for name, told in params.values.items():
        if len(told) != len(frames):
            raise ValueError(f"`values` has {len(told)} for '{name}', but there are {len(frames)} inputs")
    columns = _columns([frame.collect_schema() for frame in frames], params)
    values = {name: pl.Series(told, dtype=_type_of(name, told)) for name, told in params.values.items()}
    identity = {KEY: frames[0].collect_schema()[KEY], **{name: series.dtype for name, series in values.items()}}
    parts = []
    for number, frame in enumerate(frames, start=1):
        given = frame
        if params.on_repeat == "first" and number > 1:
            former = pl.concat([other.select(KEY) for other in frames[: number - 1]])
            given = frame.join(former, on=KEY, how="anti", maintain_order="left")
        schema = frame.collect_schema()
        part = given.with_columns(
            *(pl.lit(None, dtype).alias(name) for name, dtype in columns.items() if name not in schema),
            *([pl.lit(number, pl.Int64).alias(params.origin)] if params.origin is not None else []),
            *(pl.lit(series[number - 1], series.dtype).alias(name) for name, series in values.items()),
        )
        kept = [*columns, *([params.origin] if params.origin is not None else []), *values]
        if params.on_repeat == "rekey":  # the new keys stay `_key`, which the engine gives its column's name
            part = part.with_columns(row_id(identity).alias(KEY))
            kept = [KEY, *kept]
        parts.append(part.select(kept))
    return pl.concat(parts, how="vertical")


def _columns(schemas: Sequence[pl.Schema], params: ConcatRows) -> dict[str, pl.DataType]:
    """Return the columns of the result in the order in which they first occur. Raises ValueError where the inputs differ."""
    found: dict[str, pl.DataType] = {}
    first_in: dict[str, int] = {}
    for number, schema in enumerate(schemas, start=1):
        for name, dtype in schema.items():
            if name not in found:
                found[name], first_in[name] = dtype, number
            elif dtype != found[name] and (params.columns != "common" or all(name in other for other in schemas)):
                raise ValueError(
                    f"column '{name}' is {found[name]} in {_input(first_in[name], params)} "
                    f"and {dtype} in {_input(number, params)}; "
                    "make it one type with derive_columns"
                )
    del found[KEY]
    new = [("origin", params.origin)] if params.origin is not None else []
    for option, column in [*new, *(("values", name) for name in params.values)]:
        if column in found or (option == "values" and column == params.origin):
            raise ValueError(f"the rows have a column '{column}' already; choose another name for `{option}`")
    for name in list(found):
        lacking = [number for number, schema in enumerate(schemas, start=1) if name not in schema]
        if lacking and params.columns == "same":
            raise ValueError(
                f"{_input(lacking[0], params)} has no column '{name}', which {_input(first_in[name], params)} has; "
                "write `columns: union` to fill it with null, or `columns: common` to leave it out"
            )
        if lacking and params.columns == "common":
            del found[name]
    return found
