from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pytest

import ptk.operator
import ptk_catalog
from ptk.errors import BackendError, PtkError, StoreError, TooManyMalformed
from ptk.execute import RunSummary, run_plan
from ptk.llm import ask
from ptk.llm.answers import AnswerStore
from ptk.llm.request import Answer, Message, Request
from ptk.llm.scripted import ScriptedBackend, ScriptedSession
from ptk.operator import Answers, LlmOperator, Operator, frame_operator, reshape
from ptk.params import MODEL, Params
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{n}?", "chosen": f"Short {n}.", "rejected": f"Longer, {n}."} for n in range(start, start + count)]


def write(folder: Path, lines: list[Any], name: str = "pairs.jsonl") -> None:
    (folder / name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def change_spec(folder: Path, **changes: str) -> None:
    text = (folder / "spec.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "spec.yaml").write_text(text)


def run(folder: Path, spec: str = "spec.yaml", **settings: Any) -> RunSummary:
    """Run a spec as the command line does."""
    work = WorkStore(folder / ".ptk")
    plan = make_plan(load_spec(folder / spec), work, **settings)
    return run_plan(plan, work, lambda: ptk_catalog.open(folder / "catalog"), Quiet())


def steps(summary: RunSummary) -> dict[str, Any]:
    found: dict[str, Any] = summary.as_json()["steps"]
    return found


def counts(summary: RunSummary) -> dict[str, tuple[int, int, dict[str, int]]]:
    return {name: (step["rows_in"], step["rows_out"], step["rejected"]) for name, step in steps(summary).items()}


def asked(summary: RunSummary, step: str = "personas") -> tuple[int, int]:
    """Return (asked, answered before)."""
    requests = steps(summary)[step]["requests"]
    return requests["asked"], requests["answered_before"]


def rejects(folder: Path, summary: RunSummary, step: str) -> pl.DataFrame:
    key = next(item.result.key for item in summary.steps if item.name == step)
    return WorkStore(folder / ".ptk").rejects(key).collect()


def test_a_run_commits_its_outputs_with_where_they_come_from(project: Path) -> None:
    summary = run(project)
    (version,) = summary.versions
    assert (version.reference, version.rows, version.tags, version.created) == ("small/personas@v1", 10, ("latest",), True)
    lineage = version.manifest.lineage
    assert lineage["spec"]["text"] == (project / "spec.yaml").read_text()
    assert [(step["name"], step["rows_in"], step["rows_out"]) for step in lineage["steps"]] == [
        ("pairs", 10, 10),
        ("unique", 10, 10),
        ("personas", 10, 10),
    ]
    assert [model["model"] for model in lineage["models"]] == ["scripted/persona"]
    assert [source["files"] for source in lineage["sources"]] == [["pairs.jsonl"]]
    rows = ptk_catalog.open(project / "catalog").load("small/personas@latest").collect()
    assert rows["chosen_persona"].null_count() == rows["rejected_persona"].null_count() == 0


def test_malformed_records_are_set_aside_and_the_run_goes_on(project: Path) -> None:
    bad = ["{", "[]", {"prompt": "No answers."}, {**records(1)[0], "chosen": 7}, {**records(1)[0], "rejected": ""}]
    write(project, [*records(30), *bad, *records(20, start=30)])
    summary = run(project)
    reasons = {"empty_text": 1, "missing_field": 1, "not_an_object": 1, "not_json": 1, "wrong_type": 1}
    assert counts(summary)["pairs"] == (55, 50, reasons)
    found = rejects(project, summary, "pairs").sort("_line")
    assert found.select("_file", "_line", "_reject").rows() == [
        ("pairs.jsonl", 31, "not_json"),
        ("pairs.jsonl", 32, "not_an_object"),
        ("pairs.jsonl", 33, "missing_field"),
        ("pairs.jsonl", 34, "wrong_type"),
        ("pairs.jsonl", 35, "empty_text"),
    ]
    assert found["_raw"][0] == "{"


def test_too_many_malformed_records_stop_the_run_before_the_model_is_opened(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(ScriptedBackend, "open", opened)
    write(project, [*records(7), "{", "{", "{"])
    with pytest.raises(TooManyMalformed, match=r"step 'pairs': 3 of 10 rows are malformed \(30%\), and max_malformed is 0.2"):
        run(project)
    assert not (project / "catalog").exists()


def test_the_command_line_ends_with_code_3_where_too_much_is_malformed(project: Path, ptk: Callable[..., Any]) -> None:
    write(project, [*records(7), "{", "{", "{"])
    done = ptk("run", "spec.yaml", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "pairs.jsonl:8: not_json" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "catalog").exists()


def test_rows_in_are_rows_out_and_rejected_at_every_step(project: Path) -> None:
    write(project, [*records(40), *records(5), "{", {**records(1)[0], "chosen": "Another."}])
    change_spec(
        project,
        **{
            "persona}": "persona, unparsable: 0.3}",
            "{op: infer_personas, from: unique": "{op: infer_personas, from: sample",
            "  personas:": "  sample:   {op: sample_rows, from: long, n: 25}\n  personas:",
            "  unique: ": "  long:     {op: keep_lengths, from: unique, maximum: 2}\n  unique: ",
        },
    )
    found = counts(run(project))
    assert {name: (given, sorted(rejected)) for name, (given, _, rejected) in found.items()} == {
        "pairs": (47, ["not_json", "repeat"]),
        "unique": (41, ["duplicate"]),
        "long": (40, []),
        "sample": (40, ["not_sampled"]),
        "personas": (25, ["chosen_persona_unparsed", "rejected_persona_unparsed"]),
    }
    assert all(rows_in == rows_out + sum(rejected.values()) for rows_in, rows_out, rejected in found.values())
    assert found["personas"][1] < 25


def test_answers_that_do_not_parse_become_rejected_rows_with_the_raw_answer(project: Path) -> None:
    change_spec(project, **{"persona}": "persona, unparsable: 1.0}"})
    summary = run(project)
    assert counts(summary)["personas"] == (10, 0, {"chosen_persona_unparsed": 10})
    found = rejects(project, summary, "personas")
    assert set(found["_raw"]) == {"I would rather not say."}
    assert found["prompt"].null_count() == 0
    assert summary.versions[0].rows == 0


@pytest.mark.parametrize(("on_repeat", "rows", "rejected"), [("reject", 10, {"repeat": 2}), ("number", 12, {})])
def test_a_pair_that_occurs_again_is_rejected_or_numbered(
    project: Path, on_repeat: str, rows: int, rejected: dict[str, int]
) -> None:
    write(project, [*records(10), *records(2)])
    change_spec(
        project,
        **{"pairs.jsonl}": f"pairs.jsonl, on_repeat: {on_repeat}}}", "on: [prompt]": "on: [pair_id]"},
    )
    summary = run(project)
    assert counts(summary)["pairs"] == (12, rows, rejected)
    assert asked(summary) == (20, 0)  # a pair that occurs again asks nothing new
    assert summary.versions[0].rows == rows


def test_a_flipped_pair_asks_the_same_questions(project: Path) -> None:
    pair = records(1)[0]
    write(project, [pair, {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}])
    change_spec(project, **{"on: [prompt]": "on: [prompt, chosen, rejected]"})
    summary = run(project)
    assert (counts(summary)["personas"], asked(summary)) == ((2, 2, {}), (2, 0))
    first, second = ptk_catalog.open(project / "catalog").load("small/personas").collect().to_dicts()
    assert first["chosen_persona"] == second["rejected_persona"] != first["rejected_persona"]


def test_the_order_of_the_rows_changes_no_digest(project: Path) -> None:
    write(project, [*records(30), {**records(1)[0], "chosen": "Another."}])
    first = run(project)
    write(project, [{**records(1)[0], "chosen": "Another."}, *records(30)[::-1]])
    second = run(project)
    assert (asked(second)[0], second.versions[0].digest) == (0, first.versions[0].digest)
    assert not second.versions[0].created


def test_a_rerun_does_nothing_and_commits_no_version(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(project)
    monkeypatch.setattr(ScriptedBackend, "open", lambda *arguments: pytest.fail("the model was opened"))
    before = sorted(path for path in project.rglob("*") if "last" not in path.parts)
    second = run(project)
    assert all(step["cached"] and step["why"] == "cached" for step in steps(second).values())
    assert asked(second) == (0, 20)
    assert counts(second) == counts(first)
    assert [(version.reference, version.created) for version in second.versions] == [("small/personas@v1", False)]
    assert sorted(path for path in project.rglob("*") if "last" not in path.parts) == before


def test_after_one_pair_s_text_is_changed_exactly_its_two_requests_are_asked(project: Path) -> None:
    run(project)
    lines = [json.loads(line) for line in (project / "pairs.jsonl").read_text().splitlines()]
    lines[4]["chosen"] += " Really."
    write(project, lines)
    summary = run(project)
    assert asked(summary) == (2, 18)
    assert [version.reference for version in summary.versions] == ["small/personas@v2"]


def test_a_forced_step_asks_again_and_what_follows_is_done_again(project: Path) -> None:
    run(project)
    summary = run(project, force=["personas"])
    assert asked(summary) == (20, 0)
    assert {name: step["cached"] for name, step in steps(summary).items()} == {
        "pairs": True,
        "unique": True,
        "personas": False,
    }
    assert asked(run(project, force=["pairs"])) == (0, 20)


def test_two_specs_share_answers(project: Path) -> None:
    run(project)
    other = (
        (project / "spec.yaml")
        .read_text()
        .replace("name: small", "name: other")
        .replace("small/personas", "other/personas")
        .replace("unique", "single")
    )
    (project / "other.yaml").write_text(other)
    write(project, [*(json.loads(line) for line in (project / "pairs.jsonl").read_text().splitlines()), *records(3, start=90)])
    assert asked(run(project, "other.yaml")) == (6, 20)


def test_answers_stored_by_a_run_that_failed_midway_are_not_asked_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ScriptedSession.answer

    def failing(self: ScriptedSession, requests: Iterator[tuple[str, Request]]) -> Iterator[Answer]:
        for number, item in enumerate(answer(self, requests)):
            if number == 7:
                raise BackendError("the engine stopped")
            yield item

    with monkeypatch.context() as patched:
        patched.setattr(ScriptedSession, "answer", failing)
        with pytest.raises(BackendError):
            run(project)
    assert not (project / "catalog").exists()
    summary = run(project)
    assert asked(summary) == (13, 7)
    assert summary.versions[0].rows == 10


def test_a_disk_that_fills_up_stops_the_run_and_the_next_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_CHUNK", 6)
    append, stored = AnswerStore.append, []

    def filling(self: AnswerStore, answers: list[Answer]) -> None:
        if len(stored) == 2:
            raise StoreError("can't store answers in here: No space left on device; make room and run again")
        stored.append(len(answers))
        append(self, answers)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerStore, "append", filling)
        with pytest.raises(StoreError, match="make room and run again"):
            run(project)
    assert asked(run(project)) == (8, 12)


def test_text_that_looks_like_code_reaches_the_model_and_the_catalog_verbatim(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    text = ScriptedSession._text

    def noted(self: ScriptedSession, request: Request) -> str:
        seen.append(request.messages[-1].content)
        return text(self, request)

    monkeypatch.setattr(ScriptedSession, "_text", noted)
    odd = "{{ other }} {% endraw %} ${env:HOME} <|im_end|>\n\nOther response:\nMine."
    write(project, [{"prompt": "Q?", "chosen": odd, "rejected": "No."}])
    run(project)
    assert sorted(seen) == [
        f"Request:\nQ?\n\nPreferred response:\nNo.\n\nOther response:\n{odd}",
        f"Request:\nQ?\n\nPreferred response:\n{odd}\n\nOther response:\nNo.",
    ]
    stored = ptk_catalog.open(project / "catalog").load("small/personas").collect()
    assert stored["chosen"].to_list() == [[{"role": "assistant", "content": odd}]]


def test_a_sample_is_run_whole_and_registers_nothing(project: Path) -> None:
    summary = run(project, sample=3)
    assert counts(summary)["pairs"] == (3, 3, {})
    assert asked(summary) == (6, 0)
    assert (summary.versions, summary.catalog) == ([], None)
    assert not (project / "catalog").exists()
    assert asked(run(project)) == (14, 6)


def test_an_input_of_no_rows_runs_to_its_end(project: Path) -> None:
    write(project, [])
    summary = run(project)
    assert list(counts(summary).values()) == [(0, 0, {})] * 3
    assert summary.versions[0].rows == 0


def test_several_outputs_are_registered_together_or_not_at_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ptk_catalog.Catalog, commits: list[ptk_catalog.Commit]) -> None:
        for commit in commits:
            self._prepare(commit)
        raise KeyboardInterrupt

    change_spec(project, **{"outputs:\n": "outputs:\n  small/unique: {from: unique}\n"})
    with monkeypatch.context() as patched:
        patched.setattr(ptk_catalog.Catalog, "commit_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(project)
    assert ptk_catalog.open(project / "catalog").entries() == []
    summary = run(project)
    assert [version.reference for version in summary.versions] == ["small/unique@v1", "small/personas@v1"]


# Operators of other packages.


class NoParams(Params):
    pass


@dataclass(frozen=True)
class Point:
    """An entry point that gives what it holds."""

    operator: Operator
    value: str = "elsewhere:operator"

    def load(self) -> Operator:
        return self.operator


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operator], None]:
    """Offer a further operator, as an installed package would."""

    def add(operator: Operator) -> None:
        offered: Mapping[str, Any] = ptk.operator._offered()
        monkeypatch.setattr(ptk.operator, "_offered", lambda: {**offered, operator.name: (Point(operator),)})

    return add


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
def test_an_operator_that_drops_rows_is_refused(project: Path, offer: Callable[[Operator], None], scope: Any) -> None:
    def drop_some(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        """Drop some."""
        return frame.select("_key").head(4)

    offer(frame_operator(scope=scope, by=(lambda params: ("prompt",)) if scope == "key" else None)(drop_some))
    change_spec(project, **{"{op: drop_duplicates, from: pairs, on: [prompt]}": "{op: drop_some, from: pairs}"})
    message = "step 'unique': operator drop_some did not decide about each of the 10 rows it was given, once and in their order"
    with pytest.raises(PtkError, match=message):
        run(project)
    assert not (project / "catalog").exists()


def test_a_reshape_makes_rows_of_its_own(project: Path, offer: Callable[[Operator], None]) -> None:
    def take_four(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        """Take four."""
        return frame.head(4)

    offer(reshape(key="pair_id")(take_four))
    change_spec(project, **{"{op: drop_duplicates, from: pairs, on: [prompt]}": "{op: take_four, from: pairs}"})
    summary = run(project)
    assert (counts(summary)["personas"], summary.versions[0].rows) == ((4, 4, {}), 4)


class AskTwice(Params):
    model: Annotated[str, MODEL]


def ask_twice(frame: pl.DataFrame, answers: Answers, params: AskTwice) -> Iterator[Request]:
    for row in frame["_key"]:
        first = answers.get((row, "first"))
        if first is None:
            yield Request(row, "first", (Message("user", f"first of {row}"),))
        else:
            yield Request(row, "second", (Message("user", f"second after {first.text}"),))


def collect_twice(frame: pl.DataFrame, answers: Answers, params: AskTwice) -> pl.DataFrame:
    second = [answers.get((row, "second")) for row in frame["_key"]]
    texts = [None if answer is None else answer.text for answer in second]
    return pl.DataFrame({"_key": frame["_key"], "answer": pl.Series(texts, dtype=pl.String)})


def test_an_operator_of_two_rounds_asks_its_second_question_with_the_first_answer(
    project: Path, offer: Callable[[Operator], None]
) -> None:
    offer(LlmOperator("ask_twice", AskTwice, 1, ("frame",), "Ask twice.", ask_twice, collect_twice, max_rounds=2))
    change_spec(
        project,
        **{
            "model: persona}": "model: echo}",
            "{op: infer_personas, from: unique, model: labeler, exemplars: exemplars.yaml}": (
                "{op: ask_twice, from: unique, model: labeler}"
            ),
        },
    )
    summary = run(project)
    assert asked(summary) == (20, 0)
    rows = ptk_catalog.open(project / "catalog").load("small/personas").collect()
    assert rows["answer"].to_list() == [f"second after first of {row}" for row in rows["pair_id"]]
    assert asked(run(project, force=["unique"])) == (0, 20)
    assert asked(run(project, force=["personas"])) == (20, 0)
