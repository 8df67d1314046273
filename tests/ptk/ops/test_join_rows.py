from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Literal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ptk.ops.join_rows import JoinRows, join_rows
from ptk.stages import run_stages

from .partitioned import run_partitioned

FRAME = pl.DataFrame({"_key": ["a", "b", "c", "d"], "pair_id": ["a", "b", "c", "d"], "user": ["u1", "u2", None, "u9"]})
OTHER = pl.DataFrame(
    {
        "_key": ["p", "q", "r", "s"],
        "user": ["u1", "u2", "u2", None],
        "age": [30, 40, 50, 60],
        "country": ["DE", "FR", "FR", "IT"],
    }
)


def joined(frame: pl.DataFrame, other: pl.DataFrame, **settings: object) -> pl.DataFrame:
    params = JoinRows(**{"on": ("user",), **settings})  # type: ignore[arg-type]
    return run_stages(join_rows, [frame.lazy(), other.lazy()], params).collect(engine="streaming")


def test_columns_of_the_one_row_that_matches_are_added() -> None:
    assert joined(FRAME, OTHER).to_dict(as_series=False) == {
        "_key": ["a", "b", "c", "d"],
        "age": [30, None, None, None],
        "country": ["DE", None, None, None],
        "_reject": [None, "several_matches", "no_match", "no_match"],
        "_detail": [None, "2 rows have the same user", "no row has the same user", "no row has the same user"],
    }


def test_rows_without_a_match_can_stay() -> None:
    decision = joined(FRAME, OTHER, on_missing="null")
    assert decision["_reject"].to_list() == [None, "several_matches", None, None]
    assert decision["age"].to_list() == [30, None, None, None]


def test_null_matches_nothing_not_even_null() -> None:
    assert joined(FRAME, OTHER)["_reject"][2] == "no_match"


def test_the_compared_columns_may_have_other_names_in_the_other_input() -> None:
    other = OTHER.rename({"user": "person"})
    decision = joined(FRAME, other, other_on=("person",), columns=("age",))
    assert decision.columns == ["_key", "age", "_reject", "_detail"]
    assert decision["age"].to_list() == [30, None, None, None]


def test_several_columns_have_to_be_equal_together() -> None:
    frame = pl.DataFrame({"_key": ["a", "b"], "user": ["u", "u"], "day": [1, 2]})
    other = pl.DataFrame({"_key": ["p"], "user": ["u"], "day": [2], "mood": ["good"]}, schema_overrides={"day": pl.Int32})
    assert joined(frame, other, on=("user", "day"))["mood"].to_list() == [None, "good"]


def test_a_prefix_is_put_before_all_added_columns() -> None:
    assert joined(FRAME, OTHER, prefix="user_").columns == ["_key", "user_age", "user_country", "_reject", "_detail"]


@pytest.mark.parametrize(
    ("settings", "other", "complaint"),
    [
        ({}, OTHER.with_columns(pair_id="_key"), "the rows have 'pair_id' already"),
        ({"columns": ("agee",)}, OTHER, "`other` has no column 'agee'; did you mean 'age'?"),
        ({}, OTHER.drop("user"), "`other` has no column 'user'"),
        ({}, OTHER.with_columns(user=1), "'user' is string and 'user' of `other` is an integer"),
        ({}, OTHER.select("_key", "user"), "nothing to add"),
        ({"columns": ("_key",)}, OTHER, "`other` has no column '_key'"),
    ],
)
def test_what_can_not_be_joined_fails_on_no_rows(settings: dict[str, object], other: pl.DataFrame, complaint: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        joined(FRAME.clear(), other.clear(), **settings)
    assert complaint in str(error.value)


@pytest.mark.parametrize("settings", [{"on": ()}, {"other_on": ("a", "b")}, {"prefix": "_x"}, {"columns": ()}])
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        joined(FRAME, OTHER, **settings)


VALUES = st.lists(st.sampled_from(["u", "v", "w", "", None]), max_size=12)


@given(VALUES, VALUES, st.randoms(use_true_random=False))
def test_the_decision_is_that_of_a_slow_search_in_whatever_order_the_rows_come(
    asking: list[str | None], offered: list[str | None], chance: object
) -> None:
    schema = {"_key": pl.String, "user": pl.String}
    frame = pl.DataFrame([(f"k{n}", value) for n, value in enumerate(asking)], schema=schema, orient="row")
    other = pl.DataFrame([(f"o{n}", value) for n, value in enumerate(offered)], schema=schema, orient="row").with_columns(
        it=pl.col("_key")
    )
    order = list(range(other.height))
    chance.shuffle(order)  # type: ignore[attr-defined]
    decision = joined(frame, other[order])
    expected = []
    for value in asking:
        matches = [n for n, other_value in enumerate(offered) if value is not None and value == other_value]
        reason = "no_match" if not matches else "several_matches" if len(matches) > 1 else None
        expected.append((f"o{matches[0]}" if len(matches) == 1 else None, reason))
    assert decision["_key"].to_list() == frame["_key"].to_list()
    assert list(zip(decision["it"], decision["_reject"], strict=True)) == expected


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("on_missing", ["reject", "null"])
def test_the_decision_is_the_same_in_parts(parts: int, on_missing: Literal["reject", "null"]) -> None:
    frame = pl.DataFrame({"_key": [f"k{n}" for n in range(40)], "user": [f"u{n % 13}" if n % 7 else None for n in range(40)]})
    other = pl.DataFrame(
        {"_key": [f"o{n}" for n in range(12)], "person": [f"u{n * 2 % 15}" for n in range(12)], "age": range(12)}
    )
    params = JoinRows(on=("user",), other_on=("person",), on_missing=on_missing)
    whole = run_stages(join_rows, [frame.lazy(), other.lazy()], params).collect()
    assert run_partitioned(join_rows, [frame, other], params, parts).sort("_key").equals(whole.sort("_key"))


def test_a_spec_joins_concatenates_and_selects(project: Path, ptk: Callable[..., CompletedProcess[str]]) -> None:
    (project / "spec.yaml").write_text("""\
ptk: 1
name: small
steps:
  pairs:  {op: read_pairs, path: pairs.jsonl}
  low:    {op: filter_rows, from: pairs, where: "prompt_text < 'Question 4'"}
  high:   {op: filter_rows, from: pairs, where: "prompt_text >= 'Question 3'"}
  sized:  {op: derive_columns, from: high, columns: {size: LENGTH(rejected_text)}}
  sizes:  {op: select_columns, from: sized, keep: [pair_id, size]}
  known:  {op: join_rows, from: {frame: pairs, other: sizes}, on: [pair_id], on_missing: "null"}
  all:    {op: concat_rows, from: [low, sized], columns: union, on_repeat: first, origin: part}
  clean:  {op: drop_listed, from: all, column: part, ids: ["9"]}
outputs:
  small/known: {from: known, licence: cc0-1.0}
  small/clean: {from: clean, licence: cc0-1.0}
""")
    ran = ptk("run", "spec.yaml")
    assert ran.returncode == 0, ran.stderr
    assert "small/known@v1  10 rows" in ran.stdout
    assert "small/clean@v1  10 rows" in ran.stdout
