"""The JSON Schema of the spec language accepts what ptk accepts, and marks in an editor what ptk would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from ptk.cli import cli
from ptk.operator import operator_names
from ptk.schema import language_schema
from ptk.spec import backend_names
from ptk.yamlfile import read_yaml

SPECS = Path(__file__).resolve().parents[2] / "specs"

SPEC: dict[str, Any] = {
    "ptk": 1,
    "name": "small",
    "models": {"labeler": {"backend": "scripted", "model": "persona", "sampling": {"max_tokens": 60}}},
    "steps": {
        "pairs": {"op": "read_pairs", "path": "pairs.jsonl", "fields": {"prompt": "question"}},
        "unique": {"op": "drop_duplicates", "from": "pairs", "on": ["prompt"]},
        "personas": {"op": "infer_personas", "from": {"frame": "unique"}, "model": "labeler", "exemplars": "exemplars.yaml"},
    },
    "outputs": {"small/personas": {"from": "personas", "licence": "cc0-1.0", "tags": ["latest"]}},
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(language_schema())


def changed(section: str, name: str, **values: Any) -> dict[str, Any]:
    """Return the small spec with some values of one entry replaced, or left out where they are None."""
    entry = {key: value for key, value in (SPEC[section][name] | values).items() if value is not None}
    return SPEC | {section: SPEC[section] | {name: entry}}


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(language_schema())


def test_every_operator_and_backend_is_in_it() -> None:
    names = {f"step.{name}" for name in operator_names()} | {f"model.{name}" for name in backend_names()}
    assert names <= set(language_schema()["$defs"])


def test_every_reference_in_it_leads_somewhere() -> None:
    schema = language_schema()
    text = json.dumps(schema)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert references - set(schema["$defs"]) == set()


@pytest.mark.parametrize("spec", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.name)
def test_it_accepts_the_specs_that_ship(validator: jsonschema.Draft202012Validator, spec: Path) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(spec).data)] == []


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        changed("steps", "pairs", keep=["rating"]),
        changed("steps", "pairs", keep="all", max_malformed=0.5),
        changed("steps", "unique", **{"from": {"frame": "pairs"}}),
        {key: SPEC[key] for key in ("ptk", "name", "steps")},
        changed("steps", "personas", model=["labeler", "other"]),
        changed("steps", "personas", model=None, matrix={"model": ["labeler"], "exclude": [{"model": "other"}]}),
        changed("steps", "personas", matrix={"least": [3, 5]}, words=["${matrix.least}", 60], most_copied="${matrix.least}"),
    ],
)
def test_it_accepts_what_ptk_accepts(validator: jsonschema.Draft202012Validator, spec: dict[str, Any]) -> None:
    assert validator.is_valid(spec)


@pytest.mark.parametrize(
    "spec",
    [
        changed("steps", "pairs", max_malformd=0.5),
        changed("steps", "pairs", fields={"promt": "question"}),
        changed("steps", "pairs", max_malformed="lots"),
        changed("steps", "pairs", **{"from": "unique"}),
        changed("steps", "unique", op="drop_duplicate"),
        changed("steps", "unique", op=None),
        changed("steps", "unique", on=None),
        changed("steps", "unique", on=[]),
        changed("steps", "unique", **{"from": None}),
        changed("steps", "personas", model=None),
        changed("models", "labeler", model="persna"),
        changed("models", "labeler", backend="scriptd"),
        changed("models", "labeler", backend=None),
        changed("models", "labeler", sampling={"temprature": 0.0}),
        changed("steps", "personas", matrix={}),
        changed("steps", "personas", matrix={"seed": 3}),
        changed("steps", "personas", matrix={"seed": [[1]]}),
        changed("steps", "personas", most_copied="${matrix}"),
        changed("outputs", "small/personas", license="cc0-1.0"),
        changed("outputs", "small/personas", **{"from": None}),
        SPEC | {"ptk": 2},
        SPEC | {"ouputs": {}},
        SPEC | {"steps": {}},
        {key: SPEC[key] for key in ("ptk", "name")},
    ],
)
def test_it_marks_what_ptk_refuses(validator: jsonschema.Draft202012Validator, spec: dict[str, Any]) -> None:
    assert not validator.is_valid(spec)


def test_the_command_prints_it() -> None:
    printed = CliRunner().invoke(cli, ["schema"])
    assert (printed.exit_code, json.loads(printed.stdout)) == (0, language_schema())
