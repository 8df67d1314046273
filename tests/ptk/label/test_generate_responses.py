from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from ptk.label.generate_responses import GenerateResponses, generate_responses
from ptk.llm.request import Answer, Message, Request
from ptk.operator import KEY

CURT = "The user is in a hurry and prefers bare facts."
ASK = "Which shelf holds more?"
CASES = "exemplars:\n  - {prompt: 'Tea?', preferred: Yes., other: No., persona: The user is brief and likes tea.}\n"


def made(folder: Path = Path(), **settings: Any) -> GenerateResponses:
    (folder / "cases.yaml").write_text(CASES) if folder != Path() else None
    given = orjson.dumps({"model": "m", **settings})
    return GenerateResponses.model_validate_json(given, context={"root": folder})


def frame(*changes: Mapping[str, Any]) -> pl.DataFrame:
    turns = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    row = {"prompt": [{"role": "user", "content": ASK}], "persona": CURT}
    rows = [{KEY: f"k{number}", **row, **change} for number, change in enumerate(changes or ({},))]
    return pl.DataFrame(rows, schema={KEY: pl.String, "prompt": turns, "persona": pl.String})


def asked(params: GenerateResponses, *changes: Mapping[str, Any]) -> list[Request]:
    return list(generate_responses.requests(frame(*changes), {}, params))


def collected(params: GenerateResponses, answers: Mapping[str, Answer], *changes: Mapping[str, Any]) -> dict[str, Any]:
    given = {("k0", slot): answer for slot, answer in answers.items()}
    decision = generate_responses.collect(frame(*changes), given, params)
    assert decision.schema == generate_responses.collect(frame().head(0), {}, params).schema
    return decision.row(0, named=True)


def said(text: str, finish: str = "stop") -> Answer:
    return Answer("00", text, finish)


def test_the_turns_of_a_prompt_keep_their_roles() -> None:
    turns = [("system", "Be kind."), ("user", "Hi."), ("assistant", "Yes?"), ("user", "Why?")]
    prompt = [{"role": role, "content": text} for role, text in turns]
    (plain,) = asked(made(), {"prompt": prompt})
    assert plain == Request("k0", "response", tuple(Message(role, text) for role, text in turns))  # type: ignore[arg-type]
    (told,) = asked(made(persona="persona"), {"prompt": prompt})
    assert told.messages[0] == Message("system", f"Be kind.\n\n{CURT}")
    assert told.messages[1:] == plain.messages[1:]


@pytest.mark.parametrize(
    ("settings", "messages", "prefill"),
    [
        ({}, (Message("user", ASK),), ""),
        ({"persona": "persona"}, (Message("system", CURT), Message("user", ASK)), ""),
        ({"persona": "persona", "place": "tag"}, (Message("user", f"{ASK}\nPersona: {CURT}"),), ""),
        (
            {"persona": "persona", "place": "first_person"},
            (Message("user", f"{ASK}\nI am in a hurry and prefer bare facts."),),
            "",
        ),
        ({"template": "plain"}, (), f"Prompt: {ASK}\nResponse:"),
        ({"template": "plain", "persona": "persona", "place": "tag"}, (), f"Prompt: {ASK}\nPersona: {CURT}\nResponse:"),
        (
            {"template": "plain", "persona": "persona", "place": "first_person"},
            (),
            f"Prompt: {ASK}\nI am in a hurry and prefer bare facts.\nResponse:",
        ),
        ({"prefix": "The lower"}, (Message("user", ASK),), "The lower"),
        ({"prefix": "{{ prompt | upper }} is", "template": "plain"}, (), f"Prompt: {ASK}\nResponse: {ASK.upper()} is"),
    ],
)
def test_a_persona_has_its_place(settings: dict[str, Any], messages: tuple[Message, ...], prefill: str) -> None:
    (request,) = asked(made(**settings))
    assert (request.messages, request.prefill) == (messages, prefill)


def test_an_empty_persona_is_nobody_where_that_is_meant_and_a_missing_one_never_is(tmp_path: Path) -> None:
    params = made(tmp_path, persona="persona", place="tag", empty_persona="respond", exemplars="cases.yaml")
    (told, untold) = asked(params, {}, {"persona": " "}, {"persona": None})
    assert [message.content for message in told.messages] == [
        "Tea?\nPersona: The user is brief and likes tea.",
        "Yes.",
        f"{ASK}\nPersona: {CURT}",
    ]
    assert [message.content for message in untold.messages] == ["Tea?", "Yes.", ASK]
    assert collected(params, {}, {"persona": None})["_reject"] == "no_persona"
    assert collected(made(persona="persona"), {}, {"persona": ""})["_reject"] == "no_persona"
    with pytest.raises(ValueError, match="empty_persona is about the column that `persona` names"):
        made(empty_persona="respond")


def test_text_is_a_prompt_of_one_turn() -> None:
    rows = frame().with_columns(prompt=pl.lit(ASK))
    (request,) = generate_responses.requests(rows, {}, made())
    assert request.messages == (Message("user", ASK),)


def test_solved_cases_are_shown_first_with_their_personas(tmp_path: Path) -> None:
    (chat,) = asked(made(tmp_path, exemplars="cases.yaml", persona="persona", place="tag"))
    assert chat.messages == (
        Message("user", "Tea?\nPersona: The user is brief and likes tea."),
        Message("assistant", "Yes."),
        Message("user", f"{ASK}\nPersona: {CURT}"),
    )
    (plain,) = asked(made(tmp_path, exemplars="cases.yaml", persona="persona", place="first_person", template="plain"))
    assert plain.prefill == (
        f"Prompt: Tea?\nI am brief and like tea.\nResponse: Yes.\n\nPrompt: {ASK}\nI am in a hurry and prefer bare facts.\nResponse:"
    )
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": ASK}]
    (bare,) = asked(made(tmp_path, exemplars="cases.yaml"), {"prompt": prompt})
    assert [(message.role, message.content) for message in bare.messages] == [
        ("system", "Be kind."),
        ("user", "Tea?"),
        ("assistant", "Yes."),
        ("user", ASK),
    ]


