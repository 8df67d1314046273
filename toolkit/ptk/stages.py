"""What every engine shares: which columns a stage is given, and how the stages of an operator follow each other."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ptk.operator import GROUP, KEY, ROW, FrameOperator, Reshape, Stage
from ptk.params import Params, named_columns
from ptk_catalog.digest import row_id

__all__ = ["keyed", "numbered", "reshaped", "run_stages", "stage_input"]


def keyed(frame: pl.LazyFrame, key_column: str) -> pl.LazyFrame:
    """Return `frame` with the row's key beside as `_key`: what every operator is given."""
    return frame.with_columns(pl.col(key_column).alias(KEY))


def numbered(frame: pl.LazyFrame, first: int = 0) -> pl.LazyFrame:
    """Return `frame` with `_row`, counted from `first`."""
    return frame.with_row_index(ROW, first).with_columns(pl.col(ROW).cast(pl.UInt64))


def run_stages(operator: FrameOperator, frames: Sequence[pl.LazyFrame], params: Params) -> pl.LazyFrame:
    """Return an operator's decision about the first of the keyed `frames`, which are whole, as one lazy query."""
    stages = operator.stages(params)
    given = dict(zip(operator.inputs, frames if len(stages) == 1 else map(numbered, frames), strict=True))
    made: dict[str, pl.LazyFrame] = {}
    for stage in stages:
        inputs = [made[name] if name in made else stage_input(stage, name, given[name], params) for name in stage.inputs]
        made[stage.name] = stage.function(*inputs, params=params)
    return made[stages[-1].name]


def reshaped(operator: Reshape, frames: Sequence[pl.LazyFrame], params: Params, key: str) -> pl.LazyFrame:
    """Return the rows that a reshape makes of the keyed `frames`; their key column is `key`."""
    made = operator.function(*frames, params=params)
    names = made.collect_schema().names()
    if KEY not in names:
        return made
    return made.drop(KEY) if key in names else made.rename({KEY: key})


def stage_input(stage: Stage, name: str, frame: pl.LazyFrame, params: Params) -> pl.LazyFrame:
    """Return what a stage is given of one of the operator's inputs."""
    if stage.scope == "rows":
        return frame
    schema = frame.collect_schema()
    wanted = (
        [column for _, column in named_columns(params) if column in schema]
        if stage.reads is None
        else stage.reads.get(name, ())
    )
    kept = dict.fromkeys([KEY, *([ROW] if ROW in schema else []), *wanted])
    if stage.scope == "dataset" or stage.by == (ROW,):
        return frame.select(*kept)
    return frame.select(*kept, row_id({column: schema[column] for column in stage.by}).alias(GROUP))
