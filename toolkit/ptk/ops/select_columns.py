"""Keeps, leaves out and renames columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import polars as pl
from pydantic import Field, model_validator

from ptk.operator import KEY, reshape
from ptk.params import COLUMN, Params, suggestion

__all__ = ["SelectColumns", "select_columns"]


class SelectColumns(Params):
    """Settings of select_columns."""

    keep: Annotated[tuple[str, ...] | None, COLUMN] = Field(
        None, min_length=1, description="The columns to keep, in this order."
    )
    drop: Annotated[tuple[str, ...] | None, COLUMN] = Field(None, min_length=1, description="The columns to leave out.")
    rename: dict[str, str] = Field({}, description="New names by old names.")

    @model_validator(mode="after")
    def _fitting(self) -> SelectColumns:
        if self.keep is not None and self.drop is not None:
            raise ValueError("say which columns to `keep` or which to `drop`, not both")
        if self.keep is None and self.drop is None and not self.rename:
            raise ValueError("there is nothing to do: give `keep`, `drop` or `rename`")
        if self.keep is not None and len(set(self.keep)) < len(self.keep):
            raise ValueError("`keep` names a column twice")
        for new in self.rename.values():
            if not new.strip() or new.startswith("_"):
                raise ValueError(f"'{new}' is no name for a column: it is empty or begins with '_'")
        return self


def _key(params: SelectColumns, keys: Sequence[str]) -> str:
    key = keys[0]
    if key in (params.drop or ()):
        raise ValueError(f"'{key}' is the key of the rows and has to stay")
    if key in params.rename:
        raise ValueError(f"'{key}' is the key of the rows and keeps its name")
    return key


@reshape(key=_key, scope="rows", version=1)
def select_columns(frame: pl.LazyFrame, params: SelectColumns) -> pl.LazyFrame:
    """Keep, leave out and rename columns; the key stays."""
    schema = frame.collect_schema()
    names = params.keep or tuple(name for name in schema if name != KEY and name not in (params.drop or ()))
    for name in (*names, *(params.drop or ())):
        if name not in schema:
            raise ValueError(f"there is no column '{name}'{suggestion(name, (other for other in schema if other != KEY))}")
    for name in params.rename:
        if name not in names:
            raise ValueError(f"`rename` names '{name}', which is not among the columns{suggestion(name, names)}")
    renamed = [params.rename.get(name, name) for name in names]
    for name in renamed:
        if renamed.count(name) > 1:
            raise ValueError(f"two columns would be called '{name}'")
    return frame.select(KEY, *(pl.col(name).alias(new) for name, new in zip(names, renamed, strict=True)))
