"""Asks a judge which of two responses is better by a rubric: its quality, or how well it is fitted to a persona."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ptk.label.judging import Judging
from ptk.label.verdicts import Verdicts
from ptk.llm.prompt_files import RubricPrompt
from ptk.params import COLUMN

__all__ = ["JudgeResponses", "judge_responses"]


class JudgeResponses(Judging):
    """Settings of judge_responses."""

    rubric: RubricPrompt = Field(
        RubricPrompt.shipped("quality"), description="quality, personalization, harmlessness, or a prompt file."
    )
    first: Annotated[str, COLUMN] = Field("chosen", description="Column with the one response.")
    second: Annotated[str, COLUMN] = Field("rejected", description="Column with the other response.")
    persona: Annotated[str | None, COLUMN] = Field(
        None, description="Column with the user's persona, where the rubric shows one."
    )
    into: str = Field(
        "verdict", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the new column; further ones begin with it."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rubric.mentions("persona") and self.persona is None:
            raise ValueError(
                f"rubric '{self.rubric.written}' shows a persona; name its column, such as persona: chosen_persona"
            )
        if self.persona is not None and not self.rubric.mentions("persona"):
            raise ValueError(f"rubric '{self.rubric.written}' shows no persona; leave out 'persona'")
        if self.first == self.second:
            raise ValueError("first and second are the same column")
        return self


def _named(params: JudgeResponses) -> dict[str, str]:
    """Return the columns of what the rubric shows, by the names it has there."""
    named = {"prompt": "prompt", "first": params.first, "second": params.second}
    return named if params.persona is None else {**named, "persona": params.persona}


judge_responses = Verdicts(
    prompt=lambda params: params.rubric,
    shown=_named,
    into=lambda params: params.into,
    words={"first": "first", "second": "second"},
    empty="empty_text",
    rate=True,
).operator("judge_responses", JudgeResponses, 2, "Ask a judge, in both orders, which of two responses is better by a rubric.")
