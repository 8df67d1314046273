"""The canonical encoding against a slow reference written from its definition, its pinned digests, and what must not change them."""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import math
import random
import struct
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import blake3
import polars as pl
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptk_catalog.digest import column_sums, encode, row_id, rows_digest, type_name
from ptk_catalog.errors import BadData

EPOCH_DAY = dt.date(1970, 1, 1)
EPOCH = dt.datetime(1970, 1, 1)
EPOCH_UTC = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)


def text_of(value: Any, dtype: Any) -> str:
    """The canonical text of one Python value, spelled out case by case."""
    if value is None:
        return "n"
    if dtype == pl.Struct:
        types = {field.name: field.dtype for field in dtype.fields}
        fields = (f"{len(name.encode())}:{name}{text_of(value[name], types[name])}" for name in sorted(types))
        return "{" + "".join(fields) + "}"
    if dtype in (pl.List, pl.Array):
        return f"l{len(value)}[" + "".join(text_of(item, dtype.inner) for item in value)
    match value:
        case bool():
            return "t" if value else "f"
        case int():
            return f"i{value};"
        case float():
            canonical = float("nan") if math.isnan(value) else value + 0.0
            return f"d{struct.unpack('>Q', struct.pack('>d', canonical))[0]};"
        case str():
            return f"s{len(value.encode())}:{value}"
        case bytes():
            return f"b{value.hex()};"
        case dt.datetime() if value.tzinfo is None:
            return f"w{(value - EPOCH) // MICROSECOND * 1000};"
        case dt.datetime():
            return f"z{(value - EPOCH_UTC) // MICROSECOND * 1000};"
        case dt.date():
            return f"D{(value - EPOCH_DAY).days};"
        case dt.timedelta():
            return f"u{value // MICROSECOND * 1000};"
        case dt.time():
            return f"h{((value.hour * 60 + value.minute) * 60 + value.second) * 10**9 + value.microsecond * 1000};"
        case Decimal():
            return f"m{int(value.scaleb(dtype.scale, decimal.Context(prec=60)))}/{dtype.scale};"
    raise TypeError(f"no encoding for {value!r}")


def slow_row_id(values: Sequence[Any], dtypes: Sequence[Any]) -> str:
    text = "".join(text_of(value, dtype) for value, dtype in zip(values, dtypes, strict=True))
    return blake3.blake3(text.encode()).hexdigest()[:32]


def slow_sum(frame: pl.DataFrame, key: Sequence[str], column: str) -> str:
    total = 0
    for row in frame.iter_rows(named=True):
        text = "".join(text_of(row[name], frame.schema[name]) for name in [*key, column])
        total += int(xxhash.xxh3_128_hexdigest(text.encode()), 16)
    return f"{total % 2**128:032x}"


texts = st.text(max_size=8)
SCALARS: list[tuple[pl.DataType, st.SearchStrategy[Any]]] = [
    (pl.Boolean(), st.booleans()),
    (pl.Int8(), st.integers(-(2**7), 2**7 - 1)),
    (pl.Int64(), st.integers(-(2**63), 2**63 - 1)),
    (pl.UInt64(), st.integers(0, 2**64 - 1)),
    (pl.Float64(), st.floats()),
    (pl.Float32(), st.floats(width=32)),
    (pl.String(), texts),
    (pl.Binary(), st.binary(max_size=8)),
    (pl.Date(), st.dates()),
    (pl.Time(), st.times()),
    (pl.Datetime("us"), st.datetimes()),
    (pl.Datetime("ms"), st.datetimes().map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))),
    (pl.Datetime("us", "UTC"), st.datetimes(timezones=st.just(dt.UTC))),
    (pl.Duration("us"), st.timedeltas(dt.timedelta(days=-10000), dt.timedelta(days=10000))),
    (pl.Decimal(20, 3), st.decimals(-(10**9), 10**9, places=3)),
    (pl.Enum(["a", "b;", "é"]), st.sampled_from(["a", "b;", "é"])),
    (pl.Categorical(), texts),
    (pl.Null(), st.none()),
]


def nested(types: Any) -> Any:
    def array(inner: Any) -> Any:
        return pl.Array(inner[0], 2), st.lists(st.none() | inner[1], min_size=2, max_size=2)

    def record(fields: dict[str, Any]) -> Any:
        dtype = pl.Struct({name: field[0] for name, field in fields.items()})
        return dtype, st.fixed_dictionaries({name: st.none() | field[1] for name, field in fields.items()})

    names = st.sampled_from(["role", "content", "a b", "é", ""])
    return st.one_of(
        types.map(lambda inner: (pl.List(inner[0]), st.lists(st.none() | inner[1], max_size=3))),
        types.map(array),
        st.dictionaries(names, types, min_size=1, max_size=3).map(record),
    )


@st.composite
def columns(draw: st.DrawFn) -> pl.Series:
    dtype, values = draw(st.recursive(st.sampled_from(SCALARS), nested, max_leaves=4))
    return pl.Series("value", draw(st.lists(st.none() | values, max_size=6)), dtype=dtype, strict=False)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(columns())
