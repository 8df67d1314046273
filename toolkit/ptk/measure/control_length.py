"""The win rate that is left when neither response is the longer one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ptk.measure.bootstrap import Estimate, Floats
from ptk.measure.judgements import FLIPS, Flips, verdict_of
from ptk.measure.table import Clustered, Line, group_columns, table_of, with_clusters
from ptk.operator import reshape
from ptk.params import COLUMN
from ptk.text import texts_of

__all__ = ["ControlLength", "Fit", "control_length", "fitted"]

_ROUNDS = 100
_FURTHEST = 30.0
"""A coefficient beyond this is on its way to infinity: the verdicts can be told from the lengths without an error."""


class ControlLength(Clustered):
    """Settings of control_length."""

    verdict: Annotated[str, COLUMN] = Field("verdict", description="Column with the verdicts of judge_responses.")
    first: Annotated[str, COLUMN] = Field(
        "chosen", description="Column with the response that judge_responses was given as first."
    )
    second: Annotated[str, COLUMN] = Field("rejected", description="Column with the other response.")
    ours: Literal["first", "second"] = Field("first", description="Which of the two is the system that wins or loses.")
    flips: Flips = FLIPS
    ties: Literal["drop", "half"] = Field("drop", description="Whether a tie is left out, as in a win rate, or is half a win.")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="How often intervals made like this hold the true value.")

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.first == self.second:
            raise ValueError("first and second are the same column")
        return self


@reshape(key="name", version=1)
def control_length(frame: pl.LazyFrame, params: ControlLength) -> pl.LazyFrame:
    """Make a table of win rates as they would be between responses of equal length, by a logistic regression on the difference."""
    words = {"win": params.ours, "loss": "second" if params.ours == "first" else "first", "tie": "tie"}
    verdict = verdict_of(params.verdict, frame.collect_schema(), words, params.flips)
    texts = texts_of(frame, (params.first, params.second))
    lengths = {name: text.str.count_matches(r"\S+").cast(pl.Int64) for name, text in texts.items()}
    sign = 1 if params.ours == "first" else -1
    tie = pl.when(verdict == "tie").then(1) if params.ties == "half" else pl.lit(None, pl.Int32)
    rows = frame.select(
        with_clusters(frame, params),
        *group_columns(params),
        pl.when(verdict == words["win"]).then(2).when(verdict == words["loss"]).then(0).otherwise(tie).alias("_halves"),
        (sign * (lengths[params.first] - lengths[params.second])).alias("_longer"),
    ).drop_nulls(["_halves", "_longer"])

    def counts(level: tuple[str, ...]) -> pl.LazyFrame:
        return rows.group_by(*level, "_cluster", "_halves", "_longer").agg(pl.len().alias("_count"))

    def lines(group: Mapping[str, str], found: pl.DataFrame) -> Iterator[Line]:
        yield from _lines(group, found.sort("_cluster", "_halves", "_longer"), params.confidence)

    return table_of(params, counts, lines)


@dataclass(frozen=True, slots=True)
class Fit:
    """A logistic regression: coefficients, and their covariance that goes by cluster; None with fewer clusters than it takes."""

    coefficients: Floats
    covariance: Floats | None


def fitted(outcomes: Floats, predictors: Floats, counts: Floats, clusters: NDArray[np.int64]) -> Fit | None:
    """Return the logistic regression of `outcomes` (n,), in [0, 1], on `predictors` (n, k), or None where it has no finite solution.

    Row i occurs `counts[i]` times, in the cluster `clusters[i]`, numbered from 0. Newton's method; the covariance is the sandwich A^-1
    (sum over clusters of u u') A^-1 with the scores u of a cluster, times g / (g - 1) (n - 1) / (n - k) (K.-Y. Liang and S. L. Zeger,
    Biometrika 73, 1986, p. 13, with Stata's correction for few clusters).
    """
    number, width = float(counts.sum()), predictors.shape[1]
    beta: Floats = np.zeros(width)
    for _ in range(_ROUNDS):
        shares = _shares(predictors, beta)
        weights = counts * shares * (1 - shares)
        bread = predictors.T @ (predictors * weights[:, None])
        if np.linalg.matrix_rank(bread) < width:
            return None
        step = np.linalg.solve(bread, predictors.T @ (counts * (outcomes - shares)))
        beta = beta + step
        if np.abs(beta).max() > _FURTHEST:
            return None
        if np.abs(step).max() < 1e-12:
            break
    else:
        return None
    shares = _shares(predictors, beta)
    inverse = np.linalg.inv(predictors.T @ (predictors * (counts * shares * (1 - shares))[:, None]))
    scores = predictors * (counts * (outcomes - shares))[:, None]
    groups = int(clusters.max()) + 1
    if groups < 2 or number <= width:
        return Fit(beta, None)
    summed = np.column_stack([np.bincount(clusters, weights=column, minlength=groups) for column in scores.T])
    correction = groups / (groups - 1) * (number - 1) / (number - width)
    return Fit(beta, correction * inverse @ (summed.T @ summed) @ inverse)


def _shares(predictors: Floats, beta: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-predictors @ beta))
    return shares


def _lines(group: Mapping[str, str], found: pl.DataFrame, confidence: float) -> Iterator[Line]:
    from scipy.special import ndtri

    halves, longer = (found[name].to_numpy().astype(np.float64) for name in ("_halves", "_longer"))
    counts = found["_count"].to_numpy().astype(np.float64)
    number = int(counts.sum())
    wins = float(counts @ halves) / (2 * number) if number else None
    yield Line("win_rate", None, group, Estimate(wins, None, None, None), number)
    places = np.unique(found["_cluster"].to_numpy(), return_inverse=True)[1]
    lean, effect = Estimate(None, None, None, None), Estimate(None, None, None, None)
    p_lean = p_effect = None
    fit = None
    spread = 0.0
    if number:
        mean = counts @ longer / number
        spread = float(np.sqrt(counts @ (longer - mean) ** 2 / number))
        if spread > 0:
            predictors = np.column_stack([np.ones(len(longer)), np.tanh(longer / spread)])
            fit = fitted(halves / 2, predictors, counts, places)
        elif not longer.any():
            fit = fitted(halves / 2, np.ones((len(longer), 1)), counts, places)
    if fit is not None:
        z = float(ndtri((1 + confidence) / 2))
        lean, p_lean = _estimate(fit, 0, z, as_share=True)
        if len(fit.coefficients) > 1:
            effect, p_effect = _estimate(fit, 1, z, as_share=False)
    yield Line("length_controlled_win_rate", None, group, lean, number, p_lean)
    yield Line("length_effect", None, group, effect, number, p_effect)
    yield Line("length_spread", None, group, Estimate(spread if number else None, None, None, None), number)


def _estimate(fit: Fit, place: int, z: float, as_share: bool) -> tuple[Estimate, float | None]:
    from scipy.special import expit, ndtr

    value = float(fit.coefficients[place])
    shown = float(expit(value)) if as_share else value
    if fit.covariance is None:
        return Estimate(shown, None, None, None), None
    error = float(np.sqrt(fit.covariance[place, place]))
    low, high = value - z * error, value + z * error
    p_value = float(2 * ndtr(-abs(value) / error)) if error > 0 else None
    if as_share:
        return Estimate(shown, float(expit(low)), float(expit(high)), error * shown * (1 - shown)), p_value
    return Estimate(shown, low, high, error), p_value
