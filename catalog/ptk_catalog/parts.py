"""Parquet parts: written aside, named by the SHA-256 of their content, never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ptk_catalog.manifest import Part
from ptk_catalog.storage import Storage

__all__ = ["ROWS_PER_PART", "cut", "scan", "write_parts"]

ROWS_PER_PART = 1 << 18


def cut(frame: pl.LazyFrame, sizes: Iterable[int] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the frame, in order, in pieces of `sizes` rows each, or of ROWS_PER_PART; at least one, be it empty."""
    wanted = iter(sizes) if sizes is not None else None
    size = next(wanted, 0) if wanted is not None else ROWS_PER_PART
    waiting: list[pl.DataFrame] = [pl.DataFrame(schema=frame.collect_schema())]
    height = 0
    given = False
    for chunk in frame.collect_batches(chunk_size=1 << 16, maintain_order=True, engine="streaming"):
        waiting.append(chunk)
        height += chunk.height
        while height >= size > 0:
            whole = pl.concat(waiting)
            yield whole.head(size)
            given = True
            waiting = [whole.slice(size)]
            height -= size
            size = next(wanted, 0) if wanted is not None else size
    if height or not given:
        yield pl.concat(waiting)


def write_parts(storage: Storage, pieces: Iterable[pl.DataFrame]) -> tuple[Part, ...]:
    """Write each piece as a part; a part that is there already is not written again."""
    return tuple(_write_part(storage, piece) for piece in pieces)


def _write_part(storage: Storage, piece: pl.DataFrame) -> Part:
    aside = storage.aside()
    try:
        piece.write_parquet(aside, compression="zstd", compression_level=3, row_group_size=1 << 16, statistics=True)
        with aside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = aside.stat().st_size
        relative = f"parts/{digest[:2]}/{digest}.parquet"
        storage.take_in(aside, relative)
    finally:
        Path(aside).unlink(missing_ok=True)
    return Part(path=relative, rows=piece.height, bytes=size, statistics=_statistics(piece))


def _statistics(piece: pl.DataFrame) -> dict[str, dict[str, Any]]:
    statistics: dict[str, dict[str, Any]] = {}
    for name, dtype in piece.schema.items():
        if dtype.is_integer() or dtype == pl.Boolean or dtype.is_float():
            values = piece[name].drop_nans() if dtype.is_float() else piece[name]
            statistics[name] = {"min": values.min(), "max": values.max(), "nulls": piece[name].null_count()}
        elif dtype == pl.String:
            shortened = [None if text is None else text[:64] for text in (piece[name].min(), piece[name].max())]
            # A cut-off maximum is no upper bound; readers may only prune by whole values.
            whole = piece[name].max() == shortened[1]
            statistics[name] = {"min": shortened[0], "max": shortened[1] if whole else None, "nulls": piece[name].null_count()}
    return statistics


def scan(storage: Storage, parts: Iterable[Part]) -> pl.LazyFrame:
    """Return the rows of parts, lazily, in order."""
    return pl.scan_parquet([storage.path(part.path) for part in parts])
