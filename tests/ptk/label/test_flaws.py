from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptk.label.flaws import flaws, is_cut_off, repeated_share


def test_a_share_of_repeated_runs_of_four_words() -> None:
    assert repeated_share("a b c d") == 0.0
    assert repeated_share("a b c d a b c d") == 1 - 4 / 5
    assert repeated_share("No, no. NO no - no no") == 1 - 1 / 3
    assert repeated_share("") == repeated_share("one two three") == 0.0


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30))
def test_the_share_is_that_of_the_slow_way(words: list[str]) -> None:
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    repeats = sum(run in runs[:at] for at, run in enumerate(runs))
    assert repeated_share(" ".join(words)) == pytest.approx(repeats / len(runs) if runs else 0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("It takes twelve minutes in a wide pot.", False),
        ("It takes twelve minutes in a wide pot and then you", True),
        ("Steps:\n- rinse the rice in cold water", False),
        ("Steps:\n1. rinse the rice in cold water", False),
        ("It is done.\n\nYours, Ann", False),
        ("He said “wait for the very last train”", False),
        ("```python\nfor one in range(3): print(one)\n```", False),
        ("", False),
    ],
)
def test_a_text_breaks_off_within_a_sentence(text: str, cut: bool) -> None:
    assert is_cut_off(text) is cut


@pytest.mark.parametrize(
    ("text", "reason", "found"),
    [
        (None, None, ["empty"]),
        (" \n ...", "stop", ["empty"]),
        ("", "length", ["empty", "truncated"]),
        ("Fine.", "length", ["truncated"]),
        ("It takes twelve minutes in a wide pot and then you", "stop", []),
        ("It takes twelve minutes in a wide pot and then you", None, ["truncated"]),
        ("I can help. " * 20, None, ["repetitive"]),
        ("I can help you with that " * 20, None, ["repetitive", "truncated"]),
    ],
)
def test_flaws_are_named(text: Any, reason: Any, found: list[str]) -> None:
    assert flaws(text, reason) == found


def test_the_limit_can_be_moved() -> None:
    assert flaws("a b c d a b c d.", most_repeated=0.1) == ["repetitive"]
    assert flaws("a b c d a b c d.", most_repeated=0.2) == []
