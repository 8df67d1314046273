"""Makes columns from the other columns of a row, by expressions written in SQL."""

from __future__ import annotations

import polars as pl
from polars.exceptions import SchemaError
from pydantic import Field, field_validator

from ptk.operator import KEY, frame_operator
from ptk.ops.sql import read_expression
from ptk.params import Params
from ptk_catalog.digest import type_name
from ptk_catalog.errors import BadData

__all__ = ["DeriveColumns", "derive_columns"]


class DeriveColumns(Params):
    """Settings of derive_columns."""

    columns: dict[str, str] = Field(min_length=1, description="SQL expressions by the name of the column that each gives.")

    @field_validator("columns")
    @classmethod
    def _checked(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, sql in columns.items():
            if not name.strip() or name.startswith("_"):
                raise ValueError(f"'{name}' is no name for a column: it is empty or begins with '_'")
            read_expression(sql)
        return columns


@frame_operator(scope="rows", version=2)
def derive_columns(frame: pl.LazyFrame, params: DeriveColumns) -> pl.LazyFrame:
    """Add or replace columns, each computed by an SQL expression from the row's other columns."""
    made = frame
    for name, sql in params.columns.items():
        made = read_expression(sql).over(made, name)
        try:
            type_name(made.collect_schema()[name])
        except BadData as error:
            raise SchemaError(f"`{sql}`: {error}") from error
    return made.select(KEY, *params.columns)
