"""Writes rows into files that trainers read."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import polars as pl
from pydantic import Field, field_validator, model_validator

from ptk.errors import PtkError
from ptk.files import sha256_of_file
from ptk.operator import KEY, asset_operator
from ptk.params import COLUMN, UNKEYED, OutputFolder, Params
from ptk.text import is_turns
from ptk_catalog.digest import row_id
from ptk_catalog.parts import rows_within

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["ExportRows", "export_rows", "records"]

_AT_ONCE = 50_000
"""Rows that are sorted, and written, at once."""
_BYTES_AT_ONCE = 1 << 27
"""What they take in memory, about: fewer rows where they are long."""
_LOOKED_AT = 1_000
"""Rows by which that is told."""
_PIECES = 64
"""Most pieces into which one go over the rows parts them."""
_FORMS: dict[str, tuple[str, ...]] = {
    "rows": (),
    "trl_explicit": ("prompt", "chosen", "rejected"),
    "trl_implicit": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "sft": ("prompt", "completion"),
    "messages": ("messages",),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SPLIT = "_split"
_LINE_ENDS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u0085\u2028\u2029"}
"""Characters that some readers take for the end of a line; JSON may write them as escapes."""


class ExportRows(Params):
    """Settings of export_rows."""

    path: Annotated[OutputFolder, UNKEYED] = Field(description="Folder for the files, inside the folder of the spec.")
    format: Literal["jsonl", "parquet", "csv"] = Field("jsonl", description="Format of the files.")
    form: Literal["rows", "trl_explicit", "trl_implicit", "kto", "sft", "messages"] = Field(
        "rows", description="What a record is made of: the columns as they are, or the fields that a trainer wants."
    )
    columns: Annotated[tuple[str, ...] | None, COLUMN] = Field(
        None, description="Columns to write: null takes all with `form: rows`, and none beside the fields of another form."
    )
    split_by: Annotated[str | None, COLUMN] = Field(None, description="Column: each of its values gets a file of that name.")
    name: str = Field("data", description="Name of the file where `split_by` is null.")
    compress: Literal["none", "gzip", "zstd"] = Field("none", description="Compression; Parquet compresses within the file.")
    records_per_file: int | None = Field(None, ge=1, description="Most records of a file; null puts all into one.")

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' can't be the name of a file; use letters, digits, '_', '-' and '.'")
        return name

    @model_validator(mode="after")
    def _columns_are_free(self) -> ExportRows:
        for column in self.columns or ():
            if column in _FORMS[self.form]:
                raise ValueError(f"`form: {self.form}` makes a field '{column}'; leave it out of `columns`")
        if len(set(self.columns or ())) < len(self.columns or ()):
            raise ValueError("`columns` names a column twice")
        return self


def _check_form(frame: pl.LazyFrame, params: ExportRows) -> pl.Schema:
    """Return the columns of the records. Raises ValueError or TypeError where the rows do not fit the form or the format."""
    schema = records(frame, params).collect_schema()
    _check_types(schema, params)
    if params.split_by is not None and (dtype := frame.collect_schema()[params.split_by]).is_nested():
        raise TypeError(f"column '{params.split_by}' is {dtype}, whose values can't name files")
    return schema


@asset_operator(check=_check_form, version=1)
def export_rows(frame: pl.LazyFrame, params: ExportRows, folder: Path) -> dict[str, Any]:
    """Write rows into JSON Lines, Parquet or CSV files, as they are or in a form that TRL reads."""
    schema = _check_form(frame, params)
    _check_contents(frame, params)
    planned = _planned(frame, params)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pieces-") as aside, ExitStack() as stack:
        written = _Files(folder, params, schema, planned, stack)
        for piece in _in_order(frame, Path(aside) / "pieces", _rows_at_once(frame)):
            made = _with_split(records(piece.lazy(), params, with_split=True), params).collect()
            for (split,), part in made.group_by(_SPLIT, maintain_order=True):
                written.append(str(split), part.drop(_SPLIT))
        written.finish()
    files = {
        name: {"rows": rows, "bytes": (folder / name).stat().st_size, "sha256": sha256_of_file(folder / name)}
        for name, rows in sorted(written.rows.items())
    }
    return {"form": params.form, "format": params.format, "rows": sum(written.rows.values()), "files": files}


def records(frame: pl.LazyFrame, params: ExportRows, *, with_split: bool = False) -> pl.LazyFrame:
    """Return the records of keyed rows, in their order. Raises ValueError or TypeError for rows that have not the form's columns."""
    schema = frame.collect_schema()
    split = [pl.col(params.split_by).alias(_SPLIT)] if with_split and params.split_by is not None else []
    if params.form == "rows":
        names = [name for name in schema if name != KEY] if params.columns is None else list(params.columns)
        return frame.select(*names, *split)
    extra = [pl.col(name) for name in params.columns or ()]
    sides = {name: _turns(name, schema) for name in _sources(params.form)}
    if params.form == "trl_explicit":
        return frame.select(*_named(sides), *extra, *split)
    if params.form == "trl_implicit":
        whole = {side: pl.concat_list(sides["prompt"], sides[side]) for side in ("chosen", "rejected")}
        return frame.select(*_named(whole), *extra, *split)
    if params.form == "sft":
        return frame.select(*_named({"prompt": sides["prompt"], "completion": sides["chosen"]}), *extra, *split)
    if params.form == "messages":
        return frame.select(pl.concat_list(sides["prompt"], sides["chosen"]).alias("messages"), *extra, *split)
    answers = [
        pl.struct(completion=sides[side], label=pl.lit(label)) for side, label in (("chosen", True), ("rejected", False))
    ]
    both = frame.select(sides["prompt"].alias("prompt"), pl.concat_list(answers).alias("_answer"), *extra, *split)
    return both.explode("_answer").unnest("_answer")


