"""The one encoder behind every id and digest: values -> canonical text -> BLAKE3 for ids, XXH3 for sums over rows.

Everything is built of Polars expressions, so it streams. The encoding is injective and does not depend on how Polars formats
numbers or names types; docs/catalog-format.md defines it for other implementations.

An id is the first 32 hexadecimal digits of BLAKE3: nobody can make two rows share one on purpose. The digest of a column is the sum,
modulo 2^128, of XXH3-128 over (key, value), so it does not depend on the order of rows, on parts or on the engine; it tells
accidents, not forgeries, which is what the SHA-256 of the parts is for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
from polars_hash import CryptographicHashingNameSpace, NonCryptographicHashingNameSpace

from ptk_catalog.errors import BadData

__all__ = ["added_sums", "column_sums", "encode", "plain_type", "row_id", "rows_digest", "type_name"]

_KEY_TEXT = "_ptk_key_text"
_NAN = 0x7FF8000000000000
_WRAP = 1 << 128
_HIGH = pl.lit(1 << 64, pl.UInt128)
_LOW = pl.lit((1 << 64) - 1, pl.UInt128)
_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def type_name(dtype: pl.DataType) -> str:
    """Return our own stable name of a type, such as `list<struct<content:string,role:string>>`. Raises BadData."""
    for kind, name in _SIMPLE_NAMES.items():
        if dtype == kind:
            return name
    if isinstance(dtype, pl.Datetime):
        return f"datetime[{dtype.time_unit}{',' + dtype.time_zone if dtype.time_zone else ''}]"
    if isinstance(dtype, pl.Duration):
        return f"duration[{dtype.time_unit}]"
    if isinstance(dtype, pl.Decimal):
        return f"decimal[{dtype.scale}]"
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return "string"
    if isinstance(dtype, pl.List):
        return f"list<{type_name(_inner(dtype))}>"
    if isinstance(dtype, pl.Array):
        return f"array<{type_name(_inner(dtype))},{dtype.size}>"
    if isinstance(dtype, pl.Struct):
        fields = sorted(dtype.fields, key=_by_name)
        return f"struct<{','.join(f'{_field_name(field.name)}:{type_name(_of(field.dtype))}' for field in fields)}>"
    raise BadData(f"a column of type {dtype} can't be stored in a catalog; cast it first")


_SIMPLE_NAMES: dict[type[pl.DataType], str] = {
    pl.Null: "null",
    pl.Boolean: "bool",
    pl.Int8: "int8",
    pl.Int16: "int16",
    pl.Int32: "int32",
    pl.Int64: "int64",
    pl.UInt8: "uint8",
    pl.UInt16: "uint16",
    pl.UInt32: "uint32",
    pl.UInt64: "uint64",
    pl.Float32: "float32",
    pl.Float64: "float64",
    pl.String: "string",
    pl.Binary: "binary",
    pl.Date: "date",
    pl.Time: "time",
}


def plain_type(name: str) -> pl.DataType | None:
    """Return the type without parts that has that name, or None."""
    for kind, known in _SIMPLE_NAMES.items():
        if known == name:
            return kind()
    return None


def encode(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return the canonical text of `value`, never null: a tag for the kind of value, then a form that ends by itself."""
    (text,) = _encoded(value, dtype, nulls=True)
    return text


def _encoded(value: pl.Expr, dtype: pl.DataType, *, nulls: bool) -> list[pl.Expr]:
    """Return texts that one after another are the canonical text of `value`.

    Without `nulls`, which is faster, no value may be null, nor any inside a list or a struct.
    """
    present = _encode_present(value, dtype, nulls)
    return [pl.when(value.is_null()).then(pl.lit("n")).otherwise(pl.concat_str(*present))] if nulls else present


def _texts_of(name: str, dtype: pl.DataType, rows: pl.DataFrame | None) -> list[pl.Expr]:
    """Return the texts of a column; faster ones where the rows are in memory, so that it is known what they hold."""
    value = pl.col(name)
    if rows is None or _holds_nulls(rows[name]):
        return _encoded(value, dtype, nulls=True)
    if isinstance(dtype, pl.List) and (rows[name].list.len() == 1).all():
        # As the one turn of a response: no list of texts has to be made and joined.
        return [pl.lit("l1["), *_encoded(value.list.first(), _inner(dtype), nulls=False)]
    return _encoded(value, dtype, nulls=False)


