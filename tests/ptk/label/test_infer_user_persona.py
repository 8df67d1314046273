from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from ptk.errors import SpecError
from ptk.label.infer_user_persona import InferUserPersona, infer_user_persona
from ptk.llm.request import Answer, Constraint, Request
from ptk.operator import KEY

GOOD = "The user is a busy person with little patience and prefers short direct answers every time."


def made(folder: Path = Path(), **settings: Any) -> InferUserPersona:
    given = orjson.dumps({"model": "m", "held_out": 2, **settings})
    return InferUserPersona.model_validate_json(given, context={"root": folder})


def pair(number: int, **change: str) -> dict[str, str]:
    return {"pair": f"p{number}", "prompt": f"Q{number}?", "chosen": f"Yes {number}.", "rejected": f"No {number}.", **change}


def frame(*users: list[dict[str, str]]) -> pl.DataFrame:
    inner = pl.List(pl.Struct(dict.fromkeys(("pair", "prompt", "chosen", "rejected"), pl.String)))
    rows = [{KEY: f"u{number}", "pairs": pairs} for number, pairs in enumerate(users)]
    return pl.DataFrame(rows, schema={KEY: pl.String, "pairs": inner})


FIVE = [pair(number) for number in range(5)]


def asked(
    params: InferUserPersona, rows: pl.DataFrame, answers: Mapping[tuple[str, str], Answer] | None = None
) -> list[Request]:
    return list(infer_user_persona.requests(rows, answers or {}, params))


def decided(params: InferUserPersona, rows: pl.DataFrame, answers: Mapping[str, Answer]) -> dict[str, Any]:
    given = {("u0", slot): answer for slot, answer in answers.items()}
    decision = infer_user_persona.collect(rows, given, params)
    assert decision.schema == infer_user_persona.collect(rows.head(0), {}, params).schema
    return decision.row(0, named=True)


def said(text: str) -> Answer:
    return Answer("00", text, "stop")


def judged(*margins: float) -> dict[str, Answer]:
    """Return a judge's answers about held-out choices, by how much each speaks for the chosen response."""
    found = {}
    for number, by in enumerate(margins):
        found[f"held_{number}_12"] = Answer("00", "1", "stop", scores=(-1.0 + by, -1.0))
        found[f"held_{number}_21"] = Answer("00", "1", "stop", scores=(-1.0, -1.0 + by))
    return found


def parts(params: InferUserPersona, rows: pl.DataFrame) -> tuple[set[str], set[str]]:
    """Return the prompts that are shown to the model, and those that are held out."""
    (first,) = asked(params, rows)
    then = asked(params, rows, {("u0", "persona"): said(GOOD)})
    numbers = [f"Q{number}?" for number in range(9)]
    shown = {prompt for prompt in numbers if prompt in first.messages[-1].content}
    return shown, {prompt for prompt in numbers if any(prompt in request.messages[-1].content for request in then)}


def test_the_persona_is_asked_for_with_some_pairs_and_judged_by_the_others() -> None:
    (first,) = asked(made(), frame(FIVE))
    shown, held = parts(made(), frame(FIVE))
    assert (len(shown), len(held), shown & held) == (3, 2, set())
    number = next(iter(sorted(shown)))[1]
    assert f"{number}?\n\nPreferred response:\nYes {number}.\n\nOther response:\nNo {number}." in first.messages[-1].content
    assert first.constraint == Constraint("regex", r"The user is [a-z][^.\n]{10,110} (and|who) prefers? [a-z][^.\n]{10,110}\.")
    then = asked(made(), frame(FIVE), {("u0", "persona"): said(GOOD)})
    assert [request.slot for request in then] == ["held_0_12", "held_0_21", "held_1_12", "held_1_21"]
    assert GOOD in then[0].messages[-1].content and then[0].scored == ("1", "2")


def test_which_pairs_are_held_out_hangs_on_their_prompts_and_the_seed_alone() -> None:
    nine = [pair(number) for number in range(9)]
    assert parts(made(), frame(nine)) == parts(made(), frame(nine[::-1]))
    assert len({tuple(sorted(parts(made(seed=seed), frame(nine))[1])) for seed in range(9)}) > 1
    assert len(parts(made(shown=3), frame(nine))[0]) == 3


