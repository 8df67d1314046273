from __future__ import annotations

import polars as pl
import pytest
from polars.exceptions import PolarsError
from pydantic import ValidationError

from ptk.ops.derive_columns import DeriveColumns, derive_columns
from ptk.stages import run_stages

FRAME = pl.DataFrame({"_key": ["a", "b", "c"], "x": [1, None, 3], "s": ["p", "", None]})


def derived(frame: pl.DataFrame = FRAME, **columns: str) -> pl.DataFrame:
    return run_stages(derive_columns, [frame.lazy()], DeriveColumns(columns=columns)).collect()


def test_later_expressions_may_use_earlier_columns() -> None:
    assert derived(y="x + 1", z="y * 10").to_dict(as_series=False) == {
        "_key": ["a", "b", "c"],
        "y": [2, None, 4],
        "z": [20, None, 40],
    }


def test_a_column_can_be_replaced_and_later_expressions_see_the_new_one() -> None:
    assert derived(x="x * 2", y="x * 2").to_dict(as_series=False) == {
        "_key": ["a", "b", "c"],
        "x": [2, None, 6],
        "y": [4, None, 12],
    }


def test_a_constant_becomes_a_column_as_long_as_the_rows() -> None:
    assert derived(source="'web'")["source"].to_list() == ["web", "web", "web"]
    assert derived(FRAME.clear(), source="'web'").height == 0


def test_a_derived_column_may_be_called_like_the_text_of_turns() -> None:
    frame = pl.DataFrame({"_key": ["a"], "prompt": [[{"role": "user", "content": "hi"}]]})
    assert derived(frame, prompt_text="UPPER(prompt_text)", n="prompt_text || '!'").rows() == [("a", "HI", "HI!")]


@pytest.mark.parametrize(
    "columns", [{}, {"_x": "1"}, {" ": "1"}, {"y": "x +"}, {"y": "SUM(x)"}, {"y": "x - LAG(x) OVER (ORDER BY x)"}]
)
def test_settings_that_can_not_be_right_are_refused(columns: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        DeriveColumns(columns=columns)


@pytest.mark.parametrize("sql", ["z + 1", "LENGTH(x)", "y"])
def test_an_expression_that_does_not_fit_the_columns_fails_on_no_rows(sql: str) -> None:
    with pytest.raises(PolarsError):
        derived(FRAME.clear(), y=sql)
