"""Judges that ask one question about a row, which of two texts: declared by what they show, and what they call their verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from ptk.label.judging import (
    Judging,
    check_text,
    columns,
    doubts,
    judge,
    no_answer,
    questions,
    share,
    standard_error,
    text_in,
    values,
)
from ptk.llm.prompt_files import PromptSetting
from ptk.llm.request import Request
from ptk.operator import DETAIL, KEY, REJECT, Answers, LlmOperator

__all__ = ["Verdicts"]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge asks about each row, by its settings, and how its answer is kept."""

    prompt: Callable[[Any], PromptSetting]
    shown: Callable[[Any], Mapping[str, str]]
    """What the prompt shows, `first` and `second` among it -> the column that has it."""
    into: Callable[[Any], str]
    """Name of the column with the verdict; further ones begin with it."""
    words: Mapping[str, str]
    """What the verdicts `first` and `second` are called in that column."""
    empty: str
    """Reason for rejecting a row that lacks one of the texts."""
    rate: bool
    """Whether the report tells the win rate of the first without ties, or the standard error of its share among all."""

    def operator(self, name: str, params: type[Judging], version: int, text: str) -> LlmOperator:
        """Return the operator of that name; `text` is its help."""
        return LlmOperator(
            name=name,
            params=params,
            version=version,
            inputs=("frame",),
            help=text,
            requests=self.requests,
            collect=self.collect,
            report=self.report,
        )

    def rows(self, frame: pl.DataFrame, params: Any) -> Iterator[tuple[str, dict[str, str | None]]]:
        """Yield each row's key and texts."""
        named = self.shown(params)
        shown = frame.select(KEY, *(pl.col(column).alias(name) for name, column in named.items()))
        check_text(frame, list(named.values()), turns=True)
        for row in shown.iter_rows(named=True):
            yield row[KEY], {name: text_in(row[name]) for name in named}

    def requests(self, frame: pl.DataFrame, answers: Answers, params: Any) -> Iterator[Request]:
        """Yield the question about each row that has all texts, in both orders."""
        for key, row in self.rows(frame, params):
            texts = {name: text for name, text in row.items() if text is not None}
            if len(texts) == len(row):
                yield from questions(key, "", self.prompt(params), (), texts, params.answer)

    def collect(self, frame: pl.DataFrame, answers: Answers, params: Any) -> pl.DataFrame:
        """Return each row's verdict and what speaks for it."""
        form, into = re.compile(self.prompt(params).content.form), self.into(params)
        schema: dict[str, Any] = {KEY: pl.String, into: pl.String, **columns(into), REJECT: pl.String, DETAIL: pl.String}
        made: list[dict[str, Any]] = []
        for key, row in self.rows(frame, params):
            empty = next((self.shown(params)[name] for name, text in row.items() if text is None), None)
            lacking = (self.empty, f"column '{empty}' is empty") if empty else no_answer(answers, key, [""], "judgement")
            if lacking is not None:
                made.append({KEY: key, REJECT: lacking[0], DETAIL: lacking[1]})
                continue
            found = judge(answers, key, "", form)
            verdict = None if found.verdict is None else self.words.get(found.verdict, found.verdict)
            made.append({KEY: key, into: verdict, **values(into, found)})
        return pl.from_dicts(made, schema=schema)

    def report(self, decided: pl.LazyFrame, params: Any) -> Mapping[str, Any]:
        """Return the shares of the verdicts, and how far they can be trusted."""
        into, words = self.into(params), (*self.words.values(), "tie")
        counts = [pl.len().alias("rows"), *((pl.col(into) == word).sum().alias(word) for word in words)]
        row = decided.select(counts).collect().row(0, named=True)
        judged, first = sum(row[word] for word in words), words[0]
        decisive = judged - row["tie"]
        told = {
            f"{first}_win_rate": share(row[first], decisive),
            f"{first}_win_rate_standard_error": standard_error(row[first], decisive),
        }
        if not self.rate:
            told = {f"{first}_standard_error": standard_error(row[first], judged)}
        return {
            "rows": row["rows"],
            "judged": judged,
            **{word: share(row[word], judged) for word in words},
            **told,
            **doubts(decided, [into]),
        }
