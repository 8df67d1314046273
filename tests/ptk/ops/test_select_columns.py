from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.select_columns import SelectColumns, select_columns
from ptk.stages import reshaped

FRAME = pl.DataFrame({"_key": ["a"], "id": ["a"], "x": [1], "y": [2], "z": [3]})


def selected(**settings: object) -> pl.DataFrame:
    return reshaped(select_columns, [FRAME.lazy()], SelectColumns(**settings), "id").collect()  # type: ignore[arg-type]


def test_columns_are_kept_in_the_order_written() -> None:
    assert selected(keep=("z", "id")).to_dict(as_series=False) == {"z": [3], "id": ["a"]}


def test_columns_are_left_out() -> None:
    assert selected(drop=("x", "z")).columns == ["id", "y"]


def test_columns_are_renamed_in_place_and_names_may_be_swapped() -> None:
    assert selected(rename={"x": "y", "y": "x"}).to_dict(as_series=False) == {"id": ["a"], "y": [1], "x": [2], "z": [3]}
    assert selected(keep=("id", "x"), rename={"x": "score"}).columns == ["id", "score"]


def test_the_key_stays_without_being_named() -> None:
    assert selected(keep=("z",)).to_dict(as_series=False) == {"id": ["a"], "z": [3]}


def test_the_key_can_not_be_left_out_and_keeps_its_name() -> None:
    assert select_columns.key(SelectColumns(keep=("id", "x")), ["id"]) == "id"
    for settings, complaint in [
        (SelectColumns(drop=("id",)), "'id' is the key of the rows and has to stay"),
        (SelectColumns(rename={"id": "x"}), "'id' is the key of the rows and keeps its name"),
    ]:
        with pytest.raises(ValueError) as error:
            select_columns.key(settings, ["id"])
        assert str(error.value) == complaint


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"keep": ("id", "xx")}, "there is no column 'xx'"),
        ({"drop": ("xx",)}, "there is no column 'xx'"),
        ({"keep": ("id",), "rename": {"x": "score"}}, "`rename` names 'x', which is not among the columns"),
        ({"rename": {"x": "y"}}, "two columns would be called 'y'"),
    ],
)
def test_columns_that_do_not_fit_are_named(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        selected(**settings)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "settings", [{}, {"keep": ("x",), "drop": ("y",)}, {"keep": ()}, {"keep": ("x", "x")}, {"rename": {"x": "_x"}}]
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectColumns(**settings)  # type: ignore[arg-type]
