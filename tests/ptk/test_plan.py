"""A plan tells which steps run and why; a step's key follows content, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import ptk_catalog
from ptk.errors import SpecError, StoreError
from ptk.execute import RunSummary, run_plan
from ptk.plan import Plan, make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore

NEW = {"pairs": "new", "unique": "new", "personas": "new"}
CACHED = {"pairs": "cached", "unique": "cached", "personas": "cached"}


class Project:
    """The small project, planned and run in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = WorkStore(folder / ".ptk")

    def change(self, old: str, new: str, file: str = "spec.yaml") -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def plan(self, sample: int | None = None, force: tuple[str, ...] = ()) -> Plan:
        return make_plan(load_spec(self.folder / "spec.yaml"), self.work, sample=sample, force=force)

    def run(self, sample: int | None = None, force: tuple[str, ...] = ()) -> RunSummary:
        return run_plan(self.plan(sample, force), self.work, lambda: ptk_catalog.open(self.folder / "store"), Quiet())

    def keys(self, sample: int | None = None) -> dict[str, str]:
        return {name: node.key for name, node in self.plan(sample).nodes.items()}

    def reasons(self, sample: int | None = None, force: tuple[str, ...] = ()) -> dict[str, str]:
        return {name: node.why for name, node in self.plan(sample, force).nodes.items()}

    def changed_since(self, before: dict[str, str]) -> list[str]:
        return [name for name, key in self.keys().items() if before[name] != key]


@pytest.fixture
def small(project: Path) -> Project:
    return Project(project)


def test_what_never_ran_is_new_and_planning_writes_nothing(small: Project) -> None:
    before = sorted(path.name for path in small.folder.iterdir())
    assert small.reasons() == NEW
    assert [node.name for node in small.plan().to_run()] == ["pairs", "unique", "personas"]
    assert sorted(path.name for path in small.folder.iterdir()) == before


def test_what_ran_is_cached(small: Project) -> None:
    small.run()
    assert small.reasons() == CACHED
    assert small.plan().to_run() == []


def test_a_changed_option_is_told_from_old_to_new(small: Project) -> None:
    small.run()
    small.change("on: [prompt]", "on: [prompt, chosen]")
    assert small.reasons() == {
        "pairs": "cached",
        "unique": 'params changed: on ["prompt"] -> ["prompt","chosen"]',
        "personas": "input changed: unique",
    }


def test_an_added_option_is_told_and_further_ones_are_counted(small: Project) -> None:
    small.run()
    small.change("path: pairs.jsonl", "path: pairs.jsonl, source: here, on_repeat: number")
    assert small.reasons()["pairs"] == 'params changed: source null -> "here" and 1 more'


def test_changed_data_is_told_as_changed_files(small: Project) -> None:
    small.run()
    small.change("Question 3?", "Question three?", "pairs.jsonl")
    assert small.reasons() == {"pairs": "files changed", "unique": "input changed: pairs", "personas": "input changed: unique"}


def test_changed_exemplars_are_told(small: Project) -> None:
    small.run()
    small.change("The lower one.", "The lower shelf.", "exemplars.yaml")
    assert small.reasons() == {"pairs": "cached", "unique": "cached", "personas": "model, prompt or environment changed"}


def test_another_operator_under_the_same_name_is_told(small: Project) -> None:
    small.run()
    small.change("{op: drop_duplicates, from: pairs, on: [prompt]}", "{op: keep_lengths, from: pairs, minimum: 2}")
    assert small.reasons()["unique"] == "operator changed: drop_duplicates -> keep_lengths"


def test_a_step_whose_rows_were_deleted_runs_again(small: Project) -> None:
    small.run()
    shutil.rmtree(small.work.steps)
    assert small.reasons() == dict.fromkeys(NEW, "its finished rows are gone")


def test_a_forced_step_takes_all_that_follow_with_it(small: Project) -> None:
    small.run()
    small.change("outputs:", "  other: {op: keep_lengths, from: pairs}\noutputs:")
    small.run()
    assert small.reasons(force=("unique",)) == {"pairs": "cached", "unique": "forced", "personas": "forced", "other": "cached"}


def test_a_forced_step_asks_its_model_again_and_a_step_that_follows_does_not(small: Project) -> None:
    small.run()
    asked = {
        force: {step.name: step.result.requests for step in small.run(force=(force,)).steps}["personas"]
        for force in ("unique", "personas")
    }
    assert {name: (tally.asked, tally.answered_before) for name, tally in asked.items() if tally} == {
        "unique": (0, 20),
        "personas": (20, 0),
    }


def test_a_step_to_force_must_exist(small: Project) -> None:
    with pytest.raises(SpecError, match="--force: there is no step 'uniq'; did you mean 'unique'"):
        small.plan(force=("uniq",))


