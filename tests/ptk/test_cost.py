"""What a run will cost is exact where the rows are at hand, and scaled up from a sample where they are many."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import ptk_catalog
from ptk.cost import Cost, estimate
from ptk.execute import run_plan
from ptk.plan import Plan, make_plan
from ptk.progress import Quiet
from ptk.render import plan_as_text
from ptk.spec import load_spec
from ptk.work import WorkStore


def planned(folder: Path, sample: int | None = None) -> tuple[Plan, WorkStore]:
    work = WorkStore(folder / ".ptk")
    return make_plan(load_spec(folder / "spec.yaml"), work, sample=sample), work


def costs(folder: Path, sample: int | None = None) -> dict[str, Cost]:
    return estimate(*planned(folder, sample))


def run(folder: Path, sample: int | None = None) -> dict[str, tuple[int, int]]:
    plan, work = planned(folder, sample)
    summary = run_plan(plan, work, lambda: ptk_catalog.open(folder / "store"), Quiet())
    return {step.name: (step.result.rows_in, step.result.rows_out) for step in summary.steps}


def write_pairs(folder: Path, count: int, different: int | None = None) -> None:
    records = [{"prompt": f"Q {n % (different or count)}?", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(count)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_small_corpus_is_counted_exactly(project: Path) -> None:
    found = costs(project)
    assert {name: (cost.rows_in, cost.rows_out, cost.exact) for name, cost in found.items()} == {
        "pairs": (10, 10, True),
        "unique": (10, 10, True),
        "personas": (10, 10, True),
    }
    personas = found["personas"]
    assert (personas.requests, personas.answered, personas.most_output_tokens) == (20, 0, 20 * 200)
    assert [found[name].requests for name in ("pairs", "unique")] == [None, None]


def test_the_prompt_tokens_told_are_those_that_the_run_counts(project: Path) -> None:
    told = costs(project)["personas"].prompt_tokens
    plan, work = planned(project)
    summary = run_plan(plan, work, lambda: ptk_catalog.open(project / "store"), Quiet())
    tally = summary.steps[-1].result.requests
    assert tally is not None
    assert told == tally.prompt_tokens > 0


def test_the_rows_told_are_those_that_the_run_gives(project: Path) -> None:
    write_pairs(project, 30, different=12)
    (project / "pairs.jsonl").open("a").write("not json\n")
    told = {name: (cost.rows_in, cost.rows_out) for name, cost in costs(project).items()}
    assert told == run(project) == {"pairs": (31, 30), "unique": (30, 12), "personas": (12, 12)}


def test_a_finished_step_costs_nothing_more(project: Path) -> None:
    run(project)
    assert asdict(costs(project)["personas"]) == {
        "rows_in": 10,
        "rows_out": 10,
        "exact": True,
        "requests": 20,
        "answered": 20,
        "prompt_tokens": 0,
        "most_output_tokens": 0,
        "shared": None,
        "seconds": None,
    }


def test_the_time_is_told_from_what_was_seen_here_and_else_said_to_be_unknown(project: Path) -> None:
    assert costs(project)["personas"].seconds is None
    plan, work = planned(project)
    assert "personas: time unknown: no run of this model was seen here yet" in plan_as_text(plan, estimate(plan, work))
    text = (project / "spec.yaml").read_text()
    (project / "spec.yaml").write_text(text.replace("model: persona}", "model: persona, seconds: 0.02}"))
    run(project)
    pairs = (project / "pairs.jsonl").read_text()
    (project / "pairs.jsonl").write_text(pairs.replace("Question", "Query"))
    told = costs(project)["personas"].seconds
    assert told is not None
    assert 0.2 < told < 20  # 20 requests of 0.02 s


def test_only_what_is_not_answered_yet_is_counted(project: Path) -> None:
    run(project)
    text = (project / "pairs.jsonl").read_text()
    (project / "pairs.jsonl").write_text(text.replace("Question 3?", "Question three?"))
    personas = costs(project)["personas"]
    assert (personas.requests, personas.answered, personas.most_output_tokens) == (20, 18, 2 * 200)


def test_a_sample_costs_what_its_rows_cost(project: Path) -> None:
    found = costs(project, sample=3)
    assert {name: (cost.rows_in, cost.rows_out) for name, cost in found.items()} == run(project, sample=3)
    assert found["personas"].requests == 6


def test_a_sample_larger_than_the_corpus_costs_the_corpus(project: Path) -> None:
    assert {name: (cost.rows_in, cost.rows_out) for name, cost in costs(project, sample=50).items()} == run(project, sample=50)


def test_a_large_corpus_is_estimated_from_a_sample_and_says_so(project: Path) -> None:
    write_pairs(project, 3_000)
    found = costs(project)
    assert {name: (cost.rows_in, cost.rows_out) for name, cost in found.items()} == dict.fromkeys(found, (3_000, 3_000))
    assert [found[name].exact for name in ("unique", "personas")] == [False, False]
    assert found["personas"].requests == 6_000


@pytest.mark.parametrize(("on_repeat", "rows"), [("reject", 10), ("number", 13)])
def test_pairs_that_stand_twice_are_counted_as_the_run_counts_them(project: Path, on_repeat: str, rows: int) -> None:
    write_pairs(project, 10)
    repeated = (project / "pairs.jsonl").read_text().splitlines(keepends=True)[:3]
    (project / "pairs.jsonl").open("a").writelines(repeated)
    spec = (project / "spec.yaml").read_text()
    spec = spec.replace("path: pairs.jsonl", f"path: pairs.jsonl, on_repeat: {on_repeat}")
    (project / "spec.yaml").write_text(
        spec.replace("drop_duplicates, from: pairs, on: [prompt]", "drop_identical, from: pairs")
    )
    told = {name: (cost.rows_in, cost.rows_out) for name, cost in costs(project).items()}
    assert told == run(project) == {"pairs": (13, rows), "unique": (rows, rows), "personas": (rows, rows)}


@pytest.mark.parametrize("further", ["", ", prompt: infer_personas_two_step", ", candidates: 2, temperature: 0.7"])
def test_what_asks_about_answers_to_come_is_counted_by_the_rows_that_will_have_them(project: Path, further: str) -> None:
    text = (project / "spec.yaml").read_text()
    if "two_step" in further:
        exemplars = (project / "exemplars.yaml").read_text()
        (project / "exemplars.yaml").write_text(exemplars + "    difference: The first is short.\n")
    text = text.replace("exemplars: exemplars.yaml}", f"exemplars: exemplars.yaml{further}}}").replace(
        "outputs:",
        "  judged:   {op: judge_personas, from: personas, model: labeler}\n"
        "  kept:     {op: filter_rows, from: judged, where: chosen_persona_answers = 2}\n"
        "  compared: {op: compare_personas, from: kept, model: labeler}\noutputs:",
    )
    (project / "spec.yaml").write_text(text)
    found = costs(project)
    assert [found[name].requests for name in ("judged", "compared")] == [60, 20]
    assert [found[name].exact for name in ("personas", "judged", "compared")] == [True, False, False]
    assert (found["judged"].prompt_tokens or 0) > 60 * 40
    if further:
        return  # the scripted backend's own answers have not the form of these prompts
    plan, work = planned(project)
    summary = run_plan(plan, work, lambda: ptk_catalog.open(project / "store"), Quiet())
    asked = {step.name: step.result.requests for step in summary.steps}
    judged, compared = asked["judged"], asked["compared"]
    assert judged is not None and compared is not None
    assert (judged.asked, compared.asked) == (60, 20)


def test_a_plan_asks_and_writes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, work = planned(project)
    model = plan.spec.models["labeler"]
    unopened = replace(model, backend=NeverOpened(model.backend))  # type: ignore[arg-type]
    plan = replace(plan, spec=replace(plan.spec, models={"labeler": unopened}))
    before = sorted(path.name for path in project.iterdir())
    assert estimate(plan, work)["personas"].requests == 20
    assert sorted(path.name for path in project.iterdir()) == before


class NeverOpened:
    """A backend that counts tokens, and fails where a model is loaded."""

    def __init__(self, backend: object) -> None:
        self.count_tokens = backend.count_tokens  # type: ignore[attr-defined]
        self.shared_tokens = backend.shared_tokens  # type: ignore[attr-defined]

    def open(self, *arguments: object) -> object:
        raise AssertionError("a plan loaded a model")
