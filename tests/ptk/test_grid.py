"""A step with a matrix stands for many: cells connect by value, share what they can, and come together with their axes as columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk.budget import Budget, BudgetExceeded
from ptk.errors import BackendError, SpecError
from ptk.execute import CellsFailed, RunSummary, run_order, run_plan
from ptk.llm.prefix import shared_prefixes
from ptk.llm.scripted import ScriptedBackend, ScriptedSession
from ptk.plan import Plan, make_plan
from ptk.progress import Quiet
from ptk.spec import Spec, load_spec
from ptk.work import WorkStore

HEAD = """\
ptk: 1
name: grid
models:
  small: {backend: scripted, model: persona}
  large: {backend: scripted, model: persona, unparsable: 0.3}
  judge: {backend: scripted, model: echo}
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
"""

STUDY = """\
  some:     {op: sample_rows, from: pairs, n: "${matrix.n}", matrix: {n: [4, 8]}}
  personas: {op: infer_personas, from: some, model: [small, large], exemplars: exemplars.yaml, matrix: {n: [4, 8]}}
  short:    {op: keep_lengths, from: personas, minimum: 2, matrix: {model: [small, large]}}
  judged:   {op: judge_personas, from: short, model: judge, by: [model, n]}
outputs:
  grid/judged: {from: judged}
  grid/small:  {from: "personas[small,8]"}
  grid/pairs:  {from: pairs}
"""


class Project:
    """A folder with the pairs and exemplars of the small project, and a spec of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = WorkStore(folder / ".ptk")

    def write(self, steps: str, head: str = HEAD) -> None:
        (self.folder / "spec.yaml").write_text(head + steps)

    def change(self, old: str, new: str) -> None:
        text = (self.folder / "spec.yaml").read_text()
        assert old in text
        (self.folder / "spec.yaml").write_text(text.replace(old, new))

    def spec(self) -> Spec:
        return load_spec(self.folder / "spec.yaml")

    def plan(self, **settings: Any) -> Plan:
        return make_plan(self.spec(), self.work, **settings)

    def run(self, budget: Budget | None = None, **settings: Any) -> RunSummary:
        return run_plan(self.plan(**settings), self.work, self.catalog, Quiet(), None, budget)

    def catalog(self) -> ptk_catalog.Catalog:
        return ptk_catalog.open(self.folder / "store")

    def rows(self, entry: str) -> pl.DataFrame:
        return self.catalog().load(entry).collect()

    def complaints(self) -> list[str]:
        with pytest.raises(SpecError) as error:
            self.plan()
        return str(error.value).replace(str(self.folder) + "/", "").splitlines()


@pytest.fixture
def grid(project: Path) -> Project:
    made = Project(project)
    made.write(STUDY)
    return made


def test_a_step_is_expanded_into_its_cells_which_connect_by_value(grid: Project) -> None:
    steps = grid.spec().steps
    assert {name: list(step.inputs.values()) for name, step in steps.items()} == {
        "pairs": [],
        "some[4]": ["pairs"],
        "personas[small,4]": ["some[4]"],
        "some[8]": ["pairs"],
        "personas[small,8]": ["some[8]"],
        "personas[small,*]": ["personas[small,4]", "personas[small,8]"],
        "short[small]": ["personas[small,*]"],
        "personas[large,4]": ["some[4]"],
        "personas[large,8]": ["some[8]"],
        "personas[large,*]": ["personas[large,4]", "personas[large,8]"],
        "short[large]": ["personas[large,*]"],
        "short": ["short[small]", "short[large]"],
        "judged": ["short"],
    }
    assert steps["some[8]"].written == {"n": 8}
    assert steps["personas[large,4]"].written == {"exemplars": "exemplars.yaml", "model": "large"}
    assert (steps["judged"].cell, steps["short"].gathers, steps["short[small]"].base) == (None, True, "short")


def test_rows_of_all_cells_carry_their_axes_and_keys_of_their_own(grid: Project) -> None:
    summary = grid.run()
    rows = grid.rows("grid/judged")
    counted = dict(rows.group_by("model", "n").len().select(pl.concat_str("model", "n", separator=" "), "len").iter_rows())
    personas = {step.name: step.result.rows_out for step in summary.steps if step.name.startswith("personas[")}
    assert counted == {f"{model} {n}": personas[f"personas[{model},{n}]"] for model in ("small", "large") for n in (4, 8)}
    assert rows.schema["n"] == pl.Int64
    assert rows["model_n_pair_id"].n_unique() == rows.height > rows["pair_id"].n_unique() == 8
    assert [step.result.key_column for step in summary.steps if step.name in ("personas[small,*]", "short", "judged")] == [
        "n_pair_id",
        "model_n_pair_id",
        "model_n_pair_id",
    ]
    table = next(step.result.facts["by"] for step in summary.steps if step.name == "judged")
    assert {(group["of"]["model"], group["of"]["n"]) for group in table} == {
        ("small", "4"),
        ("small", "8"),
        ("large", "4"),
        ("large", "8"),
    }
    assert all(group["standard_error"] is not None for group in table)
    assert grid.rows("grid/small").columns == [*grid.rows("grid/pairs").columns, *PERSONA_COLUMNS]
    lineage = grid.catalog().version("grid/judged").manifest.lineage
    assert sorted(step["name"] for step in lineage["steps"]) == sorted(grid.spec().steps)
    assert len(lineage["models"]) == 5


