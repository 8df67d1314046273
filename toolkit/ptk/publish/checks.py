"""What can be told of a publication before it is pushed: whether trainers take its pairs and the Hub's viewer shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from ptk.publish.layout import PAIR, Config

__all__ = ["Check", "checks"]

_TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_VIEWER_GROUP = 300_000_000
"""Row groups above this many bytes are not shown by the Hub's viewer."""
_VIEWER_COLUMNS = 1000
_VIEWER_WHOLE = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `failed` keeps a version from being published, `warning` does not."""

    state: str
    what: str

    @property
    def failed(self) -> bool:
        return self.state == "failed"


def checks(frame: pl.LazyFrame, configs: Sequence[Config]) -> list[Check]:
    """Return what was checked: rows and columns of pairs for TRL, sizes for the viewer."""
    return [*_rows(configs), *_pairs(frame, configs), *_viewer(configs)]


def _rows(configs: Sequence[Config]) -> Iterator[Check]:
    if configs[0].rows == 0:
        yield Check("failed", "the version has no rows, and `datasets` can't load a dataset without any")


def _pairs(frame: pl.LazyFrame, configs: Sequence[Config]) -> Iterator[Check]:
    schema = frame.collect_schema()
    if configs[0].name != "pairs":
        yield Check("ok", "TRL: not looked at, as the rows are no pairs of prompt, chosen and rejected")
        return
    types = {name: schema[name] for name in PAIR}
    if set(types.values()) == {pl.String()}:
        form = "plain text"
    elif all(isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct) for kind in types.values()):
        form = "lists of turns"
    else:
        shown = ", ".join(f"{name} {kind}" for name, kind in types.items())
        yield Check("failed", f"TRL: prompt, chosen and rejected must all be texts, or lists of role and content, not {shown}")
        return
    empty = (
        frame.select(pl.any_horizontal(*(_is_empty(name, types[name]) for name in PAIR)).sum())
        .collect(engine="streaming")
        .item()
    )
    if empty:
        yield Check("failed", f"TRL: {empty:,} rows have an empty prompt, chosen or rejected; drop them (`op: drop_empty`)")
        return
    if form == "lists of turns":
        yield from _turns(frame)
    yield Check("ok", f"TRL: `pairs` has prompt, chosen and rejected as {form}, with ids and nothing else beside")


def _is_empty(name: str, kind: pl.DataType) -> pl.Expr:
    size = pl.col(name).list.len() if isinstance(kind, pl.List) else pl.col(name).str.len_bytes()
    return size.fill_null(0) == 0


def _turns(frame: pl.LazyFrame) -> Iterator[Check]:
    last = pl.col("prompt").list.last().struct.field("role")
    answers = [pl.col(name).list.first().struct.field("role") for name in ("chosen", "rejected")]
    wrong = frame.select(
        (last != "user").sum().alias("prompt"),
        pl.any_horizontal(*(role != "assistant" for role in answers)).sum().alias("answers"),
    ).collect(engine="streaming")
    if count := wrong["prompt"].item():
        yield Check(
            "warning", f"TRL: {count:,} prompts do not end with a turn of the user; chat templates may render them oddly"
        )
    if count := wrong["answers"].item():
        yield Check("warning", f"TRL: {count:,} responses do not begin with a turn of the assistant")


def _viewer(configs: Sequence[Config]) -> Iterator[Check]:
    fine = True
    for config in configs:
        if config.largest_group > _VIEWER_GROUP:
            fine = False
            yield Check(
                "warning", f"viewer: a row group of `{config.name}` takes {config.largest_group:,} bytes; it may not be shown"
            )
        if len(config.schema) > _VIEWER_COLUMNS:
            fine = False
            yield Check("warning", f"viewer: `{config.name}` has {len(config.schema):,} columns; it shows {_VIEWER_COLUMNS:,}")
        if sum(shard.file.stat().st_size for shard in config.shards) > _VIEWER_WHOLE:
            fine = False
            yield Check("warning", f"viewer: it shows and counts the first 5 GB of `{config.name}` only")
        if any(split.rows == 0 for split in config.splits):
            fine = False
            yield Check("warning", f"viewer: a split of `{config.name}` has no rows")
    if fine:
        yield Check("ok", "viewer: sizes of files, row groups and columns are within what the Hub shows")