def _named(columns: Mapping[str, pl.Expr]) -> list[pl.Expr]:
    return [column.alias(name) for name, column in columns.items()]


def _sources(form: str) -> tuple[str, ...]:
    """Return the columns that a form is made of."""
    return () if form == "rows" else ("prompt", "chosen") if form in ("sft", "messages") else ("prompt", "chosen", "rejected")


def _turns(name: str, schema: pl.Schema) -> pl.Expr:
    """Return a column as a list of {role, content}: text is one turn, the user's in a prompt and else the assistant's."""
    if name not in schema:
        raise ValueError(f"there is no column '{name}', which a form other than `rows` is made of")
    dtype = schema[name]
    if dtype == pl.String:
        role = "user" if name == "prompt" else "assistant"
        turn = pl.struct(role=pl.lit(role), content=pl.col(name))
        return pl.when(pl.col(name).is_not_null()).then(pl.concat_list(turn))
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if not is_turns(dtype) or not isinstance(inner, pl.Struct) or pl.Field("role", pl.String) not in inner.fields:
        raise TypeError(f"column '{name}' is {dtype}, neither text nor a list of turns {{role, content}}")
    return pl.col(name).list.eval(pl.struct(pl.element().struct.field("role"), pl.element().struct.field("content")))


def _with_split(made: pl.LazyFrame, params: ExportRows) -> pl.LazyFrame:
    if params.split_by is None:
        return made.with_columns(pl.lit(params.name).alias(_SPLIT))
    return made.with_columns(pl.col(_SPLIT).cast(pl.String))


def _check_types(schema: pl.Schema, params: ExportRows) -> None:
    for name, dtype in schema.items():
        if params.format != "parquet" and _holds_binary(dtype):
            raise TypeError(
                f"column '{name}' is {dtype}; {params.format} holds no bytes, so write Parquet or leave the column out"
            )


