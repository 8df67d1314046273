"""Reads preference pairs from files, the Hugging Face Hub or the catalog into the canonical form: lists of turns."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import orjson
import polars as pl
from polars_hash import CryptographicHashingNameSpace
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ptk.operator import DETAIL, RAW, REJECT, Source, reader
from ptk.ops.catalog_rows import CatalogEntry, CatalogRecords
from ptk.ops.hub_rows import Hub, HubRecords
from ptk.ops.record_formats import (
    FORMATS,
    ROLES,
    TURNS,
    Fields,
    Format,
    FormatOptions,
    MalformedError,
    Turns,
    Voted,
    asked,
    has_field,
    kind_of,
    make_format,
    turns_of,
    vote_text,
    walk,
)
from ptk.ops.records import LOOKED_AT, FileRecords, Look, Records, Table, Unreadable, Verbatim, first_words, json_text
from ptk.params import UNKEYED, Params, SourceFiles, suggestion
from ptk_catalog.digest import encode

__all__ = ["Fields", "Hub", "ReadPairs", "Voted", "read_pairs"]

_SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What Python calls white space."""
_ROLES = frozenset(ROLES)
_LONGEST_INTEGER = 1 << 63


class Place(Params):
    """Where records come from: one of `path`, `hub` and `entry`."""

    path: SourceFiles | None = Field(
        None, description="A file or a glob: JSON Lines, .json, .csv, .tsv, .parquet, compressed or not."
    )
    hub: Hub | None = Field(None, description="A dataset of the Hugging Face Hub: name, revision, config and split.")
    catalog: Annotated[str | None, UNKEYED] = Field(
        None, min_length=1, description="Where the catalog of `entry` is; the spec's own by default."
    )
    entry: CatalogEntry | None = Field(None, description="A version in a catalog, such as `advice@gold`.")


