"""Runs an operator's stages on parts of the rows, as a cluster would: rows anyhow, rows of a group together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from zlib import crc32

import polars as pl

from ptk.operator import GROUP, FrameOperator, Stage
from ptk.params import Params
from ptk.stages import numbered, stage_input

__all__ = ["run_partitioned"]


def run_partitioned(
    operator: FrameOperator, frames: Sequence[pl.DataFrame], params: Params, parts: int = 3, seed: int = 0
) -> pl.DataFrame:
    """Return the decision about the first of the keyed `frames`, each stage run on `parts` parts of shuffled rows."""
    stages = operator.stages(params)
    given = dict(zip(operator.inputs, (numbered(frame.lazy()).collect() for frame in frames), strict=True))
    if len(stages) == 1:
        given = dict(zip(operator.inputs, frames, strict=True))
    chance = random.Random(seed)
    made: dict[str, pl.DataFrame] = {}
    for stage in stages:
        inputs = [
            made[name] if name in made else stage_input(stage, name, given[name].lazy(), params).collect()
            for name in stage.inputs
        ]
        pieces = [
            stage.function(*(piece.lazy() for piece in part), params=params).collect()
            for part in _parts(stage, inputs, parts, chance)
        ]
        made[stage.name] = pl.concat(pieces)
    return made[stages[-1].name]


def _parts(stage: Stage, inputs: list[pl.DataFrame], parts: int, chance: random.Random) -> list[list[pl.DataFrame]]:
    """Return what the function is given at each call."""
    shuffled = [_shuffled(frame, chance) for frame in inputs]
    if stage.scope == "dataset":
        return [shuffled]
    if stage.scope == "rows":
        first, *others = shuffled
        return [[first.filter(pl.int_range(pl.len()) % parts == part), *others] for part in range(parts)]
    places = [_places(frame, stage.by, parts) for frame in shuffled]
    return [[frame.filter(place == part) for frame, place in zip(shuffled, places, strict=True)] for part in range(parts)]


def _places(frame: pl.DataFrame, by: Sequence[str], parts: int) -> pl.Series:
    groups = frame.select(GROUP) if GROUP in frame.columns else frame.select(*by)
    return pl.Series([crc32(repr(row).encode()) % parts for row in groups.iter_rows()], dtype=pl.Int64)


def _shuffled(frame: pl.DataFrame, chance: random.Random) -> pl.DataFrame:
    order = list(range(frame.height))
    chance.shuffle(order)
    return frame[order]
