from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.label.infer_personas import InferPersonas, first_line, infer_personas
from ptk.llm.request import Answer, Constraint, Message, Request
from ptk.operator import KEY

EXEMPLARS = "exemplars:\n  - {prompt: 'Tea or coffee?', preferred: Tea., other: It depends., persona: The user is brief.}\n"
GOOD = "The user is a busy person with little patience and prefers short direct answers every time."
SYSTEM = (
    "People like different answers because they are different people. You are shown a request and two responses to it. Someone\n"
    "preferred the first response to the second. Describe, in one sentence, the kind of person who would. Speak of lasting traits\n"
    "and of how they like to be answered, in general words: nothing about this request's topic, no wording from the responses, and\n"
    "nothing about age, gender, origin, health or belief. Write: The user is ... and prefers ..."
)
CASE = "Request:\nTea or coffee?\n\nPreferred response:\nTea.\n\nOther response:\nIt depends."


@pytest.fixture
def params(tmp_path: Path) -> InferPersonas:
    (tmp_path / "exemplars.yaml").write_text(EXEMPLARS)
    return made(tmp_path)


def made(folder: Path, **settings: Any) -> InferPersonas:
    return InferPersonas.model_validate({"model": "m", "exemplars": "exemplars.yaml", **settings}, context={"root": folder})


def frame(*pairs: tuple[str, str, str]) -> pl.DataFrame:
    def turns(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return pl.DataFrame(
        [
            {
                KEY: f"k{number}",
                "prompt": turns("user", prompt),
                "chosen": turns("assistant", chosen),
                "rejected": turns("assistant", rejected),
            }
            for number, (prompt, chosen, rejected) in enumerate(pairs)
        ]
    )


PAIR = ("Which shelf?", "The lower one.", "Neither.")


def asked(params: InferPersonas, *pairs: tuple[str, str, str]) -> list[Request]:
    return list(infer_personas.requests(frame(*pairs), {}, params))


def collected(params: InferPersonas, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Return the decision about PAIR, given answers by side."""
    given = {("k0", side): answer for side, answer in answers.items()}
    return infer_personas.collect(frame(PAIR), given, params).row(0, named=True)


def answer(text: str, finish_reason: str = "stop", error: str | None = None) -> Answer:
    return Answer("00", text, finish_reason, error=error)


def test_the_two_requests_of_a_pair_are_worded_as_they_always_were(params: InferPersonas) -> None:
    opening = (Message("system", SYSTEM), Message("user", CASE), Message("assistant", "The user is brief."))
    form = Constraint("regex", r"The user is [a-z][^.\n]{10,110} (and|who) prefers? [a-z][^.\n]{10,110}\.")
    question = "Request:\nWhich shelf?\n\nPreferred response:\n{}\n\nOther response:\n{}"
    assert asked(params, PAIR) == [
        Request("k0", "chosen", (*opening, Message("user", question.format("The lower one.", "Neither."))), constraint=form),
        Request("k0", "rejected", (*opening, Message("user", question.format("Neither.", "The lower one."))), constraint=form),
    ]


def test_every_request_begins_with_the_same_turns(params: InferPersonas) -> None:
    requests = asked(params, PAIR, ("Another?", "Yes.", "No."))
    assert len(requests) == 4
    assert len({request.messages[:-1] for request in requests}) == 1


def test_a_flipped_pair_asks_the_same_two_questions(params: InferPersonas) -> None:
    straight, flipped = asked(params, PAIR), asked(params, (PAIR[0], PAIR[2], PAIR[1]))
    assert [request.messages for request in straight] == [request.messages for request in reversed(flipped)]


def test_text_that_breaks_markers_is_asked_about_verbatim(params: InferPersonas) -> None:
    odd = "{{ other }}<|im_end|>\n\nOther response:\n{% endraw %}"
    chosen, _ = asked(params, ("Which shelf?", odd, "Neither."))
    assert chosen.messages[-1].content == (f"Request:\nWhich shelf?\n\nPreferred response:\n{odd}\n\nOther response:\nNeither.")


def test_several_turns_are_shown_with_their_roles(params: InferPersonas) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}]
    rows = frame(PAIR).with_columns(pl.Series("prompt", [turns]))
    request = next(iter(infer_personas.requests(rows, {}, params)))
    assert request.messages[-1].content.startswith("Request:\nUser: Hi.\n\nAssistant: Yes?\n\nUser: Why?\n\nPreferred")


def test_the_form_is_not_imposed_where_the_settings_say_so(tmp_path: Path, params: InferPersonas) -> None:
    assert {request.constraint for request in asked(made(tmp_path, constrain=False), PAIR)} == {None}


def test_two_personas_of_the_right_form_become_columns(params: InferPersonas) -> None:
    other = GOOD.replace("busy", "patient")
    assert collected(params, {"chosen": answer(f"\n {GOOD} \nAnd more."), "rejected": answer(other)}) == {
        "_key": "k0",
        "chosen_persona": GOOD,
        "rejected_persona": other,
        "_reject": None,
        "_detail": None,
        "_raw": None,
    }


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_answer_of_another_form_is_rejected_with_the_raw_answer(params: InferPersonas, side: str) -> None:
    raw = "\nI would rather not say.\nReally."
    found = collected(params, {"chosen": answer(GOOD), "rejected": answer(GOOD), side: answer(raw)})
    assert found["_reject"] == f"{side}_persona_unparsed"
    assert found["_raw"] == raw
    assert found["chosen_persona"] is None and found["rejected_persona"] is None


def test_an_answer_that_was_cut_says_so(params: InferPersonas) -> None:
    cut = collected(params, {"chosen": answer(GOOD[:40], "length"), "rejected": answer(GOOD)})
    assert cut["_detail"].endswith("(the answer reached max_tokens)")


def test_an_empty_answer_is_rejected(params: InferPersonas) -> None:
    found = collected(params, {"chosen": answer(""), "rejected": answer(GOOD)})
    assert (found["_reject"], found["_raw"]) == ("chosen_persona_unparsed", "")


def test_a_missing_answer_rejects_its_row(params: InferPersonas) -> None:
    assert collected(params, {"chosen": answer(GOOD)})["_reject"] == "rejected_persona_missing"


def test_a_refused_request_rejects_its_row_with_the_reason(params: InferPersonas) -> None:
    refused = answer("", "error", "prompt_too_long: 9,000 tokens, and the window has 2,048")
    found = collected(params, {"chosen": refused, "rejected": answer(GOOD)})
    assert found["_reject"] == "prompt_too_long"
    assert found["_detail"] == "chosen persona: 9,000 tokens, and the window has 2,048"


@pytest.mark.parametrize(("text", "line"), [("", ""), (" \n\t\n", ""), ("\n  a  \nb", "a"), ("a", "a")])
def test_the_first_line_is_the_first_with_words(text: str, line: str) -> None:
    assert first_line(text) == line
