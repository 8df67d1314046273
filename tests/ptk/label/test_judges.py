from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from pydantic import ValidationError

from ptk.label.compare_personas import ComparePersonas, compare_personas
from ptk.label.judge_personas import JudgePersonas, judge_personas
from ptk.label.judge_responses import JudgeResponses, judge_responses
from ptk.llm.request import Answer, Constraint, Request
from ptk.operator import KEY, LlmOperator
from ptk.params import Params

CURT = "The user is in a hurry and prefers bare facts."
KEEN = "The user is curious and prefers the whole story."
ANYONE = "The user would like an answer to the request."

ROW = {
    "prompt": [{"role": "user", "content": "Which shelf?"}],
    "chosen": [{"role": "assistant", "content": "The lower one."}],
    "rejected": [{"role": "assistant", "content": "It depends on the wall."}],
    "chosen_persona": CURT,
    "rejected_persona": KEEN,
    "domain": "home",
}

JUDGED = """\
Request:
Which shelf?

Response 1:
{}

Response 2:
{}

{}

Which response would this user rather have, and why?"""

COMPARED = """\
Description 1:
{}

Description 2:
{}

Which description would suit more people, 1 or 2?"""


def frame(*changes: Mapping[str, Any]) -> pl.DataFrame:
    rows = [{KEY: f"k{number}", **ROW, **change} for number, change in enumerate(changes or ({},))]
    turns = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    schema = {KEY: pl.String, "prompt": turns, "chosen": turns, "rejected": turns}
    rest = dict.fromkeys(("chosen_persona", "rejected_persona", "domain"), pl.String)
    return pl.DataFrame(rows, schema={**schema, **rest})


def made(model: type[Params], folder: Path = Path(), **settings: Any) -> Any:
    return model.model_validate_json(orjson.dumps({"model": "m", **settings}), context={"root": folder})


def said(text: str) -> Answer:
    return Answer("00", text, "stop")


def scored(one: float, two: float) -> Answer:
    return Answer("00", "1" if one > two else "2", "stop", scores=(one, two))


REFUSED = Answer("00", "", "error", error="prompt_too_long: 9,000 tokens")


def decided(operator: LlmOperator, params: Any, answers: Mapping[tuple[str, str], Answer], rows: pl.DataFrame) -> pl.DataFrame:
    decision = operator.collect(rows, answers, params)
    assert decision.schema == operator.collect(rows.head(0), {}, params).schema
    assert decision[KEY].to_list() == rows[KEY].to_list()
    return rows.join(decision, on=KEY)


def report(operator: LlmOperator, params: Any, rows: pl.DataFrame) -> dict[str, Any]:
    assert operator.report is not None
    found = dict(operator.report(rows.lazy(), params))
    orjson.dumps(found)
    return found


def test_both_personas_are_judged_in_both_orders_with_the_responses_first() -> None:
    asked = list(judge_personas.requests(frame(), {}, made(JudgePersonas)))
    assert [(request.slot, request.messages[-1].content) for request in asked] == [
        ("chosen_12", JUDGED.format("The lower one.", "It depends on the wall.", CURT)),
        ("rejected_12", JUDGED.format("The lower one.", "It depends on the wall.", KEEN)),
        ("neutral_12", JUDGED.format("The lower one.", "It depends on the wall.", ANYONE)),
        ("chosen_21", JUDGED.format("It depends on the wall.", "The lower one.", CURT)),
        ("rejected_21", JUDGED.format("It depends on the wall.", "The lower one.", KEEN)),
        ("neutral_21", JUDGED.format("It depends on the wall.", "The lower one.", ANYONE)),
    ]
    assert {(request.scored, request.constraint) for request in asked} == {(("1", "2"), None)}
    assert [request.prefill for request in asked] == [
        f"{persona} That is why this user would rather have response " for persona in (CURT, KEEN, ANYONE) * 2
    ]


@pytest.mark.parametrize(
    ("operator", "model"),
    [(judge_personas, JudgePersonas), (compare_personas, ComparePersonas), (judge_responses, JudgeResponses)],
)
def test_a_judge_can_be_held_to_a_choice_or_write(operator: LlmOperator, model: type[Params]) -> None:
    def one(answer: str) -> Request:
        return next(iter(operator.requests(frame(), {}, made(model, answer=answer))))

    assert (one("choice").constraint, one("choice").scored) == (Constraint("choice", ("1", "2")), ())
    assert (one("text").constraint, one("text").scored) == (None, ())
    assert one("logprob").scored == ("1", "2")


