"""Solved cases are drawn by seed, become a part of a model, and are shown before its prompts, by the steps that show any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import ptk_catalog
from ptk.cli import cli
from ptk.errors import ModelNotFound, PtkError
from ptk.label.generate_responses import GenerateResponses, generate_responses
from ptk.llm.cases import Case, Cases, find_cases, write_cases
from ptk.llm.model_files import ModelRoots
from ptk.operator import DETAIL, KEY, REJECT
from ptk.params import canonical
from ptk.train.few_shot import check_case_records, draw_cases
from ptk.train.score_pairs import ScorePairs, score_pairs
from ptk.train.tailor import Tailor

RECORDS = pl.DataFrame(
    {
        KEY: ["1", "2", "3"],
        "prompt": ["a?", "b?", "c?"],
        "persona": ["The user is A.", "The user is B.", None],
        "preferred": ["A.", "B.", "C."],
    }
)
PAIR = {
    "prompt": "Why?",
    "chosen": "So.",
    "rejected": "Who knows.",
    "chosen_persona": "The user is R.",
    "rejected_persona": "The user is S.",
}
ROW = pl.DataFrame({KEY: ["r"], **{name: [value] for name, value in PAIR.items()}})


def shown(count: int = 3) -> tuple[Case, ...]:
    return draw_cases(RECORDS, count, 0)[0]


def test_seed_and_keys_decide_the_cases_and_their_order() -> None:
    assert shown(3)[:2] == shown(2)
    assert draw_cases(RECORDS.reverse(), 3, 0)[0] == shown(3)
    assert len({draw_cases(RECORDS, 3, seed)[0] for seed in range(8)}) > 1


def test_a_record_without_words_makes_no_case_and_a_persona_without_words_is_nobody() -> None:
    records = RECORDS.with_columns(preferred=pl.Series(["A.", " ", "C."]), persona=pl.Series([" ", None, "The user is C."]))
    cases, decided = draw_cases(records, 2, 0)
    assert {(case.prompt, case.persona) for case in cases} == {("a?", None), ("c?", "The user is C.")}
    assert decided[REJECT].to_list() == [None, "empty_text", None]
    assert decided[DETAIL][1] == "'preferred' is empty"
    with pytest.raises(PtkError, match="2 records to draw from, and `cases` is 3"):
        draw_cases(records, 3, 0)


def test_rows_that_are_no_cases_are_refused_when_the_spec_is_planned() -> None:
    with pytest.raises(ValueError, match="no column 'preferred'"):
        check_case_records(RECORDS.lazy().drop("preferred"))
    with pytest.raises(TypeError, match="neither text nor"):
        check_case_records(RECORDS.lazy().with_columns(prompt=pl.lit(3)))


def test_cases_are_read_as_they_were_written_and_a_broken_file_says_where(tmp_path: Path) -> None:
    digest = write_cases(shown(), tmp_path)
    roots = ModelRoots(tmp_path.parent)
    assert find_cases(tmp_path.name, roots) == Cases(shown())
    assert find_cases(tmp_path.name, roots).digest == digest != Cases(shown()[::-1]).digest
    (tmp_path / "cases.json").write_text('{"cases": [{"prompt": "a?", "preferred": ""}]}')
    with pytest.raises(ModelNotFound, match=r"cases\.json: cases\.0\.preferred: ") as raised:
        find_cases(tmp_path.name, roots)
    assert raised.value.option == "cases"
    (tmp_path / "cases.json").unlink()
    with pytest.raises(ModelNotFound, match=r"lacks cases\.json; `tailor` with method: few_shot"):
        find_cases(tmp_path.name, roots)
    with pytest.raises(ModelNotFound, match="no cases 'nowhere': no folder"):
        find_cases("nowhere", roots)


def test_a_model_is_shown_its_cases_before_the_prompt() -> None:
    params = GenerateResponses(model="m", persona="chosen_persona", place="tag")
    turns = next(iter(generate_responses.requests(ROW, {}, params, shown()))).messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert turns[-1].content == "Why?\nPersona: The user is R."
    texts = {turn.content for turn in turns[:-1]}
    assert texts == {"a?\nPersona: The user is A.", "A.", "b?\nPersona: The user is B.", "B.", "c?", "C."}


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_pairs_are_scored_after_what_responses_are_generated_after(template: str) -> None:
    written = {"model": "m", "place": "tag", "template": template}
    generating = GenerateResponses(persona="chosen_persona", **written)
    asked = next(iter(generate_responses.requests(ROW, {}, generating, shown())))
    scored = {one.slot: one for one in score_pairs.requests(ROW, {}, ScorePairs(**written), shown())}
    for side in ("chosen", "rejected"):
        one = scored[f"{side}|chosen"]
        assert (one.messages, one.prefill) == (asked.messages, asked.prefill)
    told = "".join(turn.content for turn in scored["chosen|none"].messages) or scored["chosen|none"].prefill
    assert "A." in told
    assert "Persona" not in told  # of a question without persona, cases without theirs


def test_training_options_have_no_place_in_few_shot_and_its_own_none_in_training() -> None:
    with pytest.raises(ValidationError, match="`trl` is about training"):
        Tailor(model="m", method="few_shot", trl={"learning_rate": 1.0})
    with pytest.raises(ValidationError, match="`cases` goes with method: few_shot"):
        Tailor(model="m", method="sft", cases=3)
    assert canonical(Tailor(model="m", method="few_shot", seed=1)) == canonical(Tailor(model="n", method="few_shot", seed=1))
    assert canonical(Tailor(model="m", method="few_shot", cases=4)) != canonical(Tailor(model="m", method="few_shot"))


SPEC = """\
ptk: 1
name: few
models:
  writer: {backend: BACKEND}
  told:   {backend: BACKEND, cases: step:cases}
  scorer: {backend: SCORER, cases: step:cases}
