"""How often one system's responses are found better than another's, on one rubric or on both: win rates and Delta PQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.measure.judgements import FLIPS, Flips, delta_pq, outcome_statistics, verdict_of, verdict_sums, win_rate
from ptk.measure.table import Measuring, Statistic, measured
from ptk.operator import reshape
from ptk.params import COLUMN, Params

__all__ = ["MeasureWins", "Outcome", "measure_wins"]


class Outcome(Params):
    """Verdicts on one kind of responses, such as those given the chosen persona."""

    name: str = Field(min_length=1, description="What the verdicts are about, such as chosen: it stands in the table.")
    quality: Annotated[str | None, COLUMN] = Field(None, description="Column of the verdicts by the rubric quality.")
    personalization: Annotated[str | None, COLUMN] = Field(
        None, description="Column of the verdicts by the rubric personalization."
    )

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.quality is None and self.personalization is None:
            raise ValueError(f"'{self.name}' has no verdicts: name the column of `quality`, of `personalization` or of both")
        if self.quality == self.personalization:
            raise ValueError(f"quality and personalization of '{self.name}' are the same column")
        return self


class MeasureWins(Measuring):
    """Settings of measure_wins."""

    outcomes: tuple[Outcome, ...] = Field(
        min_length=1,
        description="Verdicts to measure, one entry for each kind of responses; chosen and rejected personas apart.",
    )
    flips: Flips = FLIPS
    ours: Literal["first", "second"] = Field(
        "first", description="Which of the two responses that judge_responses was given is the system that wins or loses."
    )

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        names = [outcome.name for outcome in self.outcomes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two outcomes are called '{name}'")
        return self


@reshape(key="name", version=1)
def measure_wins(frame: pl.LazyFrame, params: MeasureWins) -> pl.LazyFrame:
    """Make a table of wins, ties and losses, of win rates, and of Delta PQ where both rubrics were judged."""
    theirs = "second" if params.ours == "first" else "first"
    words = {"win": params.ours, "loss": theirs, "tie": "tie"}
    schema = frame.collect_schema()
    sums: dict[str, pl.Expr] = {}
    statistics: list[Statistic] = []
    for number, outcome in enumerate(params.outcomes):
        verdicts: dict[str, pl.Expr] = {}
        for rubric, column in (("quality", outcome.quality), ("personalization", outcome.personalization)):
            if column is not None:
                prefix = f"{number}_{rubric}_"
                verdicts[rubric] = verdict_of(column, schema, words, params.flips)
                sums |= verdict_sums(verdicts[rubric], words, prefix)
                statistics.extend(outcome_statistics(f"{outcome.name}/{rubric}", prefix))
        if len(verdicts) == 2:
            sums |= _sums_of_both(list(verdicts.values()), words, f"{number}_")
            statistics.extend(_delta(outcome.name, f"{number}_"))
    return measured(frame, sums, statistics, params)


def _sums_of_both(verdicts: list[pl.Expr], words: dict[str, str], prefix: str) -> dict[str, pl.Expr]:
    def number(word: str) -> pl.Expr:
        return sum(((verdict == word).cast(pl.Int64).fill_null(0) for verdict in verdicts), pl.lit(0))

    return {
        f"{prefix}won": number(words["win"]),
        f"{prefix}lost": number(words["loss"]),
        f"{prefix}rows": pl.any_horizontal(verdict.is_in(list(words.values())).fill_null(False) for verdict in verdicts),
    }


def _delta(name: str, prefix: str) -> Iterator[Statistic]:
    yield Statistic(
        "delta_pq",
        name,
        lambda t: delta_pq(win_rate(t, f"{prefix}personalization_"), win_rate(t, f"{prefix}quality_")),
        f"{prefix}rows",
        against=(f"{prefix}won", f"{prefix}lost"),
    )
