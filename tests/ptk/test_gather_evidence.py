"""Reports of runs and of versions: what a run writes, that it is the same however the run went, and what is said of what lacks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ptk.cli import cli
from ptk.gather_evidence import evidence_of_run, evidence_of_versions
from ptk.plan import make_plan
from ptk.report.make import digest_of, report_of
from ptk.report.parts import Heat
from ptk.spec import load_spec
from ptk.work import WorkStore
from ptk_catalog import open as open_catalog

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "persona_pairs.jsonl"

SPEC = """
ptk: 1
name: rice
models:
  small: {backend: scripted}
  large: {backend: scripted, unparsable: 0.3}
  judge: {backend: scripted, model: echo}
steps:
  pairs:    {op: read_pairs, path: pairs.jsonl}
  personas:
    op: infer_personas
    from: pairs
    model: [small, large]
    matrix: {cut: [1, 2]}
    exemplar_count: "${matrix.cut}"
    exemplars: cases.yaml
  right:    {op: judge_personas, from: personas, model: judge, by: [model]}
  untold:   {op: generate_responses, from: right, model: small, into: untold}
  told:     {op: generate_responses, from: untold, model: small, persona: chosen_persona, into: told}
  better:   {op: judge_responses, from: told, model: judge, first: told, second: untold, into: better}
  fitted:
    op: judge_responses
    from: better
    model: judge
    first: told
    second: untold
    rubric: personalization
    persona: chosen_persona
    into: fitted
  wins:
    op: measure_wins
    from: fitted
    by: [model, cut]
    rounds: 100
    outcomes: [{name: told, quality: better, personalization: fitted}]
outputs:
  rice/judged: {from: fitted, licence: cc0-1.0}
  rice/wins:   {from: wins, licence: cc0-1.0}
