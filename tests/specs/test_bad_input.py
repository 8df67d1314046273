"""Files that are not what they should be end a run with a sentence and a code, or become rejected rows with counts: on each engine."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.cli import main

pytestmark = pytest.mark.timeout(120)

SPEC = """\
ptk: 1
name: bad
steps:
  pairs:  {op: read_pairs, path: "data/*", max_malformed: 0.5}
  unique: {op: drop_duplicates, from: pairs, on: [prompt]}
  novel:  {op: drop_near_duplicates, from: unique, on: [prompt]}
  parts:  {op: split_rows, from: novel, parts: {train: 0.5}, rest: test, near_duplicates: {}}
outputs:
  bad/parts: {from: parts}
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def steps(self) -> dict[str, tuple[int, int, dict[str, int]]]:
        assert self.code == 0, self.err
        steps: dict[str, Any] = json.loads(self.out)["steps"]
        return {name: (step["rows_in"], step["rows_out"], step["rejected"]) for name, step in steps.items()}


Run = Callable[[], Done]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as running:
        yield running.scheduler_address


@pytest.fixture(params=["polars", "dask"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command line in this process on an engine; no traceback may be seen, whatever is in the files."""
    (tmp_path / "data").mkdir()
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    engine = ["--engine", "polars"]
    if request.param == "dask":
        engine = ["--engine", "dask", "--scheduler", request.getfixturevalue("cluster"), "--partitions", "3"]

    def ran() -> Done:
        monkeypatch.setattr(sys, "argv", ["ptk", "run", "spec.yaml", "--json", *engine])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        return Done(int(stopped.value.code or 0), printed.out, printed.err)

    return ran


def record(number: int, **fields: Any) -> dict[str, Any]:
    words = " ".join(f"w{number * 7 + n}" for n in range(7))
    return {"prompt": f"About {words}?", "chosen": f"Yes, {number}.", "rejected": f"No, {number}.", **fields}


def lines(count: int, start: int = 0, **fields: Any) -> str:
    return "".join(json.dumps(record(number, **fields)) + "\n" for number in range(start, start + count))


def frame(count: int, **columns: Any) -> pl.DataFrame:
    return pl.DataFrame([record(number) for number in range(count)]).with_columns(**columns)


def corrupt(content: bytes, at: float) -> bytes:
    """Return the content with zeros in the place of some bytes."""
    place = int(len(content) * at)
    return content[:place] + bytes(64) + content[place + 64 :]


def gzip_cut_off(data: Path) -> None:
    packed = gzip.compress(lines(20_000).encode())
    (data / "a.jsonl.gz").write_bytes(packed[: len(packed) * 9 // 10])


def gzip_damaged_inside(data: Path) -> None:
    (data / "a.jsonl.gz").write_bytes(corrupt(gzip.compress(lines(20_000).encode()), 0.8))


def gzip_that_is_none(data: Path) -> None:
    (data / "a.jsonl.gz").write_text(lines(20))


def parquet_cut_off(data: Path) -> None:
    frame(3_000).write_parquet(data / "a.parquet")
    (data / "a.parquet").write_bytes((data / "a.parquet").read_bytes()[:-500])


def parquet_damaged_inside(data: Path) -> None:
    frame(50_000).write_parquet(data / "a.parquet", row_group_size=5_000, compression="zstd")
    (data / "a.parquet").write_bytes(corrupt((data / "a.parquet").read_bytes(), 0.6))


def utf_16(data: Path) -> None:
    (data / "a.jsonl").write_text(lines(20))
    (data / "b.jsonl").write_bytes(lines(20).encode("utf-16"))


def csv_with_a_column_twice(data: Path) -> None:
    (data / "a.csv").write_text("prompt,chosen,rejected,chosen\nA?,B,C,D\n")


def parquet_with_a_column_twice(data: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [pa.array([value]) for value in ("A?", "B", "C", "D")]
    parquet.write_table(pa.table(columns, names=["prompt", "chosen", "rejected", "chosen"]), data / "a.parquet")


def mostly_unreadable(data: Path) -> None:
    (data / "a.jsonl").write_text(lines(10) + "{\n" * 30)


def a_field_that_is_nowhere(data: Path) -> None:
    (data / "a.jsonl").write_text('{"question": "A?", "chosen": "B", "rejected": "C"}\n')


def nothing_at_all(data: Path) -> None:
    (data / "folder.jsonl").mkdir()


@pytest.mark.parametrize(
    ("lay", "code", "sentence"),
    [
        # What is met while rows are read ends with 3; what the first look shows is told at the spec's line, with 2.
        (gzip_cut_off, 3, "a.jsonl.gz: not a whole gzip file: "),
        (gzip_damaged_inside, 3, "a.jsonl.gz: not a whole gzip file: "),
        (gzip_that_is_none, 2, "a.jsonl.gz: not a whole gzip file: "),
        (parquet_cut_off, 2, "a.parquet: not a Parquet file: "),
        (parquet_damaged_inside, 3, "a.parquet: not a Parquet file: "),
        (utf_16, 2, "b.jsonl: is UTF-16 text; make it UTF-8 first"),
        (csv_with_a_column_twice, 2, "the header names a column twice"),
        (parquet_with_a_column_twice, 2, "a.parquet: the file names a column twice: "),
        (mostly_unreadable, 3, "step 'pairs': 30 of 40 rows are malformed (75%), and max_malformed is 0.5"),
        (a_field_that_is_nowhere, 2, "has a field 'prompt'"),
        (nothing_at_all, 2, "spec.yaml:4: steps.pairs.path: no file matches 'data/*'"),
    ],
)
def test_what_can_not_be_read_is_told_and_nothing_is_registered(
    lay: Callable[[Path], None], code: int, sentence: str, run: Run, tmp_path: Path
) -> None:
    lay(tmp_path / "data")
    done = run()
    assert (done.code, done.out) == (code, "")
    assert sentence in done.err
    assert not (tmp_path / "catalog").exists()


def other_encodings(data: Path) -> None:
    odd = json.dumps(record(900, prompt="Où est le café?"), ensure_ascii=False).encode("latin-1")
    marked = "\ufeff".encode() + lines(20, start=20).replace("\n", "\r\n").encode()
    (data / "a.jsonl").write_bytes(lines(20).encode() + odd + b"\n")
    (data / "b.jsonl").write_bytes(marked)
    (data / "c.csv").write_bytes("prompt,chosen,rejected\nÉté?,Oui.,Non.\n".encode("cp1252") + b"Hiver?,Oui.,Non.\n")


def huge_lines(data: Path) -> None:
    long = json.dumps(record(900, chosen="yes " * 12_500_000))
    (data / "a.jsonl").write_text(f"{lines(5)}{long}\n{'x' * 50_000_000}\n{lines(5, start=5)}")


def keys_twice(data: Path) -> None:
    twice = '{"prompt": "A?", "chosen": "B", "rejected": "C", "chosen": "D"}\n'
    (data / "a.jsonl").write_text(lines(5) + twice + lines(5, start=5))


def empty_files(data: Path) -> None:
    (data / "a.jsonl").write_text("")
    (data / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    (data / "c.csv").write_text("prompt,chosen,rejected\n")
    frame(3).clear().write_parquet(data / "d.parquet")
    (data / "e.jsonl").write_text(lines(5))


def other_fields_in_each_file(data: Path) -> None:
    turns = {"prompt": [{"role": "user", "content": "About turns?"}], "chosen": [{"role": "assistant", "content": "Yes."}]}
    (data / "a.jsonl").write_text(lines(5, score=3))
    (data / "b.jsonl").write_text(lines(5, start=5, score="high", extra=[1, 2]))
    (data / "c.jsonl").write_text(json.dumps(record(10, **turns)) + "\n" + lines(2, start=11, chosen=7))
    frame(3).with_columns(prompt=pl.concat_str("prompt", pl.lit(" Parquet")), score=0.5).write_parquet(data / "d.parquet")
    frame(1).with_columns(chosen=pl.lit(7)).write_parquet(data / "e.parquet")


@pytest.mark.parametrize(
    ("lay", "rows_in", "rejected"),
    [
        (other_encodings, 43, {"not_csv": 1, "not_json": 1}),
        (huge_lines, 12, {"not_json": 1}),
        (keys_twice, 11, {"repeated_field": 1}),
        (empty_files, 5, {}),
        (other_fields_in_each_file, 17, {"wrong_type": 3}),
    ],
)
def test_what_can_be_read_is_and_the_rest_is_counted(
    lay: Callable[[Path], None], rows_in: int, rejected: dict[str, int], run: Run, tmp_path: Path
) -> None:
    lay(tmp_path / "data")
    steps = run().steps
    assert steps["pairs"] == (rows_in, rows_in - sum(rejected.values()), rejected)
    assert all(given == left + sum(set_aside.values()) for given, left, set_aside in steps.values())
    assert steps["parts"][1] > 0


NOTHING = """\
ptk: 1
name: nothing
steps:
  pairs:   {op: read_pairs, path: data/a.parquet, max_malformed: 0.5}
  derived: {op: derive_columns, from: pairs, columns: {more: score + 1, half: score / 0, none: gone || 'x'}}
  scored:  {op: filter_rows, from: derived, where: {unknown: score IS NOT NULL}}
  other:   {op: filter_rows, from: derived, where: {low: score > 2}}
  single:  {op: drop_duplicates, from: derived, on: [score, gone]}
  few:     {op: sample_rows, from: derived, n: 3, per: [score, gone]}
  joined:  {op: join_rows, from: {frame: derived, other: scored}, on: [gone], columns: [more], prefix: their_, on_missing: 'null'}
  unsafe:  {op: flag_unsafe, from: derived, scores: {score: 3, gone_score: 1}, labels: {gone: [null]}}
  listed:  {op: drop_listed, from: derived, column: gone, ids: [x]}
  novel:   {op: drop_near_duplicates, from: derived, on: [prompt, gone], keep: [{column: score}, {column: gone}]}
  parts:   {op: split_rows, from: derived, parts: {few: 5, rest: 0.9}, disjoint_by: [score, gone], per: gone}
  empty:   {op: drop_empty, from: derived, columns: [gone]}
  after:   {op: drop_near_duplicates, from: empty, on: [prompt]}
  last:    {op: split_rows, from: after, parts: {one: 3, two: 0.5}, near_duplicates: {}}
  told:    {op: describe_corpus, from: derived, by: gone, numbers: [score, gone_score, half], texts: [gone]}
  nobody:  {op: describe_corpus, from: last, by: gone}
  files:   {op: export_rows, from: derived, path: out/csv, format: csv}
  none:    {op: export_rows, from: last, path: out/none, form: trl_explicit}
outputs:
  nothing/told: {from: told}
  nothing/derived: {from: derived}
  nothing/last: {from: last}
"""


def test_null_nan_and_nothing_go_through_every_operator(run: Run, tmp_path: Path) -> None:
    count = 24
    scores = [None, float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 3.0, 3.0] * (count // 8)
    made = frame(
        count, score=pl.Series(scores, dtype=pl.Float64), gone=pl.lit(None, pl.String), gone_score=pl.lit(None, pl.Float64)
    )
    prompts = [
        None if number < 3 else "" if number == 3 else " " if number == 4 else text
        for number, text in enumerate(made["prompt"])
    ]
    made.with_columns(prompt=pl.Series(prompts)).write_parquet(tmp_path / "data" / "a.parquet")
    (tmp_path / "spec.yaml").write_text(NOTHING)
    steps = run().steps
    assert {name: counts for name, counts in steps.items() if name not in ("told", "nobody")} == {
        "pairs": (24, 19, {"empty_text": 2, "missing_field": 3}),
        "derived": (19, 19, {}),
        "scored": (19, 17, {"unknown": 2}),
        "other": (19, 10, {"low": 9}),
        "single": (19, 6, {"duplicate": 13}),
        "few": (19, 14, {"not_sampled": 5}),
        "joined": (19, 19, {}),
        "unsafe": (19, 19, {}),
        "listed": (19, 19, {}),
        "novel": (19, 19, {}),
        "parts": (19, 14, {"in_no_part": 5}),
        "empty": (19, 0, {"empty": 19}),
        "after": (0, 0, {}),
        "last": (0, 0, {}),
        "files": (19, 19, {}),
        "none": (0, 0, {}),
    }
    written = {str(path.relative_to(tmp_path / "out")): path.stat().st_size > 0 for path in (tmp_path / "out").glob("*/data.*")}
    assert written == {"csv/data.csv": True, "none/data.jsonl": False}


SAME = "a: {op: export_rows, from: pairs, path: out/same, name: one}"


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (
            [SAME, "b: {op: export_rows, from: pairs, path: ./out/same}"],
            "spec.yaml:6: steps.b.path: step 'a' writes to './out/same' too; each step needs a folder of its own",
        ),
        (
            ["a: {op: export_rows, from: pairs, path: /tmp/out}"],
            "spec.yaml:5: steps.a.path: '/tmp/out' is not inside the folder of this file; write a relative path without '..'",
        ),
        (
            ["a: {op: export_rows, from: pairs, path: out/../../out}"],
            "spec.yaml:5: steps.a.path: 'out/../../out' is not inside the folder of this file",
        ),
        (
            ['a: {op: filter_rows, from: pairs, where: source = "forum"}'],
            "spec.yaml:5: steps.a.where: there is no column 'forum'; text is written in single quotes, as 'forum'",
        ),
        (
            ["a: {op: filter_rows, from: pairs, where: prompt_txt = 'x'}"],
            "spec.yaml:5: steps.a.where: there is no column 'prompt_txt'; did you mean 'prompt_text'?",
        ),
        (
            ["a: {op: split_rows, from: pairs, parts: {train: 0.8, test: 0.3}}"],
            "spec.yaml:5: steps.a.parts: the shares sum to 1.1, which is more than 1",
        ),
        (
            ["a: {op: decontaminate, from: {frame: pairs, test: pairs}, on: [prompt]}"],
            "spec.yaml:5: steps.a.from.test: decontaminate has no input 'test'; there is against, frame",
        ),
    ],
)
def test_mistakes_in_a_spec_are_told_at_their_line(
    steps: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines(3))
    reader = "pairs: {op: read_pairs, path: pairs.jsonl, source: forum}"
    declared = "".join(f"  {step}\n" for step in [reader, *steps])
    (tmp_path / "spec.yaml").write_text(f"ptk: 1\nname: bad\nsteps:\n{declared}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ptk", "validate", "spec.yaml"])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert sentence in told
    assert "Traceback" not in told


def test_files_that_are_not_ours_stop_an_export_and_stay(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "a.jsonl").write_text(lines(5))
    steps = "steps:\n  pairs: {op: read_pairs, path: data/a.jsonl}\n  files: {op: export_rows, from: pairs, path: out}\n"
    (tmp_path / "spec.yaml").write_text(f"ptk: 1\nname: bad\n{steps}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.jsonl").write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine too")
    stopped = run()
    assert stopped.code == 1
    assert "out/data.jsonl was not written by a run, and would be lost; move it, or choose another folder" in stopped.err
    assert (tmp_path / "out" / "data.jsonl").read_text() == "mine"
    (tmp_path / "out" / "data.jsonl").unlink()
    assert run().steps["files"] == (5, 5, {})
    assert (tmp_path / "out" / "data.jsonl").read_text().count("\n") == 5
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine too"