def test_solved_cases_are_shown_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "cases.yaml").write_text("exemplars:\n  - {prompt: A, preferred: B, other: C, persona: D}\n")
    params = made(JudgePersonas, tmp_path, exemplars="cases.yaml")
    request = next(iter(judge_personas.requests(frame(), {}, params)))
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[2].content == "D That is why this user would rather have response 1"


def test_a_persona_is_right_where_the_judge_gives_its_user_its_own_response() -> None:
    answers = {
        ("k0", "chosen_12"): scored(-0.1, -3.1),
        ("k0", "chosen_21"): scored(-0.5, -1.5),
        ("k0", "rejected_12"): scored(-2.0, -0.5),
        ("k0", "rejected_21"): scored(-0.5, -1.0),
    }
    row = decided(judge_personas, made(JudgePersonas, neutral=None), answers, frame()).row(0, named=True)
    assert {name: value for name, value in row.items() if name not in (KEY, *ROW)} == {
        "chosen_persona_right": True,
        "chosen_persona_margin": pytest.approx(1.0),
        "chosen_persona_flipped": True,
        "chosen_persona_answers": 2,
        "chosen_persona_unparsed": 0,
        "chosen_persona_first": 2,
        "chosen_persona_neutral": None,
        "rejected_persona_right": True,
        "rejected_persona_margin": pytest.approx(-1.0),
        "rejected_persona_flipped": False,
        "rejected_persona_answers": 2,
        "rejected_persona_unparsed": 0,
        "rejected_persona_first": 1,
        "rejected_persona_neutral": None,
        "_reject": None,
        "_detail": None,
    }


def test_a_persona_counts_as_far_as_it_moves_the_judge_from_where_anyone_would_stand() -> None:
    answers = {
        # The chosen response is better for anyone, and what stands first is liked.
        ("k0", "neutral_12"): scored(-0.1, -4.1),
        ("k0", "neutral_21"): scored(-1.0, -2.0),
        ("k0", "chosen_12"): scored(-0.1, -5.1),
        ("k0", "chosen_21"): scored(-1.0, -1.5),
        ("k0", "rejected_12"): scored(-0.5, -1.5),
        ("k0", "rejected_21"): scored(-0.1, -3.1),
    }
    row = decided(judge_personas, made(JudgePersonas), answers, frame()).row(0, named=True)
    assert row["chosen_persona_right"] is True and row["rejected_persona_right"] is True
    assert row["chosen_persona_margin"] == pytest.approx((1.0 + 0.5) / 2)
    assert row["rejected_persona_margin"] == pytest.approx((-3.0 - 2.0) / 2)
    assert row["chosen_persona_neutral"] == row["rejected_persona_neutral"] == pytest.approx((4.0 - 1.0) / 2)
    assert row["chosen_persona_flipped"] is False and row["rejected_persona_flipped"] is False
    assert (row["chosen_persona_first"], row["rejected_persona_first"]) == (1, 1)


def test_an_order_without_a_neutral_answer_has_no_verdict() -> None:
    answers = {
        ("k0", "neutral_12"): REFUSED,
        ("k0", "neutral_21"): scored(-1, -2),
        **{("k0", f"{side}_{order}"): scored(-1, -3) for side in ("chosen", "rejected") for order in ("12", "21")},
    }
    row = decided(judge_personas, made(JudgePersonas), answers, frame()).row(0, named=True)
    assert (row["chosen_persona_right"], row["chosen_persona_margin"], row["chosen_persona_neutral"]) == (None, None, None)
    assert (row["chosen_persona_answers"], row["chosen_persona_unparsed"], row["_reject"]) == (2, 1, None)


def test_a_neutral_persona_is_for_probabilities() -> None:
    with pytest.raises(ValidationError, match="`neutral` is for `answer: logprob`"):
        made(JudgePersonas, answer="text", neutral="The user is anyone.")
    asked = judge_personas.requests(frame(), {}, made(JudgePersonas, answer="text"))
    assert {request.slot for request in asked} == {"chosen_12", "rejected_12", "chosen_21", "rejected_21"}


