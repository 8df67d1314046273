from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.measure.flag_outputs import FlagOutputs, flag_outputs


def flagged(frame: pl.DataFrame, **options: Any) -> pl.DataFrame:
    keyed = frame.with_columns(_key=pl.int_range(pl.len()).cast(pl.String))
    params = FlagOutputs.model_validate_json(json.dumps(options))
    return flag_outputs.function(keyed.lazy(), params=params).collect(engine="streaming")


TEXTS = ["Rinse it twice.", None, "again and again and again and again and again.", "Then you pour the water into the"]


def test_texts_are_flagged_and_stay() -> None:
    found = flagged(pl.DataFrame({"response": TEXTS}))
    assert found["output_flags"].to_list() == [[], ["empty"], ["repetitive"], ["truncated"]]
    assert "_reject" not in found.columns


def test_why_the_model_stopped_decides_where_it_is_known() -> None:
    frame = pl.DataFrame({"reply": TEXTS, "why": ["length", None, "stop", "stop"]})
    found = flagged(frame, column="reply", finish_reason="why", into="flaws")
    assert found["flaws"].to_list() == [["truncated"], ["empty"], ["repetitive"], []]


def test_turns_are_text_too() -> None:
    frame = pl.DataFrame({"response": [[{"role": "assistant", "content": ""}], [{"role": "assistant", "content": "Yes."}]]})
    assert flagged(frame)["output_flags"].to_list() == [["empty"], []]


def test_flagged_rows_can_be_rejected_with_a_reason() -> None:
    found = flagged(pl.DataFrame({"response": TEXTS}), reject=["repetitive", "empty"])
    assert found["_reject"].to_list() == [None, "empty", "repetitive", None]
    assert found["_detail"].to_list()[1:3] == ["it has no letter or digit", "it says the same again and again"]


def test_numbers_are_no_text() -> None:
    with pytest.raises(TypeError, match="neither text nor a list of turns"):
        flagged(pl.DataFrame({"response": [1]}))


def test_a_run_counts_the_flags(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    records = [{"prompt": f"Q{n}?", "chosen": "word " * 3 * n + ".", "rejected": "No."} for n in range(1, 6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: told\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl}\n"
        "  flagged:  {op: flag_outputs, from: pairs, column: chosen}\noutputs:\n  small/flagged: {from: flagged}\n"
    )
    done = ptk("run", "spec.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert '"repetitive":4' in done.stdout.replace(" ", "")
