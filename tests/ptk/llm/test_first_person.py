"""Personas are turned into the first person and stay grammatical."""

from __future__ import annotations

import pytest

from ptk.llm.first_person import first_person

TURNED = [
    (
        "The user is in a hurry and prefers a bare answer to a tour of the reasons.",
        "I am in a hurry and prefer a bare answer to a tour of the reasons.",
    ),
    (
        "The user values convenience, often reads late at night, and prefers lists and examples.",
        "I value convenience, often read late at night, and prefer lists and examples.",
    ),
    (
        "The user doesn't trust experts but wants their taxes done; the user's time is short.",
        "I don't trust experts but want my taxes done; my time is short.",
    ),
    (
        "This user likes answers that help the user decide, and needs proof.",
        "I like answers that help me decide, and need proof.",
    ),
    ("The user studies law and teaches, and goes by the book.", "I study law and teach, and go by the book."),
    (
        "The user cares about values and needs of others and tries hard.",
        "I care about values and needs of others and try hard.",
    ),
    ("The user goes by the book, and the user prefers rules.", "I go by the book, and I prefer rules."),
    (
        "The user has failed before. They prefer to ask, and they're careful.",
        "I have failed before. I prefer to ask, and I'm careful.",
    ),
    (
        "The user wishes for, and relies on, quick help even if they are terse.",
        "I wish for, and rely on, quick help even if they are terse.",
    ),
    ("The user would rather act and prefers a plan.", "I would rather act and prefer a plan."),
    (
        "The user is blunt, but is also open to advice that helps them grow.",
        "I am blunt, but am also open to advice that helps me grow.",
    ),
]

KEPT_INSIDE = [
    (
        "The user is a parent who wants their children safe and prefers plain words.",
        "I am a parent who wants their children safe and prefers plain words.",
    ),
    (
        "The user wants a guide that explains steps and offers examples.",
        "I want a guide that explains steps and offers examples.",
    ),
    ("The user asks what is and is not allowed.", "I ask what is and is not allowed."),
]


@pytest.mark.parametrize(("persona", "wanted"), TURNED)
def test_the_verbs_of_the_sentence_and_its_pronouns_are_turned(persona: str, wanted: str) -> None:
    assert first_person(persona) == wanted


@pytest.mark.parametrize(("persona", "wanted"), KEPT_INSIDE)
def test_verbs_with_a_subject_of_their_own_stay(persona: str, wanted: str) -> None:
    assert first_person(persona) == wanted


@pytest.mark.parametrize("text", ["", "I like tea and prefer it hot.", "A busy nurse who prefers lists."])
def test_a_text_that_does_not_speak_of_the_user_comes_back_as_it_is(text: str) -> None:
    assert first_person(text) == text


@pytest.mark.parametrize(("persona", "_"), TURNED + KEPT_INSIDE)
def test_turning_twice_is_turning_once(persona: str, _: str) -> None:
    assert first_person(first_person(persona)) == first_person(persona)
