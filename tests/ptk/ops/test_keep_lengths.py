from __future__ import annotations

import polars as pl

from ptk.ops.keep_lengths import KeepLengths, keep_lengths

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def verdict(chosen: list[str], rejected: list[str], minimum: int = 1, maximum: int = 100_000) -> tuple[str | None, str]:
    def turns(texts: list[str]) -> list[list[dict[str, str]]]:
        return [[{"role": "assistant", "content": text} for text in texts]]

    frame = pl.DataFrame(
        {"_key": ["k"], "chosen": turns(chosen), "rejected": turns(rejected)},
        schema={"_key": pl.String, "chosen": TURNS, "rejected": TURNS},
    )
    decision = keep_lengths.function(frame.lazy(), KeepLengths(minimum=minimum, maximum=maximum)).collect()
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
