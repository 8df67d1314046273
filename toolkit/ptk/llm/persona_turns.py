"""Puts a persona into a prompt: as the system message, under a tag, in the first person, or into plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ptk.llm.first_person import first_person
from ptk.llm.request import Message

__all__ = ["PersonaPlace", "persona_turns", "plain_prompt"]

PersonaPlace = Literal["system", "tag", "first_person"]
"""`system`: the persona is the system message; `tag`: `Persona: ...` on a line below the last user turn; `first_person`: below the
last user turn stands the persona as the user would say it."""


def persona_turns(turns: Sequence[Message], persona: str | None, place: PersonaPlace) -> tuple[Message, ...]:
    """Return the turns of a prompt with the persona in its place; as they are without one.

    A system message that is there already keeps its place and is followed by the persona. Raises ValueError for turns of which
    the last is not the user's.
    """
    if not turns or turns[-1].role != "user":
        raise ValueError("a prompt ends with a turn of the user")
    if persona is None:
        return tuple(turns)
    if place == "system":
        if turns[0].role == "system":
            return (replace(turns[0], content=f"{turns[0].content}\n\n{persona}"), *turns[1:])
        return (Message("system", persona), *turns)
    said = f"Persona: {persona}" if place == "tag" else first_person(persona)
    return (*turns[:-1], replace(turns[-1], content=f"{turns[-1].content}\n{said}"))


def plain_prompt(text: str, persona: str | None, place: PersonaPlace = "tag") -> str:
    """Return a prompt without a chat template (Balepur et al., ACL 2025); the response follows after a space.

    Plain text has no system message: any place but `tag` is the first person.
    """
    if persona is not None and place != "tag":
        text, persona = persona_turns((Message("user", text),), persona, "first_person")[-1].content, None
    return f"Prompt: {text}\nResponse:" if persona is None else f"Prompt: {text}\nPersona: {persona}\nResponse:"
