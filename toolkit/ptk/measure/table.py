"""Tables of measures, one measure a row: over all rows and over each group, with intervals that go by cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import ColumnNotFoundError
from pydantic import Field, model_validator

from ptk.measure.bootstrap import Clusters, Estimate, Floats, Interval, clusters_of, estimate, resampled
from ptk.measure.significance import adjusted, sign_test
from ptk.operator import KEY
from ptk.params import COLUMN, Params, suggestion
from ptk_catalog.digest import row_id

__all__ = [
    "NO_VALUE",
    "Clustered",
    "Counted",
    "Grouped",
    "Line",
    "Measuring",
    "Statistic",
    "Totals",
    "group_columns",
    "levels",
    "measured",
    "need",
    "ratio",
    "schema_of",
    "short_id",
    "table_of",
    "with_clusters",
]

NO_VALUE = "(none)"
"""What stands in a group column for rows without a value; null there means: over all values."""
_FIXED = float(1 << 30)
"""Real numbers are added up in multiples of 2^-30: sums of whole numbers do not depend on the order of the rows."""
_MOST = float(1 << 20)
_FIRST = ("name", "measure", "about")
_LAST: dict[str, pl.DataType] = {
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "standard_error": pl.Float64(),
    "p_value": pl.Float64(),
    "p_adjusted": pl.Float64(),
    "n": pl.Int64(),
}
_OURS = ("_cluster", "_count", "_level")

Totals = Mapping[str, Floats]
"""Sums by name, each (r,): over all rows, over rows drawn anew, or over all but a cluster."""


class Grouped(Params):
    """Settings of measures that are told for groups."""

    by: Annotated[tuple[str, ...], COLUMN] = Field(
        (),
        max_length=4,
        description="Columns, such as model and domain: everything is told for each value of each, and each combination, too.",
    )

    @model_validator(mode="after")
    def _free(self) -> Grouped:
        for name in self.by:
            if name in (*_FIRST, *_LAST, "rank") or self.by.count(name) > 1:
                raise ValueError(f"'{name}' can't be a column to group by: the table has one of that name; rename it first")
        return self


class Clustered(Grouped):
    """Settings of measures whose errors go by cluster."""

    cluster: Annotated[tuple[str, ...] | None, COLUMN] = Field(
        None,
        min_length=1,
        description="Rows with equal values in these columns are drawn together; null: those with one prompt, where there are prompts.",
    )


class Measuring(Clustered):
    """Settings of measures with bootstrap intervals."""

    rounds: int = Field(2_000, ge=0, le=100_000, description="Rounds of the bootstrap; 0 makes no intervals.")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="How often intervals made like this hold the true value.")
    interval: Literal["percentile", "bca"] = Field(
        "percentile", description="percentile, or bca: corrected for bias and skewness."
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Another seed, other draws.")

    def drawing(self) -> Interval:
        """Return how intervals are made."""
        return Interval(self.rounds, self.confidence, self.interval, self.seed)


@dataclass(frozen=True, slots=True)
class Statistic:
    """A measure that totals define."""

    measure: str
    about: str | None
    value: Callable[[Totals], Floats]
    n: str
    """The sum that says of how many the measure is."""
    against: tuple[str, str] | None = None
    """Two sums that are as large on the whole where nothing is the matter: clusters with more of the one are tested against the others."""
    counted: bool = False
    """A plain count: it has no interval."""
    test: Callable[[Totals, NDArray[np.int64], Totals | None], float | None] | None = None
    """Another test than that of `against`: the p-value from the sums of each kind of cluster, how many are of it, and the draws."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table; `group` has the values of the columns that it is told for."""

    measure: str
    about: str | None
    group: Mapping[str, str]
    estimate: Estimate
    n: int
    p_value: float | None = None
    p_adjusted: float | None = None
    """Where this is given, p_value is not adjusted once more."""
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """The sums of a group: by name, for each kind of cluster, and how many clusters are of it."""

    group: Mapping[str, str]
    names: tuple[str, ...]
    clusters: Clusters