report: {to: [out/report.html], examples: 5, title: Rice}
"""


def lay_out(folder: Path) -> None:
    pairs = [
        {"prompt": f"Question {n}?", "chosen": f"Answer {n}.", "rejected": f"That hangs on {n} things.", "domain": "ab"[n % 2]}
        for n in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    cases = [
        {"prompt": f"Case {n}?", "preferred": "Yes.", "other": "No.", "persona": "The user is busy and prefers yes."}
        for n in (1, 2)
    ]
    (folder / "cases.yaml").write_text(json.dumps({"exemplars": cases}))
    (folder / "rice.yaml").write_text(SPEC)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ptk(*arguments: str, code: int = 0) -> str:
    run = CliRunner().invoke(cli, list(arguments))
    assert (run.exit_code == 0) == (code == 0), (run.output, run.exception)
    return run.stdout


def told(*arguments: str) -> Any:
    return json.loads(ptk(*arguments, "--json"))


def test_a_run_writes_its_report_and_the_command_writes_the_same_bytes(folder: Path) -> None:
    report = told("run", "rice.yaml")["report"]
    assert [item["path"] for item in report["files"]] == ["out/report.html"]
    assert (report["examples"], report["of"]) == (5, 12)
    again = told("report", "rice.yaml", "-o", "again.html", "--examples", "5", "--title", "Rice")
    assert again["digest"] == report["digest"]
    assert (folder / "again.html").read_bytes() == (folder / "out/report.html").read_bytes()
    page = (folder / "out/report.html").read_text()
    assert "<title>Rice</title>" in page and "rice/judged@v1" in page and "A scripted model answered" in page
    assert "persona-accuracy" in page  # no step measured it
    assert "no_form" in page or "malformed" in page or "set aside" in page
    cached = told("run", "rice.yaml")["report"]
    assert cached["digest"] == report["digest"]
    assert (folder / "again.html").read_bytes() == (folder / "out/report.html").read_bytes()


def test_the_heat_map_of_a_run_has_the_cells_of_its_matrix(folder: Path) -> None:
    ptk("run", "rice.yaml")
    work = WorkStore(Path(".ptk"))
    evidence = evidence_of_run(make_plan(load_spec(Path("rice.yaml")), work), work)
    assert evidence.axes == ("model", "cut")
    heat = next(figure.chart for figure in report_of(evidence).figures() if isinstance(figure.chart, Heat))
    assert (set(heat.rows), set(heat.columns)) == ({"small", "large"}, {"1", "2"})


def test_a_run_that_was_stopped_and_taken_up_has_the_report_of_one_that_was_not(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told("run", "rice.yaml")["report"]["digest"]
    other = tmp_path_factory.mktemp("other")
    lay_out(other)
    monkeypatch.chdir(other)
    stopped = [CliRunner().invoke(cli, ["run", "rice.yaml", "--max-requests", str(most)]).exit_code for most in (10, 50, 80)]
    assert stopped == [1, 1, 1]
    assert told("run", "rice.yaml")["report"]["digest"] == whole


def test_a_report_of_versions_knows_what_the_catalog_knows(folder: Path) -> None:
    ptk("run", "rice.yaml")
    ptk("report", "rice/judged", "rice/wins@v1", "-o", "r.html", "--examples", "12")
    page = (folder / "r.html").read_text()
    for shown in ("rice/judged@v1", "delta-pq", "pairs.jsonl", "scripted/persona", "Question"):
        assert shown in page
    evidence = evidence_of_versions(open_catalog("catalog/store"), ["rice/wins", "rice/judged"])
    assert [table.operator for table in evidence.tables] == ["measure_wins"]
    assert set(evidence.axes) == {"model", "cut"} and set(evidence.frames) == {"fitted"}
    assert digest_of(report_of(evidence)) == digest_of(report_of(evidence))


def test_a_run_that_is_not_finished_is_told_as_far_as_it_is(folder: Path) -> None:
    ptk("report", "rice.yaml", "-o", "r.html", code=1)
    ptk("run", "rice.yaml", "--max-requests", "60", code=1)
    ptk("report", "rice.yaml", "-o", "r.html")
    page = (folder / "r.html").read_text()
    assert "Not finished, and so not in this report" in page and "wins" in page


def test_places_outside_the_folder_and_other_ends_are_refused_at_their_line(folder: Path) -> None:
    for place, what in (("../r.html", "not inside"), ("/tmp/r.html", "not inside"), ("r.pdf", "ends in .pdf")):
        (folder / "rice.yaml").write_text(SPEC.replace("out/report.html", place))
        line = 1 + SPEC[: SPEC.index("report: {to")].count("\n")
        run = CliRunner().invoke(cli, ["validate", "rice.yaml"])
        assert run.exception is not None and what in str(run.exception) and f"rice.yaml:{line}:" in str(run.exception)
    assert "one spec" in str(CliRunner().invoke(cli, ["report", "rice.yaml", "rice/wins", "-o", "r.html"]).output)


def test_a_report_that_can_not_be_written_does_not_hide_what_was_run(folder: Path) -> None:
    (folder / "rice.yaml").write_text(SPEC.replace("out/report.html", "out"))
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("precious")
    run = CliRunner().invoke(cli, ["run", "rice.yaml"])
    assert "committed  rice/judged@v1" in run.stdout
    assert run.exception is not None and "name another place" in str(run.exception)
    assert (folder / "out" / "thesis.txt").read_text() == "precious"


def test_answers_of_people_come_into_the_report(folder: Path) -> None:
    ptk("run", "rice.yaml")
    made = told(
        "study", "make", "rice/judged", "kit", "--kind", "choices", "--column", "told", "--column", "untold", "--rows", "4"
    )
    assert made["items"] == 4
    key = json.loads((folder / "kit/key.json").read_text())
    answers = {item["item"]: {"answerability": "A" if item["of"] == "told" else "B"} for item in key["items"]}
    (folder / "ada.json").write_text(json.dumps({"study": key["study"], "rater": "ada", "answers": answers}))
    assert "4 answers of 1 people to 4 items" in ptk("study", "read", "kit/key.json", "ada.json", "-o", "people.json")
    ptk("report", "rice/judged", "--study", "people.json", "-o", "r.html")
    page = (folder / "r.html").read_text()
    assert "What people say" in page and "told against untold" in page and "answered by 1 people" in page
    (folder / "rice.yaml").write_text(SPEC.replace("title: Rice", "title: Rice, study: [people.json]"))
    ptk("run", "rice.yaml")
    assert "What people say" in (folder / "out/report.html").read_text()
    (folder / "bad.json").write_text("{}")
    ptk("report", "rice/judged", "--study", "bad.json", "-o", "r.html", code=3)


@pytest.mark.skipif(not PAIRS.is_file(), reason="needs real pairs with personas")
def test_the_report_of_real_personas_names_the_words_that_tell_their_sides_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(PAIRS, tmp_path / "pairs.jsonl")
    (tmp_path / "real.yaml").write_text(
        "ptk: 1\nname: real\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl, on_repeat: number}\nreport: {to: [out/real.html]}\n"
    )
    report = told("run", "real.yaml")["report"]
    assert (report["examples"], report["of"]) == (200, 405)
    page = (tmp_path / "out/real.html").read_text()
    assert "Words that tell the sides apart, by share" in page
    work = WorkStore(Path(".ptk"))
    made = report_of(evidence_of_run(make_plan(load_spec(Path("real.yaml")), work), work))
    words = next(figure for figure in made.figures() if figure.name.startswith("words-log-odds"))
    chosen, rejected = words.says.split("Rejected:")
    assert {"detailed", "thorough", "comprehensive"} & set(re.findall(r"[a-z-]+", chosen))
    assert {"concise", "straightforward", "direct", "brief"} & set(re.findall(r"[a-z-]+", rejected))
    assert made.examples is not None and "domain" in dict(made.examples.filters)
    assert not [caveat for caveat in made.caveats if caveat.rule == "scripted"]  # no model was asked


@pytest.mark.slow
def test_a_run_that_was_killed_at_ten_moments_has_the_report_of_one_that_was_not(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = told("run", "rice.yaml")["report"]["digest"]
    other = tmp_path_factory.mktemp("killed")
    lay_out(other)
    slow = SPEC.replace("{backend: scripted", "{backend: scripted, seconds: 0.02")  # does not decide rows
    (other / "rice.yaml").write_text(slow)
    monkeypatch.chdir(other)
    kills = 0
    for moment in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", "from ptk.cli import main; main()", "run", "rice.yaml"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            child.wait(timeout=1.2 + 0.15 * moment)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
    (other / "rice.yaml").write_text(SPEC)  # the text of the spec is part of the report
    assert told("run", "rice.yaml")["report"]["digest"] == whole
    assert kills >= 5