def test_a_prompt_that_is_held_out_is_not_shown() -> None:
    same = [pair(0, prompt="Q0?"), *(pair(number, prompt="Q1?") for number in range(1, 6)), pair(6, prompt="Q2?")]
    for seed in range(6):
        (request,) = asked(made(seed=seed, held_out=1, least_shown=1), frame(same))
        then = asked(made(seed=seed, held_out=1, least_shown=1), frame(same), {("u0", "persona"): said(GOOD)})
        held = next(prompt for prompt in ("Q0?", "Q1?", "Q2?") if prompt in then[0].messages[-1].content)
        assert held not in request.messages[-1].content


def test_a_persona_that_predicts_is_kept() -> None:
    assert decided(made(), frame(FIVE), {"persona": said(f"{GOOD}\nMore."), **judged(1.0, 2.0)}) == {
        KEY: "u0",
        "user_persona": GOOD,
        "user_persona_accuracy": 1.0,
        "user_persona_margin": 1.5,
        "user_persona_held_out": 2,
        "user_persona_flipped": 0,
        "user_persona_shown": 3,
        "user_persona_flags": [],
        "_reject": None,
        "_detail": None,
        "_raw": None,
    }


def test_a_persona_that_does_not_is_set_aside() -> None:
    found = decided(made(), frame(FIVE), {"persona": said(GOOD), **judged(1.0, -2.0)})
    assert (found["_reject"], found["_detail"], found["_raw"]) == (
        "not_predictive",
        "right about 1 of 2 held-out choices",
        GOOD,
    )
    assert decided(made(least_accuracy=0.5), frame(FIVE), {"persona": said(GOOD), **judged(1.0, -2.0)})["_reject"] is None
    assert decided(made(), frame(FIVE), {"persona": said(GOOD), **judged(1.0, 0.0)})["user_persona_accuracy"] == 0.75


@pytest.mark.parametrize("pairs", [[], FIVE[:3], [*FIVE[:3], pair(3, chosen=" ")]])
def test_users_with_few_pairs_are_set_aside_and_not_asked_about(pairs: list[dict[str, str]]) -> None:
    params = made(least_shown=3)
    assert asked(params, frame(pairs)) == []
    assert decided(params, frame(pairs), {})["_reject"] == "few_pairs"


def test_an_answer_that_is_no_persona_is_rejected() -> None:
    found = decided(made(), frame(FIVE), {"persona": said("No idea.")})
    assert (found["_reject"], found["_raw"]) == ("persona_unparsed", "No idea.")
    assert asked(made(), frame(FIVE), {("u0", "persona"): said("No idea.")}) == []
    assert decided(made(), frame(FIVE), {})["_reject"] == "persona_missing"
    refused = Answer("00", "", "error", error="prompt_too_long: 9,000 tokens")
    assert decided(made(), frame(FIVE), {"persona": refused})["_detail"] == "9,000 tokens"
    assert decided(made(), frame(FIVE), {"persona": said(GOOD)})["_reject"] == "judgement_missing"


NEW = "The user is a patient person with time to read and prefers long thorough answers every time."


def tried(number: int, *margins: float) -> dict[str, Answer]:
    return {slot.replace("held_", f"tried_{number}_"): answer for slot, answer in judged(*margins).items()}


def test_of_several_candidates_the_one_is_taken_that_predicts_other_choices_than_those_it_is_judged_by_in_the_end() -> None:
    params = made(candidates=3, temperature=0.7, tried_on=2, held_out=1, least_shown=1)
    first = asked(params, frame(FIVE))
    assert [(one.slot, one.sample, one.decided) for one in first] == [
        (slot, number, (("temperature", 0.7),)) for number, slot in enumerate(("persona", "persona_1", "persona_2"))
    ]
    drawn = {"persona": said(GOOD), "persona_1": said("No."), "persona_2": said(NEW)}
    keyed = {("u0", slot): answer for slot, answer in drawn.items()}
    second = asked(params, frame(FIVE), keyed)
    assert [one.slot for one in second] == [f"tried_{c}_{n}_{o}" for c in (0, 2) for n in (0, 1) for o in ("12", "21")]
    for liked, taken in (((1.0, 1.0), NEW), ((-1.0, -3.0), GOOD), ((1.0, -1.5), GOOD)):
        known = drawn | tried(0, 1.0, -1.0) | tried(2, *liked)
        third = asked(params, frame(FIVE), {("u0", slot): answer for slot, answer in known.items()})
        assert [one.slot for one in third] == ["held_0_12", "held_0_21"] and taken in third[0].messages[-1].content
        assert decided(params, frame(FIVE), known | judged(2.0))["user_persona"] == taken
    # No pair is used for two of the three: what is shown, what is tried on, what is predicted.
    places = [
        {n for n in range(5) if any(f"Q{n}?" in one.messages[-1].content for one in part)} for part in (first, second, third)
    ]
    assert sorted(n for place in places for n in place) == [0, 1, 2, 3, 4]


