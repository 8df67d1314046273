from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptk.llm.request import Message
from ptk.llm.window import GAP, OnLong, fitted, too_long


def words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def turns(*texts: str) -> list[Message]:
    return [Message("user", text) for text in texts]


@pytest.mark.parametrize(
    ("policy", "left"),
    [("truncate_left", f"{GAP}three four five six seven"), ("truncate_middle", f"one two three{GAP}ive six seven")],
)
def test_the_longest_message_is_cut_until_the_prompt_fits(policy: OnLong, left: str) -> None:
    whole = turns("be kind", "one two three four five six seven", "so")
    cut = fitted(whole, 8, policy, words)
    assert cut is not None
    assert [message.content for message in cut] == ["be kind", left, "so"]
    assert words(cut) == 8


def test_nothing_is_cut_where_that_was_not_asked_for_or_would_not_help() -> None:
    assert fitted(turns("one two three"), 2, "reject", words) is None
    assert fitted(turns("one two three", "four five"), 2, "truncate_left", words) is None
    assert fitted(turns(""), 0, "truncate_left", words) is None
    assert fitted([], 0, "truncate_left", words) is None
    assert too_long(9, 3, 10) == "prompt_too_long: 9 prompt tokens + 3 answer tokens > 10"


@given(
    st.lists(st.text(alphabet="ab \n", max_size=60), min_size=1, max_size=4),
    st.integers(0, 40),
    st.sampled_from(["truncate_left", "truncate_middle"]),
)
def test_what_is_cut_fits_and_one_more_character_would_not(texts: list[str], budget: int, policy: OnLong) -> None:
    def characters(messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages)

    cut = fitted(turns(*texts), budget, policy, characters)
    longest = max(range(len(texts)), key=lambda number: len(texts[number]))
    others = sum(map(len, texts)) - len(texts[longest])
    if cut is None:
        assert not texts[longest] or others + len(GAP) > budget
        return
    assert characters(cut) == min(budget, others + len(GAP) + len(texts[longest]) - 1)
    head, _, tail = cut[longest].content.partition(GAP)
    assert texts[longest].startswith(head) and texts[longest].endswith(tail)
    assert [message.content for number, message in enumerate(cut) if number != longest] == [
        text for number, text in enumerate(texts) if number != longest
    ]
