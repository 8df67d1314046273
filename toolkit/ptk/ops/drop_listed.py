"""Takes rows down by a list of ids."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import polars as pl
from pydantic import Field, PrivateAttr, field_validator, model_validator

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params, SourceFiles, suggestion

__all__ = ["DropListed", "drop_listed"]

_REASON = re.compile(r"[a-z][a-z0-9_]*")


class DropListed(Params):
    """Settings of drop_listed."""

    ids: tuple[str | int, ...] = Field((), description="Ids of rows to take down.")
    path: SourceFiles | None = Field(None, description="Files of such ids: .csv, .tsv, .jsonl, or text with one id a line.")
    field: str | None = Field(
        None, description="The field of a CSV or JSONL file that holds the ids; needed where it has several."
    )
    column: Annotated[str | None, COLUMN] = Field(None, description="The column that the ids are of; the key where left out.")
    reason: str = Field("taken_down", description="The reason under which the rows are set aside.")
    _listed: tuple[str, ...] = PrivateAttr(())

    @field_validator("reason")
    @classmethod
    def _short(cls, reason: str) -> str:
        if not _REASON.fullmatch(reason):
            raise ValueError(f"'{reason}' is no reason: lower-case letters, digits and '_', beginning with a letter")
        return reason

    @model_validator(mode="after")
    def _read(self) -> DropListed:
        if not self.ids and self.path is None:
            raise ValueError("there is nothing to take down: give `ids` or a `path` of a file of ids")
        listed = dict.fromkeys(str(item) for item in self.ids)
        # Read here, once: the rows are decided by what the key of the step was made of.
        for path in self.path.paths if self.path else ():
            listed.update(dict.fromkeys(_ids_of(path, self.field)))
        self._listed = tuple(listed)
        return self

    @property
    def listed(self) -> tuple[str, ...]:
        """The ids, each once."""
        return self._listed


@frame_operator(scope="rows", version=1)
def drop_listed(frame: pl.LazyFrame, params: DropListed) -> pl.LazyFrame:
    """Reject the rows whose ids are in a list, such as rows that somebody asked to take down."""
    column = params.column or KEY
    dtype = frame.collect_schema()[column]
    if not (dtype in (pl.String, pl.Null) or dtype.is_integer() or isinstance(dtype, (pl.Categorical, pl.Enum))):
        raise TypeError(f"column '{column}' is {dtype}, and ids are text or whole numbers")
    listed = pl.col(column).cast(pl.String).is_in(pl.Series(params.listed, dtype=pl.String).implode()).fill_null(False)
    what = "its key" if params.column is None else params.column
    return frame.select(
        KEY,
        _reject=pl.when(listed).then(pl.lit(params.reason)),
        _detail=pl.when(listed).then(pl.lit(f"{what} is in the list")),
    )


def _ids_of(path: Path, field: str | None) -> Iterator[str]:
    """Yield the ids in a file, as text. Raises ValueError, with a sentence, for a file that is not what its name says."""
    name = path.name.removesuffix(".gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path.name} can't be read as UTF-8 text: {error}") from error
    if name.endswith((".csv", ".tsv")):
        yield from _from_table(text, "\t" if name.endswith(".tsv") else ",", field, path.name)
    elif name.endswith((".jsonl", ".ndjson")):
        yield from _from_objects(text, field, path.name)
    else:
        if field is not None:
            raise ValueError(f"{path.name} is text with one id a line and has no fields; leave `field` out")
        yield from (line.strip() for line in text.splitlines() if line.strip())


def _from_table(text: str, delimiter: str, field: str | None, name: str) -> Iterator[str]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = next(rows, [])
    column = header.index(_chosen(header, field, name)) if header else 0
    for row in rows:
        if len(row) > column and row[column].strip():
            yield row[column].strip()
        elif row:
            raise ValueError(f"{name}:{rows.line_num}: there is no '{header[column]}'")


def _from_objects(text: str, field: str | None, name: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record: Any = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{name}:{number}: not JSON: {error.msg}") from error
        value = record[_chosen(list(record), field, f"{name}:{number}")] if isinstance(record, dict) and record else record
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"{name}:{number}: an id is text or a whole number")
        yield str(value)


def _chosen(fields: list[str], field: str | None, name: str) -> str:
    if field is None and len(fields) == 1:
        return fields[0]
    if field is None:
        raise ValueError(f"{name} has the fields {', '.join(fields)}; say in `field` which one holds the ids")
    if field not in fields:
        raise ValueError(f"{name} has no field '{field}'{suggestion(field, fields)}")
    return field
