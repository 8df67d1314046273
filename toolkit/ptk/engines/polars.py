"""Runs frame steps on one machine with Polars' streaming engine; knows nothing of any operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from ptk.errors import PtkError, TooManyMalformed
from ptk.operator import DETAIL, KEY, RAW, REJECT, FrameOperator, Reshape
from ptk.plan import Node, keyed
from ptk_catalog.digest import row_id

__all__ = ["Counts", "batches_of", "compact", "decide", "read", "reshape_rows", "settle", "write_decisions"]

_BATCH = 10_000
_REJECT_COLUMNS = {REJECT: pl.String, DETAIL: pl.String, RAW: pl.String, "_file": pl.String, "_line": pl.Int64}

Counts = tuple[int, dict[str, int]]
"""Rows that went in, and the rejected ones by reason."""


def read(node: Node, folder: Path, sample: int | None, on_progress: Callable[[int], None]) -> Counts:
    """Write a source's rows and rejects below `folder`; rows whose key repeats are rejected or numbered, as it declares.

    Raises TooManyMalformed when the malformed share is over what the source allows.
    """
    source = node.source
    assert source is not None
    rows, rejects = folder / "rows", folder / "rejects"
    rows.mkdir()
    rejects.mkdir()
    looked_at = seen = kept = malformed = 0
    for number, batch in enumerate(source.batches()):
        looked_at += batch.height
        good = batch.filter(pl.col(REJECT).is_null()).select(source.columns.names())
        bad = batch.filter(pl.col(REJECT).is_not_null()).select(list(_REJECT_COLUMNS))
        if sample is not None:
            good = good.head(sample - kept)
        seen += good.height + bad.height
        kept += good.height
        malformed += bad.height
        good.write_parquet(rows / f"part-{number:05}.parquet")
        if bad.height:
            bad.write_parquet(rejects / f"part-{number:05}.parquet")
        on_progress(seen)
        if sample is not None and kept >= sample:
            break
    # The share is of what was read: a sample takes few of the good rows of a batch, but meets all its malformed ones.
    if looked_at and malformed / looked_at > source.max_malformed:
        raise TooManyMalformed(_malformed_message(node, rejects, malformed, looked_at))
    if not any(rows.iterdir()):
        pl.DataFrame(schema=source.columns).write_parquet(rows / "part-00000.parquet")
    if not any(rejects.iterdir()):
        pl.DataFrame(schema=_REJECT_COLUMNS).write_parquet(rejects / "part-00000.parquet")
    _settle_repeats(source.key, source.columns, source.on_repeat, rows, rejects)
    return seen, _by_reason(pl.scan_parquet(rejects / "*.parquet"))


def _malformed_message(node: Node, rejects: Path, malformed: int, seen: int) -> str:
    assert node.source is not None
    share = node.source.max_malformed
    first = pl.scan_parquet(rejects / "*.parquet").head(3).collect()
    examples = "".join(
        f"\n  {file}:{line}: {reason}: {detail}"
        for file, line, reason, detail in first.select("_file", "_line", REJECT, DETAIL).iter_rows()
    )
    return (
        f"step '{node.name}': {malformed:,} of {seen:,} rows are malformed ({malformed / seen:.0%}), and max_malformed is {share:g}:{examples}"
        "\nMend the data or the field names, or raise max_malformed; nothing was run."
    )


def _settle_repeats(key: str, columns: pl.Schema, on_repeat: str, rows: Path, rejects: Path) -> None:
    frame = pl.scan_parquet(rows / "*.parquet")
    height, distinct = frame.select(pl.len(), pl.col(key).n_unique()).collect(engine="streaming").row(0)
    if height == distinct:
        return
    # Which of several equal rows is the first goes by the whole row's hash, not by where it stood.
    order = row_id(dict(columns)).rank("ordinal").over(key)
    numbered = frame.with_columns(order.alias("_nth")).collect()
    first = numbered.filter(pl.col("_nth") == 1)
    others = numbered.filter(pl.col("_nth") > 1)
    for part in rows.iterdir():
        part.unlink()
    if on_repeat == "number":
        again = others.with_columns(row_id({key: pl.String(), "_nth": pl.Int64()}).alias(key)) if others.height else others
        first = pl.concat([first, again])
    else:
        pl.DataFrame(
            {REJECT: ["repeat"] * others.height, DETAIL: [f"{key} {value} stands already" for value in others[key]]},
        ).with_columns(pl.lit(None).cast(dtype).alias(name) for name, dtype in list(_REJECT_COLUMNS.items())[2:]).select(
            pl.col(name).cast(dtype) for name, dtype in _REJECT_COLUMNS.items()
        ).write_parquet(rejects / "part-repeats.parquet")
    first.select(columns.names()).write_parquet(rows / "part-00000.parquet")


def decide(node: Node, inputs: list[tuple[pl.LazyFrame, str]], folder: Path) -> Counts:
    """Write a frame operator's decisions about its first input below `folder`; `inputs` are (frame, key column)."""
    operator = node.step.operator
    assert isinstance(operator, FrameOperator)
    frames = [keyed(frame, key) for frame, key in inputs]
    decision = operator.function(*frames, node.step.params)
    if operator.scope != "rows":
        joined = frames[0].select(KEY).join(decision, on=KEY, how="left", coalesce=False, maintain_order="left")
        # The decision's own key: null where it forgot a row, which `settle` finds out.
        decision = joined.drop(KEY).rename({f"{KEY}_right": KEY})
    part = folder / "decisions" / "part-00000.parquet"
    part.parent.mkdir()
    _with_marks(decision).sink_parquet(part, engine="streaming")
    return settle(node, inputs[0], folder)


