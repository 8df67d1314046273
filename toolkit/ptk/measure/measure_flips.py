"""Whether a model's preference between two responses follows the persona it is given, by log-probabilities and without a judge."""

from __future__ import annotations

from typing import get_args

import polars as pl
from pydantic import Field

from ptk.measure.table import Measuring, Statistic, measured, need, ratio
from ptk.operator import reshape
from ptk.train.derive_rewards import margin_column
from ptk.train.score_pairs import Condition

__all__ = ["MeasureFlips", "measure_flips"]


class MeasureFlips(Measuring):
    """Settings of measure_flips."""

    rewards: str = Field("reward", pattern=r"^[a-z][a-z0-9_]*$", description="`into` of the derive_rewards step.")


@reshape(key="name", version=2)
def measure_flips(frame: pl.LazyFrame, params: MeasureFlips) -> pl.LazyFrame:
    """Make a table of how often a model prefers the response that belongs to the persona it is given, and by how much it moves."""
    names = {given: margin_column(params.rewards, given) for given in get_args(Condition)}
    schema = need(frame, [names["chosen"], names["rejected"]], "derive_rewards")
    same = f"{params.rewards}_same_persona"
    alike = pl.col(same).fill_null(False) if same in schema else pl.lit(False)
    margins: dict[str, pl.Expr] = {}
    for given, column in names.items():
        if column in schema:
            if not schema[column].is_numeric():
                raise TypeError(f"column '{column}' is {schema[column]}, not numbers")
            value = pl.col(column).cast(pl.Float64)
            margins[given] = pl.when(value.is_finite() & ~alike).then(value)
    chosen, rejected = margins["chosen"], margins["rejected"]
    shift = chosen - rejected
    sums = {
        "pairs": shift.is_not_null(),
        "same": alike,
        "follows": (chosen > 0) & (rejected < 0),
        "opposes": (chosen < 0) & (rejected > 0),
        "shift": shift,
        "toward": shift > 0,
        "away": shift < 0,
    }
    statistics = [
        # Both personas are followed, or neither: where the preference stays the same, persona or not, no column counts.
        Statistic("flips", "both", lambda t: ratio(t["follows"], t["pairs"]), "pairs", against=("follows", "opposes")),
        Statistic("flips_wrong", "both", lambda t: ratio(t["opposes"], t["pairs"]), "pairs"),
        Statistic("shifts", "both", lambda t: ratio(t["toward"], t["pairs"]), "pairs", against=("toward", "away")),
        Statistic("shift_size", "both", lambda t: ratio(t["shift"], t["pairs"]), "pairs", against=("toward", "away")),
        Statistic("same_persona", "both", lambda t: t["same"], "same", counted=True),
    ]
    for name, value in margins.items():
        # The rejected persona's user should get the rejected response.
        sign = -1 if name == "rejected" else 1
        sums |= {
            f"{name}_n": value.is_not_null(),
            f"{name}_follows": sign * value > 0,
            f"{name}_other": sign * value < 0,
            f"{name}_margin": value,
        }
        statistics += [_follows(name), _margin(name)]
    reals = ["shift", *(f"{name}_margin" for name in margins)]
    return measured(frame, sums, statistics, params, reals)


def _follows(name: str) -> Statistic:
    measure = "prefers_chosen" if name == "none" else "follows_persona"
    return Statistic(
        measure,
        name,
        lambda t: ratio(t[f"{name}_follows"], t[f"{name}_n"]),
        f"{name}_n",
        against=(f"{name}_follows", f"{name}_other"),
    )


def _margin(name: str) -> Statistic:
    return Statistic("margin", name, lambda t: ratio(t[f"{name}_margin"], t[f"{name}_n"]), f"{name}_n")