PERSONA_COLUMNS = ["chosen_persona", "rejected_persona", "persona_flags"]


def test_what_cells_share_is_done_once(grid: Project) -> None:
    asked = {step.name: step.result.requests for step in grid.run().steps if step.name.startswith("personas[")}
    # The four rows of the small sample are among the eight of the large one.
    assert {name: (tally.asked, tally.answered_before) for name, tally in asked.items() if tally} == {
        "personas[small,4]": (8, 0),
        "personas[small,8]": (8, 8),
        "personas[large,4]": (8, 0),
        "personas[large,8]": (8, 8),
    }


def test_a_rerun_does_nothing_and_an_added_value_costs_its_own_cell(grid: Project) -> None:
    grid.run()
    assert grid.plan().to_run() == []
    grid.change("model: [small, large]", "model: [small, large, judge]")
    assert {node.name: node.why for node in grid.plan().to_run()} == {
        "personas[judge,4]": "new",
        "personas[judge,8]": "new",
        "personas[judge,*]": "new",
        "short[judge]": "new",
        "short": 'params changed: values {"model":["small","large"]} -> {"model":["small","large","judge"]}',
        "judged": "input changed: short",
    }


def test_one_step_made_a_matrix_keeps_what_it_had_finished(grid: Project) -> None:
    grid.write("  personas: {op: infer_personas, from: pairs, model: small, exemplars: exemplars.yaml}\n")
    grid.run()
    grid.write("  personas: {op: infer_personas, from: pairs, model: [small, large], exemplars: exemplars.yaml}\n")
    assert {node.name: node.why for node in grid.plan().nodes.values()} == {
        "pairs": "cached",
        "personas[small]": "cached",
        "personas[large]": "new",
    }


def test_a_name_means_all_cells(grid: Project) -> None:
    grid.run()
    forced = {node.name for node in grid.plan(force=("some",)).to_run()}
    assert forced == set(grid.plan().nodes) - {"pairs"}
    forced = {node.name for node in grid.plan(force=("personas[small,4]",)).to_run()}
    assert forced == {"personas[small,4]", "personas[small,*]", "short[small]", "short", "judged"}
    assert [node.name for node in grid.plan().named("short")] == ["short[small]", "short[large]"]
    with pytest.raises(SpecError, match=r"--force: there is no step 'personas\[small\]'; did you mean"):
        grid.plan(force=("personas[small]",))


def test_cells_can_be_left_out(grid: Project) -> None:
    grid.change("{n: [4, 8]}}\n  short", "{n: [4, 8], exclude: [{model: large, n: 8}]}}\n  short")
    assert "personas[large,8]" not in grid.spec().steps
    assert list(grid.spec().steps["personas[large,*]"].inputs.values()) == ["personas[large,4]"]
    grid.change("n: [4, 8], exclude: [{model: large, n: 8}]", "n: [4, 8], exclude: [{model: [small, large]}]")
    assert grid.complaints()[0] == "spec.yaml:10: steps.personas.matrix.exclude: this leaves no cell"


def test_columns_that_only_some_cells_have_are_null_in_the_others(grid: Project) -> None:
    grid.write(
        """\
  clean: {op: flag_pii, from: pairs, action: "${matrix.action}", matrix: {action: [flag, mask]}}
  wide:  {op: derive_columns, from: "clean[mask]", columns: {more: "LENGTH(prompt_text)"}}
  sides: {op: select_columns, from: "${matrix.of}", drop: [item_id], matrix: {of: [pairs, wide]}}
  all:   {op: sample_rows, from: sides, share: 1.0}
outputs:
  grid/all: {from: all}
"""
    )
    grid.run()
    rows = grid.rows("grid/all")
    assert rows.group_by("of").agg(pl.col("more").count()).sort("of").rows() == [("pairs", 0), ("wide", 10)]


