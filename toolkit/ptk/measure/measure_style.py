"""How responses differ in style: between columns of one row, such as those for two personas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.measure.style import FEATURES, REALS, features
from ptk.measure.table import Measuring, Statistic, measured, ratio
from ptk.operator import reshape
from ptk.params import COLUMN
from ptk.text import texts_of

__all__ = ["MeasureStyle", "measure_style"]


class MeasureStyle(Measuring):
    """Settings of measure_style."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("chosen", "rejected"), min_length=1, max_length=12, description="Columns of texts or turns whose style is told."
    )
    against: Annotated[str | None, COLUMN] = Field(
        None, description="Column, such as the response without a persona: how each of the others shifts from it is told too."
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.against in self.columns:
            raise ValueError(f"'{self.against}' is among `columns` and `against` too; a text does not shift from itself")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("a column stands twice among `columns`")
        return self


@reshape(key="name", version=1)
def measure_style(frame: pl.LazyFrame, params: MeasureStyle) -> pl.LazyFrame:
    """Make a table of the style of texts, length, lists, hedging and readability, and how it shifts from one column to others."""
    named = (*params.columns, *(() if params.against is None else (params.against,)))
    found = {name: features(text) for name, text in texts_of(frame, named).items()}
    sums: dict[str, pl.Expr] = {}
    reals: list[str] = []
    statistics: list[Statistic] = []
    for column, values in found.items():
        for feature in FEATURES:
            name = f"{column}/{feature}"
            sums |= {name: values[feature], f"{name}/n": values[feature].is_not_null()}
            reals += [name] if feature in REALS else []
            statistics.append(_mean(feature, column, name))
    for column in params.columns if params.against is not None else ():
        for feature in FEATURES:
            name = f"{column}/{feature}/shift"
            shift = found[column][feature] - found[params.against or ""][feature]
            sums |= {name: shift, f"{name}/n": shift.is_not_null(), f"{name}/more": shift > 0, f"{name}/less": shift < 0}
            reals += [name] if feature in REALS else []
            statistics.extend(_shift(feature, column, name))
    return measured(frame, sums, statistics, params, reals)


def _mean(measure: str, about: str, name: str) -> Statistic:
    return Statistic(measure, about, lambda t: ratio(t[name], t[f"{name}/n"]), f"{name}/n")


def _shift(feature: str, about: str, name: str) -> Iterator[Statistic]:
    yield Statistic(
        f"shift_{feature}",
        about,
        lambda t: ratio(t[name], t[f"{name}/n"]),
        f"{name}/n",
        against=(f"{name}/more", f"{name}/less"),
    )
    yield Statistic(f"more_{feature}", about, lambda t: ratio(t[f"{name}/more"], t[f"{name}/n"]), f"{name}/n")