def test_the_encoding_of_any_value_equals_the_reference(column: pl.Series) -> None:
    query = column.to_frame().lazy().select(encode(pl.col("value"), column.dtype))
    expected = [text_of(value, column.dtype) for value in column.to_list()]
    assert query.collect(engine="streaming").to_series().to_list() == expected
    assert query.collect(engine="in-memory").to_series().to_list() == expected


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(columns())
def test_ids_and_sums_equal_the_reference(column: pl.Series) -> None:
    frame = column.to_frame().with_row_index("key")
    ids = frame.select(row_id({"key": frame.schema["key"], "value": column.dtype})).to_series().to_list()
    assert ids == [slow_row_id(row, frame.dtypes) for row in frame.iter_rows()]
    for rows in (frame, frame.drop_nulls()):
        expected = {name: slow_sum(rows, ["key"], name) for name in ("key", "value")}
        assert column_sums(rows.lazy(), ["key"]) == column_sums(rows, ["key"]) == expected


@pytest.mark.parametrize(
    "values",
    [
        [[{"role": "user", "content": "Why?"}], [{"role": "user", "content": "é1;"}]],
        [[{"role": "user", "content": "Why?"}], [{"role": "user", "content": None}]],
        [[{"role": "user", "content": "Why?"}], [None]],
        [[{"role": "user", "content": "Why?"}], []],
        [[{"role": "user", "content": "Why?"}], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
        [[["a", "b"]], [[]]],
        [[["a"]], [["b"]]],
        [[1], [2]],
    ],
    ids=str,
)
def test_lists_of_one_item_are_summed_as_any_others(values: list[Any]) -> None:
    frame = pl.DataFrame({"key": ["p", "q"], "value": values})
    expected = {name: slow_sum(frame, ["key"], name) for name in ("key", "value")}
    assert column_sums(frame, ["key"]) == column_sums(frame.lazy(), ["key"]) == expected


def test_values_that_differ_in_kind_or_place_have_different_texts() -> None:
    frames = [
        pl.DataFrame({"a": [value], "b": [other]}, schema=schema)
        for value, other, schema in [
            ("a", "bc", {"a": pl.String, "b": pl.String}),
            ("ab", "c", {"a": pl.String, "b": pl.String}),
            ("n", None, {"a": pl.String, "b": pl.String}),
            (None, "n", {"a": pl.String, "b": pl.String}),
            ("1", "1", {"a": pl.String, "b": pl.String}),
            (1, 1, {"a": pl.Int64, "b": pl.Int64}),
            (1.0, 1.0, {"a": pl.Float64, "b": pl.Float64}),
            (True, True, {"a": pl.Boolean, "b": pl.Boolean}),
            (1, 1, {"a": pl.Date, "b": pl.Date}),
            (1, 1, {"a": pl.Time, "b": pl.Time}),
            (1, 1, {"a": pl.Duration("us"), "b": pl.Duration("us")}),
            (1, 1, {"a": pl.Datetime("us"), "b": pl.Datetime("us")}),
            (1, 1, {"a": pl.Datetime("us", "UTC"), "b": pl.Datetime("us", "UTC")}),
            ([1], [], {"a": pl.List(pl.Int64), "b": pl.List(pl.Int64)}),
            ([], [1], {"a": pl.List(pl.Int64), "b": pl.List(pl.Int64)}),
            ([None], [], {"a": pl.List(pl.Int64), "b": pl.List(pl.Int64)}),
        ]
    ]
    ids = [frame.select(row_id(dict(frame.schema))).item() for frame in frames]
    assert len(set(ids)) == len(ids)


def test_widths_units_and_text_types_do_not_change_the_encoding() -> None:
    def text(values: list[Any], dtype: pl.DataType) -> str:
        encoded = pl.DataFrame({"value": pl.Series(values, dtype=dtype)}).select(encode(pl.col("value"), dtype))
        return str(encoded.item())

    assert text([7], pl.Int8()) == text([7], pl.UInt64()) == "i7;"
    assert text([1.5], pl.Float32()) == text([1.5], pl.Float64())
    assert text([-0.0], pl.Float64()) == text([0.0], pl.Float64()) == "d0;"
    negative_nan = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    assert text([negative_nan], pl.Float64()) == text([float("nan")], pl.Float64()) == "d9221120237041090560;"
    moment = dt.datetime(2026, 3, 4, 5, 6, 7)
    assert text([moment], pl.Datetime("ms")) == text([moment], pl.Datetime("ns")) == "w1772600767000000000;"
    assert text(["é"], pl.Categorical()) == text(["é"], pl.Enum(["é"])) == text(["é"], pl.String()) == "s2:é"
    assert text([dt.datetime(9999, 1, 1)], pl.Datetime("us")) == "w253370764800000000000;"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (pl.Int32(), "int32"),
        (pl.Enum(["a"]), "string"),
        (pl.Datetime("us"), "datetime[us]"),
        (pl.Datetime("ms", "Europe/Paris"), "datetime[ms,Europe/Paris]"),
        (pl.Duration("ns"), "duration[ns]"),
        (pl.Decimal(12, 2), "decimal[2]"),
        (pl.Array(pl.Float32(), 3), "array<float32,3>"),
        (pl.List(pl.Struct({"role": pl.String, "content": pl.String})), "list<struct<content:string,role:string>>"),
        (pl.Struct({"a:string,b": pl.String}), 'struct<"a:string,b":string>'),
    ],
)
def test_types_have_names_of_our_own(dtype: pl.DataType, name: str) -> None:
    assert type_name(dtype) == name


