"""Whole columns and single records are two ways to the same rows; the second is the one that says what is right."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ptk.ops import read_pairs as module
from ptk.ops.read_pairs import ReadPairs
from ptk.ops.record_formats import TURNS
from ptk.ops.records import FileRecords, Look, Table
from ptk_catalog.digest import row_id

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.sampled_from(["Which shelf?", "It depends.", "", " ", "\x1c\x1f", "\u00a0", "\u200b", "é🜁", "\u0000", '"chosen"'])
turns = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": texts}),
    st.fixed_dictionaries({"role": st.sampled_from(["robot", None, 1, ["user"]]), "content": texts}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.sampled_from([None, 7, ["a"]])}),
    st.sampled_from([None, "user", 3, {"content": "No role."}, {"role": "user", "content": "More.", "name": "Ann"}]),
)
good_turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from(["a", "b c"])})
sides = st.one_of(
    texts, st.lists(good_turns, max_size=3), st.lists(turns, max_size=3), st.sampled_from([None, 5, 1.5, True, {"a": 1}])
)
extras = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.just(2**63),
    st.just(-(2**63)),
    st.floats(-2, 2),
    texts,
    st.just([1, 2]),
    st.just([1, "a"]),
    st.just({"a": None}),
)
records = st.one_of(
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "score", "topic"]), extras, max_size=2),
    st.fixed_dictionaries(
        {"prompt": sides, "chosen": sides, "rejected": sides},
        optional={"score": extras, "topic": extras, "meta": st.just({"n": 1})},
    ),
    st.fixed_dictionaries(
        {"prompt": st.just("Which?"), "chosen": st.just("This."), "rejected": st.just("That."), "score": extras}
    ),
    st.sampled_from([[1], None, 7, "text"]),
)
lines = st.one_of(
    records.map(lambda record: json.dumps(record, ensure_ascii=False).encode()),
    st.sampled_from(
        [
            b"",
            b"  ",
            b"{broken",
            b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}',
            b'{"prompt": "a", "chosen": "b", "rejected": "c", "topic": "chosen"}',
            b'\xff{"prompt": "a"}',
            b'{"prompt": "a", "chosen": "b", "rejected": "c"}\r',
        ]
    ),
)


def layout_of(looks: list[Look]) -> Any:
    params = ReadPairs.model_construct(**{name: field.get_default() for name, field in ReadPairs.model_fields.items()})
    try:
        return module._layout(params, looks)
    except ValueError:
        return None  # no record has one of the fields, which is said at plan time


@FAST
@given(st.lists(lines, min_size=1, max_size=12))
@example([b'{"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}'])
def test_parsed_records_as_columns_give_the_rows_that_each_record_gives(tmp_path: Path, content: list[bytes]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join(content))
    found = FileRecords((path,))
    layout = layout_of(list(found.looks()))
    if layout is None or layout.plain is None:
        return
    for piece in found.pieces():
        for block in found.blocks(piece):
            assert module._batch(block, layout).equals(module._one_by_one(block, layout))  # type: ignore[arg-type]


def strings(values: list[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


columns = {
    "text": lambda values: strings([value if isinstance(value, str) else None for value in values]),
    "category": lambda values: strings([value if isinstance(value, str) else None for value in values]).cast(pl.Categorical),
    "turns": lambda values: pl.Series(
        [
            [
                None
                if not isinstance(turn, dict)
                else {key: item if isinstance(item, str) else None for key, item in turn.items()}
                for turn in value
            ]
            if isinstance(value, list)
            else None
            for value in values
        ],
        dtype=pl.List(pl.Struct({"content": pl.String, "name": pl.String, "role": pl.String})),
    ),
    "numbers": lambda values: pl.Series([len(str(value)) for value in values]),
}
further = {
    "int32": ([1, None, -3], pl.Int32),
    "uint64": ([2**63, 1, None], pl.UInt64),
    "float32": ([0.1, None, float("nan")], pl.Float32),
    "bool": ([True, None, False], pl.Boolean),
    "text": (["a", None, ""], pl.String),
    "category": (["a", None, "b"], pl.Categorical),
    "struct": ([{"a": 1.5, "b": None}, None, {"a": None, "b": "x"}], pl.Struct({"a": pl.Float64, "b": pl.String})),
    "list": ([[1, None], None, []], pl.List(pl.Int16)),
    "lists": ([[[2**63]], None, []], pl.List(pl.List(pl.UInt64))),
    "structs": ([[{"a": 1}], None, [None]], pl.List(pl.Struct({"a": pl.Int64}))),
    "array": ([[1, 2], None, [3, 4]], pl.Array(pl.Int8, 2)),
    "date": ([datetime.date(2026, 1, 2), None, datetime.date(1, 1, 1)], pl.Date),
    "moment": ([datetime.datetime(2026, 1, 2, 3, 4, 5), None, None], pl.Datetime("us")),
    "decimal": ([Decimal("1.50"), None, Decimal("2")], pl.Decimal(10, 2)),
    "binary": ([b"\xff", None, b""], pl.Binary),
    "nothing": ([None, None, None], pl.Null),
}


@FAST
@given(
    st.lists(st.tuples(sides, sides, sides), min_size=1, max_size=8),
    st.tuples(*[st.sampled_from(["text", "turns", "turns", "category", "numbers"])] * 3),
    st.lists(st.sampled_from(sorted(further)), max_size=4, unique=True),
)
def test_tables_as_columns_give_the_rows_that_each_record_gives(
    rows: list[tuple[Any, Any, Any]], kinds: tuple[str, str, str], beside: list[str]
) -> None:
    names = ("prompt", "chosen", "rejected")
    frame = pl.DataFrame(
        {
            name: columns[kind]([row[number] for row in rows])
            for number, (name, kind) in enumerate(zip(names, kinds, strict=True))
        }
    )
    for name in beside:
        values, dtype = further[name]
        frame = frame.with_columns(pl.Series(name, [values[row % 3] for row in range(len(rows))], dtype))
    block = Table("pairs.parquet", 5, frame)
    layout = layout_of([Look("pairs.parquet", types=dict(frame.schema))])
    assert layout is not None
    whole, single = module._batch(block, layout), module._one_by_one(block.verbatim(), layout)
    assert whole.schema == single.schema
    assert whole.equals(single)
    ids = module._with_ids(whole, layout.format)
    assert ids.select(layout.columns.names()).schema == layout.columns
    assert ids.select(row_id(dict.fromkeys(names, TURNS))).to_series().to_list() == ids["pair_id"].to_list()


@pytest.mark.parametrize("name", sorted(further))
def test_a_table_s_further_column_keeps_its_values(name: str, tmp_path: Path) -> None:
    values, dtype = further[name]
    pair = {"prompt": ["Q1?", "Q2?", "Q3?"], "chosen": ["a"] * 3, "rejected": ["b"] * 3}
    pl.DataFrame(pair).with_columns(pl.Series("more", values, dtype)).write_parquet(tmp_path / "pairs.parquet")
    params = ReadPairs.model_validate_json('{"path": "pairs.parquet"}', context={"root": tmp_path})
    source = module.read_pairs.function(params)
    frame = pl.concat(list(source.all_batches()))
    assert frame.schema["more"] == source.columns["more"]
    good = frame.filter(pl.col("_reject").is_null())["more"].to_list()
    written = {
        "uint64": [1, None],
        "lists": [None, []],
        "struct": ['{"a":1.5,"b":null}', None, '{"a":null,"b":"x"}'],
        "structs": [['{"a":1}'], None, [None]],
        "float32": [pytest.approx(0.1), None, pytest.approx(float("nan"), nan_ok=True)],
    }
    assert good == written.get(name, values)
    if name in ("uint64", "lists"):
        assert frame["_detail"][0] == "field 'more' is a number; in the first 1,000 records it is Int64"
