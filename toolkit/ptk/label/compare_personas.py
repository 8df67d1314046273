"""Asks a judge which of a pair's two personas would suit more people: which side speaks of common needs, which of uncommon ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptk.label.judging import Judging
from ptk.label.verdicts import Verdicts
from ptk.llm.prompt_files import PersonaComparisonPrompt
from ptk.params import COLUMN

__all__ = ["ComparePersonas", "compare_personas"]


class ComparePersonas(Judging):
    """Settings of compare_personas."""

    prompt: PersonaComparisonPrompt = Field(
        PersonaComparisonPrompt.shipped("compare_personas"), description="A prompt that ships with ptk, or a file."
    )
    chosen_persona: Annotated[str, COLUMN] = Field(
        "chosen_persona", description="Column with the persona who would prefer the chosen response."
    )
    rejected_persona: Annotated[str, COLUMN] = Field(
        "rejected_persona", description="Column with the persona who would prefer the rejected response."
    )


compare_personas = Verdicts(
    prompt=lambda params: params.prompt,
    shown=lambda params: {"first": params.chosen_persona, "second": params.rejected_persona},
    into=lambda params: "preferred_persona",
    words={"first": "chosen", "second": "rejected"},
    empty="no_persona",
    rate=False,
).operator(
    "compare_personas",
    ComparePersonas,
    2,
    "Ask a judge, in both orders, which of a pair's two personas would suit more people.",
)
