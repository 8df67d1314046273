"""How far two sets of labels agree, such as a judge's and people's, beyond what chance gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ptk.measure.bootstrap import Floats
from ptk.measure.table import Measuring, Statistic, Totals, measured
from ptk.operator import reshape
from ptk.params import COLUMN

__all__ = ["MeasureAgreement", "kappa", "measure_agreement"]


class MeasureAgreement(Measuring):
    """Settings of measure_agreement."""

    left: Annotated[str, COLUMN] = Field(description="Column with the one's labels, such as the judge's verdicts.")
    right: Annotated[str, COLUMN] = Field(description="Column with the other's, such as people's.")
    labels: tuple[str, ...] = Field(
        ("first", "tie", "second"),
        min_length=2,
        max_length=12,
        description="All labels, in their order where they have one; numbers and true, false are written as text.",
    )
    tie: str | None = Field("tie", description="The label of a tie; agreement is told without ties too.")

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if self.left == self.right:
            raise ValueError("left and right are the same column; labels agree with themselves")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label stands twice among `labels`")
        return self


@reshape(key="name", version=1)
def measure_agreement(frame: pl.LazyFrame, params: MeasureAgreement) -> pl.LazyFrame:
    """Make a table of how far two columns of labels agree: the share, and Cohen's kappa, plain and weighted, with and without ties."""
    left, right = (_text_of(frame, name) for name in (params.left, params.right))
    number = len(params.labels)
    sums = {
        f"cell{row}_{column}": (left == one) & (right == other)
        for row, one in enumerate(params.labels)
        for column, other in enumerate(params.labels)
    }
    known = left.is_in(params.labels) & right.is_in(params.labels)
    decided = known & (left != (params.tie or "")) & (right != (params.tie or ""))
    sums |= {"both": known, "decided": decided, "left_out": ~known.fill_null(False)}
    statistics = list(_statistics("", np.arange(number), "both", number))
    if params.tie in params.labels and number > 2:
        rest = np.array([place for place, label in enumerate(params.labels) if label != params.tie])
        statistics.extend(_statistics("_without_ties", rest, "decided", number))
    statistics.append(Statistic("left_out", None, lambda t: t["left_out"], "left_out", counted=True))
    return measured(frame, sums, statistics, params)


def _text_of(frame: pl.LazyFrame, name: str) -> pl.Expr:
    dtype = frame.collect_schema()[name]
    if dtype.is_nested():
        raise TypeError(f"column '{name}' is {dtype}, not labels")
    return pl.col(name).cast(pl.String)


def _statistics(suffix: str, places: NDArray[np.int64], n: str, number: int) -> Iterator[Statistic]:
    cells = [f"cell{row}_{column}" for row in range(number) for column in range(number)]

    def of(function: Callable[[Floats], Floats]) -> Callable[[Totals], Floats]:
        def value(totals: Totals) -> Floats:
            table = np.stack([totals[cell] for cell in cells], axis=-1).reshape(-1, number, number)
            return function(table[:, places][:, :, places])

        return value

    yield Statistic(f"agreement{suffix}", None, of(_agreement), n)
    yield Statistic(f"kappa{suffix}", None, of(lambda table: kappa(table, "none")), n)
    if len(places) > 2:
        yield Statistic(f"kappa_linear{suffix}", None, of(lambda table: kappa(table, "linear")), n)
        yield Statistic(f"kappa_quadratic{suffix}", None, of(lambda table: kappa(table, "quadratic")), n)


def _agreement(tables: Floats) -> Floats:
    whole = tables.sum(axis=(1, 2))
    found: Floats = np.divide(np.trace(tables, axis1=1, axis2=2), whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return found


def kappa(tables: Floats, weights: str) -> Floats:
    """Return Cohen's kappa of each contingency table of (r, k, k): 1 - sum(w o) / sum(w e).

    o are the shares of the cells, e those expected where both label by chance as often as they do, and w is 1 off the diagonal for `none`
    (J. Cohen, Educ. Psychol. Meas. 20, 1960, p. 37), |i - j| for `linear`, (i - j)^2 for `quadratic` (J. Cohen, Psychol. Bull. 70, 1968, p.
    213). NaN where both use one label alone.
    """
    size = tables.shape[1]
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    weight = {"none": (apart > 0).astype(np.float64), "linear": apart, "quadratic": apart**2}[weights]
    whole = tables.sum(axis=(1, 2))
    observed = (tables * weight).sum(axis=(1, 2)) * whole
    expected = ((tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :]) * weight).sum(axis=(1, 2))
    found: Floats = 1 - np.divide(observed, expected, out=np.full(len(whole), np.nan), where=expected > 0)
    return found
