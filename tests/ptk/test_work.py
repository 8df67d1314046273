from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.errors import StoreError
from ptk.work import Asked, StepResult, WorkStore

ROWS = pl.DataFrame({"id": ["a", "b", "c"], "value": [1, 2, 3]})
READ, FIRST, SECOND = "11" + "0" * 38, "22" + "0" * 38, "33" + "0" * 38


def result(key: str, **changes: Any) -> StepResult:
    facts: dict[str, Any] = {
        "key": key,
        "operator": "mine",
        "version": 1,
        "key_column": "id",
        "input_key": None,
        "rows_in": 3,
        "rows_out": 3,
        "rejected": {},
        "seconds": 0.5,
    }
    return StepResult(**{**facts, **changes})


def decisions(*reasons: str | None, **columns: list[Any]) -> pl.DataFrame:
    marks = {"_reject": list(reasons), "_detail": [None] * len(reasons), "_raw": [None] * len(reasons)}
    return pl.DataFrame(
        {"_key": ["a", "b", "c"][: len(reasons)], **columns, **marks},
        schema_overrides=dict.fromkeys(marks, pl.String),
    )


def finish(work: WorkStore, facts: StepResult, **kinds: pl.DataFrame) -> None:
    with work.staging() as folder:
        for kind, frame in kinds.items():
            (folder / kind).mkdir()
            frame.write_parquet(folder / kind / "part-00000.parquet")
        work.finish(folder, facts)


@pytest.fixture
def work(tmp_path: Path) -> WorkStore:
    """A store with a finished reader of three rows."""
    store = WorkStore(tmp_path / ".ptk")
    finish(store, result(READ), rows=ROWS)
    return store


def test_a_finished_step_is_found_by_its_key(work: WorkStore) -> None:
    assert work.result(READ) == result(READ)
    assert work.frame(READ).collect().equals(ROWS)
    assert work.result(FIRST) is None


def test_a_step_that_was_not_finished_leaves_nothing(work: WorkStore) -> None:
    with pytest.raises(RuntimeError), work.staging() as folder:
        (folder / "rows").mkdir()
        raise RuntimeError
    assert list((work.steps / "staging").iterdir()) == []


def test_decisions_are_laid_beside_the_rows_they_are_about(work: WorkStore) -> None:
    facts = result(FIRST, input_key=READ, rows_out=2, rejected={"odd": 1}, new_columns=("double",))
    finish(work, facts, decisions=decisions(None, "odd", None, double=[2, 4, 6]))
    assert work.frame(FIRST).collect().to_dicts() == [
        {"id": "a", "value": 1, "double": 2},
        {"id": "c", "value": 3, "double": 6},
    ]
    assert work.rejects(FIRST).collect().to_dicts() == [
        {"id": "b", "value": 2, "double": 4, "_reject": "odd", "_detail": None, "_raw": None}
    ]


def test_decisions_about_decisions_go_by_the_rows_that_were_left(work: WorkStore) -> None:
    finish(work, result(FIRST, input_key=READ, rows_out=2, rejected={"odd": 1}), decisions=decisions(None, "odd", None))
    second = pl.DataFrame({"_key": ["a", "c"], "value": [10, 30], "_reject": [None, "late"], "_detail": "x", "_raw": "y"})
    facts = result(SECOND, input_key=FIRST, rows_in=2, rows_out=1, rejected={"late": 1}, new_columns=("value",))
    finish(work, facts, decisions=second)
    assert work.frame(SECOND).collect().to_dicts() == [{"id": "a", "value": 10}]
    assert work.rejects(SECOND).collect().to_dicts() == [
        {"id": "c", "value": 30, "_reject": "late", "_detail": "x", "_raw": "y"}
    ]


def test_compacted_rows_are_read_without_the_step_before(work: WorkStore) -> None:
    facts = result(FIRST, input_key=READ, rows_out=1, rejected={"odd": 2}, compacted=True)
    finish(work, facts, decisions=decisions("odd", "odd", None), rows=ROWS.tail(1))
    (work.steps / "11" / READ / "result.json").unlink()
    assert work.frame(FIRST).collect().equals(ROWS.tail(1))


