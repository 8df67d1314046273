from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptk.label.checks import (
    CHECKS,
    copied_share,
    grams,
    grams_of,
    is_leaked,
    is_one_sentence,
    names_protected,
    persona_failings,
)
from ptk.text import words

GOOD = "The user is a busy person with little patience and prefers short direct answers every time."
CORPUS = Path(__file__).resolve().parents[3] / "specs" / "data" / "quickstart_personas.jsonl"


@pytest.mark.parametrize(
    ("text", "one"),
    [
        (GOOD, True),
        ("The user is calm, e.g. Patient with detail.", True),
        ("The user likes version 2.5 better.", True),
        ("The user is calm. They like detail.", False),
        ('The user says "no!" "Never" comes next.', False),
        ("The user is calm! Very.", False),
        ("", False),
        ("no full stop", True),
    ],
)
def test_a_sentence_that_ends_inside_makes_two(text: str, one: bool) -> None:
    assert is_one_sentence(text) is one


@pytest.mark.parametrize(
    "text",
    [
        "The user would pick the answer that is short.",
        "The user is someone who liked the first response.",
        "The user is calm and prefers this response.",
        "The user is calm and prefers Response 1 over it.",
        "The user is one who would probably choose what has steps.",
        "The user is kind and prefers the warm, longer reply.",
        "The user is hasty and likes both answers.",
        "The user is glad of the chosen one.",
    ],
)
def test_a_persona_that_names_the_answer_leaks(text: str) -> None:
    assert is_leaked(text)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "The user is patient and prefers a response to be warm.",
        "The user is strict and prefers that answers be short.",
        "The user is orderly and prefers direct answers one at a time.",
        "The user is curious and prefers sources to support the answer.",
        "The user is undecided and prefers to see every option with its price.",
    ],
)
def test_a_persona_that_says_how_answers_should_be_does_not_leak(text: str) -> None:
    assert not is_leaked(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The user is an elderly person and prefers large print.", "age"),
        ("The user is a 40-year-old and prefers facts.", "age"),
        ("The user is in their thirties and prefers facts.", "age"),
        ("The user is a Woman who prefers facts.", "gender"),
        ("The user is Muslim and prefers facts.", "religion"),
        ("The user is a wheelchair user and prefers facts.", "health"),
        ("The user is gay and prefers facts.", "orientation"),
        ("The user is an immigrant and prefers facts.", "origin"),
        ("The user is a manager who is mentally agile, and prefers woman-made facts.", None),
        (GOOD, None),
    ],
)
def test_protected_attributes_are_found_as_whole_words(text: str, kind: str | None) -> None:
    assert names_protected(text) == kind


def test_wording_is_compared_without_the_opening_that_every_persona_has() -> None:
    source = "The user is a baker who dislikes haste and loud kitchens."
    assert copied_share("The user is a baker by trade, nothing more of note.", grams(source)) == 0.0
    assert copied_share(source, grams(source.upper())) == 1.0
    assert copied_share("The user is", grams(source)) == 0.0
    assert copied_share("who dislikes haste and sugar", grams_of(["", source])) == 0.5


@given(st.text(alphabet="ab '\n.", max_size=40))
def test_grams_are_the_runs_of_four_words(text: str) -> None:
    found = words(text)
    slow = {tuple(found[at : at + 4]) for at in range(len(found)) if len(found[at : at + 4]) == 4}
    assert grams(text) == slow


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=3))
def test_any_text_can_be_checked(persona: str, pair: list[str]) -> None:
    failed = persona_failings(persona, frozenset(), grams_of(pair), most_copied=0.2, lengths=(5, 60))
    assert failed == [name for name in CHECKS if name in failed]
    assert 0.0 <= copied_share(persona, grams_of(pair)) <= 1.0


def test_personas_written_by_hand_pass() -> None:
    records = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    texts = [record[side] for record in records for side in ("chosen_persona", "rejected_persona")]
    failed = {text for text in texts if persona_failings(text, frozenset(), frozenset(), most_copied=0.2, lengths=(5, 60))}
    assert failed == set()
