"""Scores both responses of each pair by a model's log-probabilities, under the persona of each side and under none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.llm.cases import ONE_SYSTEM_MESSAGE, Case, asked
from ptk.llm.persona_turns import PersonaPlace
from ptk.llm.request import Message, Request
from ptk.operator import DETAIL, KEY, REJECT, Answers, LlmOperator
from ptk.params import COLUMN, MODEL, Params
from ptk.text import text_of
from ptk.train.turns import UnfitTurns, prompt_turns, response_text

__all__ = ["SIDES", "Condition", "ScorePairs", "same_persona", "score_column", "score_pairs"]

SIDES = ("chosen", "rejected")
Condition = Literal["none", "chosen", "rejected"]


class ScorePairs(Params):
    """Settings of score_pairs."""

    model: Annotated[str, MODEL] = Field(description="Name of the model that scores; its backend must give likelihoods.")
    template: Literal["chat", "plain"] = Field(
        "chat", description="chat, the model's own template; plain, the text Prompt: ... Persona: ... Response:"
    )
    place: PersonaPlace = Field(
        "system",
        description="Where the persona stands: system, the system message; tag, as Persona: ... below the prompt; first_person, below "
        "the prompt as the user would say it.",
    )
    given: tuple[Condition, ...] = Field(
        ("none", "chosen", "rejected"),
        min_length=1,
        description="Under what: no persona, the chosen one's, the rejected one's.",
    )
    chosen_persona: Annotated[str | None, COLUMN] = Field(
        "chosen_persona",
        description="Column with the persona who would prefer the chosen response; null where none is `given`.",
    )
    rejected_persona: Annotated[str | None, COLUMN] = Field(
        "rejected_persona",
        description="Column with the persona who would prefer the rejected response; null where none is `given`.",
    )
    into: str = Field(
        "logp", pattern=r"^[a-z][a-z0-9_]*$", description="Beginning of the new columns' names, such as a name for the model."
    )
    per_token: bool = Field(False, description="Keep the log-probability of each token too, as lists.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.template == "plain" and self.place == "system":
            raise ValueError("plain text has no system message; write place: tag or place: first_person")
        if len(set(self.given)) < len(self.given):
            raise ValueError("`given` names a condition twice")
        for side in SIDES:
            if side in self.given and getattr(self, f"{side}_persona") is None:
                raise ValueError(f"`given` has '{side}', so `{side}_persona` must name a column")
        return self


def score_column(into: str, side: str, given: str) -> str:
    """Return the column with the log-probability of one side's response under one condition."""
    return f"{into}_{side}_given_{given}"


def same_persona(chosen: str, rejected: str) -> pl.Expr:
    """Return whether the personas in two columns are one and the same, but for blanks and case; false where one is missing."""
    first, second = (
        pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase().str.replace_all(r"\s+", " ")
        for name in (chosen, rejected)
    )
    return (first == second).fill_null(False)


def _schema(params: ScorePairs) -> dict[str, Any]:
    schema: dict[str, Any] = {KEY: pl.String}
    for given in params.given:
        for side in SIDES:
            schema[score_column(params.into, side, given)] = pl.Float64
            if params.per_token:
                schema[f"{score_column(params.into, side, given)}_tokens"] = pl.List(pl.Float64)
    for side in SIDES:
        schema[f"{params.into}_{side}_tokens"] = pl.Int32
    return {**schema, REJECT: pl.String, DETAIL: pl.String}


def _prompts(
    row: Mapping[str, Any], params: ScorePairs, cases: tuple[Case, ...] = ()
) -> dict[Condition, tuple[tuple[Message, ...], str]]:
    """Return the turns of what each condition asks with; of plain text, no turns and the text. Raises UnfitTurns."""
    turns = prompt_turns(row["prompt"])
    prompts: dict[Condition, tuple[tuple[Message, ...], str]] = {}
    for given in params.given:
        persona = None
        if given != "none":
            column = str(getattr(params, f"{given}_persona"))
            persona = (row[given + "_persona"] or "").strip()
            if not persona:
                raise UnfitTurns("no_persona", f"column '{column}' is empty")
        prompts[given] = asked(turns, persona, params.place, params.template, cases)
    return prompts