def test_steps_that_ask_one_model_follow_each_other(grid: Project) -> None:
    order = [node.name for node in run_order(grid.plan())]
    asking = [name for name in order if name.startswith(("personas[small,", "personas[large,")) and "*" not in name]
    assert asking == ["personas[small,4]", "personas[small,8]", "personas[large,4]", "personas[large,8]"]
    assert order.index("short[small]") < order.index("personas[large,4]")
    assert order[-1] == "judged"


class Opened:
    """Notes which models are opened, and fails for those named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: float | None = None) -> None:
        self.names: list[str] = []
        opened = ScriptedBackend.open

        def noted(backend: ScriptedBackend, settings: Any, model: Any) -> ScriptedSession:
            self.names.append(f"{settings.model} {settings.unparsable}")
            if settings.unparsable == failing:
                raise BackendError("the engine of large did not start: no memory")
            return opened(backend, settings, model)

        monkeypatch.setattr(ScriptedBackend, "open", noted)


def test_each_model_is_loaded_once(grid: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    grid.run()
    assert opened.names == ["persona 0.0", "persona 0.3", "echo 0.0"]


def test_a_cell_that_fails_does_not_lose_the_others(grid: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        Opened(patched, failing=0.3)
        with pytest.raises(CellsFailed) as failed:
            grid.run()
    summary = failed.value.summary
    what = "the engine of large did not start: no memory"
    assert summary.failed == {"personas[large,4]": what, "personas[large,8]": what}
    assert summary.skipped == ("personas[large,*]", "short[large]", "short", "judged")
    assert [step.name for step in summary.steps] == [
        *("pairs", "some[4]", "some[8]", "personas[small,4]", "personas[small,8]", "personas[small,*]", "short[small]")
    ]
    assert (summary.versions, summary.catalog) == ([], None)
    assert not (grid.folder / "store").exists()
    assert str(failed.value).splitlines() == [
        "2 cells failed and nothing was registered; what is finished is kept:",
        f"  personas[large,4]: {what}",
        f"  personas[large,8]: {what}",
        "  not run, since they need what failed: personas[large,*], short[large], short, judged",
        "Mend what failed and run the same command again; only these steps are left to do.",
    ]
    left = {node.name for node in grid.plan().to_run()}
    assert left == {*summary.failed, *summary.skipped}
    assert [version.reference for version in grid.run().versions] == ["grid/judged@v1", "grid/small@v1", "grid/pairs@v1"]


def test_a_bound_of_the_run_stops_all_cells(grid: Project) -> None:
    with pytest.raises(
        BudgetExceeded, match=r"step 'personas\[small,8\]' would ask for 8 requests after 8 that were asked already"
    ):
        grid.run(budget=Budget(requests=15))
    with pytest.raises(BudgetExceeded):
        grid.run(budget=Budget(requests=7))


WRONG: dict[str, tuple[str, list[str]]] = {
    "an unknown model among several": (
        "  p: {op: infer_personas, from: pairs, model: [small, lrge], exemplars: exemplars.yaml}",
        ["spec.yaml:9: steps.p.model.1: unknown model 'lrge'; did you mean 'large'?"],
    ),
    "a wrong value of an axis": (
        "  p: {op: sample_rows, from: pairs, matrix: {n: [3, x]}}",
        [
            "spec.yaml:9: steps.p.matrix.n: the values of axis 'n' are of several kinds; they make a column of text, numbers, or true and false"
        ],
    ),
    "a value that the option does not take": (
        "  p: {op: sample_rows, from: pairs, matrix: {n: [3, -4]}}",
        ["spec.yaml:9: steps.p.matrix.n.1: should be greater than or equal to 1, not -4"],
    ),
    "an axis without effect": (
        "  p: {op: sample_rows, from: pairs, n: 3, matrix: {sed: [1, 2]}}",
        [
            "spec.yaml:9: steps.p.matrix.sed: axis 'sed' changes nothing: the step has no option and no input with an axis of that "
            "name, and nothing says ${matrix.sed}; did you mean 'seed'?"
        ],
    ),
    "an axis that is set too": (
        "  p: {op: sample_rows, from: pairs, n: 3, matrix: {n: [1, 2]}}",
        [
            "spec.yaml:9: steps.p.matrix.n: 'n' is set twice, by the option and by the axis of that name; leave the option out, or "
            "call the axis otherwise"
        ],
    ),
    "an axis that is not there": (
        '  p: {op: sample_rows, from: pairs, n: "${matrix.m}", seed: 1, matrix: {seeds: [1, 2]}}',
        ["spec.yaml:9: steps.p.n: the step has no axis 'm'; there is seeds"],
    ),
    "a use without a matrix": (
        '  p: {op: sample_rows, from: pairs, n: "${matrix.m}"}',
        ["spec.yaml:9: steps.p.n: the step has no axis 'm'; it has no matrix"],
    ),
    "a value that the input lacks": (
        "  p: {op: sample_rows, from: pairs, matrix: {n: [3, 4]}}\n  q: {op: sample_rows, from: p, matrix: {n: [4, 5]}}",
        [
            "spec.yaml:10: steps.q.from: axis 'n' is 5 here, and step 'p' has 3, 4; equal values connect: write the same values, or "
            "call one axis otherwise, as in matrix: {other: [...]}"
        ],
    ),
    "a cell that is not there": (
        '  p: {op: sample_rows, from: pairs, matrix: {n: [3, 4]}}\n  q: {op: sample_rows, from: "p[5]", n: 1}',
        ["spec.yaml:10: steps.q.from: 'p[5]' is no cell: axis 'n' has no value '5'; there is 3, 4"],
    ),
    "a cell of a step without a matrix": (
        '  q: {op: sample_rows, from: "pairs[5]", n: 1}',
        ["spec.yaml:9: steps.q.from: 'pairs[5]' is no cell: step 'pairs' has no matrix"],
    ),
    "an axis called as a column is": (
        '  p: {op: sample_rows, from: pairs, n: 3, seed: "${matrix.prompt}", matrix: {prompt: [1, 2]}}\n'
        "  q: {op: sample_rows, from: p, n: 1}",
        [
            "spec.yaml:9: steps.p.matrix.prompt: the rows of 'p' have a column 'prompt' already, and all cells together need one for "
            "the axis; call the axis otherwise, as in matrix: {one_prompt: [...]}, and write ${matrix.one_prompt} where an option "
            "takes its value"
        ],
    ),
    "too many cells": (
        f"  p: {{op: sample_rows, from: pairs, matrix: {{n: {list(range(1, 41))}, seed: {list(range(40))}}}}}",
        ["spec.yaml:9: steps.p.matrix: 1,600 cells are more than a step may have (1,000)"],
    ),
    "no mapping": (
        "  p: {op: sample_rows, from: pairs, n: 1, matrix: [seed]}",
        ["spec.yaml:9: steps.p.matrix: a matrix is a mapping of axes to lists of values, such as {model: [small, large]}"],
    ),
    "values that name no cell": (
        "  p: {op: sample_rows, from: pairs, n: 1, matrix: {seed: [], per: [[prompt]], source: ['a,b', ' ', c, c]}}",
        [
            "spec.yaml:9: steps.p.matrix.per.0: a value of an axis is text, a number, true or false",
            "spec.yaml:9: steps.p.matrix.seed: axis 'seed' needs a list of values",
            "spec.yaml:9: steps.p.matrix.source.0: a value of an axis is part of a step's name: 1 to 200 characters, no brackets, "
            "commas, '*' or line ends",
            "spec.yaml:9: steps.p.matrix.source.1: a value of an axis is part of a step's name: 1 to 200 characters, no brackets, "
            "commas, '*' or line ends",
            "spec.yaml:9: steps.p.matrix.source.3: 'c' stands twice in axis 'source'",
        ],
    ),
    "steps that feed on each other": (
        "  p: {op: sample_rows, from: q, matrix: {n: [3, 4]}}\n  q: {op: sample_rows, from: p, matrix: {n: [3, 4]}}",
        [
            "spec.yaml:9: steps.p.from: steps feed on each other: p[3] -> q[3] -> p[3]",
            "spec.yaml:9: steps.p.from: steps feed on each other: p[4] -> q[4] -> p[4]",
        ],
    ),
}


@pytest.mark.parametrize(("steps", "expected"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_at_the_line_where_it_is_written(grid: Project, steps: str, expected: list[str]) -> None:
    grid.write(steps)
    assert grid.complaints() == expected


def test_a_missing_column_is_told_once_for_all_cells(grid: Project) -> None:
    grid.write("  p: {op: sample_rows, from: pairs, n: 3, per: [promt], matrix: {seed: [1, 2]}}")
    assert grid.complaints() == ["spec.yaml:9: steps.p.per.0: there is no column 'promt'; did you mean 'prompt'?"]


def slow_shared(prompts: list[list[int]], block: int) -> Iterable[int]:
    for number, prompt in enumerate(prompts):
        longest = 0
        for other in prompts[:number]:
            same = 0
            while same < min(len(prompt), len(other)) and prompt[same] == other[same]:
                same += 1
            longest = max(longest, same // block * block)
        yield min(longest, (len(prompt) - 1) // block * block) if prompt else 0


@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_shared_prefix_is_the_longest_that_an_earlier_prompt_began_with(block: int) -> None:
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2, 3, 4, 5], [], [7], [1, 2, 3, 9, 9, 9], [7], [2, 3, 4, 5], [1, 2]]
    assert list(shared_prefixes(prompts, block)) == list(slow_shared(prompts, block))
