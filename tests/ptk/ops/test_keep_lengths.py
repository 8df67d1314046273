from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.keep_lengths import KeepLengths, keep_lengths
from ptk.stages import run_stages

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def verdict(chosen: list[str], rejected: list[str], minimum: int = 1, maximum: int = 100_000) -> tuple[str | None, str]:
    def turns(texts: list[str]) -> list[list[dict[str, str]]]:
        return [[{"role": "assistant", "content": text} for text in texts]]

    frame = pl.DataFrame(
        {"_key": ["k"], "chosen": turns(chosen), "rejected": turns(rejected)},
        schema={"_key": pl.String, "chosen": TURNS, "rejected": TURNS},
    )
    decision = run_stages(keep_lengths, [frame.lazy()], KeepLengths(minimum=minimum, maximum=maximum)).collect()
    _, reason, detail = decision.select("_key", "_reject", "_detail").row(0)
    return reason, detail


def test_both_responses_have_to_be_long_enough() -> None:
    assert verdict(["one two three"], ["one two"], minimum=3) == ("too_short", "2 to 3 words")
    assert verdict(["one two"], ["one two three"], minimum=3) == ("too_short", "2 to 3 words")


def test_neither_response_may_be_too_long() -> None:
    assert verdict(["one"], ["one two three"], maximum=2) == ("too_long", "1 to 3 words")


def test_the_limits_themselves_are_allowed() -> None:
    assert verdict(["one two"], ["one two three"], minimum=2, maximum=3)[0] is None


def test_words_of_all_turns_count_and_any_white_space_parts_them() -> None:
    assert verdict(["one\ttwo", "three\n\nfour"], ["a b  c d"], minimum=4, maximum=4) == (None, "4 to 4 words")


def decided(frame: pl.DataFrame, **settings: object) -> list[tuple[str | None, str]]:
    decision = run_stages(keep_lengths, [frame.lazy()], KeepLengths(**settings)).collect()  # type: ignore[arg-type]
    return list(zip(decision["_reject"], decision["_detail"], strict=True))


TEXTS = pl.DataFrame({"_key": ["a", "b", "c"], "chosen": ["one", "één", None], "rejected": ["one two three four", "a b", "x"]})


def test_lengths_can_be_counted_in_characters() -> None:
    assert decided(TEXTS, unit="characters", minimum=2, maximum=10) == [
        ("too_long", "3 to 18 characters"),
        (None, "3 to 3 characters"),
        ("too_short", "0 to 1 characters"),
    ]
    assert verdict(["ab", "c"], ["abcd"])[0] is None


def test_what_joins_turns_is_no_character() -> None:
    turns = [[{"role": "assistant", "content": "ab"}, {"role": "assistant", "content": "c"}]]
    frame = pl.DataFrame({"_key": ["a"], "chosen": turns})
    assert decided(frame, columns=("chosen",), unit="characters") == [(None, "3 to 3 characters")]


def test_one_response_may_not_be_much_longer_than_the_other() -> None:
    assert decided(TEXTS, minimum=0, most_ratio=2.0) == [
        ("uneven", "1 to 4 words"),
        (None, "1 to 2 words"),
        ("uneven", "0 to 1 words"),
    ]


def test_a_response_that_is_missing_has_no_words() -> None:
    assert decided(TEXTS)[2] == ("too_short", "0 to 1 words")


def test_other_columns_can_be_measured() -> None:
    assert decided(TEXTS, columns=("rejected",), minimum=2)[2] == ("too_short", "1 to 1 words")


@pytest.mark.parametrize(
    "settings", [{"minimum": 3, "maximum": 2}, {"columns": ("chosen",), "most_ratio": 2.0}, {"columns": ()}]
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KeepLengths(**settings)  # type: ignore[arg-type]