def test_written_judgements_that_disagree_are_a_tie_and_only_a_row_without_any_answer_is_rejected() -> None:
    answers = {
        ("k0", "chosen_12"): said("1"),
        ("k0", "chosen_21"): said("1"),
        ("k0", "rejected_12"): said("who knows"),
        ("k0", "rejected_21"): REFUSED,
        **{("k1", f"{side}_{order}"): REFUSED for side in ("chosen", "rejected") for order in ("12", "21")},
    }
    rows = decided(judge_personas, made(JudgePersonas, answer="text"), answers, frame({}, {}, {}))
    assert rows["chosen_persona_right"].to_list() == [None, None, None]
    assert rows["chosen_persona_flipped"].to_list() == [True, None, None]
    assert rows["rejected_persona_unparsed"].to_list() == [1, None, None]
    assert rows["_reject"].to_list() == [None, "prompt_too_long", "judgement_missing"]


def test_a_side_without_a_persona_is_not_asked_about() -> None:
    rows = frame({"chosen_persona": None}, {"chosen_persona": " ", "rejected_persona": None})
    params = made(JudgePersonas)
    assert [(request.row, request.slot) for request in judge_personas.requests(rows, {}, params)] == [
        ("k0", "rejected_12"),
        ("k0", "neutral_12"),
        ("k0", "rejected_21"),
        ("k0", "neutral_21"),
    ]
    params = made(JudgePersonas, neutral=None)
    answers = {("k0", "rejected_12"): scored(-2, -1), ("k0", "rejected_21"): scored(-1, -2)}
    found = decided(judge_personas, params, answers, rows)
    assert found["rejected_persona_right"].to_list() == [True, None]
    assert found["chosen_persona_right"].to_list() == [None, None]
    assert found["_reject"].to_list() == [None, "no_persona"]


def test_the_report_tells_accuracy_by_side_and_how_far_to_trust_it() -> None:
    right, wrong = (("1", "2"), ("2", "1")), (("2", "1"), ("1", "2"))
    answers: dict[tuple[str, str], Answer] = {}
    for number, (chosen, rejected) in enumerate(
        [(right[0], right[1]), (right[0], wrong[1]), (wrong[0], ("1", "1")), (("1", "?"), right[1])]
    ):
        for side, said_by_order in (("chosen", chosen), ("rejected", rejected)):
            for order, text in zip(("12", "21"), said_by_order, strict=True):
                answers[f"k{number}", f"{side}_{order}"] = said(text)
    params = made(JudgePersonas, answer="text", by=["domain", "model"])
    given = frame({}, {}, {"domain": "work"}, {"domain": None}).with_columns(model=pl.lit(7))
    rows = decided(judge_personas, params, answers, given)
    found = report(judge_personas, params, rows)
    by = found.pop("by")
    assert found == {
        "rows": 4,
        "chosen_accuracy": 2 / 3,
        "chosen_standard_error": pytest.approx((2 / 9 / 3) ** 0.5),
        "rejected_accuracy": 2 / 3,
        "rejected_standard_error": pytest.approx((2 / 9 / 3) ** 0.5),
        "accuracy": 2 / 3,
        "standard_error": pytest.approx((2 / 9 / 6) ** 0.5),
        "one_order_accuracy": 9 / 14,
        "tied": 1 / 7,
        "flipped": 1 / 7,
        "unparsed": 1 / 16,
        "failed": 0.0,
        "said_first": 9 / 15,
    }
    assert [(*one["of"].values(), one["rows"], one["accuracy"]) for one in by] == [
        ("home", "7", 2, 0.75),
        (None, "7", 1, 1.0),
        ("work", "7", 1, 0.0),
    ]
    assert by[0] == {
        "of": {"domain": "home", "model": "7"},
        "rows": 2,
        "chosen_accuracy": 1.0,
        "chosen_standard_error": 0.0,
        "rejected_accuracy": 0.5,
        "rejected_standard_error": pytest.approx(0.5 / 2**0.5),
        "accuracy": 0.75,
        "standard_error": pytest.approx((3 / 16 / 4) ** 0.5),
    }
    assert report(judge_personas, made(JudgePersonas, by="domain"), rows)["by"][0]["of"] == {"domain": "home"}


