"""What becomes of a request that is longer than the model's window: refused with its length, or its longest message is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from ptk.llm.request import Message

__all__ = ["OnLong", "fitted", "too_long"]

OnLong = Literal["reject", "truncate_left", "truncate_middle"]

GAP = "[...]"
"""Stands where something was left out, so that neither the model nor a reader takes the rest for the whole."""


def too_long(tokens: int, room: int, window: int) -> str:
    """Return the error of a request whose prompt and answer don't fit the window, with their lengths in tokens."""
    return f"prompt_too_long: {tokens} prompt tokens + {room} answer tokens > {window}"


def fitted(
    messages: Sequence[Message], budget: int, policy: OnLong, count: Callable[[Sequence[Message]], int]
) -> tuple[Message, ...] | None:
    """Return the messages with as much of the longest one as leaves the prompt at most `budget` tokens, or None.

    `count` gives the tokens of the whole prompt. What goes is the beginning of the message (truncate_left) or its middle
    (truncate_middle); instructions and examples in other messages stay whole. None where the policy is to reject, or where the other
    messages alone are too long.
    """
    if policy == "reject" or not messages:
        return None
    place = max(range(len(messages)), key=lambda number: len(messages[number].content))
    content = messages[place].content

    def cut(kept: int) -> tuple[Message, ...]:
        head = 0 if policy == "truncate_left" else (kept + 1) // 2
        text = content[:head] + GAP + content[len(content) - (kept - head) :]
        return (*messages[:place], replace(messages[place], content=text), *messages[place + 1 :])

    least, most = 0, len(content) - 1
    if most < 0 or count(cut(least)) > budget:
        return None
    while least < most:  # the most characters that fit; of those tried only such as fit are kept
        middle = (least + most + 1) // 2
        if count(cut(middle)) <= budget:
            least = middle
        else:
            most = middle - 1
    return cut(least)
