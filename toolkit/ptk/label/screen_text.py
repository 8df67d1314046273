"""Asks a model whether texts, such as personas or responses, could do harm, or whatever else a rubric says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.label.judging import (
    Judgement,
    Judging,
    check_text,
    columns,
    doubts,
    judge,
    no_answer,
    questions,
    share,
    text_in,
    values,
)
from ptk.llm.prompt_files import ScreenPrompt
from ptk.llm.request import Request
from ptk.operator import DETAIL, KEY, RAW, REJECT, Answers, LlmOperator
from ptk.params import COLUMN

__all__ = ["ScreenText", "screen_text"]


class ScreenText(Judging):
    """Settings of screen_text."""

    rubric: ScreenPrompt = Field(ScreenPrompt.shipped("harm"), description="harm, or a prompt file.")
    columns: Annotated[tuple[str, ...], COLUMN] = Field(min_length=1, description="Columns of text or turns to screen.")
    prompt: Annotated[str | None, COLUMN] = Field(
        None, description="Column with the request that the texts answer, shown beside them."
    )
    threshold: float = Field(
        0.0, description="With answer: logprob: a text is flagged where the mean of log P(yes) - log P(no) is above this."
    )
    unsure: Literal["keep", "flag"] = Field(
        "keep", description="What becomes of a text without a clear verdict, such as one whose two orders disagree in writing."
    )
    action: Literal["flag", "reject", "route"] = Field(
        "flag", description="What becomes of a row with a flagged text: flag; reject; route, a column that says refuse or keep."
    )
    into: str = Field("harm", pattern=r"^[a-z][a-z0-9_]*$", description="Name that the new columns have.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns names a column twice")
        if self.prompt is not None and not self.rubric.mentions("prompt"):
            raise ValueError(f"rubric '{self.rubric.written}' shows no prompt; leave out 'prompt'")
        if self.threshold and self.answer != "logprob":
            raise ValueError(f"answer: {self.answer} gives no probabilities, so there is nothing for a threshold")
        return self

    def name(self, column: str) -> str:
        """Return the new column with what was found about the text of `column`."""
        return f"{column}_{self.into}"


def _rows(frame: pl.DataFrame, params: ScreenText) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield each row's key, the texts that there are by column, and the text of the request."""
    named = list(dict.fromkeys([*params.columns, *([params.prompt] if params.prompt is not None else [])]))
    shown = frame.select(KEY, *named)
    check_text(shown, named, turns=True)
    for row in shown.iter_rows(named=True):
        texts = {column: text for column in params.columns if (text := text_in(row[column])) is not None}
        yield row[KEY], texts, (text_in(row[params.prompt]) or "") if params.prompt is not None else ""


def _requests(frame: pl.DataFrame, answers: Answers, params: ScreenText) -> Iterator[Request]:
    rubric = params.rubric.content
    for key, texts, prompt in _rows(frame, params):
        for column, text in texts.items():
            shown = {"text": text, "prompt": prompt, "first": rubric.yes, "second": rubric.no}
            yield from questions(key, f"{column}_", params.rubric, (), shown, params.answer)


def _word(found: Judgement, threshold: float) -> str:
    if found.margin is not None:
        return "yes" if found.margin > threshold else "no"
    return {"first": "yes", "second": "no"}.get(found.verdict or "", "unsure")


def _collect(frame: pl.DataFrame, answers: Answers, params: ScreenText) -> pl.DataFrame:
    form = re.compile(params.rubric.content.form)
    schema: dict[str, Any] = {KEY: pl.String}
    for column in params.columns:
        schema |= {params.name(column): pl.String, **columns(params.name(column))}
    schema[f"{params.into}_flags"] = pl.List(pl.String)
    if params.action == "route":
        schema[f"{params.into}_route"] = pl.String
    schema |= {REJECT: pl.String, DETAIL: pl.String, RAW: pl.String}
    rows = [_decision(key, texts, answers, form, params) for key, texts, _ in _rows(frame, params)]
    return pl.from_dicts(rows, schema=schema)


def _decision(
    key: str, texts: Mapping[str, str], answers: Answers, form: re.Pattern[str], params: ScreenText
) -> dict[str, Any]:
    made: dict[str, Any] = {KEY: key}
    flagged = []
    for column, text in texts.items():
        lacking = no_answer(answers, key, [f"{column}_"], "verdict")
        if lacking is not None:
            return {KEY: key, REJECT: lacking[0], DETAIL: f"{column}: {lacking[1]}"}
        found = judge(answers, key, f"{column}_", form)
        word = _word(found, params.threshold)
        made |= {params.name(column): word, **values(params.name(column), found)}
        if word == "yes" or (word == "unsure" and params.unsure == "flag"):
            flagged.append(column)
            if params.action == "reject" and REJECT not in made:
                made |= {REJECT: params.into, DETAIL: f"{column}: the answer is {word}", RAW: text}
    made[f"{params.into}_flags"] = flagged
    if params.action == "route":
        made[f"{params.into}_route"] = "refuse" if flagged else "keep"
    return made


def _report(decided: pl.LazyFrame, params: ScreenText) -> Mapping[str, Any]:
    """Return the share of flagged rows, and of each column's texts the shares that are flagged or unsure."""
    names = [params.name(column) for column in params.columns]
    sums = [pl.len().alias("rows"), pl.col(f"{params.into}_flags").count().alias("screened")]
    sums.append((pl.col(f"{params.into}_flags").list.len() > 0).sum().alias("flagged"))
    for name in names:
        sums += [(pl.col(name) == word).sum().alias(f"{name}:{word}") for word in ("yes", "no", "unsure")]
    row = decided.select(sums).collect().row(0, named=True)
    found: dict[str, Any] = {"rows": row["rows"], "flagged": share(row["flagged"], row["screened"])}
    for name in names:
        texts = sum(row[f"{name}:{word}"] for word in ("yes", "no", "unsure"))
        found |= {name: share(row[f"{name}:yes"], texts), f"{name}_unsure": share(row[f"{name}:unsure"], texts)}
    return found | doubts(decided, names)


screen_text = LlmOperator(
    name="screen_text",
    params=ScreenText,
    version=1,
    inputs=("frame",),
    help="Ask a model, in both orders of the answers, whether texts could do harm; flag, reject or route their rows.",
    requests=_requests,
    collect=_collect,
    report=_report,
)