steps:
  pairs:     {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  records:   {op: tailoring_records, from: pairs, method: few_shot, training: all}
  cases:     {op: tailor, from: records, model: writer, method: few_shot, cases: 2}
  responses: {op: generate_responses, from: pairs, model: told, persona: chosen_persona, place: tag}
  scores:    {op: score_pairs, from: responses, model: scorer, place: tag}
outputs:
  few/rows:  {from: scores}
  few/cases: {from: cases, kind: model, licence: cc0-1.0}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pairs = [PAIR, {**PAIR, "prompt": "How?", "chosen": "Thus.", "chosen_persona": "The user is T."}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path


def run(folder: Path, spec: str, *more: str) -> tuple[int, Any, str]:
    (folder / "few.yaml").write_text(spec)
    done = CliRunner().invoke(cli, ["run", "few.yaml", "--json", *more])
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else None, str(done.exception)


SCRIPTED = SPEC.replace("BACKEND", "scripted").replace("SCORER", "scripted")


def test_cases_are_made_shown_and_registered_and_other_cases_ask_again(folder: Path) -> None:
    code, told, problem = run(folder, SCRIPTED)
    assert code == 0, problem
    assert told["steps"]["cases"]["facts"]["made"] == {
        "form": "cases",
        "base": "scripted/persona",
        "base_revision": None,
        "base_digest": None,
        "from_adapter": None,
    }
    assert told["steps"]["responses"]["requests"]["asked"] == 2
    catalog = ptk_catalog.open("catalog/store")
    assert [file.name for file in catalog.load_model("few/cases").iterdir()] == ["cases.json"]
    shown = CliRunner().invoke(cli, ["prompt", "show", "few.yaml", "responses"])
    assert shown.stdout.count("Persona: ") == 3
    again = run(folder, SCRIPTED)[1]["steps"]
    assert all(step["cached"] for step in again.values())
    other = run(folder, SCRIPTED.replace("cases: 2}", "cases: 3}"))[1]["steps"]
    assert [name for name, step in other.items() if step["cached"]] == ["pairs", "records"]
    assert other["responses"]["requests"]["asked"] == 2


def test_an_entry_of_the_catalog_is_shown_as_it_stands_there(folder: Path) -> None:
    run(folder, SCRIPTED)
    lines = [
        line for line in SCRIPTED.splitlines() if not line.startswith(("  records:", "  cases:", "  few/cases", "  writer:"))
    ]
    spec = (
        "\n".join(lines)
        .replace("name: few", "catalog: catalog/store\nname: few")
        .replace("step:cases", "catalog:few/cases@v1")
        .replace("few/rows", "few/again")
    )
    told = run(folder, spec)[1]["steps"]
    assert told["responses"]["requests"] | {"asked": 0} == told["responses"]["requests"]  # the same questions as before
    lineage = ptk_catalog.open("catalog/store").lineage("few/again")
    assert "few/cases@v1" in json.dumps(lineage)


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("persona: chosen_persona, place: tag}", "persona: chosen_persona}", "write place: tag"),
        ("model: scorer, place: tag}", "model: scorer}", "write place: tag"),
        ("model: writer, method", "model: told, method", "tailor shows no solved cases, and model 'told' has some"),
        (
            "told:   {backend: scripted, cases: step:cases}",
            "told: {backend: scripted, cases: step:records}",
            "makes no model, not solved cases",
        ),
        (
            "told:   {backend: scripted, cases: step:cases}",
            "told:   {backend: scripted, cases: elsewhere}",
            "no cases 'elsewhere': no folder",
        ),
    ],
)
def test_what_can_not_be_shown_is_told_at_its_line(folder: Path, before: str, after: str, what: str) -> None:
    spec = SCRIPTED.replace(before, after, 1)
    assert spec != SCRIPTED
    code, _, problem = run(folder, spec)
    assert code != 0
    assert what in problem
    assert problem.startswith("few.yaml:")


@pytest.mark.model
def test_the_bundled_model_responds_and_scores_after_its_cases(folder: Path) -> None:
    spec = SPEC.replace("SCORER", "transformers, model: bundled/smollm2-135m-instruct")
    spec = spec.replace("BACKEND", "vllm, model: bundled/smollm2-135m-instruct, sampling: {max_tokens: 8}")
    code, _, problem = run(folder, spec)
    assert code == 0, problem
    rows = ptk_catalog.open("catalog/store").load("few/rows").collect()
    assert rows["response"].str.len_chars().min() > 0
    alone = spec.replace("scorer: {", "scorer: {").replace(
        "bundled/smollm2-135m-instruct, cases: step:cases}", "bundled/smollm2-135m-instruct}"
    )
    assert alone != spec
    run(folder, alone)
    untold = ptk_catalog.open("catalog/store").load("few/rows").collect()
    assert untold["logp_chosen_given_chosen"].to_list() != rows["logp_chosen_given_chosen"].to_list()
