from __future__ import annotations

import polars as pl
import pytest

from ptk.errors import PtkError
from ptk.label.group_pairs import GroupPairs, group_pairs
from ptk.stages import keyed, reshaped


def frame(*users: object) -> pl.LazyFrame:
    rows = [
        {"pair_id": f"k{number}", "prompt": f"Q{number}?", "chosen": "Yes.", "rejected": "No.", "user": user, "score": number}
        for number, user in enumerate(users)
    ]
    return keyed(pl.LazyFrame(rows), "pair_id")


def grouped(rows: pl.LazyFrame, **settings: object) -> pl.DataFrame:
    return reshaped(group_pairs, [rows], GroupPairs(by="user", **settings), "group_id").collect()  # type: ignore[arg-type]


def test_the_pairs_of_a_user_become_one_row_in_the_order_of_their_keys() -> None:
    found = grouped(frame(7, 10, 7).sort("pair_id", descending=True))
    assert found.columns == ["group_id", "user", "pairs", "pair_count"]
    assert found.select("group_id", "user", "pair_count").rows() == [("10", 10, 1), ("7", 7, 2)]
    assert found["pairs"].to_list()[1] == [
        {"pair": "k0", "prompt": "Q0?", "chosen": "Yes.", "rejected": "No."},
        {"pair": "k2", "prompt": "Q2?", "chosen": "Yes.", "rejected": "No."},
    ]


def test_of_many_pairs_the_first_are_kept_and_all_are_counted() -> None:
    found = grouped(frame(*["a"] * 5), most=2)
    assert [pair["pair"] for pair in found["pairs"][0]] == ["k0", "k1"]
    assert found["pair_count"].to_list() == [5]


def test_a_row_without_a_user_stops_the_run() -> None:
    with pytest.raises(PtkError, match="2 rows have no value in 'user'; leave them out with filter_rows"):
        grouped(frame("a", None, None))


def test_a_column_of_the_new_rows_names_no_groups() -> None:
    with pytest.raises(ValueError, match="have a column 'pairs' of their own"):
        group_pairs.key(GroupPairs(by="pairs"), ["pair_id"])
