from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.drop_identical import DropIdentical, drop_identical
from ptk.stages import run_stages

FRAME = pl.DataFrame(
    {
        "_key": ["a", "b", "c", "d", "e", "f"],
        "chosen": ["Yes.", "Yes.", "Yes  sir.\n", None, None, "ÉTÉ"],
        "rejected": ["Yes.", "yes.", "Yes sir.", None, "", "été"],
    }
)


def rejected(*normalise: str) -> list[str]:
    decision = run_stages(drop_identical, [FRAME.lazy()], DropIdentical(normalise=normalise)).collect()  # type: ignore[arg-type]
    return decision.filter(pl.col("_reject") == "identical")["_key"].to_list()


def test_a_pair_of_equal_responses_is_rejected() -> None:
    assert rejected() == ["a", "d"]


def test_differences_of_white_space_and_case_can_be_looked_past() -> None:
    assert rejected("whitespace") == ["a", "c", "d"]
    assert rejected("case") == ["a", "b", "d", "f"]
    assert rejected("case", "whitespace") == ["a", "b", "c", "d", "f"]


def test_turns_and_text_are_compared_by_their_text() -> None:
    frame = pl.DataFrame({"_key": ["a"], "chosen": [[{"role": "assistant", "content": "Yes."}]], "rejected": ["Yes."]})
    assert run_stages(drop_identical, [frame.lazy()], DropIdentical()).collect().rows() == [
        ("a", "identical", "chosen and rejected are the same")
    ]


@pytest.mark.parametrize("columns", [("chosen",), ("chosen", "chosen"), ("a", "b", "c")])
def test_two_different_columns_are_compared(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        DropIdentical(columns=columns)
