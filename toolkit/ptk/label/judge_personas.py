"""Asks a judge which response the user that a persona describes would prefer, and so how often inferred personas are right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.label.judging import (
    Judging,
    cases,
    check_text,
    columns,
    doubts,
    judge,
    margin_of,
    no_answer,
    questions,
    share,
    standard_error,
    text_in,
    values,
)
from ptk.llm.prompt_files import ExemplarFile, PersonaJudgePrompt
from ptk.llm.request import Request
from ptk.operator import DETAIL, KEY, REJECT, Answers, LlmOperator
from ptk.params import COLUMN

__all__ = ["JudgePersonas", "judge_personas"]

_SIDES = ("chosen", "rejected")
_MOST_GROUPS = 1_000


class JudgePersonas(Judging):
    """Settings of judge_personas."""

    prompt: PersonaJudgePrompt = Field(
        PersonaJudgePrompt.shipped("judge_personas"), description="A prompt that ships with ptk, or a file."
    )
    exemplars: ExemplarFile | None = Field(None, description="File with solved cases that are shown before each question.")
    neutral: Annotated[str, Field(min_length=1)] | None = Field(
        "The user would like an answer to the request.",
        description="logprob: a description that fits any user. What a persona says counts as far as it differs from what this one "
        "says of the same pair. null: each persona's probabilities count as they are.",
    )
    chosen_persona: Annotated[str, COLUMN] = Field(
        "chosen_persona", description="Column with the persona who would prefer the chosen response."
    )
    rejected_persona: Annotated[str, COLUMN] = Field(
        "rejected_persona", description="Column with the persona who would prefer the rejected response."
    )
    by: Annotated[str | tuple[str, ...], COLUMN] = Field(
        (), description="Column or columns for whose values the accuracy is told apart, such as domain, or model and domain."
    )

    @model_validator(mode="after")
    def _neutral_needs_probabilities(self) -> Self:
        if self.answer != "logprob" and "neutral" in self.model_fields_set and self.neutral is not None:
            raise ValueError("`neutral` is for `answer: logprob`: there is nothing to compare in answers of 1 or 2")
        return self


_NEUTRAL = "neutral_"


def _above(params: JudgePersonas) -> str | None:
    """Return the slot of the question that the others are compared with, if any."""
    return _NEUTRAL if params.answer == "logprob" and params.neutral is not None else None


def _sides(params: JudgePersonas) -> dict[str, str]:
    """Return, for each side, the column of its persona."""
    return {"chosen": params.chosen_persona, "rejected": params.rejected_persona}


def _rows(frame: pl.DataFrame, params: JudgePersonas) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield each row's key and texts: prompt, both responses, and the personas by their columns."""
    names = ("prompt", "chosen", "rejected", *dict.fromkeys(_sides(params).values()))
    chosen = frame.select(KEY, *names)
    check_text(chosen, names[:3], turns=True)
    check_text(chosen, names[3:])
    for row in chosen.iter_rows(named=True):
        yield row[KEY], {name: text_in(row[name]) for name in names}


def _requests(frame: pl.DataFrame, answers: Answers, params: JudgePersonas) -> Iterator[Request]:
    solved = cases(params.prompt, params.exemplars.exemplars) if params.exemplars is not None else ()
    for key, row in _rows(frame, params):
        asked: list[Request] = []
        shown = {"prompt": row["prompt"] or "", "first": row["chosen"] or "", "second": row["rejected"] or ""}
        for side, column in _sides(params).items():
            if (persona := row[column]) is not None:
                texts = {**shown, "persona": persona}
                asked.extend(questions(key, f"{side}_", params.prompt, solved, texts, params.answer))
        if asked and _above(params) and params.neutral is not None:
            texts = {**shown, "persona": params.neutral}
            asked.extend(questions(key, _NEUTRAL, params.prompt, solved, texts, params.answer))
        # The personas of an order follow each other: their questions differ in the persona alone, at the end.
        yield from sorted(asked, key=lambda request: request.slot[-2:])


def _collect(frame: pl.DataFrame, answers: Answers, params: JudgePersonas) -> pl.DataFrame:
    form = re.compile(params.prompt.content.form)
    schema: dict[str, Any] = {KEY: pl.String}
    for column in _sides(params).values():
        schema |= {f"{column}_right": pl.Boolean, **columns(column), f"{column}_neutral": pl.Float64}
    schema |= {REJECT: pl.String, DETAIL: pl.String}
    rows = [_decision(key, row, answers, form, params) for key, row in _rows(frame, params)]
    return pl.from_dicts(rows, schema=schema)


