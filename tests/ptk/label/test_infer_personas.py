from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.label.infer_personas import InferPersonas, infer_personas
from ptk.llm.prompt_files import first_line
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
        "persona_flags": [],
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


OTHER = "The user is a patient person with time to spare and prefers long careful answers with many reasons."


def failed(params: InferPersonas, chosen: str, rejected: str = OTHER, **more: str) -> dict[str, Any]:
    return collected(params, {side: answer(text) for side, text in {"chosen": chosen, "rejected": rejected, **more}.items()})


def test_a_persona_that_fails_a_check_is_kept_with_a_flag(params: InferPersonas) -> None:
    old = "The user is an elderly person with little patience and prefers this response every single time."
    found = failed(params, old)
    assert (found["chosen_persona"], found["persona_flags"], found["_reject"]) == (
        old,
        ["chosen_leaked", "chosen_protected"],
        None,
    )


def test_one_sentence_for_both_sides_is_flagged(params: InferPersonas) -> None:
    assert failed(params, GOOD, GOOD)["persona_flags"] == ["identical"]


def test_wording_of_the_exemplars_and_of_the_pair_is_flagged(tmp_path: Path) -> None:
    settings = made(tmp_path, exemplars=write_exemplars(tmp_path, GOOD))
    assert failed(settings, GOOD)["persona_flags"] == ["chosen_copied_exemplar"]
    copied = "The user is a reader of shelves and prefers the lower one of them above all others there."
    rows = frame(("Which shelf?", "One prefers the lower one of them above all others there.", "Neither."))
    given = {("k0", "chosen"): answer(copied), ("k0", "rejected"): answer(OTHER)}
    assert infer_personas.collect(rows, given, settings)["persona_flags"].to_list() == [["chosen_copied_pair"]]


def write_exemplars(folder: Path, persona: str) -> str:
    (folder / "copied.yaml").write_text(f"exemplars:\n  - {{prompt: A, preferred: B, other: C, persona: '{persona}'}}\n")
    return "copied.yaml"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason", "detail"),
    [
        (OTHER.replace("patient", "teenage"), GOOD, "chosen_persona_protected", "chosen persona: it must not speak of age"),
        (
            GOOD,
            OTHER.replace("long", "this answer or"),
            "rejected_persona_leaked",
            "rejected persona: it speaks of the responses",
        ),
        (GOOD, GOOD, "identical_personas", "chosen persona: the persona who would prefer the other"),
    ],
)
def test_a_persona_that_fails_rejects_its_row_where_the_settings_say_so(
    tmp_path: Path, params: InferPersonas, chosen: str, rejected: str, reason: str, detail: str
) -> None:
    found = failed(made(tmp_path, on_fail="reject"), chosen, rejected)
    assert (found["_reject"], found["chosen_persona"]) == (reason, chosen)
    assert found["_detail"].startswith(detail)
    assert failed(made(tmp_path, on_fail="reject", checks=("length",)), chosen, rejected)["_reject"] is None


def test_a_failing_persona_is_asked_for_once_more_with_the_reason(tmp_path: Path, params: InferPersonas) -> None:
    settings = made(tmp_path, on_fail="repair")
    old = OTHER.replace("patient", "teenage")
    given = {("k0", "chosen"): answer(old), ("k0", "rejected"): answer(GOOD)}
    (again,) = infer_personas.requests(frame(PAIR), given, settings)
    first = asked(settings, PAIR)[0]
    assert again == Request(
        "k0",
        "chosen_repair",
        (
            *first.messages,
            Message("assistant", old),
            Message(
                "user",
                "Please write the sentence again: it must not speak of age, gender, origin, religion, health or orientation. Describe "
                "the person and how they like to be answered, in words of your own.\nWrite: The user is ... and prefers ...",
            ),
        ),
        constraint=first.constraint,
    )
    assert list(infer_personas.requests(frame(PAIR), given, params)) == []


def test_an_answer_without_the_form_and_the_same_persona_twice_are_asked_for_again(
    tmp_path: Path, params: InferPersonas
) -> None:
    settings = made(tmp_path, on_fail="repair")

    def slots(chosen: Answer, rejected: Answer) -> list[str]:
        given = {("k0", "chosen"): chosen, ("k0", "rejected"): rejected}
        return [request.slot for request in infer_personas.requests(frame(PAIR), given, settings)]

    assert slots(answer("No."), answer(GOOD)) == ["chosen_repair"]
    assert slots(answer(GOOD), answer(GOOD)) == ["chosen_repair", "rejected_repair"]
    assert slots(answer(GOOD), answer("", "error", "prompt_too_long: x")) == []
    assert slots(answer(GOOD), answer(OTHER)) == []