def test_a_report_of_no_rows_has_no_figures() -> None:
    for operator, model in (
        (judge_personas, JudgePersonas),
        (compare_personas, ComparePersonas),
        (judge_responses, JudgeResponses),
    ):
        params = made(model)
        found = report(operator, params, decided(operator, params, {}, frame().head(0)))
        assert {value for value in found.values() if value} == set()


def test_the_comparison_sees_nothing_but_the_personas() -> None:
    asked = list(compare_personas.requests(frame(), {}, made(ComparePersonas)))
    assert [(request.slot, request.messages[-1].content) for request in asked] == [
        ("12", COMPARED.format(CURT, KEEN)),
        ("21", COMPARED.format(KEEN, CURT)),
    ]
    assert {len(request.messages) for request in asked} == {2}


def test_the_comparison_reports_shares_with_ties() -> None:
    params = made(ComparePersonas)
    chosen, other, tie = (
        (scored(-1, -2), scored(-2, -1)),
        (scored(-2, -1), scored(-1, -2)),
        (scored(-1, -2), scored(-1, -2)),
    )
    answers = {
        (f"k{number}", order): answer
        for number, pair in enumerate((chosen, chosen, other, tie))
        for order, answer in zip(("12", "21"), pair, strict=True)
    }
    rows = decided(compare_personas, params, answers, frame({}, {}, {}, {}, {"rejected_persona": ""}))
    assert rows["preferred_persona"].to_list() == ["chosen", "chosen", "rejected", "tie", None]
    assert rows["preferred_persona_margin"].to_list() == [1.0, 1.0, -1.0, 0.0, None]
    assert rows["_reject"].to_list() == [None, None, None, None, "no_persona"]
    assert rows["_detail"][4] == "column 'rejected_persona' is empty"
    assert report(compare_personas, params, rows) == {
        "rows": 5,
        "judged": 4,
        "chosen": 0.5,
        "rejected": 0.25,
        "tie": 0.25,
        "chosen_standard_error": 0.25,
        "flipped": 0.25,
        "unparsed": 0.0,
        "failed": 0.0,
        "said_first": 5 / 8,
    }


def test_responses_are_judged_by_a_rubric() -> None:
    params = made(JudgeResponses, rubric="personalization", persona="chosen_persona", into="fitted")
    (first, second) = judge_responses.requests(frame(), {}, params)
    assert first.messages[-1].content == (
        f"Request:\nWhich shelf?\n\nResponse 1:\nThe lower one.\n\nResponse 2:\nIt depends on the wall.\n\nThe user:\n{CURT}\n\n"
        "Which response is fitted better to this user, 1 or 2?"
    )
    assert second.messages[-1].content.index("It depends on the wall.") < second.messages[-1].content.index("The lower one.")
    answers = {("k0", "12"): scored(-1, -2), ("k0", "21"): scored(-2, -1)}
    rows = decided(judge_responses, params, answers, frame({}, {"chosen": []}))
    assert rows["fitted"].to_list() == ["first", None]
    assert rows["_reject"].to_list() == [None, "empty_text"]
    found = report(judge_responses, params, rows)
    assert (found["judged"], found["first"], found["first_win_rate"], found["said_first"]) == (1, 1.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"rubric": "personalization"}, "rubric 'personalization' shows a persona; name its column"),
        ({"persona": "chosen_persona"}, "rubric 'quality' shows no persona"),
        ({"second": "chosen"}, "first and second are the same column"),
        (
            {"rubric": "judge_personas"},
            "no prompt 'judge_personas' ships with ptk; there is harmlessness, personalization, quality",
        ),
        ({"into": "_verdict"}, "String should match pattern"),
    ],
)
def test_a_rubric_and_its_persona_go_together(settings: dict[str, str], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        made(JudgeResponses, **settings)


def test_a_column_that_is_no_text_is_refused_when_a_spec_is_planned() -> None:
    rows = frame().head(0).with_columns(chosen_persona=pl.lit(1.0))
    for operator, model in ((judge_personas, JudgePersonas), (compare_personas, ComparePersonas)):
        with pytest.raises(TypeError, match="column 'chosen_persona' is Float64, not text"):
            list(operator.requests(rows, {}, made(model)))
    with pytest.raises(TypeError, match="column 'chosen_persona' is Float64, not text or a list of turns"):
        list(judge_responses.requests(rows, {}, made(JudgeResponses, first="chosen_persona")))
