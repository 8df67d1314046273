"""Prompts and responses of a row as messages."""

from __future__ import annotations

from typing import Any

from ptk.llm.request import Message

__all__ = ["UnfitTurns", "prompt_turns", "response_text"]


class UnfitTurns(ValueError):
    """A row's turns can't be used; `reason` is the word its rejection is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


def prompt_turns(value: Any, column: str = "prompt") -> tuple[Message, ...]:
    """Return the turns of a prompt: a text is one turn of the user. Raises UnfitTurns."""
    turns = (Message("user", value),) if isinstance(value, str) else tuple(_message(turn, column) for turn in value or ())
    if not turns or not turns[-1].content.strip():
        raise UnfitTurns("empty_prompt", f"'{column}' is empty")
    if turns[-1].role != "user":
        raise UnfitTurns("no_user_turn", f"'{column}' does not end with a turn of the user")
    return turns


def response_text(value: Any, column: str) -> str:
    """Return the text of a response, which is a text or one turn of the assistant. Raises UnfitTurns."""
    turns = (Message("assistant", value),) if isinstance(value, str) else tuple(_message(turn, column) for turn in value or ())
    if len(turns) > 1:
        raise UnfitTurns("several_turns", f"'{column}' has {len(turns)} turns; a response is one")
    if not turns or not turns[0].content.strip():
        raise UnfitTurns("empty_response", f"'{column}' is empty")
    if turns[0].role != "assistant":
        raise UnfitTurns("wrong_role", f"'{column}' is a turn of the {turns[0].role}")
    return turns[0].content


def _message(turn: Any, column: str) -> Message:
    role, content = turn.get("role"), turn.get("content")
    if role not in ("system", "user", "assistant"):
        raise UnfitTurns("wrong_role", f"'{column}' has a turn of '{role}'")
    return Message(role, content or "")
