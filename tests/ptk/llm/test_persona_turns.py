"""A persona gets its place in a prompt."""

from __future__ import annotations

import pytest

from ptk.llm.persona_turns import PersonaPlace, persona_turns, plain_prompt
from ptk.llm.request import Message

ASK = Message("user", "How long do eggs boil?")
PERSONA = "The user is new to cooking and prefers one number."
EARLIER = (Message("user", "Hello."), Message("assistant", "Hello!"))


def test_the_system_message_is_the_persona() -> None:
    assert persona_turns((*EARLIER, ASK), PERSONA, "system") == (Message("system", PERSONA), *EARLIER, ASK)


def test_a_system_message_that_is_there_comes_before_the_persona() -> None:
    told = Message("system", "Be kind.")
    assert persona_turns((told, ASK), PERSONA, "system") == (Message("system", f"Be kind.\n\n{PERSONA}"), ASK)


def test_a_tag_and_the_first_person_stand_below_the_last_turn() -> None:
    tagged = Message("user", f"How long do eggs boil?\nPersona: {PERSONA}")
    said = Message("user", "How long do eggs boil?\nI am new to cooking and prefer one number.")
    assert persona_turns((*EARLIER, ASK), PERSONA, "tag") == (*EARLIER, tagged)
    assert persona_turns((*EARLIER, ASK), PERSONA, "first_person") == (*EARLIER, said)


@pytest.mark.parametrize("place", ["system", "tag", "first_person"])
def test_without_a_persona_nothing_changes(place: PersonaPlace) -> None:
    assert persona_turns((ASK,), None, place) == (ASK,)


@pytest.mark.parametrize("turns", [(), EARLIER])
def test_turns_that_do_not_end_with_the_user_are_refused(turns: tuple[Message, ...]) -> None:
    with pytest.raises(ValueError, match="ends with a turn of the user"):
        persona_turns(turns, PERSONA, "tag")


def test_plain_text_has_the_persona_on_a_line_of_its_own() -> None:
    assert plain_prompt("Why?", None) == "Prompt: Why?\nResponse:"
    assert plain_prompt("Why?", PERSONA) == f"Prompt: Why?\nPersona: {PERSONA}\nResponse:"
    assert plain_prompt("Why?", "The user is new.", "first_person") == "Prompt: Why?\nI am new.\nResponse:"
