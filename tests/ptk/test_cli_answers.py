"""`ptk answers`: what is stored of each model, and what is removed, only where an option says so."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ptk.cli import main
from ptk.llm.answers import AnswerStore
from ptk.llm.request import Answer

Answers = Callable[..., tuple[int, str, str]]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answers:
    """Run `ptk answers` in an empty folder and return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ptk", "answers", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


def stored(folder: Path, name: str, count: int) -> AnswerStore:
    """Store that many answers of a model, each in its own segment."""
    store = AnswerStore(folder / ".ptk/answers", {"digest": name}, name)
    for number in range(count):
        store.append([Answer(hashlib.sha256(f"{name} {number}".encode()).hexdigest(), f"Answer {number}.", "stop")])
    return store


def held(store: AnswerStore) -> int:
    return sum(pl.read_parquet(path).height for path in store.folder.glob("*.parquet"))


def test_ls_shows_each_model_with_its_answers(tmp_path: Path, answers: Answers) -> None:
    store = stored(tmp_path, "tiny/model", 3)
    code, out, _ = answers("ls", "--json")
    (seen,) = json.loads(out)
    assert code == 0
    assert seen.pop("newest")[:2] == "20"
    assert seen == {
        "model": store.folder.name,
        "name": "tiny/model",
        "identity": {"digest": "tiny/model"},
        "answers": 3,
        "segments": 3,
        "bytes": sum(path.stat().st_size for path in store.folder.glob("*.parquet")),
    }
    code, out, _ = answers("ls", "--work", ".ptk")
    header, line = out.splitlines()
    assert (code, header.split()) == (0, ["model", "name", "answers", "segments", "bytes", "newest"])
    assert line.split()[:4] == [store.folder.name, "tiny/model", "3", "3"]


def test_ls_of_a_store_without_answers_says_so(answers: Answers) -> None:
    assert answers("ls") == (0, "no answers are stored in .ptk\n", "")
    assert answers("ls", "--json") == (0, "[]\n", "")
    assert answers("gc") == (0, "no answers are stored in .ptk\n", "")


def test_gc_merges_segments_removes_leftovers_and_keeps_every_answer(tmp_path: Path, answers: Answers) -> None:
    store = stored(tmp_path, "tiny/model", 3)
    aside = store.folder / "dead.aside"
    aside.write_bytes(b"PAR1")
    os.utime(aside, (0, 0))
    named = f"{store.folder.name} (tiny/model)"
    assert answers("gc", "--dry-run") == (
        0,
        f"{named}: 0 answers would be removed, 1 half-written files would be removed, 3 small segments would be merged\n",
        "",
    )
    assert aside.exists() and len(list(store.folder.glob("*.parquet"))) == 3
    assert answers("gc") == (0, f"{named}: 0 answers removed, 1 half-written files removed, 3 small segments merged\n", "")
    assert not aside.exists() and len(list(store.folder.glob("*.parquet"))) == 1
    assert held(store) == 3


def test_gc_removes_answers_only_of_the_model_that_is_named(tmp_path: Path, answers: Answers) -> None:
    tiny, large = stored(tmp_path, "tiny/model", 2), stored(tmp_path, "large/model", 1)
    code, out, _ = answers("gc", "--model", "tiny", "--dry-run", "--json")
    assert (code, json.loads(out)) == (
        0,
        [{"model": tiny.folder.name, "name": "tiny/model", "answers": 2, "leftovers": 0, "merged": 0}],
    )
    assert (held(tiny), held(large)) == (2, 1)
    assert answers("gc", "--model", "tiny")[0] == 0
    assert (held(tiny), held(large)) == (0, 1)


def test_gc_removes_old_answers_only_when_told_to(tmp_path: Path, answers: Answers) -> None:
    store = stored(tmp_path, "tiny/model", 2)
    assert answers("gc", "--keep-days", "1")[0] == 0
    assert held(store) == 2
    code, out, _ = answers("gc", "--keep-days", "0")
    assert (code, held(store)) == (0, 0)
    assert "2 answers removed" in out


def test_gc_takes_one_choice_of_answers_at_a_time(tmp_path: Path, answers: Answers) -> None:
    store = stored(tmp_path, "tiny/model", 1)
    code, _, err = answers("gc", "--keep-days", "0", "--model", "tiny")
    assert code == 2
    assert "--keep-days takes old answers of every model, --model all of one; give one of them" in err
    code, _, err = answers("gc", "--model", "no")
    assert (code, err.splitlines()[0].startswith("ptk: no model in ")) == (1, True)
    assert held(store) == 1


def test_a_damaged_segment_is_told_in_a_sentence(tmp_path: Path, answers: Answers) -> None:
    store = stored(tmp_path, "tiny/model", 2)
    damaged = min(store.folder.glob("*.parquet"))
    damaged.write_bytes(b"no Parquet")
    for command in (("ls",), ("gc",), ("gc", "--keep-days", "1")):
        code, out, err = answers(*command)
        assert (code, out) == (1, "")
        assert err.startswith(f"ptk: {damaged} is damaged (")
        assert err.endswith("delete it and run again: the answers in it are then asked again\n")
