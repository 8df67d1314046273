"""Lays rows out by whom a model is to respond to: their own personas, retrieved ones, one for all, written ones, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.operator import KEY, reshape
from ptk.params import COLUMN, Params, suggestion
from ptk_catalog.digest import row_id

__all__ = ["AssignPersonas", "assign_personas"]

Inference = Literal["none", "gold_chosen", "gold_rejected", "retrieved_chosen", "retrieved_rejected", "system", "written"]
_COLUMNS = ("gold_chosen", "gold_rejected", "retrieved_chosen", "retrieved_rejected")
_INFERENCE, _PERSONA = "inference", "persona"


class AssignPersonas(Params):
    """Settings of assign_personas."""

    types: tuple[Inference, ...] = Field(
        min_length=1,
        description="Inference types, each of which makes a row of every row: none; gold and retrieved, chosen and rejected; system; "
        "written.",
    )
    gold_chosen: str = Field(
        "chosen_persona", min_length=1, description="Column with the persona of the row's chosen response."
    )
    gold_rejected: str = Field(
        "rejected_persona", min_length=1, description="Column with the persona of the row's rejected response."
    )
    retrieved_chosen: str = Field(
        "retrieved_chosen_persona", min_length=1, description="Column with the chosen persona of the nearest row."
    )
    retrieved_rejected: str = Field(
        "retrieved_rejected_persona", min_length=1, description="Column with the rejected persona of the nearest row."
    )
    system: str | Mapping[str, str] | None = Field(
        None, description="The persona of type system: one for all rows, or one for each value of `system_by`."
    )
    system_by: Annotated[str | None, COLUMN] = Field(
        None, description="Column whose values have a system persona each, such as domain."
    )
    written: Mapping[str, str] = Field(
        {}, description="Personas of type written, by name: each makes a row of every row, whose type is its name."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.types)) < len(self.types):
            raise ValueError("`types` names a type twice")
        for name, given in (("system", self.system is not None), ("written", bool(self.written))):
            if (name in self.types) != given:
                raise ValueError(f"type '{name}' and the option `{name}` go together")
        if isinstance(self.system, Mapping) != (self.system_by is not None):
            raise ValueError("`system_by` and a mapping of values to personas in `system` go together")
        texts = {"system": self.system} if isinstance(self.system, str) else dict(self.system or {})
        for name, text in {**texts, **self.written}.items():
            if not text.strip():
                raise ValueError(f"the persona '{name}' is empty")
        for name in self.written:
            if name in (*_COLUMNS, "none", "system") or not name.strip():
                raise ValueError(f"a written persona can't be called '{name}', as a type is; choose another name")
        return self


@reshape(key=lambda _params, keys: f"{_INFERENCE}_{keys[0]}", scope="rows", version=1)
def assign_personas(frame: pl.LazyFrame, params: AssignPersonas) -> pl.LazyFrame:
    """Make a row of each row for every inference type, with the persona that a model is to respond to."""
    schema = frame.collect_schema()
    for name in (_INFERENCE, _PERSONA):
        if name in schema:
            raise ValueError(f"the rows have a column '{name}' already; rename it with select_columns")
    cases: list[pl.Expr] = []
    for name in params.types:
        given = params.written if name == "written" else {name: _persona(name, schema, params)}
        for label, persona in given.items():
            text = pl.lit(persona.strip()) if isinstance(persona, str) else persona
            cases.append(pl.struct(pl.lit(label).alias(_INFERENCE), text.cast(pl.String).alias(_PERSONA)))
    laid_out = frame.with_columns(pl.concat_list(cases).alias(_INFERENCE)).explode(_INFERENCE).unnest(_INFERENCE)
    return laid_out.with_columns(row_id({_INFERENCE: pl.String(), KEY: schema[KEY]}).alias(KEY))


def _persona(name: str, schema: pl.Schema, params: AssignPersonas) -> pl.Expr:
    """Return the personas of a type; null where a row has none, and "" where nobody is meant."""
    if name == "none":
        return pl.lit("")
    if name == "system":
        if isinstance(params.system, str):
            return pl.lit(params.system.strip())
        by, texts = str(params.system_by), dict(params.system or {})
        return (
            pl.col(by)
            .cast(pl.String)
            .replace_strict(list(texts), [text.strip() for text in texts.values()], default=None, return_dtype=pl.String)
        )
    column = str(getattr(params, name))
    if column not in schema:
        ours = [other for other in schema if other != KEY]
        raise ValueError(f"type '{name}' needs the column '{column}'{suggestion(column, ours)}")
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text.str.len_chars() > 0).then(text)
