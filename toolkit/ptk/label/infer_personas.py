"""Infers, for each pair, a persona who would prefer the chosen response and one who would prefer the rejected one.

Persona inference by abduction as in Balepur et al., ACL 2025 (arXiv 2501.11549): the same prompt asks about both sides, with the
two responses in exchanged places, so N pairs make 2N requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated

import polars as pl
from pydantic import Field

from ptk.llm.prompt_files import Exemplar, ExemplarFile, PromptFile, as_text
from ptk.llm.request import Constraint, Message, Request
from ptk.operator import DETAIL, KEY, RAW, REJECT, Answers, LlmOperator
from ptk.params import MODEL, Params

__all__ = ["InferPersonas", "infer_personas"]

_SIDES = {"chosen": "rejected", "rejected": "chosen"}


class InferPersonas(Params):
    """Settings of infer_personas."""

    model: Annotated[str, MODEL] = Field(description="Name of the model that infers.")
    exemplars: ExemplarFile = Field(description="File with solved cases that are shown before each pair.")
    prompt: PromptFile = Field(PromptFile.shipped("infer_personas"), description="A prompt that ships with ptk, or a file.")
    constrain: bool = Field(True, description="Hold the model to the prompt's form while it decodes.")


@lru_cache(maxsize=8)
def _opening(prompt: PromptFile, exemplars: tuple[Exemplar, ...]) -> tuple[Message, ...]:
    """Return the turns that every request begins with; the engine computes them once."""
    turns = [Message("system", prompt.content.system.strip())]
    for exemplar in exemplars:
        turns.append(Message("user", prompt.user(exemplar.model_dump())))
        turns.append(Message("assistant", prompt.answer(exemplar.model_dump())))
    return tuple(turns)


def _requests(frame: pl.DataFrame, answers: Answers, params: InferPersonas) -> Iterator[Request]:
    opening = _opening(params.prompt, params.exemplars.exemplars)
    constraint = Constraint("regex", params.prompt.content.form) if params.constrain else None
    for row in frame.select(KEY, "prompt", "chosen", "rejected").iter_rows(named=True):
        texts = {name: as_text(row[name]) for name in ("prompt", "chosen", "rejected")}
        for side, other in _SIDES.items():
            question = params.prompt.user({"prompt": texts["prompt"], "preferred": texts[side], "other": texts[other]})
            yield Request(row[KEY], side, (*opening, Message("user", question)), constraint=constraint)


def _collect(frame: pl.DataFrame, answers: Answers, params: InferPersonas) -> pl.DataFrame:
    form = re.compile(params.prompt.content.form)
    rows = [_decision(row, answers, form) for row in frame[KEY]]
    names = (KEY, "chosen_persona", "rejected_persona", REJECT, DETAIL, RAW)
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _decision(row: str, answers: Answers, form: re.Pattern[str]) -> tuple[str | None, ...]:
    personas: dict[str, str | None] = {}
    for side in _SIDES:
        answer = answers.get((row, side))
        if answer is None:
            return row, None, None, f"{side}_persona_missing", "the model gave no answer", None
        if answer.error is not None:
            reason, _, detail = answer.error.partition(":")
            return row, None, None, reason, f"{side} persona: {detail.strip()}", None
        persona = first_line(answer.text)
        if not form.fullmatch(persona):
            cut = " (the answer reached max_tokens)" if answer.finish_reason == "length" else ""
            return row, None, None, f"{side}_persona_unparsed", f"not of the form '{form.pattern}'{cut}", answer.text
        personas[side] = persona
    return row, personas["chosen"], personas["rejected"], None, None, None


def first_line(text: str) -> str:
    """Return the first line with words in it, trimmed; the empty string where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


infer_personas = LlmOperator(
    name="infer_personas",
    params=InferPersonas,
    version=1,
    inputs=("frame",),
    help="Infer a persona who would prefer the chosen response, and one who would prefer the rejected one, with a model.",
    requests=_requests,
    collect=_collect,
)