def test_the_second_answer_is_taken_unless_it_is_worse(tmp_path: Path, params: InferPersonas) -> None:
    settings = made(tmp_path, on_fail="repair")
    bad = OTHER.replace("patient", "teenage")
    worse = bad.replace("long", "this answer or")
    new = "The user is a steady person with a taste for order and prefers whole plans over loose hints."
    assert failed(settings, bad, GOOD, chosen_repair=new)["chosen_persona"] == new
    assert failed(settings, bad, GOOD, chosen_repair=worse)["chosen_persona"] == bad
    assert failed(settings, bad, GOOD, chosen_repair="No.")["persona_flags"] == ["chosen_protected"]
    assert failed(settings, "No.", GOOD, chosen_repair=worse)["chosen_persona"] == worse
    assert failed(settings, "No.", GOOD, chosen_repair="No.")["_reject"] == "chosen_persona_unparsed"
    found = failed(settings, GOOD, GOOD, rejected_repair=new)
    assert (found["rejected_persona"], found["persona_flags"]) == (new, [])


def test_the_report_gives_shares_of_the_personas(params: InferPersonas) -> None:
    pairs = [PAIR, ("A?", "B.", "C."), ("D?", "E.", "F."), ("G?", "H.", "I.")]
    given = {
        ("k0", "chosen"): answer(GOOD),
        ("k0", "rejected"): answer(GOOD),
        ("k1", "chosen"): answer(GOOD),
        ("k1", "rejected"): answer(OTHER.replace("patient", "teenage")),
        ("k2", "chosen"): answer("No."),
        ("k2", "rejected"): answer(GOOD),
        ("k3", "chosen"): answer("", "error", "prompt_too_long: x"),
    }
    decided = frame(*pairs).join(infer_personas.collect(frame(*pairs), given, params), on=KEY)
    assert infer_personas.report is not None
    assert infer_personas.report(decided.lazy(), params) == {
        "rows": 4,
        "form": 5 / 6,
        "distinct": 0.5,
        "identical_both_sides": 0.5,
        "several_sentences": 0.0,
        "length": 0.0,
        "repetitive": 0.0,
        "copied_exemplar": 0.0,
        "copied_pair": 0.0,
        "leaked": 0.0,
        "protected": 0.25,
    }
    empty = infer_personas.report(decided.lazy().head(0), params)
    assert (empty["rows"], empty["form"], empty["distinct"]) == (0, None, None)


def test_a_prompt_that_can_not_ask_again_is_refused_for_repair(tmp_path: Path, params: InferPersonas) -> None:
    (tmp_path / "own.yaml").write_text("prompt: 1\nsystem: a\nuser: b\nanswer: c\nform: d\n")
    with pytest.raises(ValueError, match=r"'own\.yaml' has no 'repair'"):
        made(tmp_path, prompt="own.yaml", on_fail="repair")
    with pytest.raises(ValueError, match="the fewest and the most"):
        made(tmp_path, words=(9, 3))


NEW = "The user is a steady person with a taste for order and prefers whole plans over loose hints."


def rounds(params: InferPersonas, *given: Mapping[str, Answer]) -> list[list[Request]]:
    """Return what is asked about PAIR in each round, when each round's requests are answered as `given` says, by slot."""
    answers: dict[tuple[str, str], Answer] = {}
    found = [list(infer_personas.requests(frame(PAIR), answers, params))]
    for answered in given:
        answers |= {("k0", slot): one for slot, one in answered.items()}
        asked = list(infer_personas.requests(frame(PAIR), answers, params))
        found.append([request for request in asked if (request.row, request.slot) not in answers])
    return found


def slots(asked: list[Request]) -> list[str]:
    return [request.slot for request in asked]


def test_without_exemplars_the_question_follows_the_instruction(tmp_path: Path) -> None:
    zero = InferPersonas.model_validate({"model": "m", "prompt": "infer_personas_zero_shot"}, context={"root": tmp_path})
    requests = list(infer_personas.requests(frame(PAIR), {}, zero))
    assert [[message.role for message in request.messages] for request in requests] == [["system", "user"]] * 2
    given = {("k0", "chosen"): answer(GOOD), ("k0", "rejected"): answer(OTHER)}
    assert infer_personas.collect(frame(PAIR), given, zero)["persona_flags"].to_list() == [[]]


