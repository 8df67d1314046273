from __future__ import annotations

import polars as pl
import pytest

from ptk.ops.drop_empty import DropEmpty, drop_empty
from ptk.stages import run_stages

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def test_rows_without_text_are_rejected_with_the_columns_that_lack_it() -> None:
    turns = [
        [{"role": "user", "content": "hi"}],
        [],
        None,
        [{"role": "user", "content": " \n"}],
        [{"role": "user", "content": None}],
    ]
    frame = pl.DataFrame(
        {"_key": list("abcde"), "prompt": turns, "chosen": ["x", "x", "\u2003\t", "x", None]},
        schema={"_key": pl.String, "prompt": TURNS, "chosen": pl.String},
    )
    decision = run_stages(drop_empty, [frame.lazy()], DropEmpty(columns=("prompt", "chosen"))).collect()
    assert decision.rows() == [
        ("a", None, None),
        ("b", "empty", "no text in prompt"),
        ("c", "empty", "no text in prompt, chosen"),
        ("d", "empty", "no text in prompt"),
        ("e", "empty", "no text in prompt, chosen"),
    ]


def test_a_column_that_holds_no_text_fails_on_no_rows() -> None:
    frame = pl.LazyFrame(schema={"_key": pl.String, "n": pl.Int64})
    with pytest.raises(TypeError, match="column 'n' is Int64"):
        run_stages(drop_empty, [frame], DropEmpty(columns=("n",)))
