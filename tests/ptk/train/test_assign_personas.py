"""Each row is laid out for every inference type, and what has no persona says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.operator import KEY
from ptk.stages import reshaped
from ptk.train.assign_personas import AssignPersonas, assign_personas

FRAME = pl.DataFrame(
    {
        "pair_id": ["a", "b"],
        KEY: ["a", "b"],
        "prompt": ["Tea?", "Rice?"],
        "domain": ["drinks", "food"],
        "chosen_persona": [" The user is A. ", " "],
        "rejected_persona": ["The user is B.", None],
        "retrieved_chosen_persona": ["The user is C.", "The user is D."],
        "retrieved_rejected_persona": ["The user is E.", "The user is F."],
    }
)


def laid_out(**given: Any) -> pl.DataFrame:
    key = assign_personas.key(AssignPersonas(**given), ["pair_id"])
    return reshaped(assign_personas, [FRAME.lazy()], AssignPersonas(**given), key).collect()


def test_every_type_makes_a_row_of_every_row() -> None:
    types = ("none", "gold_chosen", "gold_rejected", "retrieved_chosen", "retrieved_rejected", "system", "written")
    found = laid_out(types=types, system="The user is S. ", written={"busy": "The user is busy.", "shy": "The user is shy."})
    assert found.select("pair_id", "inference", "persona").rows() == [
        ("a", "none", ""),
        ("a", "gold_chosen", "The user is A."),
        ("a", "gold_rejected", "The user is B."),
        ("a", "retrieved_chosen", "The user is C."),
        ("a", "retrieved_rejected", "The user is E."),
        ("a", "system", "The user is S."),
        ("a", "busy", "The user is busy."),
        ("a", "shy", "The user is shy."),
        ("b", "none", ""),
        ("b", "gold_chosen", None),
        ("b", "gold_rejected", None),
        ("b", "retrieved_chosen", "The user is D."),
        ("b", "retrieved_rejected", "The user is F."),
        ("b", "system", "The user is S."),
        ("b", "busy", "The user is busy."),
        ("b", "shy", "The user is shy."),
    ]
    assert found["inference_pair_id"].n_unique() == found.height
    alone = laid_out(types=("gold_chosen",))
    assert set(alone["inference_pair_id"]) <= set(found["inference_pair_id"])  # whatever other types there are


def test_a_system_persona_may_be_that_of_a_domain() -> None:
    found = laid_out(types=("system",), system={"drinks": "The user is thirsty."}, system_by="domain")
    assert found["persona"].to_list() == ["The user is thirsty.", None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"types": ("none", "none")}, "names a type twice"),
        ({"types": ("system",)}, "type 'system' and the option `system` go together"),
        ({"types": ("none",), "written": {"a": "b"}}, "type 'written' and the option `written` go together"),
        ({"types": ("system",), "system": "The user.", "system_by": "domain"}, "a mapping of values to personas"),
        ({"types": ("written",), "written": {"none": "b"}}, "can't be called 'none'"),
        ({"types": ("written",), "written": {"a": " "}}, "the persona 'a' is empty"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        AssignPersonas(**given)


def test_columns_that_lack_or_that_are_there_already_are_named() -> None:
    with pytest.raises(ValueError, match="type 'gold_chosen' needs the column 'chosen_person'; did you mean 'chosen_persona'"):
        laid_out(types=("gold_chosen",), gold_chosen="chosen_person")
    with pytest.raises(ValueError, match="the rows have a column 'persona' already"):
        reshaped(assign_personas, [FRAME.with_columns(persona=pl.lit("x")).lazy()], AssignPersonas(types=("none",)), "k")


SPEC = """\
ptk: 1
name: laid
models:
  tuned: {backend: scripted, model: echo}
steps:
  pairs: {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  laid:  {op: assign_personas, from: pairs, types: [none, gold_chosen, gold_rejected]}
  said:  {op: generate_responses, from: laid, model: tuned, persona: persona, empty_persona: respond}
"""


def test_rows_are_responded_to_by_type_and_missing_personas_are_rejected(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    records = [
        {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "chosen_persona": "The user is A.", "rejected_persona": "B."},
        {"prompt": "Rice?", "chosen": "Yes.", "rejected": "No.", "chosen_persona": "The user is A.", "rejected_persona": " "},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = ptk("run", "spec.yaml", "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert (steps["laid"]["rows_in"], steps["laid"]["rows_out"]) == (2, 6)
    assert (steps["said"]["rows_out"], steps["said"]["rejected"]) == (5, {"no_persona": 1})