def _decision(
    key: str, row: Mapping[str, str | None], answers: Answers, form: re.Pattern[str], params: JudgePersonas
) -> dict[str, Any]:
    made: dict[str, Any] = {KEY: key, REJECT: None, DETAIL: None}
    judged = [side for side, column in _sides(params).items() if row[column] is not None]
    failed = ("no_persona", "neither side has a persona")
    lacking = failed if not judged else no_answer(answers, key, [f"{side}_" for side in judged], "judgement")
    if lacking is not None:
        made[REJECT], made[DETAIL] = lacking
        return made
    above = _above(params)
    for side, column in _sides(params).items():
        found = judge(answers, key, f"{side}_", form, above) if side in judged else None
        verdict = None if found is None else found.verdict
        own = "first" if side == "chosen" else "second"
        made[f"{column}_right"] = None if verdict in (None, "tie") else verdict == own
        made |= values(column, found)
        made[f"{column}_neutral"] = margin_of(answers, key, above) if above and found is not None else None
    return made


def _report(decided: pl.LazyFrame, params: JudgePersonas) -> Mapping[str, Any]:
    sides = _sides(params)
    sums = [pl.len().alias("rows")]
    for side, column in sides.items():
        right, flipped = pl.col(f"{column}_right"), pl.col(f"{column}_flipped")
        sums += [
            right.sum().alias(f"{side}_right"),
            right.count().alias(f"{side}_verdicts"),
            # Of two answers that disagree one is right.
            (pl.when(flipped).then(1).when(~flipped & right).then(2).otherwise(0)).sum().alias(f"{side}_single"),
            flipped.count().alias(f"{side}_both"),
            (flipped.is_not_null() & right.is_null()).sum().alias(f"{side}_tied"),
        ]
    row = decided.select(sums).collect().row(0, named=True)
    total = {name: sum(row[f"{side}_{name}"] for side in sides) for name in ("right", "verdicts", "single", "both", "tied")}
    found: dict[str, Any] = {"rows": row["rows"]}
    for side in sides:
        right, verdicts = row[f"{side}_right"], row[f"{side}_verdicts"]
        found[f"{side}_accuracy"] = share(right, verdicts)
        found[f"{side}_standard_error"] = standard_error(right, verdicts)
    found["accuracy"] = share(total["right"], total["verdicts"])
    found["standard_error"] = standard_error(total["right"], total["verdicts"])
    found["one_order_accuracy"] = share(total["single"], 2 * total["both"])
    found["tied"] = share(total["tied"], total["both"])
    found |= doubts(decided, list(sides.values()))
    if params.by:
        found["by"] = _by(decided, (params.by,) if isinstance(params.by, str) else params.by, sums)
    return found


def _by(decided: pl.LazyFrame, columns: Sequence[str], sums: list[pl.Expr]) -> list[dict[str, Any]]:
    """Return both sides' accuracy for each combination of the columns' values, the most frequent thousand."""
    values = [pl.col(column).cast(pl.String).alias(f"_by{number}") for number, column in enumerate(columns)]
    grouped = decided.group_by(values).agg(sums)
    rows = grouped.sort(
        "rows", *(pl.col(f"_by{number}") for number in range(len(columns))), descending=[True, *(False for _ in columns)]
    )
    found: list[dict[str, Any]] = []
    for row in rows.head(_MOST_GROUPS).collect().iter_rows(named=True):
        told: dict[str, Any] = {
            "of": {column: row[f"_by{number}"] for number, column in enumerate(columns)},
            "rows": row["rows"],
        }
        for side in (*_SIDES, None):
            named = _SIDES if side is None else (side,)
            right, verdicts = (sum(row[f"{one}_{name}"] for one in named) for name in ("right", "verdicts"))
            prefix = "" if side is None else f"{side}_"
            told[f"{prefix}accuracy"] = share(right, verdicts)
            told[f"{prefix}standard_error"] = standard_error(right, verdicts)
        found.append(told)
    return found


judge_personas = LlmOperator(
    name="judge_personas",
    params=JudgePersonas,
    version=3,
    inputs=("frame",),
    help="Ask a judge, in both orders, which response the user that each persona describes would prefer.",
    requests=_requests,
    collect=_collect,
    report=_report,
)