def test_the_nearest_exemplars_are_chosen_for_each_row(tmp_path: Path) -> None:
    (tmp_path / "three.yaml").write_text(
        "exemplars:\n"
        + "".join(
            f"  - {{prompt: '{text}', preferred: B, other: C, persona: D}}\n"
            for text in ("Tea?", "Which shelf holds?", "A cat?")
        )
    )
    nearest = made(tmp_path, exemplars="three.yaml", exemplar_choice="nearest", exemplar_count=1)
    shown = [request.messages[1].content for request in asked(nearest, PAIR, ("Is a cat kind?", "Yes.", "No."))]
    assert [text.splitlines()[1] for text in shown] == ["Which shelf holds?"] * 2 + ["A cat?"] * 2
    fixed = made(tmp_path, exemplars="three.yaml", exemplar_count=2)
    assert len(asked(fixed, PAIR)[0].messages) == 1 + 2 * 2 + 1


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"exemplars": None, "exemplar_count": 1}, "are about exemplars"),
        ({"exemplar_count": 2}, r"exemplar_count is 2, and 'exemplars\.yaml' has 1"),
        ({"exemplar_choice": "nearest"}, "needs exemplar_count"),
        ({"candidates": 3}, "go together"),
        ({"temperature": 0.7}, "go together"),
        ({"prompt": "infer_personas_contrast"}, r"exemplar 1 of 'exemplars\.yaml' has no 'difference'"),
        ({"prompt": "infer_personas_two_step"}, r"exemplar 1 of 'exemplars\.yaml' has no 'difference'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, params: InferPersonas, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        made(tmp_path, **settings)


CONTRAST = "The preferred response is bare, while the other one hedges.\n"


def test_of_an_answer_in_two_lines_the_persona_is_kept(tmp_path: Path) -> None:
    contrast = InferPersonas.model_validate({"model": "m", "prompt": "infer_personas_contrast"}, context={"root": tmp_path})
    (request, _) = infer_personas.requests(frame(PAIR), {}, contrast)
    assert request.constraint is not None and "?P" not in str(request.constraint.value)
    found = collected(contrast, {"chosen": answer(f" {CONTRAST}{GOOD}\nAnd more."), "rejected": answer(CONTRAST + OTHER)})
    assert (found["chosen_persona"], found["rejected_persona"], found["persona_flags"]) == (GOOD, OTHER, [])
    found = collected(contrast, {"chosen": answer(GOOD), "rejected": answer(CONTRAST + OTHER)})
    assert (found["_reject"], found["_raw"]) == ("chosen_persona_unparsed", GOOD)


def test_two_steps_ask_for_the_difference_first(tmp_path: Path) -> None:
    (tmp_path / "cases.yaml").write_text(
        "exemplars:\n  - {prompt: 'Tea?', preferred: Yes., other: No., persona: The user is brief., difference: It agrees.}\n"
    )
    settings = made(tmp_path, exemplars="cases.yaml", prompt="infer_personas_two_step")
    first, second, third = rounds(
        settings,
        {"chosen_think": answer(CONTRAST + "More."), "rejected_think": answer("")},
        {"chosen": answer(GOOD), "rejected": answer(OTHER)},
    )
    assert (slots(first), slots(second), slots(third)) == (["chosen_think", "rejected_think"], ["chosen", "rejected"], [])
    assert first[0].constraint == Constraint("regex", r"The preferred response [a-z][^.\n]{10,160}\.")
    assert [message.role for message in second[0].messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert second[0].messages[2] == Message("assistant", "It agrees.")
    assert second[0].messages[4] == Message("assistant", "The user is brief.")
    assert second[0].messages[5] == first[0].messages[-1]
    assert second[0].messages[6] == Message("assistant", CONTRAST.strip())
    assert second[1].messages[6] == Message("assistant", "...")


def test_a_first_question_that_is_refused_rejects_its_row(tmp_path: Path) -> None:
    settings = InferPersonas.model_validate({"model": "m", "prompt": "infer_personas_two_step"}, context={"root": tmp_path})
    refused = answer("", "error", "prompt_too_long: 9,000 tokens")
    assert slots(rounds(settings, {"chosen_think": refused, "rejected_think": answer("So.")})[1]) == ["rejected"]
    found = collected(settings, {"chosen_think": refused, "rejected_think": answer("So."), "rejected": answer(GOOD)})
    assert (found["_reject"], found["_detail"]) == ("prompt_too_long", "chosen persona: 9,000 tokens")


def liked(by: float) -> dict[str, Answer]:
    """Return a judge's answers in both orders that give the chosen response `by` more log-probability."""
    return {
        "12": Answer("00", "1", "stop", scores=(-1.0 + by, -1.0)),
        "21": Answer("00", "1", "stop", scores=(-1.0, -1.0 + by)),
    }


def test_a_judge_is_part_of_the_settings_where_there_is_something_to_choose(tmp_path: Path, params: InferPersonas) -> None:
    assert params.judge is None
    several = made(tmp_path, candidates=2, temperature=0.7)
    assert several.judge is not None and several.judge.written == "judge_personas"
    with pytest.raises(ValueError, match="it is asked about candidates, and there is one alone"):
        made(tmp_path, judge="judge_personas")


def test_of_several_candidates_the_one_is_taken_that_the_judge_gives_its_own_response(
    tmp_path: Path, params: InferPersonas
) -> None:
    settings = made(tmp_path, candidates=3, temperature=0.7)
    bad = OTHER.replace("patient", "teenage")
    drawn = {
        "chosen": answer(bad),
        "chosen_1": answer(GOOD),
        "chosen_2": answer(NEW),
        "rejected": answer(OTHER),
        "rejected_1": answer(OTHER),
        "rejected_2": answer("No."),
    }
    first, second = rounds(settings, drawn)
    assert [(request.slot, request.sample) for request in first] == [
        *((f"chosen{end}", number) for number, end in enumerate(("", "_1", "_2"))),
        *((f"rejected{end}", number) for number, end in enumerate(("", "_1", "_2"))),
    ]
    assert {request.decided for request in first} == {(("temperature", 0.7),)}
    # The first candidate fails a check; of the rejected side there is one persona alone.
    assert slots(second) == ["chosen_1_judge_12", "chosen_1_judge_21", "chosen_2_judge_12", "chosen_2_judge_21"]
    assert second[0].scored == ("1", "2") and GOOD in second[0].messages[-1].content

    def taken(one: float, two: float) -> dict[str, Any]:
        judged = {
            f"chosen_{number}_judge_{order}": found for number, by in ((1, one), (2, two)) for order, found in liked(by).items()
        }
        return collected(settings, {**drawn, **judged})

    assert taken(0.5, 0.7)["chosen_persona"] == NEW
    assert taken(0.5, -0.7)["chosen_persona"] == taken(0.5, 0.5)["chosen_persona"] == GOOD
    assert taken(0.5, -0.7)["rejected_persona"] == OTHER


def test_the_rejected_sides_candidates_are_judged_by_the_rejected_response(tmp_path: Path, params: InferPersonas) -> None:
    settings = made(tmp_path, candidates=2, temperature=0.7)
    drawn = {
        "chosen": answer(GOOD),
        "chosen_1": answer(GOOD),
        "rejected": answer(OTHER),
        "rejected_1": answer(NEW),
        **{f"rejected_judge_{order}": found for order, found in liked(1.0).items()},
        **{f"rejected_1_judge_{order}": found for order, found in liked(-1.0).items()},
    }
    assert collected(settings, drawn)["rejected_persona"] == NEW


def test_candidates_without_a_judgement_are_flagged_and_the_first_is_taken(tmp_path: Path, params: InferPersonas) -> None:
    settings = made(tmp_path, candidates=2, temperature=0.7)
    refused = answer("", "error", "refused: '1' is not one token")
    drawn = {
        "chosen": answer(NEW),
        "chosen_1": answer(GOOD),
        "rejected": answer(OTHER),
        "rejected_1": answer(OTHER),
        **{f"chosen{end}_judge_{order}": refused for end in ("", "_1") for order in ("12", "21")},
    }
    found = collected(settings, drawn)
    assert (found["chosen_persona"], found["persona_flags"], found["_reject"]) == (NEW, ["chosen_unranked"], None)
    decided = frame(PAIR).join(
        infer_personas.collect(frame(PAIR), {("k0", slot): one for slot, one in drawn.items()}, settings), on=KEY
    )
    assert infer_personas.report is not None
    assert infer_personas.report(decided.lazy(), settings)["unranked"] == 0.5


def test_the_candidate_that_is_taken_is_the_one_that_is_repaired(tmp_path: Path, params: InferPersonas) -> None:
    settings = made(tmp_path, candidates=2, temperature=0.7, on_fail="repair")
    one, two = (OTHER.replace("patient", word) for word in ("teenage", "elderly"))
    drawn = {"chosen": answer(one), "chosen_1": answer(two), "rejected": answer(GOOD), "rejected_1": answer(GOOD)}
    judged = {
        f"chosen{end}_judge_{order}": found for end, by in (("", -1.0), ("_1", 1.0)) for order, found in liked(by).items()
    }
    first, second, third = rounds(settings, drawn, judged)
    assert (len(first), len(second), slots(third)) == (4, 4, ["chosen_repair"])
    assert third[0].messages[-2] == Message("assistant", two)
    assert (third[0].sample, third[0].decided) == (0, ())
    assert collected(settings, {**drawn, **judged, "chosen_repair": answer(NEW)})["chosen_persona"] == NEW
