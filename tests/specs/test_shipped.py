"""What ships beside the code is what the documentation says it is."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ptk_catalog
from ptk.execute import run_plan
from ptk.llm.prompt_files import ExemplarFile, PromptFile
from ptk.operator import find_operator, operator_names
from ptk.params import OutputFolder, Params
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.schema import language_schema
from ptk.spec import load_spec
from ptk.work import WorkStore

SPECS = Path(__file__).resolve().parents[2] / "specs"
PERSONA = re.compile(r"The user is .+ (and|who) prefers .+\.")


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SPECS / "data" / name).read_text().splitlines()]


def last_turn(record: dict[str, Any]) -> str:
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(n)), strict=False))


def overlap(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / max(len(one | other), 1)


def test_the_corpus_has_enough_distinct_pairs_of_every_kind() -> None:
    pairs = records("quickstart.jsonl")
    assert len(pairs) >= 150
    assert len({record["id"] for record in pairs}) == len(pairs)
    assert {record["domain"] for record in pairs} == {"advice", "explanation", "writing", "code", "planning", "vocabulary"}
    assert sum(isinstance(record["prompt"], list) for record in pairs) >= 5


def test_no_two_prompts_or_responses_nearly_repeat_each_other() -> None:
    pairs = records("quickstart.jsonl")
    for texts in ([grams(last_turn(r)) for r in pairs], [grams(r["chosen"] + " " + r["rejected"]) for r in pairs]):
        worst = max(overlap(one, other) for one, other in itertools.combinations(texts, 2))
        assert worst < 0.4


def test_the_longer_response_is_chosen_about_half_the_time_in_every_domain() -> None:
    pairs = records("quickstart.jsonl")
    for domain in {record["domain"] for record in pairs}:
        mine = [record for record in pairs if record["domain"] == domain]
        longer = sum(len(record["chosen"].split()) > len(record["rejected"].split()) for record in mine)
        assert 0.4 <= longer / len(mine) <= 0.6, domain


def test_every_pair_has_two_different_hand_written_personas_that_no_quickstart_step_reads() -> None:
    personas = {record["id"]: record for record in records("quickstart_personas.jsonl")}
    assert set(personas) == {record["id"] for record in records("quickstart.jsonl")}
    texts = [record[side] for record in personas.values() for side in ("chosen_persona", "rejected_persona")]
    assert len(set(texts)) == len(texts)
    assert all(PERSONA.fullmatch(text) for text in texts)
    assert "personas.jsonl" not in (SPECS / "quickstart.yaml").read_text()


def test_exemplars_fit_the_form_and_are_no_pairs_of_the_corpus() -> None:
    form = re.compile(PromptFile.shipped("infer_personas").content.form)
    prompts = [grams(last_turn(record)) for record in records("quickstart.jsonl")]
    for path in (SPECS / "exemplars").glob("*.yaml"):
        exemplars = ExemplarFile.from_text(str(path), SPECS).exemplars
        assert len(exemplars) == 5
        for exemplar in exemplars:
            assert form.fullmatch(exemplar.persona), exemplar.persona
            assert max(overlap(grams(exemplar.prompt), prompt) for prompt in prompts) < 0.3


def test_the_shipped_schema_is_the_one_the_code_gives_and_every_spec_points_to_it() -> None:
    assert json.loads((SPECS / "ptk.schema.json").read_text()) == language_schema()
    for path in SPECS.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=ptk.schema.json\n")
        assert yaml.safe_load(path.read_text())["ptk"] == 1


@pytest.mark.parametrize("name", sorted(path.name for path in SPECS.glob("*.yaml")))
def test_every_spec_can_be_planned(name: str, tmp_path: Path, scripted: Callable[..., Path]) -> None:
    """Its options, files and columns fit."""
    spec = scripted(name)
    plan = make_plan(load_spec(spec), WorkStore(tmp_path / ".ptk"))
    assert {node.step.base for node in plan.nodes.values()} == set(yaml.safe_load(spec.read_text())["steps"])
    assert plan.spec.outputs
    for node in plan.nodes.values():  # what a run leaves is where git and the starter project expect it
        assert all(path.is_relative_to(spec.parent / "out") for path in output_folders(node.step.params))


@pytest.mark.parametrize("name", ["judge_agreement", "judge_licence", "persona_styles", "personas_judged"])
def test_a_spec_that_measures_runs_from_end_to_end(name: str, tmp_path: Path, scripted: Callable[..., Path]) -> None:
    plan = make_plan(load_spec(scripted(f"{name}.yaml")), WorkStore(tmp_path / ".ptk"))
    catalog = ptk_catalog.open(tmp_path / "store")
    run_plan(plan, WorkStore(tmp_path / ".ptk"), lambda: catalog, Quiet())
    for output in plan.spec.outputs:
        assert catalog.load(output).collect().height, output


def output_folders(params: Params) -> list[Path]:
    values = (getattr(params, name) for name in type(params).model_fields)
    return [value.path for value in values if isinstance(value, OutputFolder)]


def test_every_operator_is_described_in_its_own_words() -> None:
    for name in operator_names():
        operator = find_operator(name)
        assert operator.name == name
        assert operator.help.endswith(".")
        assert all(field.description for field in operator.params.model_fields.values())
