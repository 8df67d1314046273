"""What is worth drawing of a version's columns: lengths of texts, values that are few, spread of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ptk.site.figures import Bars, Histogram, bars, histogram

if TYPE_CHECKING:
    from ptk_catalog import Dataset

__all__ = ["ColumnStatistics", "column_statistics"]

_FEW = 12
"""The most different values that are counted one by one."""
_BINS = 32
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """A column: how many values are missing, some facts in words, and a figure where there is something to see."""

    name: str
    type: str
    nulls: int
    facts: str
    counts: Bars | None = None
    spread: Histogram | None = None


def column_statistics(dataset: Dataset) -> list[ColumnStatistics]:
    """Return statistics of all columns. Reads each column once; of texts only the lengths are kept."""
    return [_column(dataset, name, kind) for name, kind in dataset.schema.items()]


def _column(dataset: Dataset, name: str, kind: str) -> ColumnStatistics:
    frame = dataset.scan([name])
    dtype = frame.collect_schema()[name]
    column = pl.col(name)
    nulls = int(frame.select(column.null_count()).collect(engine="streaming").item())
    facts = ""
    if dtype in (pl.String, pl.Boolean) or isinstance(dtype, (pl.Categorical, pl.Enum)) or dtype.is_integer():
        values = frame.select(column.n_unique()).collect(engine="streaming").item()
        facts = f"{values:,} different"
        if 0 < values <= _FEW and _is_short(frame, name, dtype):
            counted = frame.group_by(column).len().sort("len", name, descending=[True, False]).collect(engine="streaming")
            few = bars(
                [("null" if value is None else str(value), count) for value, count in counted.iter_rows()], f"Counts of {name}"
            )
            return ColumnStatistics(name, kind, nulls, facts, few)
    if dtype.is_numeric():
        numbers = frame.select(column.cast(pl.Float64)).drop_nans().collect(engine="streaming")[name].drop_nulls()
        told, spread = _spread(numbers, name, "", facts)
        return ColumnStatistics(name, kind, nulls, told, spread=spread)
    lengths = _lengths(column, dtype)
    if lengths is not None:
        sizes = frame.select(lengths.alias(name)).collect(engine="streaming")[name].drop_nulls()
        unit = "items" if isinstance(dtype, pl.List) and dtype.inner != _TURN else "characters"
        told, spread = _spread(sizes, name, unit, facts)
        return ColumnStatistics(name, kind, nulls, told, spread=spread)
    return ColumnStatistics(name, kind, nulls, facts)


def _is_short(frame: pl.LazyFrame, name: str, dtype: pl.DataType) -> bool:
    """Return whether values can name bars: texts that are short, and anything that is no text."""
    if dtype != pl.String:
        return True
    longest = frame.select(pl.col(name).str.len_chars().max()).collect(engine="streaming").item()
    return longest is None or longest <= _LONGEST_NAME


_TURN = pl.Struct({"role": pl.String, "content": pl.String})


def _lengths(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype == pl.String:
        return column.str.len_chars()
    if isinstance(dtype, pl.List):
        if dtype.inner == _TURN:
            return column.list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
        return column.list.len()
    return None


def _spread(values: pl.Series, name: str, unit: str, facts: str) -> tuple[str, Histogram | None]:
    """Return facts and a histogram; the longest percent of values is drawn in the last bar."""
    if values.len() == 0:
        return facts, None
    numbers = values.cast(pl.Float64).to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return facts, None
    low, high, top = float(numbers.min()), float(numbers.max()), float(np.quantile(numbers, 0.99))
    whole = values.dtype.is_integer()
    units = f" {unit}" if unit else ""
    median = _figure(float(np.median(numbers)))
    told = f"all {_figure(low)}{units}" if low == high else f"{_figure(low)} to {_figure(high)}{units}, median {median}"
    told = ", ".join(item for item in (facts, told) if item)
    if low == high:
        return told, None
    top = top if top > low else high
    bins = min(_BINS, int(top - low) + 1) if whole else _BINS
    counts = np.histogram(np.minimum(numbers, top), bins=bins, range=(low, top))[0]
    end = f"{_figure(top)}{' and more' if high > top else ''}"
    return told, histogram(counts.tolist(), _figure(low), end, f"{name}: {told}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
