"""The spec that cleans and splits HH transcripts accounts for every row, and its parts are apart."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ptk_catalog
from ptk.execute import RunSummary, run_plan
from ptk.plan import Plan, make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore

from . import transcripts

SPEC = Path(__file__).resolve().parents[2] / "specs" / "hh_clean.yaml"
REAL = SPEC.parents[2] / "shared" / "data" / "hh_harmless_raw.jsonl"
MAKES_OTHER_ROWS = {"measures"}

MADE_UP = {
    "pairs": (
        258,
        {
            "early_split": 2,
            "empty_turn": 1,
            "marker_inside": 1,
            "missing_field": 1,
            "no_shared_prompt": 1,
            "no_turns": 1,
            "not_an_object": 1,
            "not_json": 1,
            "repeat": 3,
            "wrong_roles": 1,
        },
    ),
    "filled": (245, {}),
    "different": (245, {"identical": 2}),
    "unique": (243, {"duplicate": 2}),
    "novel": (241, {"near_duplicate": 4}),
    "masked": (237, {}),
    "screened": (237, {}),
    "parts": (237, {}),
    "test": (237, {"not_in_test": 219}),
    "training": (237, {"in_test": 18}),
    "apart": (219, {"contaminated": 2}),
    "clean": (235, {}),
    "files": (235, {}),
}
MADE_UP_FLAGS = {"role_order": 1, "email": 1, "words_in_chosen": 1}
MADE_UP_PARTS = {"few_shot": 5, "sft_train": 91, "sft_val": 18, "dpo_train": 79, "dpo_val": 24, "test": 18}


def run(spec: Path) -> tuple[Plan, RunSummary]:
    plan = make_plan(load_spec(spec), WorkStore(spec.parent / ".ptk"))
    return plan, run_plan(plan, plan_store(spec), lambda: ptk_catalog.open(spec.parent / "catalog" / "store"), Quiet())


def plan_store(spec: Path) -> WorkStore:
    return WorkStore(spec.parent / ".ptk")


def counts(summary: RunSummary) -> dict[str, tuple[int, dict[str, int]]]:
    return {
        step.name: (step.result.rows_in, step.result.rejected) for step in summary.steps if step.name not in MAKES_OTHER_ROWS
    }


def flags(summary: RunSummary) -> dict[str, int]:
    return {flag: count for step in summary.steps for flag, count in step.result.flagged.items()}


def exported(spec: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        for path in sorted((spec.parent / "out" / "hh_clean").glob("*.jsonl"))
    }


def grams(record: dict[str, Any], n: int = 13) -> set[tuple[str, ...]]:
    """Return the n-grams of words of a record's prompt and responses, each for itself; of a shorter text the whole."""
    found: set[tuple[str, ...]] = set()
    for side in ("prompt", "chosen", "rejected"):
        words = re.findall(r"[a-z0-9]+", "\n".join(turn["content"] for turn in record[side]).lower())
        found |= {tuple(words[start : start + n]) for start in range(max(1, len(words) - n + 1))}
    return found


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Copy the spec to a folder of its own, to read the given transcripts."""

    def laid(data: Path) -> Path:
        monkeypatch.setenv("HH_TRANSCRIPTS", str(data))
        return Path(shutil.copy(SPEC, tmp_path))

    return laid


@pytest.fixture
def made_up(tmp_path: Path, lay: Callable[[Path], Path]) -> Path:
    return lay(transcripts.write_lines(tmp_path / "raw" / "made.jsonl", transcripts.transcripts()))


@pytest.fixture
def real(lay: Callable[[Path], Path]) -> Path:
    if not REAL.exists():
        pytest.skip("needs the real transcripts")
    return lay(REAL)


def check_rows(spec: Path, plan: Plan, summary: RunSummary) -> None:
    """Hold every count against the others, the files against the catalog, and the parts against each other."""
    results = {step.name: step.result for step in summary.steps}
    for name, result in results.items():
        given = [results[source].rows_out for source in plan.nodes[name].step.inputs.values()]
        assert result.rows_in == (sum(given) if name == "clean" else given[0] if given else result.rows_in), name
        if name in MAKES_OTHER_ROWS:
            continue
        assert result.rows_in == result.rows_out + sum(result.rejected.values()), name
        set_aside = plan_store(spec).rejects(result.key).collect()
        assert Counter(set_aside["_reject"]) == result.rejected, name
    catalog = ptk_catalog.open(spec.parent / "catalog" / "store", create=False)
    rows = catalog.load("hh/clean@latest").collect().to_dicts()
    files = exported(spec)
    assert {record["pair_id"]: (part, record) for part, records in files.items() for record in records} == {
        row["pair_id"]: (row["split"], {name: row[name] for name in ("prompt", "chosen", "rejected", "pair_id")})
        for row in rows
    }
    assert sum(map(len, files.values())) == len(rows) == results["clean"].rows_out
    parts_of_prompt: dict[str, set[str]] = {}
    for row in rows:
        parts_of_prompt.setdefault(json.dumps(row["prompt"]), set()).add(row["split"])
    assert all(len(parts) == 1 for parts in parts_of_prompt.values())
    measures = {row["name"]: row["value"] for row in catalog.load("hh/measures").collect().to_dicts()}
    assert measures["rows"] == len(rows)
    assert {part: measures[f"rows//{part}"] for part in files} == {part: len(records) for part, records in files.items()}


def test_every_made_up_transcript_is_accounted_for(made_up: Path) -> None:
    plan, summary = run(made_up)
    assert counts(summary) == MADE_UP
    assert flags(summary) == MADE_UP_FLAGS
    assert {part: len(records) for part, records in exported(made_up).items()} == MADE_UP_PARTS
    check_rows(made_up, plan, summary)


def test_no_words_of_a_test_pair_are_in_a_training_pair(made_up: Path) -> None:
    run(made_up)
    files = exported(made_up)
    held_out = set().union(*map(grams, files.pop("test")))
    assert held_out
    assert [record for records in files.values() for record in records if grams(record) & held_out] == []


def test_what_was_found_is_masked_in_what_is_passed_on(made_up: Path) -> None:
    run(made_up)
    written = "".join(path.read_text() for path in (made_up.parent / "out").rglob("*.jsonl"))
    assert ("ada@example.org" in written, "Write to [EMAIL] about it." in written) == (False, True)


def test_every_real_transcript_is_accounted_for(real: Path) -> None:
    plan, summary = run(real)
    assert counts(summary) == {
        "pairs": (1_152, {"early_split": 3, "marker_inside": 17}),
        "filled": (1_132, {}),
        "different": (1_132, {}),
        "unique": (1_132, {}),
        "novel": (1_132, {}),
        "masked": (1_132, {}),
        "screened": (1_132, {}),
        "parts": (1_132, {}),
        "test": (1_132, {"not_in_test": 1_023}),
        "training": (1_132, {"in_test": 109}),
        "apart": (1_023, {"contaminated": 8}),
        "clean": (1_124, {}),
        "files": (1_124, {}),
    }
    assert flags(summary) == {"role_order": 2, "email": 3, "phone": 2, "words_in_chosen": 1}
    assert {part: len(records) for part, records in exported(real).items()} == {
        "few_shot": 5,
        "sft_train": 410,
        "sft_val": 101,
        "dpo_train": 390,
        "dpo_val": 109,
        "test": 109,
    }
    check_rows(real, plan, summary)


def test_a_second_run_does_nothing_and_the_outputs_are_what_was_committed(made_up: Path, ptk: Callable[..., Any]) -> None:
    run(made_up)
    before = {path: path.stat().st_mtime_ns for path in (made_up.parent / "out").rglob("*")}
    again = ptk("run", "hh_clean.yaml", "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert all(step["cached"] for step in summary["steps"].values())
    assert [(item["entry"], item["version"], item["new"]) for item in summary["outputs"]] == [
        ("hh/clean", "v1", False),
        ("hh/measures", "v1", False),
    ]
    assert {path: path.stat().st_mtime_ns for path in (made_up.parent / "out").rglob("*")} == before
    catalog = ptk_catalog.open(made_up.parent / "catalog" / "store", create=False)
    assert [catalog.verify(entry).rows for entry in ("hh/clean", "hh/measures")] == [235, 690]
    verified = ptk("catalog", "verify", "hh/clean")
    assert (verified.returncode, verified.stdout) == (0, "hh/clean@v1: 235 rows are what was committed\n")


def test_without_the_variable_the_spec_says_what_to_set(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, ptk: Callable[..., Any]
) -> None:
    monkeypatch.delenv("HH_TRANSCRIPTS")
    told = ptk("validate", "hh_clean.yaml")
    assert told.returncode == 2
    assert "steps.pairs.path: the environment has no variable 'HH_TRANSCRIPTS'; set it, as in: HH_TRANSCRIPTS=... ptk run" in (
        told.stderr
    )