def test_settings_that_change_no_row_are_in_no_key(small: Project) -> None:
    before = small.keys()
    small.change("model: persona}", "model: persona, seconds: 5.0}")
    small.change("name: small", "name: renamed")
    small.change("tags: [latest]", "tags: [newest]")
    assert small.changed_since(before) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model: persona}", "model: echo}", ["personas"]),
        ("model: persona}", "model: persona, unparsable: 0.5}", ["personas"]),
        ("model: persona}", "model: persona, sampling: {max_tokens: 7}}", ["personas"]),
        ("exemplars: exemplars.yaml", "exemplars: exemplars.yaml, constrain: false", ["personas"]),
        ("on: [prompt]", "on: [chosen]", ["unique", "personas"]),
        ("path: pairs.jsonl", "path: pairs.jsonl, max_malformed: 0.5", ["pairs", "unique", "personas"]),
    ],
)
def test_settings_that_can_change_rows_change_the_keys_from_there_on(
    small: Project, old: str, new: str, expected: list[str]
) -> None:
    before = small.keys()
    small.change(old, new)
    assert small.changed_since(before) == expected


def test_a_default_that_is_written_out_changes_no_key(small: Project) -> None:
    before = small.keys()
    small.change("path: pairs.jsonl", "path: pairs.jsonl, on_repeat: reject, fields: {prompt: prompt}")
    assert small.changed_since(before) == []


def test_a_renamed_model_or_file_or_step_changes_no_key(small: Project) -> None:
    before = small.keys()
    small.change("labeler", "reader")
    small.change("pairs.jsonl", "data.jsonl")
    (small.folder / "pairs.jsonl").rename(small.folder / "data.jsonl")
    small.change("unique", "once")
    assert list(small.keys().values()) == list(before.values())


def test_content_decides_and_not_the_time_of_a_file(small: Project) -> None:
    before = small.keys()
    os.utime(small.folder / "pairs.jsonl", (1, 1))
    assert small.changed_since(before) == []
    small.change("A short answer 7.", "A brief answer 7.", "pairs.jsonl")
    assert small.changed_since(before) == ["pairs", "unique", "personas"]


def test_a_moved_project_is_cached_still(small: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    small.run()
    before = small.keys()
    moved = Project(tmp_path_factory.mktemp("elsewhere") / "project")
    shutil.move(small.folder, moved.folder)
    assert (moved.keys(), moved.reasons()) == (before, CACHED)


def test_a_sample_has_keys_of_its_own_and_registers_nothing(small: Project) -> None:
    summary = small.run(sample=3)
    assert ([step.result.rows_in for step in summary.steps], summary.versions, summary.catalog) == ([3, 3, 3], [], None)
    assert not (small.folder / "store").exists()
    full, three, four = small.keys(), small.keys(sample=3), small.keys(sample=4)
    assert [len({full[name], three[name], four[name]}) for name in full] == [3, 3, 3]
    assert small.reasons(sample=3) == CACHED


def test_a_run_on_a_sample_is_no_former_run_of_the_whole(small: Project) -> None:
    small.run(sample=3)
    assert (small.reasons(), small.reasons(sample=4)) == (NEW, NEW)
    small.run()
    assert small.reasons(sample=4) == NEW


def test_answers_of_a_sample_are_not_asked_again(small: Project) -> None:
    small.run(sample=3)
    tally = {step.name: step.result.requests for step in small.run().steps}["personas"]
    assert tally is not None
    assert (tally.asked, tally.answered_before) == (14, 6)


def test_columns_are_known_before_anything_runs(small: Project) -> None:
    nodes = small.plan().nodes
    assert list(nodes["personas"].schema) == [
        *("pair_id", "item_id", "prompt", "chosen", "rejected"),
        *("chosen_persona", "rejected_persona", "persona_flags"),
    ]
    assert {node.key_column for node in nodes.values()} == {"pair_id"}


def test_further_fields_of_the_data_are_columns(small: Project) -> None:
    lines = [json.dumps({"prompt": "p", "chosen": "c", "rejected": str(n), "rating": n, "on": "x"}) for n in range(3)]
    (small.folder / "pairs.jsonl").write_text("\n".join(lines))
    small.change("on: [prompt]", "on: [rating, on]")
    assert {name: str(dtype) for name, dtype in small.plan().nodes["unique"].schema.items() if name in ("rating", "on")} == {
        "rating": "Int64",
        "on": "String",
    }


def test_a_work_folder_that_can_not_be_read_is_told(small: Project) -> None:
    (small.folder / ".ptk").write_text("a file")
    with pytest.raises(StoreError, match=r"can't read .*\.ptk: Not a directory"):
        small.plan()
