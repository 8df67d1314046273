"""Training records, word for word; `pytest --write-golden` writes the golden files anew."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from pydantic import ValidationError

from ptk.operator import DETAIL, KEY, REJECT
from ptk.params import named_columns
from ptk.train.tailoring_records import TailoringRecords, tailoring_records

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
TURN = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCHEMA = {
    "pair_id": pl.String,
    "prompt": TURN,
    "chosen": TURN,
    "rejected": TURN,
    "chosen_persona": pl.String,
    "rejected_persona": pl.String,
    "split": pl.String,
}
A, B = "The user is in a hurry and prefers bare facts.", "The user is a careful cook and prefers to know why."


def turns(*texts: str, role: str = "user") -> list[dict[str, str]]:
    other = {"user": "assistant", "assistant": "user"}
    roles = itertools.cycle((role, other[role]))
    return [{"role": said, "content": text} for said, text in zip(roles, texts, strict=False)]


PAIRS = [
    {
        "pair_id": "one",
        "prompt": turns("How long do eggs boil?"),
        "chosen": turns("Eight minutes.", role="assistant"),
        "rejected": turns("That depends on their size.", role="assistant"),
        "chosen_persona": A,
        "rejected_persona": B,
        "split": "train",
    },
    {
        "pair_id": "two",
        "prompt": [
            {"role": "system", "content": "Be kind."},
            *turns("Hello.", "Hello! What is it?", "Which shelf holds more?"),
        ],
        "chosen": turns("The lower one.", role="assistant"),
        "rejected": turns("Let us look at the brackets.", role="assistant"),
        "chosen_persona": A,
        "rejected_persona": B,
        "split": "val",
    },
]


def records(pairs: list[dict[str, Any]] = PAIRS, **given: Any) -> pl.DataFrame:
    frame = pl.LazyFrame(pairs, schema=SCHEMA).with_columns(pl.col("pair_id").alias(KEY))
    return tailoring_records.function(frame, params=TailoringRecords(**given)).collect()


GOLDENS = {
    f"{method}_{training}_{template}_{place}": {"method": method, "training": training, "template": template, "place": place}
    for method, training, (template, place) in [
        *itertools.product(("dpo",), ("none", "chosen", "rejected", "all"), (("plain", "tag"), ("chat", "system"))),
        *itertools.product(("sft",), ("none", "chosen", "rejected", "all"), (("plain", "tag"), ("chat", "system"))),
        *itertools.product(("kto",), ("all",), (("plain", "tag"),)),
        *itertools.product(("few_shot",), ("none", "chosen", "rejected", "all"), (("plain", "tag"),)),
        ("dpo", "all", ("plain", "first_person")),
        ("dpo", "all", ("chat", "tag")),
        ("dpo", "all", ("chat", "first_person")),
    ]
}


@pytest.mark.parametrize("name", GOLDENS)
def test_records_are_those_of_the_golden_file(name: str, request: pytest.FixtureRequest) -> None:
    made = records(**GOLDENS[name]).drop(REJECT, DETAIL, "_raw", "record_id")
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n" for row in made.iter_rows(named=True))
    path = GOLDEN / f"{name}.jsonl"
    if request.config.getoption("--write-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines)
    assert lines == path.read_bytes()


def test_plain_text_is_that_of_the_paper() -> None:
    prompts = records(PAIRS[:1], template="plain", place="tag", method="sft").select("prompt", "completion").rows()
    assert prompts == [
        (f"Prompt: How long do eggs boil?\nPersona: {A}\nResponse:", " Eight minutes."),
        (f"Prompt: How long do eggs boil?\nPersona: {B}\nResponse:", " That depends on their size."),
    ]
    assert records(PAIRS[:1], template="plain", place="tag", training="none")["prompt"].to_list() == [
        "Prompt: How long do eggs boil?\nResponse:"
    ]


def test_the_rejected_persona_prefers_the_rejected_response() -> None:
    made = records(PAIRS[:1], training="all")
    sides = [(row["side"], row["persona"], row["chosen"][0]["content"]) for row in made.iter_rows(named=True)]
    assert sides == [("chosen", A, "Eight minutes."), ("rejected", B, "That depends on their size.")]


def test_a_key_tells_the_pair_its_side_and_its_label_apart() -> None:
    for given, count in (({}, 4), ({"method": "kto"}, 8), ({"training": "none"}, 2)):
        made = records(**given)
        assert made["record_id"].n_unique() == made.height == count


def test_what_can_make_no_record_is_rejected_with_its_reason() -> None:
    pairs = [
        {**PAIRS[0], "pair_id": "persona", "chosen_persona": " "},
        {**PAIRS[0], "pair_id": "side", "rejected": turns("", role="assistant")},
        {**PAIRS[0], "pair_id": "prompt", "prompt": []},
        {**PAIRS[0], "pair_id": "turn", "prompt": turns("Hello.", "Hello!")},
        {**PAIRS[0], "pair_id": "two", "chosen": turns("a", "b", role="assistant")},
    ]
    made = records(pairs)
    told = made.filter(pl.col(REJECT).is_not_null()).select("pair_id", "side", REJECT).rows()
    assert told == [
        ("persona", "chosen", "no_persona"),
        *((name, side, reason) for name, reason in REASONS for side in ("chosen", "rejected")),
    ]
    assert made.filter(pl.col(REJECT).is_null()).select("pair_id", "side").rows() == [("persona", "rejected")]


REASONS = (("side", "empty_response"), ("prompt", "empty_prompt"), ("turn", "no_user_turn"), ("two", "several_turns"))


def test_columns_are_kept_and_no_column_of_a_record_is() -> None:
    assert records(keep=("split",))["split"].to_list() == ["train", "train", "val", "val"]
    with pytest.raises(ValidationError, match="a record has a column 'persona' of its own"):
        TailoringRecords(keep=("persona",))


def test_plain_text_has_no_system_message() -> None:
    with pytest.raises(ValidationError, match="plain text has no system message"):
        TailoringRecords(template="plain")
    assert TailoringRecords(template="plain", training="none").place == "system"


@pytest.mark.parametrize(
    ("training", "unread"),
    [
        ("none", {"chosen_persona", "rejected_persona"}),
        ("chosen", {"rejected_persona"}),
        ("rejected", {"chosen_persona"}),
        ("all", set()),
    ],
)
def test_no_column_is_read_of_personas_that_stand_in_no_prompt(training: str, unread: set[str]) -> None:
    params = TailoringRecords.model_validate_json(orjson.dumps({"training": training, "keep": ["split"]}))
    assert params.unread() == unread
    assert [column for _, column in named_columns(params) if column in unread] == []
    named = TailoringRecords(training=training, chosen_persona="liked")
    assert "liked" in [column for _, column in named_columns(named)]  # what is written is checked, read or not
