from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.concat_rows import ConcatRows, concat_rows

LEFT = pl.DataFrame({"_key": ["a", "b"], "id": ["a", "b"], "x": [1, 2]})
RIGHT = pl.DataFrame({"_key": ["b", "c"], "id": ["b", "c"], "x": [9, 3]})


def rows(*frames: pl.DataFrame, **settings: object) -> pl.DataFrame:
    params = ConcatRows(**settings)  # type: ignore[arg-type]
    return concat_rows.function(*(frame.lazy() for frame in frames), params=params).collect()


def test_the_rows_of_all_inputs_come_together() -> None:
    assert rows(LEFT, RIGHT[1:]).to_dict(as_series=False) == {"id": ["a", "b", "c"], "x": [1, 2, 3]}


def test_one_input_is_enough() -> None:
    assert rows(LEFT).equals(LEFT.drop("_key"))


def test_of_a_key_that_repeats_the_row_of_the_first_input_can_stay() -> None:
    third = RIGHT.with_columns(x=pl.lit(7, pl.Int64))
    assert rows(LEFT, RIGHT, third, on_repeat="first").rows() == [("a", 1), ("b", 2), ("c", 3)]


def test_repeats_are_left_for_the_check_of_the_engine_where_nothing_is_said() -> None:
    assert rows(LEFT, RIGHT)["id"].to_list() == ["a", "b", "b", "c"]


def test_rows_can_tell_which_input_they_are_from() -> None:
    assert rows(LEFT, RIGHT[1:], origin="part")["part"].to_list() == [1, 1, 2]


def test_the_order_of_columns_does_not_matter() -> None:
    assert rows(LEFT, RIGHT[1:].select("x", "id", "_key")).columns == ["id", "x"]


def test_all_columns_or_the_common_ones_can_be_kept() -> None:
    wider = RIGHT[1:].with_columns(y=pl.lit("z"))
    assert rows(LEFT, wider, columns="union").rows() == [("a", 1, None), ("b", 2, None), ("c", 3, "z")]
    assert rows(wider, LEFT, columns="union").rows() == [("c", 3, "z"), ("a", 1, None), ("b", 2, None)]
    assert rows(LEFT, wider, columns="common").columns == ["id", "x"]


@pytest.mark.parametrize(
    ("right", "settings", "complaint"),
    [
        (RIGHT.drop("x"), {}, "input 2 has no column 'x', which input 1 has"),
        (RIGHT.with_columns(y=1), {}, "input 1 has no column 'y', which input 2 has"),
        (RIGHT.with_columns(x=pl.lit("1")), {"columns": "common"}, "column 'x' is Int64 in input 1 and String in input 2"),
        (RIGHT, {"origin": "x"}, "the rows have a column 'x' already"),
    ],
)
def test_what_differs_is_named(right: pl.DataFrame, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        rows(LEFT.clear(), right.clear(), **settings)
    assert complaint in str(error.value)


def test_the_inputs_must_have_the_same_key() -> None:
    assert concat_rows.key(ConcatRows(), ["id", "id"]) == "id"
    with pytest.raises(ValueError, match="the key of input 1 is 'id' and that of input 2 is 'item_id'"):
        concat_rows.key(ConcatRows(), ["id", "item_id"])


def test_a_column_for_the_origin_is_not_called_as_ptk_calls_its_own() -> None:
    with pytest.raises(ValidationError):
        ConcatRows(origin="_part")


def test_values_tell_the_inputs_apart_and_make_keys_that_differ() -> None:
    made = rows(LEFT, RIGHT, values={"model": ("small", "large"), "n": (1, 2.5)}, on_repeat="rekey")
    assert made.select("id", "x", "model", "n").rows() == [
        ("a", 1, "small", 1.0),
        ("b", 2, "small", 1.0),
        ("b", 9, "large", 2.5),
        ("c", 3, "large", 2.5),
    ]
    assert made["_key"].n_unique() == 4
    alone = rows(RIGHT, LEFT, values={"model": ("large", "small"), "n": (2.5, 1)}, on_repeat="rekey")
    assert sorted(alone["_key"]) == sorted(made["_key"])
    params = ConcatRows(values={"model": ("small", "large"), "n": (1, 2.5)}, on_repeat="rekey")
    assert concat_rows.key(params, ["id", "id"]) == "model_n_id"


@pytest.mark.parametrize(
    ("right", "values", "complaint"),
    [
        (RIGHT, {"x": ("a", "b")}, "the rows have a column 'x' already; choose another name for `values`"),
        (RIGHT, {"model": ("a", "b", "c")}, "`values` has 3 for 'model', but there are 2 inputs"),
        (RIGHT.with_columns(x=pl.lit("1")), {"m": ("a", "b")}, "is Int64 in input 1 (a) and String in input 2 (b)"),
    ],
)
def test_values_that_do_not_fit_are_named(right: pl.DataFrame, values: dict[str, tuple[str]], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        rows(LEFT.clear(), right.clear(), values=values, columns="union", on_repeat="rekey")
    assert complaint in str(error.value)


@pytest.mark.parametrize("values", [{}, {"m": ("a", "a")}, {"m": ("a", 1)}, {"_m": ("a", "b")}])
def test_new_keys_need_values_of_one_kind_that_differ(values: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(ValidationError):
        ConcatRows(values=values, on_repeat="rekey")  # type: ignore[arg-type]
