"""What the tests of measures share: tables made from frames, and judgements at random."""

from __future__ import annotations

import json
import random
from typing import Any

import polars as pl

from ptk.operator import KEY, Reshape

JUDGED = {"margin": pl.Float64, "flipped": pl.Boolean, "answers": pl.Int64, "unparsed": pl.Int64, "first": pl.Int64}


def table(operator: Reshape, *frames: pl.DataFrame, **options: Any) -> pl.DataFrame:
    params = operator.params.model_validate_json(json.dumps(options))
    keyed = [
        frame if KEY in frame.columns else frame.with_columns(pl.int_range(pl.len()).cast(pl.String).alias(KEY))
        for frame in frames
    ]
    return operator.function(*(frame.lazy() for frame in keyed), params=params).collect(engine="streaming")


def rows(operator: Reshape, *frames: pl.DataFrame, **options: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in table(operator, *frames, **options).iter_rows(named=True)}


def judgement(chance: random.Random, name: str, words: tuple[str, str]) -> dict[str, Any]:
    """Return the columns of a judgement without probabilities: both orders answered, one lost, one unread, or none."""
    said = (
        [chance.choice(["1", "2", "?", None]) for _ in range(2)] if chance.random() < 0.3 else chance.choices(["1", "2"], k=2)
    )
    answered = [choice for choice in said if choice is not None]
    picked = [None if choice not in ("1", "2") else (choice == "1") == (order == 0) for order, choice in enumerate(said)]
    flipped = None if None in picked else picked[0] != picked[1]
    verdict = None if flipped is None else "tie" if flipped else words[0] if picked[0] else words[1]
    return {
        name: verdict,
        f"{name}_margin": None,
        f"{name}_flipped": flipped,
        f"{name}_answers": len(answered),
        f"{name}_unparsed": sum(choice == "?" for choice in answered),
        f"{name}_first": sum(choice == "1" for choice in answered),
        f"{name}_picked": picked,
    }


def schema(*names: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        found |= {name: pl.String, **{f"{name}_{suffix}": dtype for suffix, dtype in JUDGED.items()}}
        found[f"{name}_picked"] = pl.List(pl.Boolean)
    return found
