"""Rows of a version, some columns and some rows of it, as a file of their own."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.errors import PtkError

if TYPE_CHECKING:
    from ptk_catalog import Dataset

__all__ = ["chosen_rows", "rows_as_json", "write_rows"]

_MET = "_met"
_ENDINGS = (".parquet", ".jsonl", ".csv", ".arrow")


def chosen_rows(data: Dataset, columns: Sequence[str], where: str | None) -> pl.LazyFrame:
    """Return the columns named, or all, of the rows that meet an SQL condition, as `filter_rows` takes it. Raises PtkError, CatalogError."""
    wanted = list(columns) or list(data.schema)
    if where is None:
        return data.scan(wanted)
    from ptk.ops.sql import read_expression

    try:
        condition = read_expression(where)
        rows = condition.over(data.scan(), _MET)
        if (dtype := rows.collect_schema()[_MET]) != pl.Boolean:
            raise PtkError(f"--where `{where}` gives {dtype} and not true or false")
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise PtkError(f"--where: {str(error).splitlines()[0]}") from error
    data.scan(wanted)  # a column that is not there is named as elsewhere
    return rows.filter(pl.col(_MET)).select(wanted)


def write_rows(rows: pl.LazyFrame, target: Path) -> int:
    """Write rows to a new file, in the form that its ending names, whole or not at all; return how many. Raises PtkError."""
    if target.suffix not in _ENDINGS:
        raise PtkError(f"{target}: the ending says what is written; it is one of {', '.join(_ENDINGS)}")
    if target.exists():
        raise PtkError(f"{target} is there already; name a new file")
    if target.suffix == ".csv" and (nested := [name for name, dtype in rows.collect_schema().items() if dtype.is_nested()]):
        raise PtkError(
            f"{target}: CSV can't hold {', '.join(nested)}, which are lists or structs; write .jsonl, or choose with --column"
        )
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        if target.suffix == ".parquet":
            rows.sink_parquet(aside, compression="zstd")
        elif target.suffix == ".jsonl":
            rows.sink_ndjson(aside)
        elif target.suffix == ".csv":
            rows.sink_csv(aside)
        else:
            rows.sink_ipc(aside)
        aside.rename(target)
    except OSError as error:
        raise PtkError(f"can't write {target}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return int(rows.select(pl.len()).collect(engine="streaming").item())


def rows_as_json(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain data, as JSON Lines would have them."""
    import json

    return [json.loads(line) for line in rows.write_ndjson().splitlines()]