def ratio(part: Floats, whole: Floats, otherwise: float = float("nan")) -> Floats:
    """Return part / whole, elementwise; `otherwise` where whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    found: Floats = np.full(whole.shape, otherwise)
    return np.divide(part, whole, out=found, where=whole != 0)


def need(frame: pl.LazyFrame, columns: Sequence[str], maker: str) -> pl.Schema:
    """Return the schema of `frame`. Raises ColumnNotFoundError for a column that is not there, with the operator that makes it."""
    schema = frame.collect_schema()
    for name in columns:
        if name not in schema:
            ours = [column for column in schema if column != KEY]
            raise ColumnNotFoundError(f"there is no column '{name}', which {maker} makes{suggestion(name, ours)}")
    return schema


def short_id(schema: Mapping[str, pl.DataType], columns: Sequence[str]) -> pl.Expr:
    """Return 64 bits of an id of the values of `columns`: two of a hundred million share one with a probability of 0.0003."""
    return row_id({name: schema[name] for name in columns}).str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)


def with_clusters(frame: pl.LazyFrame, params: Clustered) -> pl.Expr:
    """Return the id of the cluster that a row is in."""
    schema = frame.collect_schema()
    named = params.cluster if params.cluster is not None else ("prompt",) if "prompt" in schema else (KEY,)
    return short_id(schema, named).alias("_cluster")


def group_columns(params: Grouped) -> list[pl.Expr]:
    """Return the columns to group by, as text."""
    return [pl.col(name).cast(pl.String).fill_null(NO_VALUE).alias(name) for name in params.by]


def levels(by: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield what is grouped by: nothing, each of the columns, each two of them, and so on."""
    for size in range(len(by) + 1):
        yield from combinations(by, size)


def measured(
    frame: pl.LazyFrame,
    sums: Mapping[str, pl.Expr],
    statistics: Sequence[Statistic],
    params: Measuring,
    reals: Sequence[str] = (),
) -> pl.LazyFrame:
    """Return a table of statistics of the sums of some expressions; those in `reals` are real numbers, the others whole.

    Null counts as 0. Real numbers are rounded to 2^-30 and cut at a million; NaN counts as 0.
    """
    made = {name: _fixed(value) if name in reals else value.cast(pl.Int64).fill_null(0) for name, value in sums.items()}
    # Names of sums may be those of columns.
    inner = {name: f"_{number}" for number, name in enumerate(made)}
    rows = frame.select(
        with_clusters(frame, params), *group_columns(params), *(made[name].alias(other) for name, other in inner.items())
    )

    def kinds(level: tuple[str, ...]) -> pl.LazyFrame:
        clusters = rows.group_by(*level, "_cluster").agg(pl.col(*inner.values()).sum())
        return clusters.group_by(*level, *inner.values()).agg(_count=pl.len().cast(pl.Int64))

    def lines(group: Mapping[str, str], found: pl.DataFrame) -> Iterator[Line]:
        sums_of = found.select(inner.values()).to_numpy().astype(np.float64) / scale
        counted = Counted(group, tuple(sums), clusters_of(sums_of, found["_count"].to_numpy()))
        yield from _lines(counted, statistics, params.drawing())

    scale = np.array([_FIXED if name in reals else 1.0 for name in sums])
    return table_of(params, kinds, lines)


def _fixed(value: pl.Expr) -> pl.Expr:
    real = value.cast(pl.Float64)
    finite = pl.when(real.is_finite()).then(real.clip(-_MOST, _MOST)).otherwise(0.0)
    return (finite * _FIXED).round().cast(pl.Int64)


