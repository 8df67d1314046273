from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ptk.ops.drop_duplicates import DropDuplicates, drop_duplicates
from ptk.stages import run_stages


def decided(frame: pl.DataFrame, *on: str) -> pl.DataFrame:
    return run_stages(drop_duplicates, [frame.lazy()], DropDuplicates(on=on)).collect()


def test_of_equal_rows_the_one_with_the_smallest_key_stays() -> None:
    frame = pl.DataFrame({"_key": ["c", "a", "b", "d"], "prompt": ["x", "x", "y", "x"]})
    assert decided(frame, "prompt").to_dict(as_series=False) == {
        "_key": ["c", "a", "b", "d"],
        "_reject": ["duplicate", None, None, "duplicate"],
        "_detail": ["same prompt as a", None, None, "same prompt as a"],
    }


def test_rows_are_equal_only_where_all_named_columns_are() -> None:
    frame = pl.DataFrame({"_key": ["a", "b", "c"], "prompt": ["x", "x", "x"], "chosen": ["1", "2", "1"]})
    assert decided(frame, "prompt", "chosen")["_reject"].to_list() == [None, None, "duplicate"]


def test_turns_are_compared_by_role_and_content() -> None:
    turn = {"role": "user", "content": "x"}
    frame = pl.DataFrame({"_key": ["a", "b", "c"], "prompt": [[turn], [{**turn, "role": "system"}], [turn]]})
    assert decided(frame, "prompt")["_reject"].to_list() == [None, None, "duplicate"]


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_what_stays_does_not_depend_on_the_order_of_rows(prompts: list[str], chance: object) -> None:
    frame = pl.DataFrame({"_key": [f"k{n}" for n in range(len(prompts))], "prompt": prompts})
    order = list(range(frame.height))
    chance.shuffle(order)  # type: ignore[attr-defined]
    assert decided(frame[order], "prompt").sort("_key").equals(decided(frame, "prompt").sort("_key"))