class ReadPairs(FormatOptions, Place):
    """Settings of read_pairs."""

    keep: tuple[str, ...] | Literal["all"] = Field("all", description="Further fields to keep as columns.")
    source: str | None = Field(None, description="A value for the column `source`: where these pairs come from.")
    licence: Annotated[str | None, UNKEYED] = Field(
        None, min_length=1, description="Licence of these records; it goes with all that is made of them."
    )
    terms: Annotated[str | None, UNKEYED] = Field(
        None,
        min_length=1,
        description="Terms of use of these records, in words or as an address; they go along like the licence.",
    )
    on_repeat: Literal["reject", "number"] = Field("reject", description="What to do with a pair that occurred before.")
    max_malformed: float = Field(0.2, ge=0.0, le=1.0, description="Stop when a larger share of the records is malformed.")

    @field_validator("fields")
    @classmethod
    def _of_the_format(cls, fields: Fields, info: ValidationInfo) -> Fields:
        chosen = info.data.get("format")
        if chosen is None:
            return fields
        names = FORMATS[chosen][0]
        for name in Fields.model_fields:
            if name in fields.model_fields_set and name not in names:
                raise ValueError(f"format '{chosen}' has no field '{name}'; it has {', '.join(names)}")
        if fields.prompt is None and chosen != "columns":
            raise ValueError(f"format '{chosen}' needs a prompt")
        if fields.scores is not None and {"text", "score"} & fields.model_fields_set:
            raise ValueError("with `scores` the responses are texts, so `text` and `score` name nothing")
        return fields

    @field_validator(*(option for _, options in FORMATS.values() for option in options))
    @classmethod
    def _for_the_format(cls, value: Any, info: ValidationInfo) -> Any:
        chosen = info.data.get("format")
        takers = [name for name, (_, options) in FORMATS.items() if info.field_name in options]
        if chosen is not None and chosen not in takers:
            raise ValueError(f"'{info.field_name}' goes with format {' or '.join(takers)}, not with '{chosen}'")
        return value

    @field_validator("values")
    @classmethod
    def _told_apart(cls, values: Voted) -> Voted:
        texts = [vote_text(value) for value in (*values.response_1, *values.response_2, *values.tie)]
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"the vote '{text}' is named twice")
        if not values.response_1 or not values.response_2:
            raise ValueError("both responses need values that vote for them")
        return values

    @model_validator(mode="after")
    def _one_place(self) -> ReadPairs:
        given = [name for name in ("path", "hub", "entry") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"; there are {' and '.join(given)}" if given else ""
            raise ValueError(f"say where the records are: one of `path`, `hub` and `entry`{said}")
        if self.catalog is not None and self.entry is None:
            raise ValueError("`catalog` goes with `entry`")
        return self

    def origin(self) -> dict[str, Any]:
        """Return what the Hub's or the catalog's name was resolved to; nothing for files."""
        if self.hub is not None:
            return self.hub.canonical()
        if self.entry is not None:
            return {"entry": self.entry.reference, "digest": self.entry.digest}
        return {}


_NO_PAIR = frozenset(
    {"tie", "small_margin", "few_responses", "no_votes", "marker_inside", "empty_turn", "early_split", "role_order"}
)
"""Reasons that say of a good record that it makes no pair, or none of the kind that is wanted."""


@reader(version=2)
def read_pairs(params: ReadPairs) -> Source:
    """Read preference pairs from files, the Hub or the catalog, in six formats; malformed records are rejected with their line."""
    records = _records(params)
    looks = list(records.looks())
    stored = _stored(params, looks)
    if stored is not None:
        return Source(
            columns=stored,
            key=params.entry.key[0] if params.entry else "",
            batches=lambda piece: _stored_batches(records.blocks(piece), params, stored),
            pieces=records.pieces,
            max_malformed=params.max_malformed,
            on_repeat=params.on_repeat,
            origin=params.origin(),
            unchanged=frozenset(name for name in stored if name != "source" or params.source is None),
        )
    layout = _layout(params, looks)
    return Source(
        columns=layout.columns,
        key=layout.format.key,
        batches=lambda piece: _batches(records.blocks(piece), layout),
        pieces=records.pieces,
        max_malformed=params.max_malformed,
        on_repeat=params.on_repeat,
        flags=layout.format.flags,
        expected=_NO_PAIR,
        origin=params.origin(),
    )


def _records(params: ReadPairs) -> Records:
    if params.hub is not None:
        return HubRecords(params.hub)
    if params.entry is not None:
        return CatalogRecords(params.entry)
    assert params.path is not None
    return FileRecords(params.path.paths)


# ---- rows of the catalog that are canonical ----


def _stored(params: ReadPairs, looks: Sequence[Look]) -> pl.Schema | None:
    """Return the columns of a version that is taken as it is; None where its rows are records like others.

    It is one with one key column, whose prompts and responses, where it has them, are lists of turns.
    """
    # What decides rows must be in the key, so it goes by values and not by what was written.
    as_it_is = params.format == "columns" and params.fields.model_dump() == Fields().model_dump()
    if params.entry is None or len(params.entry.key) != 1 or not as_it_is:
        return None
    types = dict(looks[0].types or {})
    if any(name in types and types[name] != TURNS for name in ("prompt", "chosen", "rejected")):
        return None
    if params.keep != "all":
        for name in params.keep:
            if name not in types:
                raise ValueError(f"{params.entry.reference} has no column '{name}'{suggestion(name, types)}")
        always = {params.entry.key[0], "item_id", "prompt", "chosen", "rejected"}
        types = {name: dtype for name, dtype in types.items() if name in always or name in params.keep}
    if params.source is not None:
        types = {name: dtype for name, dtype in types.items() if name != "source"} | {"source": pl.String()}
    return pl.Schema(types)


def _stored_batches(blocks: Iterable[Verbatim | Table], params: ReadPairs, columns: pl.Schema) -> Iterator[pl.DataFrame]:
    for block in blocks:
        assert isinstance(block, Table)
        rows = block.frame.lazy()
        if params.source is not None:
            rows = rows.with_columns(source=pl.lit(params.source))
        yield rows.select(
            *columns.names(),
            *(pl.lit(None, pl.String).alias(name) for name in (REJECT, DETAIL, RAW)),
            pl.lit(block.file).alias("_file"),
            pl.int_range(block.first, block.first + block.frame.height, dtype=pl.Int64).alias("_line"),
        ).collect()


# ---- what the first records show ----


@dataclass(frozen=True, slots=True)
class _Layout:
    """How records become rows."""

    format: Format
    plain: tuple[str, str, str] | None
    """The fields of prompt, chosen and rejected, where these are columns as they are."""
    further: Mapping[str, pl.DataType]
    source: str | None

    @property
    def columns(self) -> pl.Schema:
        ids = (
            {"pair_id": pl.String(), "item_id": pl.String()} if self.format.key == "pair_id" else {self.format.key: pl.String()}
        )
        turns = dict.fromkeys(self.format.turns, TURNS)
        source = {"source": pl.String()} if self.source is not None else {}
        return pl.Schema({**ids, **turns, **self.format.own, **self.further, **source})


def _layout(params: ReadPairs, looks: Sequence[Look]) -> _Layout:
    """Return how records become rows, as the first records of every file show.

    Raises ValueError when a field that is named in the settings is in none of those records.
    """
    implicit = _is_implicit(params, looks)
    made = make_format(params, implicit=implicit)
    found: dict[str, None] = {}
    for look in looks:
        found.update(dict.fromkeys(look.types if look.types is not None else (name for row in look.records for name in row)))
    wanted = [*made.needed, *(() if params.keep == "all" else params.keep)]
    if any(look.records or look.types is not None for look in looks):
        for name in wanted:
            if not any(_shows(look, name) for look in looks):
                raise ValueError(
                    f"no record of {first_words(look.name for look in looks)} has a field '{name}'; they have {', '.join(found) or 'none'}"
                    f"{_hint(params, looks)}"
                )
    key = {"pair_id", "item_id"} if made.key == "pair_id" else {made.key}
    reserved = {*key, *made.turns, *made.own, *(("source",) if params.source is not None else ())}
    if params.keep == "all":
        names = [name for name in found if name not in reserved and name not in made.whole and not name.startswith("_")]
    else:
        names = list(params.keep)
        for name in names:
            if name in reserved or name.startswith("_"):
                raise ValueError(f"'{name}' can't be kept: a column of that name is made here; leave it out of `keep`")
    further = {name: _finished(_widest(_type_in(look, name) for look in looks)) for name in names}
    plain = None
    if params.format == "columns" and not implicit and params.fields.prompt is not None:
        plain = (params.fields.prompt, params.fields.chosen, params.fields.rejected)
    return _Layout(made, plain, further, params.source)


def _is_implicit(params: ReadPairs, looks: Sequence[Look]) -> bool:
    """Return whether responses are whole conversations: nothing says what the prompt is, and they are lists."""
    if params.format != "columns" or params.fields.prompt != "prompt" or any(_shows(look, "prompt") for look in looks):
        return False
    return any(
        isinstance(_dtype_at(look.types, params.fields.chosen), pl.List)
        if look.types is not None
        else any(isinstance(_value_at(record, params.fields.chosen), list) for record in look.records)
        for look in looks
    )


def _hint(params: ReadPairs, looks: Sequence[Look]) -> str:
    values = (record.get("chosen") for look in looks for record in look.records[:1])
    if params.format == "columns" and any(isinstance(value, str) and "\n\nHuman:" in value for value in values):
        return "; these look like transcripts: say `format: hh_transcripts`"
    return ""


def _shows(look: Look, name: str) -> bool:
    if look.types is not None:
        return _dtype_at(look.types, name) is not None
    return any(has_field(record, name) for record in look.records)


def _dtype_at(types: Mapping[str, pl.DataType], name: str) -> pl.DataType | None:
    """Return the type of a column, or of what a name with dots leads to in one."""
    if name in types:
        return types[name]
    first, *rest = name.split(".")
    dtype = types.get(first)
    for part in rest:
        if isinstance(dtype, pl.Struct):
            dtype = next((_of(field.dtype) for field in dtype.fields if field.name == part), None)
        elif isinstance(dtype, (pl.List, pl.Array)) and part.isdecimal():
            dtype = _of(dtype.inner)
        else:
            return None
    return dtype


def _of(dtype: Any) -> pl.DataType:
    made: pl.DataType = dtype() if isinstance(dtype, type) else dtype
    return made


def _value_at(record: Mapping[str, Any], name: str) -> Any:
    """Return a record's field, None where there is none."""
    value = record.get(name)
    if value is None and name not in record and "." in name:
        value = walk(record, name.split("."))
        return None if value is _ABSENT else value
    return value


_ABSENT = walk(None, ["absent"])


def _type_in(look: Look, name: str) -> pl.DataType | None:
    if look.types is not None:
        return _narrowed(_dtype_at(look.types, name))
    return _type_of([_value_at(record, name) for record in look.records])


def _type_of(values: Iterable[Any]) -> pl.DataType | None:
    """Return the narrowest type for JSON values; String, as JSON text, where they are of several kinds; None for no value."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return None
    if kinds == {bool}:
        return pl.Boolean()
    if kinds == {int}:
        return pl.Int64()
    if kinds <= {int, float}:
        return pl.Float64()
    if kinds == {list}:
        inner = _type_of([item for value in values if value is not None for item in value])
        return pl.List(inner if inner is not None else pl.Null())
    return pl.String()


def _narrowed(dtype: pl.DataType | None) -> pl.DataType | None:
    """Return the type that a column of a table is kept in: as JSON has it, or its own where JSON has none."""
    if dtype is None or dtype == pl.Null:
        return None
    if dtype.is_integer():
        return pl.Int64()
    if dtype.is_float():
        return pl.Float64()
    if isinstance(dtype, (pl.Categorical, pl.Enum, pl.Struct)):
        return pl.String()
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = _narrowed(_of(dtype.inner))
        return pl.List(inner if inner is not None else pl.Null())
    if dtype == pl.Object:
        return pl.String()
    return dtype


def _widest(types: Iterable[pl.DataType | None]) -> pl.DataType | None:
    """Return a type that values of all these types fit."""
    widest: pl.DataType | None = None
    for dtype in types:
        widest = dtype if widest is None else widest if dtype is None else _wider(widest, dtype)
    return widest


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType:
    if one == other:
        return one
    if {type(one), type(other)} == {pl.Int64, pl.Float64}:
        return pl.Float64()
    if isinstance(one, pl.List) and isinstance(other, pl.List):
        inner = [None if _of(dtype.inner) == pl.Null else _of(dtype.inner) for dtype in (one, other)]
        return pl.List(_widest(inner) or pl.Null())
    return pl.String()


def _finished(dtype: pl.DataType | None) -> pl.DataType:
    """Return the type of a column; String where no value was seen."""
    if isinstance(dtype, pl.List):
        inner = _of(dtype.inner)
        return pl.List(_finished(None if inner == pl.Null else inner))
    return pl.String() if dtype is None else dtype


# ---- records -> rows ----

_Problem = tuple[str, str]


def _batches(blocks: Iterable[Verbatim | Table], layout: _Layout) -> Iterator[pl.DataFrame]:
    for block in blocks:
        yield _with_ids(_batch(block, layout), layout.format)


def _batch(block: Verbatim | Table, layout: _Layout) -> pl.DataFrame:
    """Return the rows of some records: those that look right as whole columns, the others one by one."""
    if layout.plain is not None:
        made = _table_columns(block, layout) if isinstance(block, Table) else _record_columns(block, layout)
        if made is not None:
            columns, doubtful = made
            problems = _problems(block, sorted(doubtful), layout)
            if problems is not None:
                return _frame(block, None, columns, problems, layout)
    return _one_by_one(block.verbatim() if isinstance(block, Table) else block, layout)


def _problems(block: Verbatim | Table, rows: Sequence[int], layout: _Layout) -> dict[int, tuple[_Problem, str]] | None:
    """Return what is wrong with the records at some indexes, and their texts; None where one of them is right after all."""
    if not rows:
        return {}
    some = block.verbatim(rows) if isinstance(block, Table) else block
    repeats = _repeated_fields(some, layout)
    found: dict[int, tuple[_Problem, str]] = {}
    for place, row in enumerate(rows):
        index = place if isinstance(block, Table) else row
        try:
            _values(some.records[index], layout, repeats.get(index))
        except MalformedError as problem:
            found[row] = ((problem.reason, problem.detail), some.text(index))
        else:
            return None
    return found


def _values(record: Any, layout: _Layout, repeated: str | None) -> tuple[Sequence[Any], list[Any]]:
    """Return the rows that a record makes, and its further values. Raises MalformedError."""
    if isinstance(record, Unreadable):
        raise MalformedError(record.reason, record.detail)
    if not isinstance(record, dict):
        raise MalformedError("not_an_object", f"a record is an object of fields, not {kind_of(record)}")
    if repeated is not None:
        raise MalformedError("repeated_field", f"field '{repeated}' stands twice in the record")
    rows = layout.format.rows(record)
    return rows, [_fitting(_value_at(record, name), dtype, name) for name, dtype in layout.further.items()]


def _one_by_one(block: Verbatim, layout: _Layout) -> pl.DataFrame:
    """Return the rows of some records; each row is what its record alone makes it."""
    repeats = _repeated_fields(block, layout)
    at: list[int] = []
    rows: list[Sequence[Any]] = []
    further: list[list[Any]] = []
    problems: dict[int, tuple[_Problem, str]] = {}
    nothing = (None,) * (len(layout.format.turns) + len(layout.format.own))
    none = [None] * len(layout.further)
    for index, record in enumerate(block.records):
        try:
            made, values = _values(record, layout, repeats.get(index) if repeats else None)
        except MalformedError as problem:
            problems[len(rows)] = ((problem.reason, problem.detail), block.text(index))
            made, values = (nothing,), none
        for row in made:
            at.append(index)
            rows.append(row)
            further.append(values)
    columns = {name: _turns_column([row[number] for row in rows]) for number, name in enumerate(layout.format.turns)}
    for number, (name, dtype) in enumerate(layout.format.own.items(), start=len(layout.format.turns)):
        columns[name] = pl.Series(name, [row[number] for row in rows], dtype)
    for number, (name, dtype) in enumerate(layout.further.items()):
        columns[name] = pl.Series(name, [values[number] for values in further], dtype)
    return _frame(block, at, columns, problems, layout)


def _frame(
    block: Verbatim | Table,
    at: Sequence[int] | None,
    columns: Mapping[str, pl.Series],
    problems: Mapping[int, tuple[_Problem, str]],
    layout: _Layout,
) -> pl.DataFrame:
    """Return rows with their marks; `at` has the record of each row, where a record may make several."""
    names = [*layout.format.turns, *layout.format.own, *layout.further]
    frame = pl.DataFrame([columns[name].alias(name) for name in names])
    lines: pl.Series
    if isinstance(block, Table):
        lines = pl.int_range(block.first, block.first + block.frame.height, dtype=pl.Int64, eager=True)
    else:
        numbers = block.lines if at is None else [block.lines[index] for index in at]
        lines = pl.Series(numbers, dtype=pl.Int64)
    marks: dict[str, pl.Series] = {
        name: pl.repeat(None, frame.height, dtype=pl.String, eager=True) for name in (REJECT, DETAIL, RAW)
    }
    if problems:
        said: dict[str, list[str | None]] = {name: [None] * frame.height for name in marks}
        for row, ((reason, detail), text) in problems.items():
            said[REJECT][row], said[DETAIL][row], said[RAW][row] = reason, detail, text
        marks = {name: pl.Series(name, values, pl.String) for name, values in said.items()}
    if layout.source is not None:
        frame = frame.with_columns(source=pl.lit(layout.source))
    frame = frame.with_columns(
        *(series.alias(name) for name, series in marks.items()), pl.lit(block.file).alias("_file"), lines.alias("_line")
    )
    if problems:
        made = [*names, *(("source",) if layout.source is not None else ())]
        frame = frame.with_columns(pl.when(pl.col(REJECT).is_null()).then(pl.col(name)).alias(name) for name in made)
    return frame


def _with_ids(frame: pl.DataFrame, made: Format) -> pl.DataFrame:
    """Add the key; for pairs also item_id, which stays the same when the preference flips."""
    texts = frame.select(encode(pl.col(name), TURNS).alias(name) for name in made.turns)
    if made.key != "pair_id":
        return frame.with_columns(texts.select(_id_of(pl.col(made.turns[0])).alias(made.key)).to_series())
    # What `row_id` would make of these columns, but each of them is encoded once.
    ids = (
        texts.select(
            "prompt",
            pair_id=_id_of(pl.concat_str(*made.turns)),
            _chosen=_id_of(pl.col("chosen")),
            _rejected=_id_of(pl.col("rejected")),
        )
        .with_columns(_low=pl.min_horizontal("_chosen", "_rejected"), _high=pl.max_horizontal("_chosen", "_rejected"))
        .select(
            "pair_id",
            item_id=_id_of(pl.concat_str("prompt", *(encode(pl.col(name), pl.String()) for name in ("_low", "_high")))),
        )
    )
    return frame.with_columns(ids.get_columns())


def _id_of(text: pl.Expr) -> pl.Expr:
    digest: pl.Expr = CryptographicHashingNameSpace(text).blake3()
    return digest.str.slice(0, 32)


def _fitting(value: Any, dtype: pl.DataType, name: str) -> Any:
    """Return a further value as its column takes it. Raises MalformedError."""
    if value is None:
        return None
    if dtype == pl.String:
        return value if isinstance(value, str) else json_text(value)
    if isinstance(dtype, pl.List):
        if isinstance(value, list):
            inner = _of(dtype.inner)
            return [_fitting(item, inner, name) for item in value]
    elif dtype == pl.Boolean:
        if isinstance(value, bool):
            return value
    elif dtype == pl.Float64:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif dtype == pl.Int64:
        if isinstance(value, int) and not isinstance(value, bool) and -_LONGEST_INTEGER <= value < _LONGEST_INTEGER:
            return value
    elif not isinstance(value, (str, bool, int, float, list, dict)):
        return value  # of a type that tables alone have, the same in all of them
    raise MalformedError("wrong_type", f"field '{name}' is {kind_of(value)}; in the first {LOOKED_AT:,} records it is {dtype}")


# ---- the fields of a record that stand twice ----


def _repeated_fields(block: Verbatim, layout: _Layout) -> dict[int, str]:
    """Return the records, by index, one of whose fields that make the pair stands twice: the parser keeps the last."""
    repeated: dict[int, str] = {}
    if not block.content:
        return repeated
    for name in dict.fromkeys(layout.format.needed):
        written = orjson.dumps(name)
        holders = sum(1 for record in block.records if type(record) is dict and name in record)
        if block.content.count(written) <= holders:
            continue
        for index, record in enumerate(block.records):
            if isinstance(record, dict) and (line := block.line(index)).count(written) > 1:
                pairs = json.loads(line.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=lambda found: found)
                if sum(1 for key, _ in pairs if key == name) > 1:
                    repeated.setdefault(index, name)
    return repeated


# ---- whole columns of parsed records ----


def _record_columns(block: Verbatim, layout: _Layout) -> tuple[dict[str, pl.Series], set[int]]:
    """Return the columns of records that hold prompt, chosen and rejected as fields, and the indexes of doubtful records."""
    assert layout.plain is not None
    doubtful = set(_repeated_fields(block, layout))
    records: Sequence[dict[str, Any]] = block.records
    if set(map(type, records)) - {dict}:
        doubtful.update(index for index, record in enumerate(records) if type(record) is not dict)
        records = [record if type(record) is dict else {} for record in records]
    columns: dict[str, pl.Series] = {}
    for column, name in zip(layout.format.turns, layout.plain, strict=True):
        values = _column(records, name)
        role = "user" if column == "prompt" else "assistant"
        if set(map(type, values)) == {str}:
            doubtful.update(index for index, text in enumerate(values) if not text or text.isspace())
            columns[column] = _single_turns(pl.Series(column, values, pl.String), role)
            continue
        flat = _flat_turns(values)
        if flat is not None:
            offsets, roles, contents = flat
            doubtful.update(
                bisect_right(offsets, index) - 1 for index, text in enumerate(contents) if not text or text.isspace()
            )
            if column == "prompt":
                doubtful.update(index for index, end in enumerate(offsets[1:]) if roles[end - 1] != "user")
            columns[column] = _built_turns(offsets, roles, contents)
            continue
        listed: list[Turns | None] = [None] * len(values)
        for index, value in enumerate(values):
            try:
                listed[index] = turns_of(value, name, role)
                if column == "prompt":
                    asked(listed[index] or [], name)
            except MalformedError:
                doubtful.add(index)
        columns[column] = _turns_column(listed)
    for name, dtype in layout.further.items():
        columns[name], unfit = _further_column(_column(records, name), dtype, name)
        doubtful |= unfit
    return columns, doubtful


def _column(records: Sequence[dict[str, Any]], name: str) -> list[Any]:
    if "." in name:
        return [_value_at(record, name) for record in records]
    return [record.get(name) for record in records]


_TAKEN_AS_THEY_ARE: Mapping[type[pl.DataType], set[type]] = {
    pl.String: {str, type(None)},
    pl.Boolean: {bool, type(None)},
    pl.Int64: {int, type(None)},
    pl.Float64: {float, type(None)},
}


def _further_column(values: list[Any], dtype: pl.DataType, name: str) -> tuple[pl.Series, set[int]]:
    """Return a further column, and the indexes of values that do not fit it."""
    if set(map(type, values)) <= _TAKEN_AS_THEY_ARE.get(type(dtype), set()):
        try:
            return pl.Series(name, values, dtype), set()
        except (OverflowError, TypeError):
            pass  # an integer of more than 64 bits
    unfit: set[int] = set()
    fitting: list[Any] = [None] * len(values)
    for index, value in enumerate(values):
        try:
            fitting[index] = _fitting(value, dtype, name)
        except MalformedError:
            unfit.add(index)
    return pl.Series(name, fitting, dtype), unfit


def _single_turns(texts: pl.Series, role: str) -> pl.Series:
    """Return texts as lists of one turn."""
    turn = pl.struct(pl.lit(role).alias("role"), pl.col(texts.name).alias("content"))
    return texts.to_frame().select(pl.concat_list(turn).alias(texts.name)).to_series()


def _flat_turns(values: Sequence[Any]) -> tuple[list[int], list[str], list[str]] | None:
    """Return where each list of turns begins and ends, and roles and texts of them all; None where one is no such list."""
    if set(map(type, values)) != {list} or not all(values):
        return None
    turns = [turn for value in values for turn in value]
    if set(map(type, turns)) != {dict}:
        return None
    roles, contents = [turn.get("role") for turn in turns], [turn.get("content") for turn in turns]
    if set(map(type, contents)) != {str} or set(map(type, roles)) != {str} or set(roles) - _ROLES:
        return None
    return list(accumulate(map(len, values), initial=0)), roles, contents


def _turns_column(values: Sequence[Turns | None]) -> pl.Series:
    given = [turns or () for turns in values]
    offsets = list(accumulate(map(len, given), initial=0))
    roles, contents = ([turn[part] for turns in given for turn in turns] for part in (0, 1))
    return _built_turns(offsets, roles, contents, [turns is None for turns in values])


def _built_turns(
    offsets: Sequence[int], roles: Sequence[str], contents: Sequence[str], missing: Sequence[bool] | None = None
) -> pl.Series:
    parts = pl.DataFrame({"role": roles, "content": contents}, schema={"role": pl.String, "content": pl.String})
    if missing is None and parts.height == len(offsets) - 1:
        return parts.select(pl.concat_list(pl.struct("role", "content"))).to_series()
    import pyarrow as pa

    inner = pa.StructArray.from_arrays(
        [part.to_arrow(compat_level=pl.CompatLevel.newest()) for part in parts.get_columns()], names=parts.columns
    )
    mask = None if missing is None else pa.array(missing, pa.bool_())
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), inner, mask=mask))
    assert isinstance(series, pl.Series)
    return series.cast(TURNS)


# ---- whole columns of tables ----


def _table_columns(block: Table, layout: _Layout) -> tuple[dict[str, pl.Series], set[int]] | None:
    """Return the columns of a table that has prompt, chosen and rejected, and the indexes of doubtful rows.

    None where their types leave too much to doubt.
    """
    assert layout.plain is not None
    schema = block.frame.schema
    made: list[pl.Expr] = []
    sound: list[pl.Expr] = []
    for column, name in zip(layout.format.turns, layout.plain, strict=True):
        found = _expression(schema, name)
        built = _turns_expression(*found, column) if found is not None else None
        if built is None:
            return None
        made.append(built[0].alias(column))
        sound.append(built[1])
    by_hand: dict[str, pl.DataType] = {}
    for name, dtype in layout.further.items():
        found = _expression(schema, name)
        if found is None and _dtype_at(schema, name) is None:
            made.append(pl.lit(None, dtype).alias(name))
        elif found is not None and (cast := _cast(*found, dtype)) is not None:
            made.append(cast[0].alias(name))
            sound.append(cast[1])
        else:
            by_hand[name] = dtype
    frame = block.frame.select(*made, pl.all_horizontal(sound).alias("_sound"))
    columns = {name: frame[name] for name in frame.columns if name != "_sound"}
    doubtful = set((~frame["_sound"]).arg_true().to_list())
    for name, dtype in by_hand.items():
        first = name if name in schema else name.split(".")[0]
        values = [_value_at({first: value}, name) for value in block.frame[first].to_list()]
        columns[name], unfit = _further_column(values, dtype, name)
        doubtful |= unfit
    return columns, doubtful


def _expression(schema: Mapping[str, pl.DataType], name: str) -> tuple[pl.Expr, pl.DataType] | None:
    """Return a column, or a field in a column of structs, and its type."""
    if name in schema:
        return pl.col(name), schema[name]
    dtype = _dtype_at(schema, name)
    first, *rest = name.split(".")
    if dtype is None or any(part.isdecimal() for part in rest):
        return None
    value = pl.col(first)
    for part in rest:
        value = value.struct.field(part)
    return value, dtype


def _turns_expression(value: pl.Expr, dtype: pl.DataType, column: str) -> tuple[pl.Expr, pl.Expr] | None:
    """Return (turns, whether they are right)."""
    role = "user" if column == "prompt" else "assistant"
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
        text = value.cast(pl.String)
        turn = pl.struct(pl.lit(role).alias("role"), text.alias("content"))
        return pl.concat_list(turn), _has_text(text).fill_null(False)
    inner = _of(dtype.inner) if isinstance(dtype, pl.List) else None
    if not isinstance(inner, pl.Struct):
        return None
    types = {field.name: field.dtype for field in inner.fields}
    if types.get("role") != pl.String or types.get("content") != pl.String:
        return None
    speaker, content = (pl.element().struct.field(name) for name in ("role", "content"))
    turns = value.list.eval(pl.struct(role=speaker, content=content))
    each = value.list.eval((speaker.is_in(ROLES) & _has_text(content)).fill_null(False)).list.all()
    sound = value.is_not_null() & (value.list.len() > 0) & each
    if column == "prompt":
        sound &= value.list.last().struct.field("role") == "user"
    return turns, sound.fill_null(False)


def _has_text(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars(_SPACES).str.len_bytes() > 0


def _cast(value: pl.Expr, have: pl.DataType, want: pl.DataType) -> tuple[pl.Expr, pl.Expr] | None:
    """Return (the value in the wanted type, whether it fits), None where that takes more than a cast."""
    whole = pl.lit(True)
    if have == want:
        return value, whole
    if have == pl.Null:
        return value.cast(want), whole
    if want == pl.Int64 and have.is_integer():
        cast = value.cast(pl.Int64, strict=False)
        return cast, cast.is_not_null() | value.is_null()
    if want == pl.Float64 and (have.is_float() or have.is_integer()):
        return value.cast(pl.Float64), whole
    if want == pl.String and isinstance(have, (pl.Categorical, pl.Enum)):
        return value.cast(pl.String), whole
    if isinstance(have, pl.List) and isinstance(want, pl.List) and _always_fits(_of(have.inner), _of(want.inner)):
        return value.cast(want), whole
    return None


def _always_fits(have: pl.DataType, want: pl.DataType) -> bool:
    if isinstance(have, pl.List) and isinstance(want, pl.List):
        return _always_fits(_of(have.inner), _of(want.inner))
    small = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
    return have == want or (want == pl.Int64 and have in small) or (want == pl.Float64 and (have.is_float() or have in small))
