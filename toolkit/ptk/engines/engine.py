"""What an engine is, and what all engines do to rows they have at hand: decide, count, check, read pieces, settle repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from ptk.errors import PtkError, TooManyMalformed
from ptk.operator import ALIGNED, DETAIL, KEY, MARKS, RAW, REJECT, ROW, FrameOperator, Source
from ptk.places import Place, listed
from ptk.plan import Node
from ptk.stages import keyed
from ptk.work import Rows
from ptk_catalog.digest import row_id
from ptk_catalog.parts import rows_per_group

if TYPE_CHECKING:
    from ptk.llm.backend import ResolvedModel, Session
    from ptk.spec import Model

__all__ = [
    "PLACES",
    "Counts",
    "Engine",
    "Input",
    "ReadTally",
    "Report",
    "check_keys",
    "check_malformed",
    "compact_rows",
    "new_columns",
    "read_pieces",
    "reshaped_counts",
    "settle",
    "settle_repeats",
    "write_aligned",
    "write_batches",
    "write_ordered",
    "write_reshaped",
]

_PART_ROWS = 100_000
_PART_BYTES = 256 << 20
_ROW_GROUP = 65_536
"""Rows that are decompressed together: what reading a range costs beyond the range."""
_COMPACT_GROUP = 8_192
"""The same where rows may be long: a writer and a reader hold several of them."""
_APART = pl.QueryOptFlags(comm_subplan_elim=False)
"""Each part of a query reads for itself: a reading that two share keeps, for the slower, all that the faster has left behind."""
_HASHES_AT_ONCE = 50_000_000
PLACES = "places"
"""Below a source's folder: for each of its rows the key, and the file (`_file`) and line or number in it (`_line`) it was read from."""
_REJECT_COLUMNS = {REJECT: pl.String, DETAIL: pl.String, RAW: pl.String, "_file": pl.String, "_line": pl.Int64}


Report = Callable[[int, int | None, str], None]
"""Told how far a step is: done, of how many where that is known, and a note."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows that went in, the rejected ones by reason, the rows that stay by flag, and those that a reshape made instead."""

    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    flagged: Mapping[str, int] = field(default_factory=dict)
    made: int | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """The rows that a step is given: where they lie, their key column, and how many they are."""

    rows: Rows
    key: str
    height: int

    def scan(self) -> pl.LazyFrame:
        """Return the rows with `_key`, lazily."""
        return keyed(self.rows.scan(), self.key)