def _encode_present(value: pl.Expr, dtype: pl.DataType, nulls: bool) -> list[pl.Expr]:
    if dtype == pl.Null:
        return [pl.lit("n")]
    if dtype == pl.Boolean:
        return [pl.when(value).then(pl.lit("t")).otherwise(pl.lit("f"))]
    if dtype.is_integer():
        return [pl.lit("i"), value.cast(pl.String), pl.lit(";")]
    if dtype.is_float():
        # The bits don't depend on how a float is printed. Not `+ 0.0` for the zeros: the optimiser may take it away.
        wide = value.cast(pl.Float64)
        bits = wide.reinterpret(dtype=pl.UInt64)
        bits = pl.when(wide == 0.0).then(pl.lit(0, pl.UInt64)).when(wide.is_nan()).then(pl.lit(_NAN, pl.UInt64)).otherwise(bits)
        return [pl.lit("d"), bits.cast(pl.String), pl.lit(";")]
    if dtype == pl.String:
        return [pl.lit("s"), value.str.len_bytes().cast(pl.String), pl.lit(":"), value]
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return _encode_present(value.cast(pl.String), pl.String(), nulls)
    if dtype == pl.Binary:
        return [pl.lit("b"), value.bin.encode("hex"), pl.lit(";")]
    if dtype == pl.Date:
        return [pl.lit("D"), value.cast(pl.Int32).cast(pl.String), pl.lit(";")]
    if dtype == pl.Time:
        return [pl.lit("h"), value.cast(pl.Int64).cast(pl.String), pl.lit(";")]
    if isinstance(dtype, pl.Datetime):
        tag = "w" if dtype.time_zone is None else "z"
        return [pl.lit(tag), _nanoseconds(value, dtype.time_unit).cast(pl.String), pl.lit(";")]
    if isinstance(dtype, pl.Duration):
        return [pl.lit("u"), _nanoseconds(value, dtype.time_unit).cast(pl.String), pl.lit(";")]
    if isinstance(dtype, pl.Decimal):
        unscaled = value.reinterpret(dtype=pl.Int128)
        return [pl.lit("m"), unscaled.cast(pl.String), pl.lit(f"/{dtype.scale};")]
    if isinstance(dtype, pl.Array):
        return _encode_present(value.arr.to_list(), pl.List(_inner(dtype)), nulls)
    if isinstance(dtype, pl.List):
        item = pl.concat_str(*_encoded(pl.element(), _inner(dtype), nulls=nulls))
        return [pl.lit("l"), value.list.len().cast(pl.String), pl.lit("["), value.list.eval(item).list.join("")]
    if isinstance(dtype, pl.Struct):
        parts = [pl.lit("{")]
        for field in sorted(dtype.fields, key=_by_name):
            parts.append(pl.lit(f"{len(field.name.encode())}:{field.name}"))
            parts += _encoded(value.struct.field(field.name), _of(field.dtype), nulls=nulls)
        return [*parts, pl.lit("}")]
    raise BadData(f"a value of type {dtype} can't be digested; cast the column first")


def row_id(columns: Mapping[str, pl.DataType]) -> pl.Expr:
    """Return an id of the named columns' values, in the order given: 32 hexadecimal digits of BLAKE3 over their encodings."""
    text = pl.concat_str(*(encode(pl.col(name), dtype) for name, dtype in columns.items()))
    digest: pl.Expr = CryptographicHashingNameSpace(text).blake3()
    return digest.str.slice(0, 32)


def column_sums(frame: pl.LazyFrame | pl.DataFrame, key: Sequence[str], columns: Sequence[str] | None = None) -> dict[str, str]:
    """Return for each column the sum modulo 2^128 of XXH3-128(key, value) over all rows, as 32 hexadecimal digits.

    Rows without a key are told apart by all their values, in the order of the columns' names.
    """
    schema = frame.collect_schema()
    wanted = schema.names() if columns is None else list(columns)
    if not wanted:
        return {}
    in_memory = frame if isinstance(frame, pl.DataFrame) else None
    texts = {name: _texts_of(name, dtype, in_memory) for name, dtype in schema.items()}
    keys = pl.concat_str(*itertools.chain(*(texts[name] for name in key or sorted(schema)))).alias(_KEY_TEXT)
    hashes: list[pl.Expr] = []
    lanes: list[pl.Expr] = []
    for place, name in enumerate(wanted):
        text = pl.concat_str(pl.col(_KEY_TEXT), *texts[name])
        hashed: pl.Expr = NonCryptographicHashingNameSpace(text).xxh3_128()
        hashes.append(hashed.alias(f"{place}"))
        # Two sums of 64 bits of each: a sum of 128-bit numbers would overflow.
        lanes.append((pl.col(f"{place}") & _LOW).sum().alias(f"{place}/low"))
        lanes.append((pl.col(f"{place}") // _HIGH).sum().alias(f"{place}/high"))
    # The hashes are columns first: within one expression each lane would hash the text again.
    sums = frame.lazy().with_columns(keys).select(hashes).select(lanes).collect(engine="streaming").row(0, named=True)
    totals = [(int(sums[f"{place}/high"]) << 64) + int(sums[f"{place}/low"]) for place in range(len(wanted))]
    return {name: f"{total % _WRAP:032x}" for name, total in zip(wanted, totals, strict=True)}


def added_sums(sums: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the sums over all rows from those over some of them each."""
    totals: dict[str, int] = {}
    for some in sums:
        for name, text in some.items():
            totals[name] = (totals.get(name, 0) + int(text, 16)) % _WRAP
    return {name: f"{total:032x}" for name, total in totals.items()}


def rows_digest(key: Sequence[str], rows: int, types: Mapping[str, str], sums: Mapping[str, str]) -> str:
    """Return `sha256:` and the digest of a set of rows: its key columns, how many they are, and each column's type and sum."""
    content = {"key": list(key), "rows": rows, "columns": [[name, types[name], sums[name]] for name in sorted(sums)]}
    return "sha256:" + hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _nanoseconds(value: pl.Expr, unit: str) -> pl.Expr:
    # 128 bits: microseconds far from 1970 do not fit into 64 bits of nanoseconds.
    return value.cast(pl.Int64).cast(pl.Int128) * _NANOSECONDS[unit]


def _holds_nulls(values: pl.Series) -> bool:
    """Say whether any value is null, or any inside of one; an empty list may count as one."""
    if values.null_count():
        return True
    if isinstance(values.dtype, (pl.List, pl.Array)):
        return _holds_nulls(values.explode())
    if isinstance(values.dtype, pl.Struct):
        return any(_holds_nulls(values.struct.field(field.name)) for field in values.dtype.fields)
    return False


def _field_name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _by_name(field: pl.Field) -> str:
    return field.name


def _of(dtype: object) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype  # type: ignore[return-value]


def _inner(dtype: pl.List | pl.Array) -> pl.DataType:
    return _of(dtype.inner)
