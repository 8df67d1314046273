from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptk.label.judging import Judgement, cases, judge, no_answer, share, standard_error
from ptk.llm.prompt_files import Exemplar, PersonaComparisonPrompt, PersonaJudgePrompt, RubricPrompt
from ptk.llm.request import Answer

FORM = re.compile(PersonaJudgePrompt.shipped("judge_personas").content.form)


def said(text: str) -> Answer:
    return Answer("00", text, "stop")


def scored(one: float, two: float) -> Answer:
    return Answer("00", "1", "stop", scores=(one, two))


def judged(straight: Answer | None, turned: Answer | None) -> Judgement:
    """Return the judgement from the answers in the order 12 and in the order 21."""
    given = {("k", f"a_{order}"): answer for order, answer in (("12", straight), ("21", turned)) if answer is not None}
    return judge(given, "k", "a_", FORM)


def test_two_orders_that_agree_make_a_verdict() -> None:
    assert judged(said("1"), said("2")) == Judgement("first", None, False, 2, 0, 1)
    assert judged(said("2"), said("1")) == Judgement("second", None, False, 2, 0, 1)


def test_two_orders_that_disagree_make_a_tie() -> None:
    assert judged(said("1"), said("1")) == Judgement("tie", None, True, 2, 0, 2)
    assert judged(said("2"), said("2")) == Judgement("tie", None, True, 2, 0, 0)


def test_an_answer_without_a_verdict_is_counted_and_one_that_failed_is_not_an_answer() -> None:
    assert judged(said("both"), said("2")) == Judgement(None, None, None, 2, 1, 0)
    assert judged(Answer("00", "", "error", error="refused: x"), said("1")) == Judgement(None, None, None, 1, 0, 1)
    assert judged(None, None) == Judgement(None, None, None, 0, 0, 0)


def test_the_margin_is_the_mean_of_both_orders_and_says_what_one_order_hides() -> None:
    found = judged(scored(-0.1, -2.1), scored(-0.2, -1.2))  # leans to the first place, more so in the order 12
    assert (found.verdict, found.flipped, found.ones) == ("first", True, 2)
    assert found.margin == pytest.approx(0.5)
    assert judged(scored(-1, -2), scored(-1, -2)).verdict == "tie"
    assert judged(scored(-2, -1), scored(-1, -2)).verdict == "second"


def test_equal_probabilities_in_one_order_are_no_verdict_of_it_and_no_probability_at_all_has_a_margin() -> None:
    assert judged(scored(-1, -1), scored(-2, -1)) == Judgement("first", 0.5, None, 2, 1, 0)
    assert judged(scored(-1, -math.inf), scored(-math.inf, -1)).margin == 99.0


@pytest.mark.parametrize("name", ["quality", "personalization", "harmlessness", "judge_personas", "compare_personas"])
@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("1", "1"),
        (" 2.", "2"),
        ("**1**\nbecause it is short", "1"),
        ("The answer is 2, since 1 is long.", "2"),
        ("Answer: (1)", "1"),
        ("12", None),
        ("3", None),
        ("Neither 1 nor 2", None),
        ("", None),
        ("Both are good: 1", None),
    ],
)
def test_a_written_answer_begins_with_its_verdict(name: str, text: str, choice: str | None) -> None:
    kinds = (PersonaJudgePrompt, PersonaComparisonPrompt, RubricPrompt)
    form = next(kind.shipped(name) for kind in kinds if name in kind.names).content.form
    found = judge({("k", "12"): said(text)}, "k", "", re.compile(form))
    assert (found.ones, found.unparsed) == (int(choice == "1"), int(choice is None))


def test_solved_cases_favour_neither_place() -> None:
    prompt = PersonaJudgePrompt.shipped("judge_personas")
    case = Exemplar(prompt="Tea?", preferred="Yes.", other="No.", persona="The user is brief.")
    turns = cases(prompt, (case, case))
    said = "The user is brief. That is why this user would rather have response"
    assert [turn.content for turn in turns if turn.role == "assistant"] == [f"{said} 1", f"{said} 2"]
    assert "Response 1:\nYes.\n\nResponse 2:\nNo." in turns[0].content
    assert "Response 1:\nNo.\n\nResponse 2:\nYes." in turns[2].content


def test_a_row_is_without_an_answer_only_where_all_of_its_questions_are() -> None:
    refused = Answer("00", "", "error", error="prompt_too_long: 9,000 tokens")
    assert no_answer({("k", "12"): refused, ("k", "21"): said("?")}, "k", [""], "judgement") is None
    assert no_answer({("k", "12"): refused}, "k", [""], "judgement") == ("prompt_too_long", "9,000 tokens")
    assert no_answer({}, "k", [""], "judgement") == ("judgement_missing", "the model gave no answer")


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_the_standard_error_is_the_spread_of_the_mean(right: list[bool]) -> None:
    mean = sum(right) / len(right)
    variance = sum((value - mean) ** 2 for value in right) / len(right)
    assert share(sum(right), len(right)) == mean
    assert standard_error(sum(right), len(right)) == pytest.approx(math.sqrt(variance / len(right)))


def test_a_share_of_nothing_is_none() -> None:
    assert (share(0, 0), standard_error(0, 0)) == (None, None)
