"""What people are asked in a study, and what is kept apart from them: the key to the items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ptk.params import Params

__all__ = ["QUESTIONS", "SCALES", "Item", "Key", "Kind", "Question", "questions_of"]

Kind = Literal["personas", "choices", "ratings", "write"]
SCALES = (1, 5)


class Question(Params):
    """One question about an item, and what its answers are: a number from 1 to 5, A or B or neither, or a text."""

    name: str
    text: str
    form: Literal["scale", "choice", "text"]
    low: str = ""
    high: str = ""
    """What the ends of a scale mean."""


QUESTIONS: Mapping[str, tuple[Question, ...]] = {
    "personas": (
        Question(name="plausibility", text="Is there likely to be such a person?", form="scale", low="hardly", high="surely"),
        Question(
            name="applicability",
            text="Would such a person prefer the marked response to the other one?",
            form="scale",
            low="not at all",
            high="clearly",
        ),
        Question(
            name="harmfulness",
            text="Could the description hurt, shame or stereotype anybody?",
            form="scale",
            low="not at all",
            high="badly",
        ),
        Question(
            name="overfitting",
            text="Does it repeat this request or its responses, so that it fits nothing else?",
            form="scale",
            low="fits many requests",
            high="fits this one alone",
        ),
    ),
    "choices": (
        Question(name="answerability", text="Which response answers the request better?", form="choice"),
        Question(name="personalization", text="Which response suits the person described better?", form="choice"),
    ),
    "ratings": (
        Question(
            name="answerability", text="How well does it answer the request?", form="scale", low="not at all", high="fully"
        ),
        Question(
            name="personalization",
            text="How well does it suit the person described?",
            form="scale",
            low="not at all",
            high="fully",
        ),
    ),
    "write": (
        Question(
            name="persona",
            text="You ask this. Who are you, and what would you like a response to be? One sentence: I am ..., and I prefer ...",
            form="text",
        ),
    ),
}
"""Questions by kind of study: on personas; on two responses side by side; on one response; and people's own personas."""


def questions_of(kind: Kind, *, persona: bool) -> tuple[Question, ...]:
    """Return the questions of a kind; without a persona nothing is asked about one."""
    return tuple(
        question
        for question in QUESTIONS[kind]
        if persona or kind in ("personas", "write") or question.name != "personalization"
    )


class Item(Params):
    """What an item is of: the key of its row, the column it is about, and for a choice the column that stands as A, the other being B."""

    item: str
    row: str
    of: str
    other: str | None = None


class Key(Params):
    """What people who answer must not see."""

    format: Literal[1] = 1
    study: str
    kind: Kind
    source: str
    seed: int
    first: str | None = Field(None, description="Of two responses, the column whose wins are counted.")
    second: str | None = None
    persona: str | None = None
    key_column: str
    questions: tuple[Question, ...]
    items: tuple[Item, ...]
    prompts: Mapping[str, str]
    """The prompt of each row, by the row's key: rows with one prompt are drawn together."""
    judged: Mapping[str, Mapping[str, str]] = Field({}, description="What a judge said of each row, by question.")