def _holds_binary(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return any(_holds_binary(cast(pl.DataType, field.dtype)) for field in dtype.fields)
    if isinstance(dtype, (pl.List, pl.Array)):
        return _holds_binary(cast(pl.DataType, dtype.inner))
    return dtype in (pl.Binary, pl.Object)


def _check_contents(frame: pl.LazyFrame, params: ExportRows) -> None:
    """Raise PtkError where a row lacks what its form is made of."""
    schema = frame.collect_schema()
    sources = _sources(params.form)
    if not sources:
        return
    lacks = {name: _turns(name, schema).list.len().fill_null(0) == 0 for name in sources}
    counted = frame.select(
        *(lack.sum().alias(f"{name} rows") for name, lack in lacks.items()),
        *(pl.col(KEY).filter(lack).min().alias(f"{name} first") for name, lack in lacks.items()),
    )
    found = counted.collect(engine="streaming").row(0, named=True)
    for name in sources:
        if found[f"{name} rows"]:
            raise PtkError(
                f"{found[f'{name} rows']:,} rows have no '{name}', which `form: {params.form}` is made of; the first is "
                f"{found[f'{name} first']}: reject them before"
            )


def _planned(frame: pl.LazyFrame, params: ExportRows) -> dict[str, int]:
    """Return how many records each file, or series of files, will have. Raises PtkError for a value that can't name a file."""
    each = 2 if params.form == "kto" else 1
    if params.split_by is None:
        return {params.name: frame.select(pl.len()).collect(engine="streaming").item() * each}
    split = pl.col(params.split_by).cast(pl.String).alias(_SPLIT)
    counted = frame.select(split).group_by(_SPLIT).agg(count=pl.len()).sort(_SPLIT).collect(engine="streaming")
    folded: dict[str, str] = {}
    for name in counted[_SPLIT]:
        if name is None or not _NAME.fullmatch(name):
            what = "has empty values" if name is None else f"has the value {name!r}"
            raise PtkError(f"column '{params.split_by}' {what}, which can't name a file; use letters, digits, '_', '-' and '.'")
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise PtkError(
                f"column '{params.split_by}' has the values {other!r} and {name!r}, which name one file on some systems"
            )
    return {name: count * each for name, count in counted.iter_rows()}


def _rows_at_once(frame: pl.LazyFrame) -> int:
    """Return how many rows are sorted at once, by the length of some: the same rows, and a power of two, in whatever order rows come."""
    key = frame.collect_schema()[KEY]
    drawn = frame.with_columns(_number=row_id({KEY: key})).bottom_k(_LOOKED_AT, by="_number").drop("_number")
    rows = rows_within(drawn.collect(engine="streaming"), _BYTES_AT_ONCE, _AT_ONCE)
    return rows if rows == _AT_ONCE else 1 << (rows.bit_length() - 1)


def _in_order(frame: pl.LazyFrame, aside: Path, most: int) -> Iterator[pl.DataFrame]:
    """Yield the rows sorted by key, piece by piece, so that the bytes do not depend on the order in which rows come.

    More than `most` rows, which are sorted at once, are first parted, in the folder `aside`, by ranges of their keys.
    """
    if frame.select(pl.len()).collect(engine="streaming").item() <= most:
        yield frame.collect(engine="streaming").sort(KEY)
        return
    aside.mkdir(exist_ok=True)
    for piece in _parted(frame, aside, most):
        yield from _in_order(pl.scan_ipc(piece), piece.with_suffix(""), most)
        piece.unlink()


def _parted(frame: pl.LazyFrame, aside: Path, most: int) -> list[Path]:
    """Write the rows into files for ranges of keys, about equally many in each; return the files in the order of the ranges."""
    import pyarrow as pa

    schema = frame.collect_schema()
    height = frame.select(pl.len()).collect(engine="streaming").item()
    count = min(-(-height // most) + 1, _PIECES)
    drawn = frame.select(KEY, _number=row_id({KEY: schema[KEY]})).bottom_k(count * 100, by="_number")
    sample = drawn.collect(engine="streaming")[KEY].sort()
    bounds = sample.gather([len(sample) * piece // count for piece in range(1, count)]).unique().sort()
    place = pl.sum_horizontal((pl.col(KEY) >= bound).cast(pl.Int32) for bound in bounds)
    files = [aside / f"{number:03}.arrow" for number in range(len(bounds) + 1)]
    with ExitStack() as stack:
        arrow = _arrow(pl.DataFrame(schema=schema)).schema
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [stack.enter_context(pa.ipc.new_file(str(file), arrow, options=options)) for file in files]
        # In order, though it does not matter: unordered batches are made ahead without bound.
        for batch in frame.collect_batches(chunk_size=most, engine="streaming"):
            for (number,), part in batch.group_by(place.alias("_piece")):
                writers[cast(int, number)].write_table(_arrow(part))
    return files


class _Files:
    """The files that are being written: one at a time for each value of `split_by`."""

    def __init__(
        self, folder: Path, params: ExportRows, schema: pl.Schema, planned: Mapping[str, int], stack: ExitStack
    ) -> None:
        self.rows: dict[str, int] = {}
        self._folder, self._params, self._schema, self._planned, self._stack = folder, params, schema, planned, stack
        self._open: dict[str, tuple[str, _Writer]] = {}
        self._done: dict[str, int] = {}

    def append(self, split: str, part: pl.DataFrame) -> None:
        """Write records of one value of `split_by` after those that came before."""
        most = self._params.records_per_file or max(1, self._planned[split])
        while part.height:
            done = self._done.get(split, 0)
            if done % most == 0:
                self._begin(split, done // most)
            name, writer = self._open[split]
            now = part.head(most - done % most)
            writer.write(now)
            self.rows[name] += now.height
            self._done[split] = done + now.height
            part = part.slice(now.height)

    def finish(self) -> None:
        """Close the files, and write an empty one where there are no records."""
        if not self._params.split_by and not self.rows:
            self._begin(self._params.name, 0)
        for _, writer in self._open.values():
            writer.close()

    def _begin(self, split: str, number: int) -> None:
        if split in self._open:
            self._open[split][1].close()
        most, planned = self._params.records_per_file, self._planned[split]
        series = "" if most is None else f"-{number:05}-of-{max(1, -(-planned // most)):05}"
        ending = f".{self._params.format}"
        if self._params.format != "parquet" and self._params.compress != "none":
            ending += {"gzip": ".gz", "zstd": ".zst"}[self._params.compress]
        name = f"{split}{series}{ending}"
        self._open[split] = name, self._stack.enter_context(_Writer(self._folder / name, self._params, self._schema))
        self.rows[name] = 0


class _Writer:
    """A file of one of the formats, written a frame at a time."""

    def __init__(self, path: Path, params: ExportRows, schema: pl.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._params = params
        self._table: pq.ParquetWriter | None = None
        compress = None if params.compress == "none" else params.compress
        if params.format == "parquet":
            arrow = _arrow(pl.DataFrame(schema=schema)).schema
            self._table = pq.ParquetWriter(path, arrow, compression=compress or "none")
            return
        self._file = pa.output_stream(str(path), compression=compress)
        if params.format == "csv":
            self._file.write(_csv(pl.DataFrame(schema=schema), header=True))

    def write(self, part: pl.DataFrame) -> None:
        if self._table is not None:
            self._table.write_table(_arrow(part))
        else:
            self._file.write(_csv(part) if self._params.format == "csv" else _jsonl(part))

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        elif not self._file.closed:
            self._file.close()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arrow(part: pl.DataFrame) -> Any:
    return part.to_arrow(compat_level=pl.CompatLevel.oldest())


def _jsonl(part: pl.DataFrame) -> bytes:
    """Return records as lines of JSON in UTF-8; NaN and the infinities, which JSON has not, become null."""
    buffer = io.BytesIO()
    part.write_ndjson(buffer)
    lines = buffer.getvalue()
    for character, escape in _LINE_ENDS.items():
        lines = lines.replace(character, escape)
    return lines


def _csv(part: pl.DataFrame, header: bool = False) -> bytes:
    """Return records as CSV; lists and structs as JSON, NaN and the infinities, like null, as nothing."""
    cells: list[pl.Expr] = []
    for name, dtype in part.schema.items():
        cell = pl.col(name)
        if dtype.is_nested():
            text = pl.struct(pl.col(name).alias("v")).struct.json_encode()
            cell = pl.when(cell.is_not_null()).then(text.str.slice(len('{"v":')).str.head(-1))
        elif dtype.is_float():
            cell = pl.when(cell.is_finite()).then(cell)
        cells.append(cell.alias(name))
    return part.select(cells).write_csv(include_header=header).encode()