def _rows(frame: pl.DataFrame, params: ScorePairs) -> Iterator[dict[str, Any]]:
    personas = []
    for side in SIDES:
        column = getattr(params, f"{side}_persona")
        if side in params.given and column in frame.columns:
            personas.append(text_of(column, frame.schema[column]).alias(f"{side}_persona"))
    for name in ("prompt", *SIDES):
        if name in frame.columns:
            text_of(name, frame.schema[name])  # raises where it is neither text nor turns
    yield from frame.select(KEY, "prompt", *SIDES, *personas).iter_rows(named=True)


def _shows_cases(params: ScorePairs) -> str | None:
    return ONE_SYSTEM_MESSAGE if params.place == "system" and set(params.given) != {"none"} else None


def _requests(frame: pl.DataFrame, answers: Answers, params: ScorePairs, cases: tuple[Case, ...] = ()) -> Iterator[Request]:
    for row in _rows(frame, params):
        try:
            prompts = _prompts(row, params, cases)
            responses = {side: response_text(row[side], side) for side in SIDES}
        except UnfitTurns:
            continue
        for given, (messages, plain) in prompts.items():
            for side, response in responses.items():
                text = f" {response}" if plain else response
                yield Request(row[KEY], f"{side}|{given}", messages, prefill=plain, continuation=text)


def _collect(frame: pl.DataFrame, answers: Answers, params: ScorePairs) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for row in _rows(frame, params):
        try:
            _prompts(row, params)
            for side in SIDES:
                response_text(row[side], side)
        except UnfitTurns as unfit:
            rows.append({KEY: row[KEY], REJECT: unfit.reason, DETAIL: str(unfit)})
            continue
        rows.append(_scored(row[KEY], answers, params))
    return pl.from_dicts(rows, schema=_schema(params)) if rows else pl.DataFrame(schema=_schema(params))


def _scored(key: str, answers: Answers, params: ScorePairs) -> dict[str, Any]:
    """Return a row's decision."""
    made: dict[str, Any] = {KEY: key}
    for given in params.given:
        for side in SIDES:
            answer = answers.get((key, f"{side}|{given}"))
            if answer is None or answer.scores is None:
                reason, _, detail = (answer.error or "" if answer else "").partition(": ")
                return {KEY: key, REJECT: reason or "no_scores", DETAIL: detail or "the model gave no log-probabilities"}
            if not all(map(math.isfinite, answer.scores)):
                return {KEY: key, REJECT: "not_finite", DETAIL: f"a log-probability of '{side}' is not a number"}
            name = score_column(params.into, side, given)
            made[name] = math.fsum(answer.scores)
            made[f"{params.into}_{side}_tokens"] = len(answer.scores)
            if params.per_token:
                made[f"{name}_tokens"] = list(answer.scores)
    return made


def _report(decided: pl.LazyFrame, params: ScorePairs) -> Mapping[str, Any]:
    kept = decided.filter(pl.col(REJECT).is_null())
    margins = {
        given: pl.col(score_column(params.into, "chosen", given)) - pl.col(score_column(params.into, "rejected", given))
        for given in params.given
    }
    shares = {f"chosen_preferred_given_{given}": (margin > 0).mean() for given, margin in margins.items()}
    if {"chosen", "rejected"} <= margins.keys():
        assert params.chosen_persona is not None and params.rejected_persona is not None
        same = same_persona(params.chosen_persona, params.rejected_persona)
        shares["same_persona"] = same.sum()
        shares["flip"] = ((margins["chosen"] > 0) & (margins["rejected"] < 0)).filter(~same).mean()
        shares["shift"] = (margins["chosen"] > margins["rejected"]).filter(~same).mean()
    told = kept.select(pl.len().alias("pairs"), *(share.alias(name) for name, share in shares.items())).collect()
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in told.row(0, named=True).items()}


score_pairs = LlmOperator(
    name="score_pairs",
    params=ScorePairs,
    version=1,
    inputs=("frame",),
    help="Score both responses of each pair by a model's log-probabilities, under each side's persona and under none.",
    requests=_requests,
    collect=_collect,
    wants="likelihoods",
    shows_cases=_shows_cases,
    report=_report,
)
