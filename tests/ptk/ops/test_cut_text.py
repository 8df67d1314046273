"""Texts are cut to a number of words, at a sentence or at a word."""

from __future__ import annotations

import polars as pl
import pytest

from ptk.operator import KEY
from ptk.ops.cut_text import CutText, cut_text

TEXTS = [
    "One two. Three four five.",
    "One two three four five six",
    "Short.",
    "",
    None,
    'He said "no." She left at once, then.',
]


def cut(texts: list[str | None], **given: object) -> list[str | None]:
    frame = pl.LazyFrame(
        {KEY: [str(number) for number in range(len(texts))], "text": texts}, schema_overrides={"text": pl.String}
    )
    return cut_text.function(frame, params=CutText(columns=("text",), **given)).collect()["text"].to_list()


def test_a_text_ends_with_the_last_sentence_that_is_whole_where_there_is_one() -> None:
    assert cut(TEXTS, words=4) == ["One two.", "One two three four", "Short.", "", None, 'He said "no."']


def test_a_text_ends_with_the_last_word_where_that_is_wanted() -> None:
    assert cut(TEXTS, words=4, at="word")[0] == "One two. Three four"


def test_what_is_short_enough_stays_as_it_is() -> None:
    assert cut(["  two\n words ", "a b c"], words=2) == ["  two\n words ", "a b"]


def test_every_turn_is_cut_and_other_fields_stay() -> None:
    turns = [{"role": "user", "content": "a b c d", "name": "x"}, {"role": "assistant", "content": "e", "name": "y"}]
    frame = pl.LazyFrame({KEY: ["k"], "chosen": [turns]})
    made = cut_text.function(frame, params=CutText(columns=("chosen",), words=2, at="word")).collect()
    assert made["chosen"].to_list() == [[{**turns[0], "content": "a b"}, turns[1]]]


def test_a_column_without_text_is_refused() -> None:
    with pytest.raises(TypeError, match="neither text nor a list of turns"):
        cut_text.function(pl.LazyFrame({KEY: ["k"], "n": [1]}), params=CutText(columns=("n",), words=2))
