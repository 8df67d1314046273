"""Runs steps on one machine with Polars' streaming engine.

Where rows must meet, they are written aside in buckets, ids and the needed columns alone, and each bucket is run by itself; the
decisions come back in the order of the rows the same way. So the memory it takes does not grow with the corpus.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.engines.engine import (
    Counts,
    Input,
    Report,
    check_malformed,
    compact_rows,
    read_pieces,
    reshaped_counts,
    settle,
    settle_repeats,
    write_aligned,
    write_ordered,
    write_reshaped,
)
from ptk.operator import GROUP, KEY, ROW, AssetOperator, FrameOperator, Reshape, Stage
from ptk.places import Place
from ptk.plan import Node
from ptk.stages import numbered, reshaped, stage_input

if TYPE_CHECKING:
    from ptk.llm.backend import ResolvedModel, Session
    from ptk.spec import Model

__all__ = ["PolarsEngine"]


class PolarsEngine:
    """One machine. `bucket_rows` is how many rows are in memory at a time where rows must meet."""

    is_distributed = False

    def __init__(self, bucket_rows: int = 500_000) -> None:
        self.bucket_rows = bucket_rows

    def read(self, node: Node, folder: Place, sample: int | None, on_progress: Callable[[int], None]) -> Counts:
        assert node.source is not None
        tally = read_pieces(node.source, enumerate(node.source.pieces()), folder, sample, on_progress)
        check_malformed(node, folder, tally)
        return settle_repeats(node, folder, tally)

    def decide(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        operator, params = node.step.operator, node.step.params
        assert isinstance(operator, FrameOperator) and isinstance(folder, Path)
        stages = operator.stages(params)
        aside = folder / "aside"
        if len(stages) == 1 and stages[0].scope == "rows":
            frames = [item.scan() for item in inputs]
            write_aligned(frames[0], stages[0].function(*frames, params=params), folder / "decisions" / "part-00000.parquet")
        else:
            self._staged(stages, dict(zip(operator.inputs, inputs, strict=True)), params, folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
        return settle(node, folder, inputs[0].height)

    def reshape(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        operator = node.step.operator
        assert isinstance(operator, Reshape)
        made = reshaped(operator, [item.scan() for item in inputs], node.step.params, node.key_column)
        part = "part-00000.parquet"
        write_reshaped(made, node.schema.names(), folder / "rows" / part, folder / "rejects" / part)
        return reshaped_counts(node, folder, sum(item.height for item in inputs))

    def write_files(
        self, node: Node, inputs: Sequence[Input], folder: Place, report: Report
    ) -> Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]:
        operator = node.step.operator
        assert isinstance(operator, AssetOperator) and isinstance(folder, Path)
        more = {**({} if node.model is None else {"model": node.model}), **({"report": report} if operator.reports else {})}
        return operator.function(*(item.scan() for item in inputs), params=node.step.params, folder=folder, **more)

    def compact(self, about: Input, folder: Place) -> None:
        compact_rows(about.rows.scan(), folder / "rows" / "part-00000.parquet")

    def session(self, declared: Model, model: ResolvedModel) -> Session:
        return declared.backend.open(declared.settings, model)

    def close(self) -> None:
        pass

    def _staged(self, stages: Sequence[Stage], inputs: Mapping[str, Input], params: Any, folder: Path, aside: Path) -> None:
        frames = {name: numbered(item.scan()) for name, item in inputs.items()}
        made: dict[str, pl.LazyFrame] = {}
        first = next(iter(inputs.values()))
        for stage in stages:
            given = [made[name] if name in made else stage_input(stage, name, frames[name], params) for name in stage.inputs]
            last = stage is stages[-1]
            if last and stage.scope == "rows":
                write_aligned(given[0], stage.function(*given, params=params), folder / "decisions" / "part-00000.parquet")
                return
            heights = [inputs[name].height if name in inputs else _height(made[name]) for name in stage.inputs]
            place = aside / stage.name
            buckets = self._buckets(max(heights)) if stage.scope == "key" else 1
            scattered = [
                _scatter(frame, _group(stage, frame), buckets, place / f"in-{number}") if buckets > 1 else [frame]
                for number, frame in enumerate(given)
            ]
            for bucket in range(buckets):
                frames_here = [parts[bucket] for parts in scattered]
                rows = stage.function(*frames_here, params=params)
                if last:  # the only stage, of an operator that decides by key
                    rows = rows.join(frames_here[0].select(KEY, ROW), on=KEY, how="inner")
                rows.sink_parquet(place / f"out-{bucket:05}.parquet", engine="streaming", compression="lz4", mkdir=True)
            made[stage.name] = pl.scan_parquet(sorted(place.glob("out-*.parquet")))
        self._ordered(made[stages[-1].name], first.height, folder, aside / "ordered")

    def _ordered(self, decided: pl.LazyFrame, height: int, folder: Path, aside: Path) -> None:
        ranges = self._buckets(height)
        size = -(-height // ranges) or 1
        for number, part in enumerate(_scatter(decided, pl.col(ROW) // size, ranges, aside)):
            write_ordered(part, number * size, folder / "decisions" / f"part-{number:05}.parquet")

    def _buckets(self, height: int) -> int:
        return max(1, -(-height // self.bucket_rows))


def _group(stage: Stage, frame: pl.LazyFrame) -> pl.Expr:
    """Return a number that is equal for rows of a group."""
    by = (GROUP,) if GROUP in frame.collect_schema() else stage.by
    return (pl.col(by[0]) if len(by) == 1 else pl.struct(by)).hash()


def _scatter(frame: pl.LazyFrame, number: pl.Expr, buckets: int, folder: Path) -> list[pl.LazyFrame]:
    """Write the rows aside by `number` modulo `buckets` and return each bucket's; one bucket is the frame itself."""
    if buckets == 1:
        return [frame]
    schema = frame.collect_schema()
    target = pl.PartitionBy(folder, key={"_bucket": (number % buckets).cast(pl.UInt32)}, include_key=False)
    frame.sink_parquet(target, engine="streaming", compression="lz4", statistics=False, maintain_order=False, mkdir=True)
    found = [sorted((folder / f"_bucket={bucket}").rglob("*.parquet")) for bucket in range(buckets)]
    return [pl.scan_parquet(files, hive_partitioning=False) if files else pl.LazyFrame(schema=schema) for files in found]


def _height(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect(engine="streaming").item())
