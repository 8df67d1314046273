from __future__ import annotations

import polars as pl
import pytest

from ptk.text import is_turns, text_of, texts_of

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def test_the_text_of_turns_is_their_contents_line_by_line() -> None:
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [], None]
    frame = pl.DataFrame({"prompt": turns}, schema={"prompt": TURNS})
    assert frame.select(text_of("prompt", TURNS))["prompt"].to_list() == ["a\nb", "", None]


def test_the_text_of_text_is_itself() -> None:
    frame = pl.DataFrame({"prompt": ["a", "", None]})
    assert frame.select(text_of("prompt", pl.String()))["prompt"].to_list() == ["a", "", None]


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.List(pl.String()), pl.List(pl.Struct({"content": pl.Int64}))])
def test_a_column_of_another_type_has_no_text(dtype: pl.DataType) -> None:
    assert not is_turns(dtype)
    with pytest.raises(TypeError, match=r"column 'x' is .*, neither text nor a list of turns"):
        text_of("x", dtype)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="there is no column 'y'; the rows have x"):
        texts_of(pl.LazyFrame({"_key": ["a"], "x": ["b"]}), ("y",))