def _lines(counted: Counted, statistics: Sequence[Statistic], interval: Interval) -> Iterator[Line]:
    clusters, place = counted.clusters, {name: number for number, name in enumerate(counted.names)}
    empty = clusters.number == 0
    totals = clusters.totals if not empty else np.zeros(len(place))
    draws = None
    if interval.rounds and clusters.number > 1:
        draws = resampled(clusters, interval.rounds, interval.seed)

    def by_name(rows: Floats) -> Totals:
        return {name: rows[:, number] for name, number in place.items()}

    for statistic in statistics:

        def measure(rows: Floats, value: Callable[[Totals], Floats] = statistic.value) -> Floats:
            return value(by_name(rows))

        alone = Estimate(float(measure(totals[None, :])[0]), None, None, None) if statistic.counted else None
        found = alone or estimate(clusters, measure, interval, draws)
        p_value = None
        if statistic.against is not None and not empty:
            plus, minus = (clusters.sums[:, place[name]] for name in statistic.against)
            p_value = sign_test(_number(clusters.counts, plus > minus), _number(clusters.counts, plus < minus))
        if statistic.test is not None and not empty:
            p_value = statistic.test(by_name(clusters.sums), clusters.counts, None if draws is None else by_name(draws))
        n = round(float(totals[place[statistic.n]]))
        yield Line(statistic.measure, statistic.about, counted.group, found, n, p_value)


def _number(counts: NDArray[np.int64], where: NDArray[np.bool_]) -> int:
    return int(counts[where].sum())


def schema_of(params: Grouped, extra: Mapping[str, pl.DataType] | None = None) -> pl.Schema:
    """Return the columns of a table: name (the key), measure, about, those it is grouped by, numbers, and `extra`."""
    return pl.Schema(
        {**dict.fromkeys((*_FIRST, *params.by), pl.String()), **_LAST, **(extra or {})},
    )


def table_of(
    params: Grouped,
    counts: Callable[[tuple[str, ...]], pl.LazyFrame],
    lines: Callable[[Mapping[str, str], pl.DataFrame], Iterator[Line]],
    extra: Mapping[str, pl.DataType] | None = None,
) -> pl.LazyFrame:
    """Return the table whose lines are made of counts, which are brought together.

    `counts(level)` has the columns of `level` to group by and whatever else `lines(group, counts of the group)` needs. p-values
    are adjusted by Benjamini and Hochberg's method for those of the same measure in the table.
    """
    parts = []
    for number, level in enumerate(levels(params.by)):
        absent = [pl.lit(None, pl.String).alias(name) for name in params.by if name not in level]
        parts.append(counts(level).with_columns(pl.lit(number).alias("_level"), *absent))
    schema = schema_of(params, extra)

    def made(found: pl.DataFrame) -> pl.DataFrame:
        table: list[Line] = []
        if found.is_empty():
            table.extend(lines({}, found))
        for part in found.partition_by("_level", *params.by, maintain_order=False):
            first = part.row(0, named=True)
            table.extend(lines({name: first[name] for name in params.by if first[name] is not None}, part))
        return _table(table, params, schema)

    return pl.concat(parts, how="diagonal").map_batches(
        made, schema=schema, projection_pushdown=False, predicate_pushdown=False, slice_pushdown=False
    )


def _table(lines: Sequence[Line], params: Grouped, schema: pl.Schema) -> pl.DataFrame:
    corrected: dict[int, float | None] = {}
    for measure in {line.measure for line in lines}:
        places = [number for number, line in enumerate(lines) if line.measure == measure and line.p_adjusted is None]
        corrected |= dict(zip(places, adjusted([lines[number].p_value for number in places]), strict=True))
    rows = [
        {
            "name": _name(line, params.by),
            "measure": line.measure,
            "about": line.about,
            **{name: line.group.get(name) for name in params.by},
            "value": line.estimate.value,
            "low": line.estimate.low,
            "high": line.estimate.high,
            "standard_error": line.estimate.standard_error,
            "p_value": line.p_value,
            "p_adjusted": line.p_adjusted if line.p_adjusted is not None else corrected[number],
            "n": line.n,
            **(line.extra or {}),
        }
        for number, line in enumerate(lines)
    ]
    return pl.DataFrame(rows, schema=schema, orient="row").sort("name")


def _name(line: Line, by: Sequence[str]) -> str:
    parts = [line.measure, *([_escaped(line.about)] if line.about is not None else [])]
    parts += [f"{_escaped(name)}={_escaped(line.group[name])}" for name in by if name in line.group]
    return "/".join(parts)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F").replace("=", "%3D")