def settle(node: Node, about: tuple[pl.LazyFrame, str], folder: Path) -> Counts:
    """Check that the decisions in `folder` are about exactly the rows of `about`, in their order, and count them."""
    frame, key = about
    decisions = pl.scan_parquet(folder / "decisions" / "*.parquet")
    rows, decided = (
        item.select(pl.col(name).count()).collect(engine="streaming").item() for item, name in ((frame, key), (decisions, KEY))
    )
    same = rows == decided and bool(
        pl.concat([frame.select(key), decisions.select(KEY)], how="horizontal")
        .select(pl.col(key).eq_missing(pl.col(KEY)).all())
        .collect(engine="streaming")
        .item()
    )
    if not same:
        raise PtkError(
            f"step '{node.name}': operator {node.step.operator.name} was given {rows:,} rows and decided about {decided:,} or in another "
            f"order; a decision keeps every row, with its '{KEY}'"
        )
    return rows, _by_reason(decisions)


def reshape_rows(node: Node, inputs: list[tuple[pl.LazyFrame, str]], folder: Path) -> Counts:
    """Write a reshape's rows below `folder`."""
    operator = node.step.operator
    assert isinstance(operator, Reshape)
    rows = folder / "rows" / "part-00000.parquet"
    rows.parent.mkdir()
    made = operator.function(*(keyed(frame, key) for frame, key in inputs), node.step.params)
    made.select(node.schema.names()).sink_parquet(rows, engine="streaming")
    height, distinct = (
        pl.scan_parquet(rows).select(pl.len(), pl.col(node.key_column).n_unique()).collect(engine="streaming").row(0)
    )
    if height != distinct:
        raise PtkError(f"step '{node.name}': {height - distinct:,} of {height:,} rows repeat the key '{node.key_column}'")
    return height, {}


def batches_of(frame: pl.LazyFrame, size: int = _BATCH) -> Iterator[pl.DataFrame]:
    """Yield the frame in its order in batches of `size` rows, the last one smaller; the same at every call."""
    waiting: list[pl.DataFrame] = []
    height = 0
    for chunk in frame.collect_batches(chunk_size=size, maintain_order=True, engine="streaming"):
        waiting.append(chunk)
        height += chunk.height
        while height >= size:
            whole = pl.concat(waiting)
            yield whole.head(size)
            waiting = [whole.slice(size)]
            height -= size
    if height:
        yield pl.concat(waiting)


def write_decisions(batches: Iterable[pl.DataFrame], schema: pl.Schema, folder: Path) -> None:
    """Write decisions that come batch by batch below `folder`; `schema` is that of a decision about no rows."""
    (folder / "decisions").mkdir()
    number = -1
    for number, batch in enumerate(batches):
        _with_marks(batch.lazy()).collect().write_parquet(folder / "decisions" / f"part-{number:05}.parquet")
    if number < 0:
        _with_marks(pl.LazyFrame(schema=schema)).collect().write_parquet(folder / "decisions" / "part-00000.parquet")


def compact(frame: pl.LazyFrame, new_columns: Sequence[str], folder: Path) -> None:
    """Write the rows that the decisions in `folder` let through, so that later steps need not read the others."""
    (folder / "rows").mkdir()
    decisions = pl.scan_parquet(folder / "decisions" / "*.parquet").drop(KEY)
    kept = pl.concat([frame.drop(new_columns, strict=False), decisions], how="horizontal").filter(pl.col(REJECT).is_null())
    kept.drop(REJECT, DETAIL, RAW).sink_parquet(folder / "rows" / "part-00000.parquet", engine="streaming")


def _with_marks(decision: pl.LazyFrame) -> pl.LazyFrame:
    names = decision.collect_schema().names()
    missing = [pl.lit(None, pl.String).alias(mark) for mark in (REJECT, DETAIL, RAW) if mark not in names]
    present = [pl.col(mark).cast(pl.String) for mark in (REJECT, DETAIL, RAW) if mark in names]
    return decision.with_columns(*missing, *present)


def _by_reason(frame: pl.LazyFrame) -> dict[str, int]:
    counted = frame.filter(pl.col(REJECT).is_not_null()).group_by(REJECT).len().sort(REJECT).collect(engine="streaming")
    return dict(counted.iter_rows())