def test_a_step_whose_rows_are_gone_with_the_step_before_counts_as_not_there(work: WorkStore) -> None:
    finish(work, result(FIRST, input_key=READ), decisions=decisions(None, None, None))
    (work.steps / "11" / READ / "result.json").unlink()
    assert work.result(FIRST) is None
    with pytest.raises(StoreError, match="is gone; run the spec again"):
        work.frame(FIRST)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b'{"format": 1, "key": "x"}', b"\xff\xfe"])
def test_a_result_that_can_not_be_read_counts_as_not_there(work: WorkStore, content: bytes) -> None:
    (work.steps / "11" / READ / "result.json").write_bytes(content)
    assert work.result(READ) is None


def test_a_reader_s_rejects_have_file_and_line(work: WorkStore) -> None:
    rejects = pl.DataFrame({"_reject": ["not_json"], "_detail": "x", "_raw": "{", "_file": "a.jsonl", "_line": 7})
    finish(work, result(FIRST, rows_in=4, rejected={"not_json": 1}), rows=ROWS, rejects=rejects)
    assert work.rejects(FIRST).collect().equals(rejects)


def test_a_step_that_made_rows_from_rows_has_no_rejects(work: WorkStore) -> None:
    assert work.rejects(READ).collect().rows() == []


def test_a_step_done_again_takes_the_place_of_the_first(work: WorkStore) -> None:
    finish(work, result(READ, rows_in=1, rows_out=1), rows=ROWS.head(1))
    assert work.frame(READ).collect().equals(ROWS.head(1))
    assert list((work.steps / "staging").iterdir()) == []


def test_what_a_killed_run_left_is_cleared_and_what_another_run_is_writing_stays(work: WorkStore) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    staging, host = work.steps / "staging", socket.gethostname()
    left = staging / f"{host}-{dead.pid}-0a1b2c3d"
    replaced = staging / f"{host}-{dead.pid}-0a1b2c3d-replaced"
    at_work = staging / f"{host}-{os.getpid()}-0a1b2c3d"
    elsewhere = staging / f"not-{host}-{dead.pid}-0a1b2c3d"
    for folder in (left, replaced, at_work, elsewhere):
        (folder / "rows").mkdir(parents=True)
    work.clear_abandoned()
    assert set(staging.iterdir()) == {at_work, elsewhere}


def test_a_store_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".ptk").write_text("in the way")
    with pytest.raises(StoreError, match="can't write to"), WorkStore(tmp_path / ".ptk").staging():
        pass


def test_what_a_spec_s_steps_looked_like_is_remembered(work: WorkStore) -> None:
    work.remember("team/spec", {"pairs": {"key": "x"}})
    assert work.remembered("team/spec") == {"pairs": {"key": "x"}}
    assert work.remembered("team") == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_memory_that_can_not_be_read_is_no_memory(work: WorkStore, content: bytes) -> None:
    work.remember("spec", {"pairs": {}})
    next((work.root / "last").iterdir()).write_bytes(content)
    assert work.remembered("spec") == {}


def test_a_moved_store_still_opens(work: WorkStore, tmp_path: Path) -> None:
    finish(work, result(FIRST, input_key=READ), decisions=decisions(None, None, None))
    work.root.rename(tmp_path / "moved")
    assert WorkStore(tmp_path / "moved").frame(FIRST).collect().equals(ROWS)


def test_what_was_asked_is_kept_with_the_step(work: WorkStore) -> None:
    asked = Asked(asked=6, answered_before=2, prompt_tokens=100, output_tokens=10, cached_tokens=50, seconds=0.25)
    finish(work, result(FIRST, requests=asked), rows=ROWS)
    found = work.result(FIRST)
    assert found is not None and found.requests == asked
