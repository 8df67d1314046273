from __future__ import annotations

import polars as pl
import pytest
from polars.exceptions import ColumnNotFoundError, PolarsError

from ptk.ops.sql import read_expression

ABOUT_MANY_ROWS = [
    "x > MAX(x)",
    "AVG(x) > 1",
    "x IN (1, MAX(x))",
    "CASE WHEN x > 1 THEN SUM(x) ELSE 0 END > 1",
    "COALESCE(MIN(x), 1) > 0",
    "COUNT(*) > 1",
    "COUNT(DISTINCT x) > 1",
    "MEDIAN(x) < x",
    "STDDEV(x) < x",
    "QUANTILE_CONT(x, 0.5) < x",
    "FIRST(x) = x",
    "CORR(x, x) > 0",
    "LISTAGG(s) = 'a'",
    "ARRAY_LENGTH(ARRAY_AGG(x)) > 1",
    "SUM(x) OVER (PARTITION BY s) > 1",
    "ROW_NUMBER() OVER (ORDER BY x) = 1",
    "ROW_NUMBER() = 1",
    "RANK() OVER (ORDER BY x) = 1",
    "LAG(x) OVER (ORDER BY x) = 1",
    "UNNEST(l) = 1",
    "COLUMNS('x') > 1",
    "NOT (MIN(x) > 1)",
    "LENGTH(s) > CAST(MAX(x) AS INT)",
]

ABOUT_ONE_ROW = [
    "x > 1 AND NOT (x % 2 = 0 OR x / 3 > 1)",
    "x BETWEEN 1 AND 2",
    "x NOT IN (1, 2)",
    "s LIKE 'a%' OR s ILIKE '%B' OR s ~ '^c'",
    "COALESCE(x, 0) + ABS(x) + ROUND(f, 1) + SQRT(f) > GREATEST(x, 1)",
    "CASE WHEN x > 1 THEN s ELSE UPPER(TRIM(s)) END = 'A'",
    "TRY_CAST(s AS INT) IS NOT NULL",
    "ARRAY_LENGTH(l) > 1 AND ARRAY_CONTAINS(l, 1)",
    "l[1] = 1",
    "LENGTH(CONCAT(s, 'a')) > LENGTH(s || s)",
    "EXTRACT(YEAR FROM d) >= 2020 AND d > DATE '2020-01-01'",
    "ARRAY_SUM(ARRAY_UNIQUE(l)) > 1",
    "s = 'the average, MAX(x) and select of NOW() are words here'",
    "TRUE",
]

SCHEMA = {"x": pl.Int64, "f": pl.Float64, "s": pl.String, "l": pl.List(pl.Int64), "d": pl.Date}


@pytest.mark.parametrize("sql", ABOUT_MANY_ROWS)
def test_an_expression_about_many_rows_is_refused(sql: str) -> None:
    with pytest.raises(ValueError, match="depends on which rows are seen together"):
        read_expression(sql)


@pytest.mark.parametrize("sql", ABOUT_ONE_ROW)
def test_an_expression_about_one_row_gives_the_same_for_the_row_alone(sql: str) -> None:
    frame = pl.DataFrame(
        [(1, 0.5, "a", [1, 2], None), (None, None, None, None, None), (3, 9.0, "cB", [], None), (2, -1.0, "7", [5, 5], None)],
        schema=SCHEMA,
        orient="row",
    ).with_columns(pl.date(2021, 1, pl.col("x").fill_null(4)).alias("d"))
    expression = read_expression(sql)
    whole = expression.over(frame.lazy(), "it").collect()["it"].to_list()
    alone = [expression.over(frame[row].lazy(), "it").collect()["it"].item() for row in range(frame.height)]
    assert whole == alone
    assert expression.over(frame.lazy(), "it").collect_schema()["it"] == pl.Boolean


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("x >", "is no SQL expression"),
        ("nosuch(x) > 1", "unsupported function 'nosuch'"),
        ("x IN (SELECT a FROM read_csv('secrets.csv'))", "holds a query"),
        ("EXISTS (SELECT 1)", "holds a query"),
        ("d > CURRENT_DATE", "asks the clock"),
        ("d > NOW()", "asks the clock"),
        ("_key = 'a'", "names '_key', which is ptk's own"),
        ("s ~ '('", "is no regular expression"),
        ("x > 1; x < 2", "is no SQL expression"),
    ],
)
def test_what_is_no_expression_about_a_row_is_refused_with_a_reason(sql: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_expression(sql)


def test_the_text_of_turns_has_a_name() -> None:
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None]
    frame = pl.LazyFrame({"prompt": turns, "chosen": ["c", None]})
    assert read_expression("LENGTH(prompt_text)").over(frame, "n").collect()["n"].to_list() == [3, None]
    assert read_expression("chosen_text || '!'").over(frame, "n").collect()["n"].to_list() == ["c!", None]
    assert read_expression("prompt_text = 'a'").over(frame, "n").collect().columns == ["prompt", "chosen", "n"]


def test_a_column_of_that_name_goes_before_the_text_of_turns() -> None:
    frame = pl.LazyFrame({"prompt": [[{"role": "user", "content": "a"}]], "prompt_text": [7]})
    assert read_expression("prompt_text = 7").over(frame, "n").collect()["n"].to_list() == [True]


def test_an_unknown_column_is_named_with_a_near_one() -> None:
    with pytest.raises(ColumnNotFoundError, match="there is no column 'scoer'; did you mean 'score'"):
        read_expression("scoer > 1").over(pl.LazyFrame({"_key": ["a"], "score": [1]}), "n")


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("LENGTH(s) - LENGTH(t)", -2),
        ("-LENGTH(s)", -1),
        ("LENGTH(s_text) - 20", -19),
        ("ARRAY_LENGTH(l) - 3", -2),
        ("STRPOS(t, 'z') - 5", -5),
        ("CASE WHEN LENGTH(s) - 5 > 0 THEN 0 ELSE LENGTH(s) - 5 END", -4),
        ("b * 2", 200),
        ("ABS(b + b)", 200),
        ("POW(b, 2)", 10_000),
        ("u - b", 100),
        ("b - u", -100),
    ],
)
def test_whole_numbers_are_reckoned_with_in_64_bits_and_with_a_sign(sql: str, value: int) -> None:
    frame = pl.DataFrame(
        {"s": ["a"], "t": ["abc"], "l": [[1]], "b": [100], "u": [200]}, schema_overrides={"b": pl.Int8, "u": pl.UInt8}
    )
    made = read_expression(sql).over(frame.lazy(), "it").collect()["it"]
    assert made.to_list() == [value]
    assert made.dtype == pl.Int64


def test_a_whole_number_beyond_64_bits_stops_arithmetic_and_is_not_wrapped() -> None:
    frame = pl.LazyFrame({"u": [2**63]}, schema={"u": pl.UInt64})
    assert read_expression("u").over(frame, "it").collect()["it"].to_list() == [2**63]
    with pytest.raises(PolarsError, match="conversion from `u64` to `i64` failed"):
        read_expression("u - 1").over(frame, "it").collect()
