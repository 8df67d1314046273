"""Reads preference pairs from JSONL, CSV and Parquet files into the canonical form: prompt, chosen, rejected as lists of turns."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
from pydantic import Field

from ptk.errors import UnreadableFile
from ptk.operator import DETAIL, RAW, REJECT, Source, reader
from ptk.params import Params, SourceFiles
from ptk_catalog.digest import row_id

__all__ = ["ReadPairs", "read_pairs"]

_TURNS: pl.DataType = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_ROLES = ("system", "user", "assistant")
_FIELDS = ("prompt", "chosen", "rejected")
_LOOKED_AT = 1_000
"""Records from which the types of further columns are told."""
_BATCH = 10_000


class Fields(Params):
    """Which field of a record holds what."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


class ReadPairs(Params):
    """Settings of read_pairs."""

    path: SourceFiles = Field(description="A file or a glob: .jsonl, .csv, .parquet; .jsonl and .csv may be gzipped (.gz).")
    fields: Fields = Field(Fields(), description="Names of the fields that hold the prompt and the two responses.")
    keep: tuple[str, ...] | Literal["all"] = Field("all", description="Further fields to keep as columns.")
    source: str | None = Field(None, description="A value for the column `source`: where these pairs come from.")
    on_repeat: Literal["reject", "number"] = Field("reject", description="What to do with a pair that occurred before.")
    max_malformed: float = Field(0.2, ge=0.0, le=1.0, description="Stop when a larger share of the records is malformed.")


@reader(version=1)
def read_pairs(params: ReadPairs) -> Source:
    """Read preference pairs from JSONL, CSV or Parquet files; malformed records are rejected with file and line."""
    extra = _further_columns(params)
    columns = pl.Schema({"pair_id": pl.String(), "item_id": pl.String(), **dict.fromkeys(_FIELDS, _TURNS), **extra})
    return Source(
        columns=columns,
        key="pair_id",
        batches=lambda: _batches(params, extra),
        max_malformed=params.max_malformed,
        on_repeat=params.on_repeat,
    )


def _further_columns(params: ReadPairs) -> dict[str, pl.DataType]:
    """Return the types of the columns beside the pair, as the first records of the first file show them.

    Raises ValueError when a field that is named in the settings is in none of those records.
    """
    looked_at: list[dict[str, Any]] = []
    for _, record, _ in _records(params.path.paths[0]):
        if isinstance(record, dict):
            looked_at.append(record)
        if len(looked_at) >= _LOOKED_AT:
            break
    found: dict[str, None] = {name: None for record in looked_at for name in record}
    if looked_at:
        wanted = [getattr(params.fields, name) for name in _FIELDS] + ([] if params.keep == "all" else list(params.keep))
        for name in wanted:
            if name not in found:
                raise ValueError(f"no record of {params.path.paths[0].name} has a field '{name}'; they have {', '.join(found)}")
    taken = {getattr(params.fields, name) for name in _FIELDS}
    reserved = {"pair_id", "item_id", *_FIELDS} | ({"source"} if params.source is not None else set())
    names = (
        [name for name in found if name not in taken | reserved and not name.startswith("_")]
        if params.keep == "all"
        else params.keep
    )
    columns = {name: _type_of([record.get(name) for record in looked_at]) for name in names}
    if params.source is not None:
        columns["source"] = pl.String()
    return columns


def _type_of(values: Iterable[Any]) -> pl.DataType:
    """Return the narrowest type for JSON values; String, as JSON text, where they are of several kinds."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Boolean()
    if kinds == {int}:
        return pl.Int64()
    if kinds and kinds <= {int, float}:
        return pl.Float64()
    if kinds == {list}:
        inner = _type_of([item for value in values if value is not None for item in value])
        return pl.List(inner)
    return pl.String()


def _batches(params: ReadPairs, extra: Mapping[str, pl.DataType]) -> Iterator[pl.DataFrame]:
    schema = {
        **dict.fromkeys(_FIELDS, _TURNS),
        **extra,
        REJECT: pl.String(),
        DETAIL: pl.String(),
        RAW: pl.String(),
        "_file": pl.String(),
        "_line": pl.Int64(),
    }
    rows: list[dict[str, Any]] = []
    for path in params.path.paths:
        for line, record, raw in _records(path):
            rows.append(_row(record, raw, params, extra) | {"_file": path.name, "_line": line})
            if len(rows) >= _BATCH:
                yield _with_ids(pl.DataFrame(rows, schema=schema))
                rows = []
    if rows:
        yield _with_ids(pl.DataFrame(rows, schema=schema))


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Add pair_id, and item_id, which stays the same when the preference flips."""
    sides = {name: row_id({name: _TURNS}) for name in ("chosen", "rejected")}
    return (
        frame.with_columns(pair_id=row_id(dict.fromkeys(_FIELDS, _TURNS)), **{f"_{name}": side for name, side in sides.items()})
        .with_columns(_low=pl.min_horizontal("_chosen", "_rejected"), _high=pl.max_horizontal("_chosen", "_rejected"))
        .with_columns(item_id=row_id({"prompt": _TURNS, "_low": pl.String(), "_high": pl.String()}))
        .drop("_chosen", "_rejected", "_low", "_high")
    )


