"""Which of a pair's two personas a judge prefers, and how often it can't say."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.measure.judgements import (
    FLIPS,
    Flips,
    columns_of,
    doubt_statistics,
    doubt_sums,
    outcome_statistics,
    verdict_of,
    verdict_sums,
)
from ptk.measure.table import Measuring, measured, need
from ptk.operator import reshape
from ptk.params import COLUMN

__all__ = ["MeasurePreference", "measure_preference"]

_WORDS = {"win": "chosen", "loss": "rejected", "tie": "tie"}


class MeasurePreference(Measuring):
    """Settings of measure_preference."""

    column: Annotated[str, COLUMN] = Field(
        "preferred_persona", description="Column with the verdicts of compare_personas: chosen, rejected or tie."
    )
    flips: Flips = FLIPS


@reshape(key="name", version=1)
def measure_preference(frame: pl.LazyFrame, params: MeasurePreference) -> pl.LazyFrame:
    """Make a table of how often the chosen persona is preferred to the rejected one, with ties: wins are the chosen persona's."""
    schema = need(frame, [params.column, *columns_of(params.column)], "compare_personas")
    verdict = verdict_of(params.column, schema, _WORDS, params.flips)
    sums = verdict_sums(verdict, _WORDS) | doubt_sums(params.column)
    return measured(frame, sums, [*outcome_statistics("chosen"), *doubt_statistics("chosen")], params)
