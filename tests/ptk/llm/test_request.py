from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ptk.llm.request import Constraint, Message, Request, Sampling, request_key

MODEL = {"weights": "abc", "dtype": "bfloat16"}
REQUEST = Request("row", "chosen", (Message("system", "Be brief."), Message("user", "Why?")))

GOLDEN = "f054d520261d6f461476010b5a4761a1bc665e3f66051dab8f3d6baa3a3920ff"


def test_which_row_asks_is_no_part_of_the_key() -> None:
    assert request_key(replace(REQUEST, row="other", slot="rejected"), MODEL) == request_key(REQUEST, MODEL)


def test_the_order_in_which_a_model_is_described_is_no_part_of_the_key() -> None:
    assert request_key(REQUEST, dict(reversed(MODEL.items()))) == request_key(REQUEST, MODEL)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("system", "Be brief."), Message("user", "Why"))},
        {"messages": (Message("user", "Be brief."), Message("user", "Why?"))},
        {"messages": (Message("system", "Be brief.Why?"),)},
        {"prefill": "The user is"},
        {"constraint": Constraint("regex", "The user is .*")},
        {"constraint": Constraint("json", "The user is .*")},
        {"constraint": Constraint("choice", ("A", "B"))},
        {"constraint": Constraint("choice", ("A,B",))},
    ],
)
def test_everything_that_is_asked_is_part_of_the_key(change: dict[str, Any]) -> None:
    assert request_key(replace(REQUEST, **change), MODEL) != request_key(REQUEST, MODEL)


@pytest.mark.parametrize("name", list(Sampling.model_fields))
def test_every_way_of_drawing_tokens_is_part_of_the_key(name: str) -> None:
    other: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 7,
        "seed": 1,
        "repetition_penalty": 1.1,
        "stop": ("\n",),
    }
    changed = replace(REQUEST, sampling=Sampling(**{name: other[name]}))
    assert request_key(changed, MODEL) != request_key(REQUEST, MODEL)


def test_another_model_has_other_keys() -> None:
    assert request_key(REQUEST, {**MODEL, "weights": "abd"}) != request_key(REQUEST, MODEL)


def test_a_key_is_what_it_was_when_answers_were_first_stored_by_it() -> None:
    assert request_key(REQUEST, MODEL) == GOLDEN
