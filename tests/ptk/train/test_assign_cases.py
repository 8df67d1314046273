"""Rows are given solved cases, drawn by seed, and a model is shown them before its prompt."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from ptk.label.generate_responses import GenerateResponses, generate_responses
from ptk.operator import KEY, REJECT
from ptk.train.assign_cases import AssignCases, assign_cases

CASES = pl.LazyFrame(
    {
        KEY: ["1", "2", "3"],
        "prompt": ["a?", "b?", "c?"],
        "persona": ["The user is A.", "The user is B.", None],
        "preferred": ["A.", "B.", "C."],
        "domain": ["x", "x", "y"],
    }
)
ROWS = pl.LazyFrame({KEY: ["r", "s"], "prompt": ["Why?", "How?"], "persona": ["The user is R."] * 2, "domain": ["y", "z"]})


def given(**settings: Any) -> pl.DataFrame:
    return assign_cases.function(ROWS, CASES, params=AssignCases(**settings)).collect()


def test_all_rows_are_given_the_same_cases_in_an_order_that_the_seed_decides() -> None:
    made = given(count=2)
    first, second = made["cases"].to_list()
    assert first == second
    assert len(first) == 2
    assert given(count=3)["cases"].to_list()[0][:2] == first
    orders = {tuple(case["prompt"] for case in given(count=3, seed=seed)["cases"].to_list()[0]) for seed in range(8)}
    assert len(orders) > 1
    assert assign_cases.function(ROWS, CASES.reverse(), params=AssignCases(count=2)).collect().equals(made)


def test_cases_share_the_values_of_a_row_and_a_row_without_any_is_rejected() -> None:
    made = given(on=("domain",))
    assert [case["prompt"] for case in made["cases"][0]] == ["c?"]
    assert made[REJECT].to_list() == [None, "no_cases"]


def test_a_model_is_shown_the_cases_of_a_row_before_its_prompt() -> None:
    rows = ROWS.collect().with_columns(given(count=3)["cases"])
    params = GenerateResponses(model="m", cases="cases", persona="persona", place="tag")
    turns = next(iter(generate_responses.requests(rows, {}, params))).messages
    assert len(turns) == 7
    assert turns[-1].content == "Why?\nPersona: The user is R."
    shown = {turn.content for turn in turns[:-1]}
    assert shown == {"a?\nPersona: The user is A.", "A.", "b?\nPersona: The user is B.", "B.", "c?", "C."}


def test_a_column_that_holds_no_cases_is_refused() -> None:
    with pytest.raises(TypeError, match="no list of solved cases"):
        list(generate_responses.requests(ROWS.collect(), {}, GenerateResponses(model="m", cases="domain")))