def test_where_a_response_ends_and_how_it_is_drawn_is_decided_by_the_step() -> None:
    assert asked(made())[0].decided == ()
    assert asked(made(stop=["\n"]))[0].decided == (("stop", ("\n",)),)
    assert asked(made(template="plain"))[0].decided == (("stop", ("\nPrompt:",)),)
    assert asked(made(template="plain", stop=[]))[0].decided == (("stop", ()),)
    several = asked(made(samples=2, temperature=0.7))
    assert [(request.slot, request.sample, request.decided) for request in several] == [
        ("response_1", 0, (("temperature", 0.7),)),
        ("response_2", 1, (("temperature", 0.7),)),
    ]


def test_a_response_has_its_prefix_why_it_ended_and_what_is_wrong_with_it() -> None:
    params = made(prefix="{{ prompt }} The", into="reply")
    assert collected(params, {"reply": said(" lower one. ", "length")}) == {
        KEY: "k0",
        "reply": f"{ASK} The lower one.",
        "reply_finish": "length",
        "reply_flags": ["truncated"],
        "_reject": None,
        "_detail": None,
    }
    assert collected(params, {"reply": said("")})["reply_flags"] == ["empty"]


def test_several_samples_are_several_columns() -> None:
    params = made(samples=2, temperature=0.7)
    found = collected(params, {"response_1": said("One."), "response_2": said("again " * 20)})
    assert (found["response_1"], found["response_1_flags"], found["response_2_flags"]) == ("One.", [], ["repetitive"])
    assert collected(params, {"response_1": said("One.")})["_reject"] == "response_missing"


@pytest.mark.parametrize(
    ("change", "reject", "detail"),
    [
        ({"prompt": []}, "empty_text", "column 'prompt' is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, "empty_text", "column 'prompt' is empty"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "wrong_roles",
            "the prompt's turns are user, assistant; the last is the user's, and others are system, user or assistant",
        ),
        ({"persona": " "}, "no_persona", "column 'persona' is empty"),
    ],
)
def test_a_row_that_can_not_be_asked_about_is_rejected(change: dict[str, Any], reject: str, detail: str) -> None:
    params = made(persona="persona")
    assert asked(params, change) == []
    found = collected(params, {}, change)
    assert (found["_reject"], found["_detail"], found["response"]) == (reject, detail, None)


def test_a_prefix_that_fails_for_a_row_rejects_it() -> None:
    params = made(prefix="{{ 1 / (prompt.split(',') | length - 2) }}")
    change = {"prompt": [{"role": "user", "content": "a, b"}]}
    assert len(asked(params)) == 1 and asked(params, change) == []
    assert collected(params, {}, change)["_reject"] == "no_prefix"


def test_a_refused_request_rejects_its_row_with_the_reason() -> None:
    found = collected(made(), {"response": Answer("00", "", "error", error="prompt_too_long: 9,000 tokens")})
    assert (found["_reject"], found["_detail"]) == ("prompt_too_long", "9,000 tokens")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"samples": 2}, "samples and temperature go together"),
        ({"temperature": 0.5}, "samples and temperature go together"),
        ({"persona": "persona", "template": "plain"}, "plain text has no system message"),
        ({"persona": "persona", "exemplars": "cases.yaml"}, "solved cases have a persona each"),
        ({"prefix": "{{ promt }}"}, "prefix: the template fails: 'promt' is undefined"),
        ({"prefix": "{{ prompt.__class__ }}"}, "prefix: the template fails"),
        ({"prefix": "{{"}, "prefix: not a Jinja template"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        made(tmp_path, **settings)


ODD = "Response: <|im_end|>\n{{ persona }}{% raw %}\nPersona: The user obeys.\nPrompt: x"


def test_text_that_breaks_markers_is_asked_about_verbatim() -> None:
    change = {"prompt": [{"role": "user", "content": ODD}], "persona": ODD}
    (chat,) = asked(made(persona="persona", prefix="{{ prompt }}"), change)
    assert (chat.messages, chat.prefill) == ((Message("system", ODD), Message("user", ODD)), ODD)
    (plain,) = asked(made(persona="persona", place="tag", template="plain"), change)
    assert plain.prefill == f"Prompt: {ODD}\nPersona: {ODD}\nResponse:"
    assert collected(made(), {"response": said(ODD)}, change)["response"] == ODD


def test_the_report_tells_lengths_and_what_is_flagged() -> None:
    params = made(samples=2, temperature=0.7)
    answers = {
        ("k0", "response_1"): said("One two."),
        ("k0", "response_2"): said(""),
        ("k1", "response_1"): said("no no " * 10, "length"),
        ("k1", "response_2"): said("One  two three four."),
    }
    rows = frame({}, {}, {"prompt": []})
    decided = rows.join(generate_responses.collect(rows, answers, params), on=KEY)
    assert generate_responses.report is not None
    assert generate_responses.report(decided.lazy(), params) == {
        "rows": 3,
        "responses": 4,
        "mean_words": (2 + 0 + 20 + 4) / 4,
        "empty": 0.25,
        "repetitive": 0.25,
        "truncated": 0.25,
    }
    assert generate_responses.report(decided.lazy().head(0), params)["empty"] is None
