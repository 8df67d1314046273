"""What the columns of a judge say in sums: verdicts in both orders, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from ptk.label.judging import COLUMNS, ORDERS
from ptk.measure.bootstrap import Floats
from ptk.measure.table import Statistic, Totals, ratio

__all__ = [
    "FLIPS",
    "WIN_RATE_OF_TIES",
    "Flips",
    "columns_of",
    "delta_pq",
    "doubt_statistics",
    "doubt_sums",
    "outcome_statistics",
    "verdict_of",
    "verdict_sums",
    "win_rate",
]

WIN_RATE_OF_TIES = 0.5
"""Where every verdict is a tie, wins / (wins + losses) is 0 / 0; neither side is better, so it counts as one half."""


Flips = Literal["tie", "keep"]
FLIPS: Any = Field(
    "tie",
    description="A verdict whose two orders disagree: tie, as in the paper; keep, the verdict of the mean of both orders.",
)


def columns_of(name: str) -> list[str]:
    """Return the columns that a judge keeps of its judgement of `name`."""
    return [f"{name}_{suffix}" for suffix in COLUMNS]


def doubt_sums(name: str, prefix: str = "") -> dict[str, pl.Expr]:
    """Return what is added up of a judgement's doubts."""
    flipped, answers, unparsed, first = (pl.col(f"{name}_{suffix}") for suffix in ("flipped", "answers", "unparsed", "first"))
    return {
        f"{prefix}flipped": flipped,
        f"{prefix}both": flipped.is_not_null(),
        f"{prefix}asked": answers.is_not_null() * len(ORDERS),
        f"{prefix}answers": answers,
        f"{prefix}unparsed": unparsed,
        f"{prefix}verdicts": answers - unparsed,
        f"{prefix}first": first,
        f"{prefix}second": answers - unparsed - first,
    }


def doubt_statistics(about: str, prefix: str = "") -> Iterator[Statistic]:
    """Yield how far judgements can be trusted, from `doubt_sums` with the same prefix."""

    def share(part: str, whole: str) -> Statistic:
        return Statistic(part, about, lambda t: ratio(t[f"{prefix}{part}"], t[f"{prefix}{whole}"]), f"{prefix}{whole}")

    yield share("flipped", "both")
    yield Statistic(
        "said_first",
        about,
        lambda t: ratio(t[f"{prefix}first"], t[f"{prefix}verdicts"]),
        f"{prefix}verdicts",
        against=(f"{prefix}first", f"{prefix}second"),
    )
    yield share("unparsed", "answers")
    yield Statistic(
        "failed", about, lambda t: ratio(t[f"{prefix}asked"] - t[f"{prefix}answers"], t[f"{prefix}asked"]), f"{prefix}asked"
    )


def verdict_of(column: str, schema: Mapping[str, pl.DataType], words: Mapping[str, str], flips: Flips) -> pl.Expr:
    """Return the verdict; with flips `tie` that of a judge whose two orders disagree is a tie, where the rows tell."""
    verdict, flipped = pl.col(column).cast(pl.String), f"{column}_flipped"
    if flips == "keep" or schema.get(flipped) != pl.Boolean:
        return verdict
    return pl.when(pl.col(flipped) & verdict.is_not_null()).then(pl.lit(words["tie"])).otherwise(verdict)


def verdict_sums(verdict: pl.Expr, words: Mapping[str, str], prefix: str = "") -> dict[str, pl.Expr]:
    """Return what is added up of verdicts; `words` has what is written for a `win`, a `loss` and a `tie`."""
    return {
        f"{prefix}win": verdict == words["win"],
        f"{prefix}loss": verdict == words["loss"],
        f"{prefix}tie": verdict == words["tie"],
        f"{prefix}decided": verdict.is_in([words["win"], words["loss"]]),
        f"{prefix}judged": verdict.is_in(list(words.values())),
        f"{prefix}unknown": ~verdict.is_in(list(words.values())),
    }


def win_rate(totals: Totals, prefix: str = "") -> Floats:
    """Return w = wins / (wins + losses); one half where all are ties, NaN where nothing was judged."""
    wins, losses = totals[f"{prefix}win"], totals[f"{prefix}loss"]
    found: Floats = np.where(totals[f"{prefix}judged"] > 0, ratio(wins, wins + losses, WIN_RATE_OF_TIES), np.nan)
    return found


def delta_pq(personalization: Floats, quality: Floats) -> Floats:
    """Return 1/2 [(w_P - 0.5) / 0.5 + (w_Q - 0.5) / 0.5] of two win rates, in [-1, 1] (Balepur et al., ACL 2025)."""
    found: Floats = 0.5 * ((personalization - 0.5) / 0.5 + (quality - 0.5) / 0.5)
    return found


def outcome_statistics(about: str, prefix: str = "") -> Iterator[Statistic]:
    """Yield shares of wins, ties and losses and the win rate, from `verdict_sums` with the same prefix."""

    def share(name: str, part: str) -> Statistic:
        return Statistic(name, about, lambda t: ratio(t[f"{prefix}{part}"], t[f"{prefix}judged"]), f"{prefix}judged")

    yield share("wins", "win")
    yield share("ties", "tie")
    yield share("losses", "loss")
    yield Statistic(
        "win_rate", about, lambda t: win_rate(t, prefix), f"{prefix}decided", against=(f"{prefix}win", f"{prefix}loss")
    )
    yield Statistic("unknown", about, lambda t: t[f"{prefix}unknown"], f"{prefix}unknown", counted=True)