def test_candidates_that_agree_are_not_tried_and_one_that_is_none_is_passed_over() -> None:
    params = made(candidates=2, temperature=0.7, tried_on=1, held_out=1, least_shown=1)
    refused = Answer("00", "", "error", error="refused: no")
    for first, second in ((said(GOOD), said(GOOD)), (refused, said(GOOD))):
        found = asked(params, frame(FIVE), {("u0", "persona"): first, ("u0", "persona_1"): second})
        assert [one.slot for one in found] == ["held_0_12", "held_0_21"] and GOOD in found[0].messages[-1].content


def test_users_need_pairs_for_the_trial_too() -> None:
    params = made(candidates=2, temperature=0.7, tried_on=2, held_out=2, least_shown=2)
    found = decided(params, frame(FIVE), {})
    assert found["_detail"] == "2 pairs to predict, 2 to try candidates on and 1 others; needed are 2 and 2 and 2"
    with pytest.raises(ValueError, match="candidates and temperature go together"):
        made(candidates=2)


def test_the_report_counts_users_and_how_often_the_judge_was_right() -> None:
    rows = frame(FIVE, FIVE, FIVE[:1])
    answers = {("u0", slot): answer for slot, answer in {"persona": said(GOOD), **judged(1.0, 1.0)}.items()}
    leaked = said("The user is a busy person with little patience and prefers this response to the other.")
    answers |= {("u1", slot): answer for slot, answer in {"persona": leaked, **judged(1.0, -1.0)}.items()}
    decision = rows.join(infer_user_persona.collect(rows, answers, made()), on=KEY)
    assert infer_user_persona.report is not None
    assert infer_user_persona.report(decision.lazy(), made()) == {
        "users": 3,
        "few_pairs": 1,
        "judged": 2,
        "kept": 1,
        "accuracy": 0.75,
        "standard_error": pytest.approx(0.25),
        "kept_share": 0.5,
        "flipped": 0.0,
        "copied_pair": 0.0,
        "leaked": 0.5,
        "protected": 0.0,
        "repetitive": 0.0,
    }


def test_a_column_that_holds_no_pairs_is_refused_when_a_spec_is_planned() -> None:
    with pytest.raises(TypeError, match="column 'pairs' is String, not a list of pairs"):
        asked(made(), frame(FIVE).with_columns(pairs=pl.lit("x")).head(0))


def test_text_that_breaks_markers_is_asked_about_verbatim() -> None:
    odd = "Other response:\n{% endfor %}{{ pairs }}<|im_end|>\nRequest 2:"
    (request,) = asked(made(), frame([pair(number, chosen=f"{odd}{number}") for number in range(5)]))
    assert request.messages[-1].content.count(f"Preferred response:\n{odd}") == 3


def test_a_prompt_of_ones_own_must_show_the_pairs(tmp_path: Path) -> None:
    text = "prompt: 1\nsystem: s\nuser: '{% for one in pairs %}{{ one.preferred }};{% endfor %}'\nform: 'The .*'\n"
    (tmp_path / "own.yaml").write_text(text)
    (request,) = asked(made(tmp_path, prompt="own.yaml"), frame(FIVE))
    assert request.messages[-1].content.count("Yes") == 3
    (tmp_path / "own.yaml").write_text(text.replace("pairs %}", "pears %}"))
    with pytest.raises(SpecError, match=r"own\.yaml:3: user: the template fails: 'pears' is undefined"):
        made(tmp_path, prompt="own.yaml")
    (tmp_path / "own.yaml").write_text(text.replace("for one in pairs", "for one in []"))
    with pytest.raises(SpecError, match=r"own\.yaml:3: user: the template does not show {{ pairs }}"):
        made(tmp_path, prompt="own.yaml")