def _row(record: Any, raw: str, params: ReadPairs, extra: Mapping[str, pl.DataType]) -> dict[str, Any]:
    if isinstance(record, _Unreadable):
        return {REJECT: record.reason, DETAIL: record.detail, RAW: raw}
    if not isinstance(record, dict):
        return {REJECT: "not_an_object", DETAIL: f"a record is an object of fields, not {_kind(record)}", RAW: raw}
    row: dict[str, Any] = {}
    try:
        for name in _FIELDS:
            field = getattr(params.fields, name)
            if record.get(field) is None:
                raise _MalformedError("missing_field", f"field '{field}' is {'null' if field in record else 'missing'}")
            row[name] = _turns(record[field], field, "user" if name == "prompt" else "assistant")
        if row["prompt"][-1]["role"] != "user":
            raise _MalformedError(
                "wrong_roles", f"the last turn of '{params.fields.prompt}' is the {row['prompt'][-1]['role']}'s, not the user's"
            )
        for name, dtype in extra.items():
            row[name] = (
                params.source if name == "source" and params.source is not None else _fitting(record.get(name), dtype, name)
            )
    except _MalformedError as problem:
        return {REJECT: problem.reason, DETAIL: problem.detail, RAW: raw}
    return row


class _MalformedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def _turns(value: Any, field: str, role: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        turns = [{"role": role, "content": value}]
    elif isinstance(value, list):
        turns = []
        for turn in value:
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in _ROLES:
                raise _MalformedError("wrong_type", f"field '{field}': a turn is {{role: {' | '.join(_ROLES)}, content: text}}")
            turns.append({"role": turn["role"], "content": turn["content"]})
    else:
        raise _MalformedError("wrong_type", f"field '{field}' is {_kind(value)}, not text or a list of turns")
    if not turns or any(not turn["content"].strip() for turn in turns):
        raise _MalformedError("empty_text", f"field '{field}' is empty")
    return turns


def _fitting(value: Any, dtype: pl.DataType, name: str) -> Any:
    if value is None:
        return None
    if dtype == pl.String:
        return value if isinstance(value, str) else orjson.dumps(value).decode()
    if isinstance(dtype, pl.List):
        if isinstance(value, list):
            inner = dtype.inner() if isinstance(dtype.inner, type) else dtype.inner
            return [_fitting(item, inner, name) for item in value]
    elif dtype == pl.Boolean:
        if isinstance(value, bool):
            return value
    elif dtype == pl.Float64:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    raise _MalformedError("wrong_type", f"field '{name}' is {_kind(value)}; in the first {_LOOKED_AT:,} records it is {dtype}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


class _Unreadable:
    """A record that could not be parsed."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def _records(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Yield (line from 1, record or _Unreadable, the record's text) of a file; Parquet rows count as lines."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_records(path)
    elif name.endswith((".csv", ".tsv")):
        yield from _csv_records(path, "\t" if name.endswith(".tsv") else ",")
    else:
        yield from _json_records(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path}: not a whole gzip file: {error}; fetch it again") from error


def _json_records(path: Path) -> Iterator[tuple[int, Any, str]]:
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if not line:
                continue
            text = line.decode("utf-8", errors="replace")
            try:
                yield number, orjson.loads(line), text
            except orjson.JSONDecodeError as error:
                encoding = "" if _is_utf8(line) else "; the line is not UTF-8"
                yield number, _Unreadable("not_json", f"{error.msg} at column {error.colno}{encoding}"), text


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, Any, str]]:
    csv.field_size_limit(1 << 30)
    with _opened(path) as file:
        rows = csv.reader(
            io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""), delimiter=delimiter
        )
        header = [_readable(name) for name in next(rows, [])]
        if len(set(header)) < len(header):
            raise UnreadableFile(f"{path}: the header names a column twice: {', '.join(header)}")
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, _Unreadable("not_csv", str(error)), ""
                continue
            if not row:
                continue
            text = delimiter.join(row)
            if (shown := _readable(text)) != text:
                yield line, _Unreadable("not_csv", "the row is not UTF-8"), shown
            elif len(row) != len(header):
                yield line, _Unreadable("not_csv", f"{len(row)} fields under a header of {len(header)}"), text
            else:
                yield line, dict(zip(header, row, strict=True)), text


def _readable(text: str) -> str:
    """Return `text` with a replacement character for every byte that was not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parquet_records(path: Path) -> Iterator[tuple[int, Any, str]]:
    try:
        number = 0
        for batch in pl.scan_parquet(path).collect_batches(chunk_size=_BATCH, maintain_order=True):
            for record in batch.iter_rows(named=True):
                number += 1
                yield number, record, orjson.dumps(record, default=str).decode()
    except pl.exceptions.PolarsError as error:
        raise UnreadableFile(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error