class Engine(Protocol):
    """Runs steps, each into a folder of its own, as `ptk.work` lays them out. It schedules, and knows nothing of any operator."""

    is_distributed: bool
    """Whether others than this machine write into the folder."""

    def read(self, node: Node, folder: Place, sample: int | None, on_progress: Callable[[int], None]) -> Counts:
        """Write a source's rows and rejects. Raises TooManyMalformed."""

    def decide(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        """Write a frame operator's decisions about its first input."""

    def reshape(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        """Write the rows that a reshape makes."""

    def write_files(
        self, node: Node, inputs: Sequence[Input], folder: Place, report: Report
    ) -> Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]:
        """Let an asset operator write its files into `folder`; return its facts, and its decision where it makes one."""

    def compact(self, about: Input, folder: Place) -> None:
        """Write, beside the decisions in `folder`, the rows that they let through."""

    def session(self, declared: Model, model: ResolvedModel) -> Session:
        """Return a session that answers requests where this engine has its models."""

    def close(self) -> None:
        """Let go of what the engine holds."""


def write_aligned(frame: pl.LazyFrame, decided: pl.LazyFrame, path: Place) -> None:
    """Write a decision that should be about the rows of `frame` in their order, and beside each row whether it is."""
    beside = pl.concat([frame.select(pl.col(KEY).alias(ALIGNED)), with_marks(decided)], how="horizontal_extend")
    same = beside.with_columns(pl.col(ALIGNED).eq_missing(pl.col(KEY)).fill_null(False))
    same.drop(KEY).sink_parquet(str(path), engine="streaming", row_group_size=_ROW_GROUP, mkdir=True, optimizations=_APART)


def write_ordered(decided: pl.LazyFrame, first: int, path: Place) -> None:
    """Write a decision about the rows that begin with number `first`, given by `_row` in any order."""
    ordered = decided.sort(ROW).with_row_index(ALIGNED, first)
    same = ordered.with_columns(pl.col(ALIGNED).cast(pl.UInt64) == pl.col(ROW))
    with_marks(same).drop(ROW, KEY, strict=False).sink_parquet(
        str(path), engine="streaming", row_group_size=_ROW_GROUP, mkdir=True
    )


def write_batches(asked: Iterable[pl.DataFrame], decided: Iterable[pl.DataFrame], schema: pl.Schema, folder: Place) -> None:
    """Write decisions that come batch by batch, about the batches in `asked`; `schema` is that of a decision about no rows."""
    number = -1
    for number, (batch, decision) in enumerate(zip(asked, decided, strict=True)):
        write_aligned(batch.select(KEY).lazy(), decision.lazy(), folder / "decisions" / f"part-{number:05}.parquet")
    if number < 0:
        empty = pl.LazyFrame(schema=schema)
        write_aligned(empty.select(KEY), empty, folder / "decisions" / "part-00000.parquet")


def with_marks(decided: pl.LazyFrame) -> pl.LazyFrame:
    """Return the decision with all of `_reject`, `_detail` and `_raw`, as text."""
    names = decided.collect_schema().names()
    missing = [pl.lit(None, pl.String).alias(mark) for mark in (REJECT, DETAIL, RAW) if mark not in names]
    present = [pl.col(mark).cast(pl.String) for mark in (REJECT, DETAIL, RAW) if mark in names]
    return decided.with_columns(*missing, *present)


def settle(node: Node, folder: Place, rows: int) -> Counts:
    """Check that the decisions in `folder` are about `rows` rows, each its own, and count them."""
    decisions = pl.scan_parquet(str(folder / "decisions" / "*.parquet"))
    height, aligned = decisions.select(pl.len(), pl.col(ALIGNED).all()).collect(engine="streaming").row(0)
    if height != rows or not aligned:
        raise PtkError(
            f"step '{node.name}': operator {node.step.operator.name} did not decide about each of the {rows:,} rows it was given, once and "
            f"in their order; a decision keeps every row, with its '{KEY}'"
        )
    flags = node.step.operator.flags if isinstance(node.step.operator, FrameOperator) else None
    return Counts(rows, _by_reason(decisions), _by_flag(decisions.filter(pl.col(REJECT).is_null()), flags))


def new_columns(folder: Place) -> tuple[str, ...]:
    """Return the columns that the decisions in `folder` add."""
    schema = pl.scan_parquet(str(folder / "decisions" / "*.parquet")).collect_schema()
    return tuple(name for name in schema if name not in MARKS)


def compact_rows(frame: pl.LazyFrame, path: Place) -> None:
    """Write rows into one file."""
    frame.sink_parquet(str(path), engine="streaming", row_group_size=_COMPACT_GROUP, mkdir=True, optimizations=_APART)


def write_reshaped(made: pl.LazyFrame, columns: Sequence[str], rows: Place, rejects: Place) -> None:
    """Write the rows that a reshape made into one file, and those it rejects into another, where it rejects any."""
    if REJECT not in made.collect_schema():
        compact_rows(made.select(columns), rows)
        return
    # A query would run once for each file.
    whole = with_marks(made).collect(engine="streaming")
    compact_rows(whole.lazy().filter(pl.col(REJECT).is_null()).select(columns), rows)
    compact_rows(whole.lazy().filter(pl.col(REJECT).is_not_null()).select(*columns, REJECT, DETAIL, RAW), rejects)


def reshaped_counts(node: Node, folder: Place, rows: int) -> Counts:
    """Count what a reshape made of `rows` rows, and what it rejected. Raises PtkError as `check_keys`."""
    made = check_keys(node, folder)
    rejects = folder / "rejects"
    return Counts(rows, _by_reason(pl.scan_parquet(str(rejects / "*.parquet"))) if rejects.exists() else {}, made=made)


def check_keys(node: Node, folder: Place) -> int:
    """Return how many rows a reshape made. Raises PtkError where two have one key or one has none."""
    frame = pl.scan_parquet(str(folder / "rows" / "*.parquet"))
    height, missing = frame.select(pl.len(), pl.col(node.key_column).null_count()).collect(engine="streaming").row(0)
    repeated = _repeated(frame, node.key_column, height)
    many = repeated.select(pl.len() - pl.col(node.key_column).n_unique()).collect(engine="streaming").item()
    if many or missing:
        what = f"{many:,} of {height:,} rows repeat the key '{node.key_column}'" if many else f"{missing:,} rows have no key"
        raise PtkError(f"step '{node.name}': {what}")
    return int(height)


@dataclass(slots=True)
class ReadTally:
    """Records of a source: looked at, taken as rows, set aside, and of these the malformed ones."""

    looked_at: int = 0
    kept: int = 0
    rejected: int = 0
    malformed: int = 0

    def add(self, other: ReadTally) -> None:
        self.looked_at += other.looked_at
        self.kept += other.kept
        self.rejected += other.rejected
        self.malformed += other.malformed


def read_pieces(
    source: Source,
    pieces: Iterable[tuple[int, Any]],
    folder: Place,
    sample: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ReadTally:
    """Write the rows and rejects of numbered pieces below `folder`; with `sample`, at most that many rows."""
    tally = ReadTally()
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "rejects").mkdir(parents=True, exist_ok=True)
    # Where a row of the catalog comes from, its version tells.
    keeps_places = "entry" not in source.origin
    if keeps_places:
        (folder / PLACES).mkdir(parents=True, exist_ok=True)
    for number, piece in pieces:
        places = _PartWriter(folder / PLACES, number)
        rows = _PartWriter(folder / "rows", number)
        rejects = _PartWriter(folder / "rejects", number)
        for batch in source.batches(piece):
            taken = batch.filter(pl.col(REJECT).is_null())
            taken = taken if sample is None else taken.head(sample - tally.kept)
            good = taken.select(source.columns.names())
            bad = batch.filter(pl.col(REJECT).is_not_null()).select(list(_REJECT_COLUMNS))
            malformed = bad.filter(~pl.col(REJECT).is_in(source.expected)).height
            tally.add(ReadTally(batch.height, good.height, bad.height, malformed))
            rows.add(good)
            rejects.add(bad)
            if keeps_places:
                places.add(taken.select(source.key, pl.col("_file").cast(pl.String), pl.col("_line").cast(pl.Int64)))
            on_progress(tally.kept + tally.rejected)
            if sample is not None and tally.kept >= sample:
                break
        rows.flush()
        rejects.flush()
        places.flush()
        if sample is not None and tally.kept >= sample:
            break
    return tally


@dataclass(slots=True)
class _PartWriter:
    """Gathers batches into Parquet files of a good size, named by the piece and their place in it."""

    folder: Place
    piece: int
    waiting: list[pl.DataFrame] = field(default_factory=list)
    height: int = 0
    size: int = 0
    written: int = 0

    def add(self, batch: pl.DataFrame) -> None:
        if batch.height:
            self.waiting.append(batch)
            self.height += batch.height
            self.size += int(batch.estimated_size())
            if self.height >= _PART_ROWS or self.size >= _PART_BYTES:
                self.flush()

    def flush(self) -> None:
        if self.waiting:
            path = self.folder / f"part-{self.piece:05}-{self.written:05}.parquet"
            rows = pl.concat(self.waiting)
            rows.write_parquet(str(path), row_group_size=rows_per_group(rows))
            self.waiting, self.height, self.size = [], 0, 0
            self.written += 1


def check_malformed(node: Node, folder: Place, tally: ReadTally) -> None:
    """Raise TooManyMalformed, with examples, when the malformed share is over what the source allows; else make good empty parts."""
    source = node.source
    assert source is not None
    # The share is of what was read: a sample takes few of the good rows of a batch, but meets all its malformed ones.
    if tally.looked_at and tally.malformed / tally.looked_at > source.max_malformed:
        set_aside = pl.scan_parquet(str(folder / "rejects" / "*.parquet"))
        first = set_aside.filter(~pl.col(REJECT).is_in(source.expected)).head(3).collect()
        examples = "".join(
            f"\n  {file}:{line}: {reason}: {detail}"
            for file, line, reason, detail in first.select("_file", "_line", REJECT, DETAIL).iter_rows()
        )
        raise TooManyMalformed(
            f"step '{node.name}': {tally.malformed:,} of {tally.looked_at:,} rows are malformed ({tally.malformed / tally.looked_at:.0%}), "
            f"and max_malformed is {source.max_malformed:g}:{examples}"
            "\nMend the data or the field names, or raise max_malformed; nothing was run."
        )
    for kind, schema in (("rows", source.columns), ("rejects", _REJECT_COLUMNS)):
        if not any((folder / kind).glob("*.parquet")):
            (folder / kind).mkdir(exist_ok=True)
            pl.DataFrame(schema=schema).write_parquet(str(folder / kind / "part-00000.parquet"))


def settle_repeats(node: Node, folder: Place, tally: ReadTally) -> Counts:
    """Reject or number the rows in `folder` whose key repeats, as the source declares, and count everything.

    Which of several rows is the first goes by the whole row's hash, not by where it stood. Only parts with a row to change are
    written again. Holds 16 bytes a row for a moment, and the rows that repeat.
    """
    source = node.source
    assert source is not None
    frame = pl.scan_parquet(str(folder / "rows" / "*.parquet"), include_file_paths="_path", row_index_name=ROW)
    repeated = _repeated(frame, source.key, tally.kept).with_columns(row_id(dict(source.columns)).alias("_whole")).collect()
    later = repeated.with_columns(_nth=pl.struct("_whole", ROW).rank("ordinal").over(source.key)).filter(pl.col("_nth") > 1)
    if later.height:
        if source.on_repeat == "number":
            later = later.with_columns(row_id({source.key: pl.String(), "_nth": pl.UInt32()}).alias("_again"))
        else:
            _rejected_repeats(later, source.key).write_parquet(str(folder / "rejects" / "part-repeats.parquet"))
        _settle_places(folder, later, source)
        firsts = dict(frame.group_by("_path").agg(pl.col(ROW).min()).collect(engine="streaming").iter_rows())
        for (path,), changed in later.partition_by("_path", as_dict=True).items():
            _change_part(str(path), firsts[path], changed, source)
    rejects = _by_reason(pl.scan_parquet(str(folder / "rejects" / "*.parquet")))
    flagged = _by_flag(pl.scan_parquet(str(folder / "rows" / "*.parquet")), source.flags)
    return Counts(tally.kept + tally.rejected, rejects, flagged)


def _settle_places(folder: Place, later: pl.DataFrame, source: Source) -> None:
    """Give the places of rows whose key repeats the key that their row gets, and leave out those of rejected rows."""
    parts = listed(folder / PLACES, "part-*.parquet")
    if not parts:
        return
    places = pl.scan_parquet(list(map(str, parts)), row_index_name=ROW)
    if source.on_repeat == "number":
        renamed = places.join(later.lazy().select(ROW, "_again"), on=ROW, how="left", maintain_order="left")
        places = renamed.with_columns(pl.coalesce("_again", source.key).alias(source.key)).drop("_again")
    else:
        places = places.join(later.lazy().select(ROW), on=ROW, how="anti", maintain_order="left")
    compact_rows(places.drop(ROW), folder / PLACES / "settled.parquet")
    for part in parts:
        part.unlink()


def _change_part(path: str, first: int, changed: pl.DataFrame, source: Source) -> None:
    part = pl.read_parquet(path).with_row_index(ROW, first)
    if source.on_repeat == "number":
        renamed = part.join(changed.select(ROW, "_again"), on=ROW, how="left", maintain_order="left")
        part = renamed.with_columns(pl.coalesce("_again", source.key).alias(source.key))
    else:
        part = part.join(changed, on=ROW, how="anti", maintain_order="left")
    part.select(source.columns.names()).write_parquet(str(path), row_group_size=rows_per_group(part))


def _rejected_repeats(later: pl.DataFrame, key: str) -> pl.DataFrame:
    told = {REJECT: pl.lit("repeat"), DETAIL: pl.format(f"{key} {{}} stands already", pl.col(key))}
    return later.select(told.get(name, pl.lit(None)).cast(dtype).alias(name) for name, dtype in _REJECT_COLUMNS.items())


def _repeated(frame: pl.LazyFrame, key: str, height: int) -> pl.LazyFrame:
    """Return the rows whose key is not alone, and perhaps a few more: told by 64-bit hashes, some millions of rows at a time."""
    turns = max(1, -(-height // _HASHES_AT_ONCE))
    found: list[pl.Series] = []
    hashed = frame.select(pl.col(key).hash().alias("_hash"))
    for turn in range(turns):
        hashes = hashed if turns == 1 else hashed.filter(pl.col("_hash") % turns == turn)
        ordered = hashes.collect(engine="streaming").to_series().sort()
        found.append(ordered.filter(ordered == ordered.shift()).unique())
    again = pl.concat(found)
    return frame.filter(pl.col(key).hash().is_in(again.implode())) if len(again) else frame.clear()


def _by_reason(frame: pl.LazyFrame) -> dict[str, int]:
    counted = frame.filter(pl.col(REJECT).is_not_null()).group_by(REJECT).len().sort(REJECT).collect(engine="streaming")
    return dict(counted.iter_rows())


def _by_flag(frame: pl.LazyFrame, flags: str | None) -> dict[str, int]:
    if flags is None or flags not in frame.collect_schema():
        return {}
    words = frame.select(pl.col(flags).list.unique().alias("_word")).explode("_word").filter(pl.col("_word").is_not_null())
    return dict(words.group_by("_word").len().sort("_word").collect(engine="streaming").iter_rows())


def batches_of(frame: pl.LazyFrame, size: int = 10_000) -> Iterator[pl.DataFrame]:
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
