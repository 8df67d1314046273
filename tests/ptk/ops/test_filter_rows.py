from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import orjson
import polars as pl
import pytest
from polars.exceptions import PolarsError
from pydantic import ValidationError

from ptk.ops.filter_rows import FilterRows, filter_rows
from ptk.stages import run_stages

FRAME = pl.DataFrame({"_key": ["a", "b", "c", "d"], "score": [1.0, 3.0, None, float("nan")], "source": ["x", "y", "x", "x"]})


def decided(where: Any, frame: pl.DataFrame = FRAME) -> pl.DataFrame:
    return run_stages(filter_rows, [frame.lazy()], FilterRows.model_validate_json(orjson.dumps({"where": where}))).collect()


def test_rows_that_do_not_fulfil_the_condition_are_rejected() -> None:
    assert decided("score >= 3").rows() == [
        ("a", "filtered", "not fulfilled: score >= 3"),
        ("b", None, None),
        ("c", "filtered", "not fulfilled: score >= 3 (its result is null)"),
        ("d", None, None),
    ]


def test_every_condition_can_have_a_reason_of_its_own_and_the_first_that_fails_counts() -> None:
    decision = decided({"unscored": "score IS NOT NULL", "wrong_source": "source = 'x'", "low": "score > 1"})
    assert decision["_reject"].to_list() == ["low", "wrong_source", "unscored", None]


def test_all_of_several_conditions_have_to_be_fulfilled() -> None:
    assert decided(("score > 1", "source = 'x'"))["_reject"].to_list() == ["filtered", "filtered", "filtered", None]


def test_the_decision_is_the_same_row_by_row() -> None:
    where = ("score > 1", "source = 'x'")
    assert pl.concat(decided(where, FRAME[row]) for row in range(FRAME.height)).equals(decided(where))


def test_a_condition_without_columns_holds_for_every_row() -> None:
    assert decided("1 = 2")["_reject"].to_list() == ["filtered"] * 4
    assert decided("NULL")["_detail"].to_list() == ["not fulfilled: NULL (its result is null)"] * 4


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("score + 1", "gives Float64, and a condition is true or false"),
        ("score > 'a'", "cannot compare string with numeric"),
        ("LENGTH(score) > 1", "expected `String`"),
        ("scores > 1", "did you mean 'score'?"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_fails_on_no_rows(where: str, complaint: str) -> None:
    with pytest.raises(PolarsError) as error:
        decided(where, FRAME.clear())
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "where", ["", (), {}, 3, (3,), {"low": 3}, {"Too low": "score > 1"}, "score >", "score > AVG(score)", ("score > 1", "")]
)
def test_settings_that_can_not_be_right_are_refused(where: Any) -> None:
    with pytest.raises(ValidationError):
        FilterRows(where=where)


def test_a_spec_filters_and_derives(project: Path, ptk: Callable[..., CompletedProcess[str]]) -> None:
    (project / "spec.yaml").write_text("""\
ptk: 1
name: small
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
  sized: {op: derive_columns, from: pairs, columns: {gap: "LENGTH(rejected_text) - LENGTH(chosen_text)", twice: gap * 2}}
  some:  {op: filter_rows, from: sized, where: {late: "prompt_text < 'Question 7'", even: "twice > 0"}}
outputs:
  small/some: {from: some, licence: cc0-1.0}
""")
    ran = ptk("run", "spec.yaml")
    assert ran.returncode == 0, ran.stderr
    assert "3 late" in ran.stdout


def test_a_spec_that_compares_rows_is_refused_at_its_line(project: Path, ptk: Callable[..., CompletedProcess[str]]) -> None:
    (project / "spec.yaml").write_text("""\
ptk: 1
name: small
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
  some:  {op: filter_rows, from: pairs, where: "LENGTH(prompt_text) > AVG(LENGTH(prompt_text))"}
""")
    checked = ptk("validate", "spec.yaml")
    assert checked.returncode == 2
    assert "spec.yaml:5: steps.some.where: " in checked.stderr
    assert "depends on which rows are seen together (an average)" in checked.stderr