def test_a_type_without_plain_values_is_refused() -> None:
    with pytest.raises(BadData, match="cast it first"):
        type_name(pl.Object())


def golden_frame() -> pl.DataFrame:
    message = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    return pl.DataFrame(
        {
            "pair_id": ["p1", "p2", "p3"],
            "prompt": [[{"role": "user", "content": "Quel thé ?"}], [], None],
            "score": [0.1, -0.0, float("nan")],
            "votes": [3, None, -1],
            "flag": [True, False, None],
            "day": [dt.date(2026, 1, 2), None, dt.date(1969, 12, 31)],
            "at": [dt.datetime(2026, 1, 2, 3, 4, 5, 6), None, dt.datetime(1, 1, 1)],
            "blob": [b"\x00\xff", b"", None],
            "price": [Decimal("1.50"), Decimal("-2.00"), None],
        },
        schema_overrides={"prompt": message, "price": pl.Decimal(10, 2)},
    )


def digest_of(frame: pl.LazyFrame, rows: int, key: Sequence[str] = ("pair_id",)) -> str:
    types = {name: type_name(dtype) for name, dtype in frame.collect_schema().items()}
    return rows_digest(key, rows, types, column_sums(frame, key))


def test_pinned_digests_never_change() -> None:
    frame = golden_frame()
    assert frame.select(row_id({"pair_id": pl.String(), "prompt": frame.schema["prompt"]})).to_series().to_list() == GOLDEN_IDS
    assert column_sums(frame.lazy(), ["pair_id"]) == GOLDEN_SUMS
    assert digest_of(frame.lazy(), 3) == GOLDEN_DIGEST


def test_order_partitioning_engine_and_field_order_do_not_change_a_digest(tmp_path: Path) -> None:
    rows = 5000
    frame = pl.DataFrame({"key": range(rows)}).with_columns(
        text=pl.format("text {}", "key"), pair=pl.struct(b=pl.col("key") % 7, a=pl.col("key") * 0.1)
    )
    expected = digest_of(frame.lazy(), rows, ["key"])
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3).select("pair", "key", "text")
    assert digest_of(shuffled.lazy(), rows, ["key"]) == expected
    cuts = sorted(random.Random(5).sample(range(1, rows), 9))
    for number, (start, end) in enumerate(itertools.pairwise([0, *cuts, rows])):
        shuffled[start:end].write_parquet(tmp_path / f"{number}.parquet", row_group_size=100)
    assert digest_of(pl.scan_parquet(tmp_path / "*.parquet"), rows, ["key"]) == expected
    fields_swapped = frame.with_columns(pair=pl.struct(pl.col("pair").struct.field("a"), pl.col("pair").struct.field("b")))
    assert digest_of(fields_swapped.lazy(), rows, ["key"]) == expected
    with pl.Config():
        pl.Config.set_engine_affinity("in-memory")
        assert digest_of(frame.lazy(), rows, ["key"]) == expected


def test_any_changed_value_type_name_or_row_changes_the_digest() -> None:
    frame = golden_frame()
    changed = [
        frame.with_columns(votes=pl.col("votes").fill_null(0)),
        frame.with_columns(votes=pl.col("votes").cast(pl.Int32)),
        frame.rename({"votes": "counts"}),
        frame.with_columns(votes=pl.col("votes").reverse()),
        frame.head(2),
        frame.drop("flag"),
    ]
    digests = [digest_of(one.lazy(), one.height) for one in [frame, *changed]]
    assert len(set(digests)) == len(digests)


GOLDEN_IDS = [
    "f71522958ad9555c6cc89e6c243822cc",
    "f169c061c48a1dd29bda29b49fc409ce",
    "e97a6bbfc61f5687d06eb81ec7e2f465",
]
GOLDEN_SUMS = {
    "pair_id": "ec67b59f83e583ca43c67cf3d12c231e",
    "prompt": "8abef8b9843248d071fb3ea789160da2",
    "score": "6d16674764db69c6893ed83e6af86564",
    "votes": "a94a85727d6654f63f1cf453ddaff75a",
    "flag": "83fd579ddd304a7938da1f6e2f186b4b",
    "day": "23efd5e748b5d72d0359d170feae3bb0",
    "at": "304ea96b9cdc474b6161833fbe2cbae0",
    "blob": "f8c7d6004c2274bb1454501b0b27453d",
    "price": "ef2b4b939f5ef09aeafe512e518a6cb1",
}
GOLDEN_DIGEST = "sha256:5faeb00877acb327f56bff5cf632908a50a29e55bcf06454631ab10a9a8bb5d1"
