"""Parquet parts: written aside, named by the SHA-256 of their content, never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from ptk_catalog.digest import added_sums, column_sums
from ptk_catalog.manifest import Part
from ptk_catalog.storage import Storage

__all__ = [
    "BYTES_PER_PART",
    "ROWS_PER_PART",
    "Piece",
    "cut",
    "rows_per_group",
    "rows_within",
    "scan",
    "write_parts",
    "write_rows",
]

ROWS_PER_PART = 1 << 18
BYTES_PER_PART = 1 << 28
"""What the rows of a part take in memory, about: fewer rows than ROWS_PER_PART where they are long."""
_ROWS_PER_GROUP = 1 << 16
_BYTES_PER_GROUP = 1 << 24
_AT_ONCE = 1 << 12
"""Rows that are read before their bytes are looked at: few, so that long ones don't overshoot by much."""
_LONGEST_BOUND = 64


def cut(frame: pl.LazyFrame, sizes: Iterable[int] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the frame, in order, in pieces of `sizes` rows each, or for parts of their own; at least one, be it empty."""
    wanted = iter(sizes) if sizes is not None else None
    size = next(wanted, 0) if wanted is not None else ROWS_PER_PART
    waiting: list[pl.DataFrame] = [pl.DataFrame(schema=frame.collect_schema())]
    height = weight = 0
    given = False
    for chunk in frame.collect_batches(chunk_size=_AT_ONCE, maintain_order=True, engine="streaming"):
        waiting.append(chunk)
        height += chunk.height
        weight += int(chunk.estimated_size())
        while height >= size > 0 or (wanted is None and weight >= BYTES_PER_PART):
            whole = pl.concat(waiting)
            yield whole.head(size)
            given = True
            rest = whole.slice(size)
            waiting, height, weight = [rest], rest.height, int(rest.estimated_size())
            size = next(wanted, 0) if wanted is not None else size
    if height or not given:
        yield pl.concat(waiting)


def rows_within(sample: pl.DataFrame, most_bytes: int, most: int) -> int:
    """Return how many rows like those of a sample take no more than so many bytes in memory: at least one, at most `most`."""
    a_row = max(1, int(sample.estimated_size()) // max(1, sample.height))
    return max(1, min(most, most_bytes // a_row))


def rows_per_group(piece: pl.DataFrame) -> int:
    """Return how many rows a row group of a piece holds: fewer where they are long, since a reader holds a few of them whole."""
    return rows_within(piece, _BYTES_PER_GROUP, _ROWS_PER_GROUP)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one part: those that are stored, and those that count, with the key."""

    stored: pl.DataFrame
    counted: pl.DataFrame


def write_rows(
    storage: Storage, pieces: Iterable[Piece], key: Sequence[str], columns: Sequence[str]
) -> tuple[tuple[Part, ...], dict[str, str]]:
    """Write each piece as a part; return the parts, and the sums of `columns` over the rows that count.

    While a part is written, the sums of its rows are made and the file before it is digested and taken in, so that two pieces are
    in memory at a time and no processor waits for the disk.
    """
    parts: list[Part] = []
    sums: list[dict[str, str]] = []
    with ThreadPoolExecutor(1) as taking, ThreadPoolExecutor(1) as writing:
        written: Future[Future[Part]] | None = None
        for piece in pieces:
            taken = written.result() if written is not None else None
            written = writing.submit(_write_part, storage, piece.stored, taking)
            sums.append(column_sums(piece.counted, key, columns))
            if taken is not None:
                parts.append(taken.result())
        if written is not None:
            parts.append(written.result().result())
    return tuple(parts), added_sums(sums)


def write_parts(storage: Storage, pieces: Iterable[pl.DataFrame]) -> tuple[Part, ...]:
    """Write each piece as a part; equal pieces are one file."""
    with ThreadPoolExecutor(1) as taking:
        return tuple(_write_part(storage, piece, taking).result() for piece in pieces)


def _write_part(storage: Storage, piece: pl.DataFrame, taking: ThreadPoolExecutor) -> Future[Part]:
    """Write a file aside; the part comes when `taking` has taken it in."""
    aside = storage.aside()
    try:
        group = rows_per_group(piece)
        piece.write_parquet(aside, compression="zstd", compression_level=3, row_group_size=group, statistics=True)
        statistics = _statistics(piece)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return taking.submit(_take_in, storage, aside, piece.height, statistics)


def _take_in(storage: Storage, aside: Path, rows: int, statistics: dict[str, dict[str, Any]]) -> Part:
    try:
        with aside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = aside.stat().st_size
        relative = f"parts/{digest[:2]}/{digest}.parquet"
        storage.take_in(aside, relative)
    finally:
        aside.unlink(missing_ok=True)
    return Part(path=relative, rows=rows, bytes=size, statistics=statistics)


def _statistics(piece: pl.DataFrame) -> dict[str, dict[str, Any]]:
    statistics: dict[str, dict[str, Any]] = {}
    for name, dtype in piece.schema.items():
        if dtype.is_integer() or dtype == pl.Boolean or dtype.is_float():
            values = piece[name].drop_nans() if dtype.is_float() else piece[name]
            statistics[name] = {"min": values.min(), "max": values.max(), "nulls": piece[name].null_count()}
            if dtype.is_float():
                statistics[name]["nans"] = len(piece[name]) - len(values)
        elif dtype == pl.String:
            low, high = str(piece[name].min() or ""), str(piece[name].max() or "")
            # Only short ones: a manifest is not the place for text, and a maximum cut off is no bound.
            if len(low) <= _LONGEST_BOUND and len(high) <= _LONGEST_BOUND:
                statistics[name] = {"min": piece[name].min(), "max": piece[name].max(), "nulls": piece[name].null_count()}
    return statistics


def scan(storage: Storage, parts: Iterable[Part]) -> pl.LazyFrame:
    """Return the rows of parts, lazily, in order."""
    listed = list(parts)
    if storage.is_local:
        # The folder's own name may hold `*` or `year=2026`: neither is a pattern here.
        return pl.scan_parquet([storage.path(part.path) for part in listed], glob=False, hive_partitioning=False)
    with storage.open(listed[0].path) as file:
        schema = pl.Schema(pl.read_parquet_schema(file))

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch: int | None
    ) -> Iterator[pl.DataFrame]:
        """Read through fsspec, which knows the credentials: only the columns that are wanted, a row group at a time."""
        names = list(schema) if columns is None else columns
        left = rows
        for part in listed:
            with storage.open(part.path) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=names or [next(iter(schema))])
                    frame = pl.DataFrame(pl.from_arrow(table))
                    frame = frame.cast({name: schema[name] for name in frame.columns}).select(names)
                    if left is not None:
                        frame = frame.head(left)
                        left -= frame.height
                    yield frame if predicate is None else frame.filter(predicate)
                    if left == 0:
                        return

    return register_io_source(read, schema=schema, is_pure=True)
