"""Questions to a judge that are answered with 1 or 2, asked in both orders, and what the answers say together.

A judge leans to a place as well as to a text. So every question is asked with its two texts in both places. `first` and `second`
are here the texts as the operator names them, wherever they stood.

Judges that answer by probabilities decide by the mean of both orders; for judges that write or choose, orders that disagree are a
tie, as in Balepur et al., ACL 2025 (arXiv 2501.11549).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from ptk.llm.prompt_files import Exemplar, PromptSetting, as_text, first_line
from ptk.llm.request import Answer, Constraint, Message, Request
from ptk.operator import Answers
from ptk.params import MODEL, Params
from ptk.text import is_turns

__all__ = [
    "CHOICES",
    "COLUMNS",
    "ORDERS",
    "Judgement",
    "Judging",
    "cases",
    "check_text",
    "columns",
    "doubts",
    "judge",
    "margin_of",
    "no_answer",
    "questions",
    "share",
    "standard_error",
    "text_in",
    "values",
]

CHOICES = ("1", "2")
ORDERS = ("12", "21")
_LEAST = -100.0
"""Log-probabilities are cut here, so that a continuation without any probability still has a margin."""

AnswerKind = Literal["logprob", "choice", "text"]


class Judging(Params):
    """Settings that all judges share."""

    model: Annotated[str, MODEL] = Field(description="Name of the model that judges.")
    answer: AnswerKind = Field(
        "logprob",
        description="How it answers: logprob, by the probabilities of 1 and 2, averaged over both orders; choice, held to 1 or 2; text, "
        "written out and parsed. With choice and text, orders that disagree are a tie.",
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the two answers to one question say."""

    verdict: Literal["first", "second", "tie"] | None
    """By the sign of `margin`, where there is one; else `tie` where the two orders disagree, and None where one has no verdict."""
    margin: float | None
    """Mean over both orders of log P(first) - log P(second), above another question's where one is given; None without."""
    flipped: bool | None
    """Whether the two orders disagree."""
    answered: int
    unparsed: int
    """How many of the answers gave no verdict."""
    ones: int
    """How many said 1, wherever the texts stood."""


def questions(
    row: str, slot: str, prompt: PromptSetting, solved: Sequence[Message], texts: Mapping[str, str], answer: AnswerKind
) -> Iterator[Request]:
    """Yield the question in both orders; `texts` has `first`, `second` and what else the prompt shows. The slots end in the order."""
    opening = (Message("system", prompt.system()), *solved)
    for order in ORDERS:
        placed = texts if order == "12" else {**texts, "first": texts["second"], "second": texts["first"]}
        yield Request(
            row,
            f"{slot}{order}",
            (*opening, Message("user", prompt.user(placed))),
            prefill=prompt.begin(placed),
            constraint=Constraint("choice", CHOICES) if answer == "choice" else None,
            scored=CHOICES if answer == "logprob" else (),
        )


@lru_cache(maxsize=8)
def cases(prompt: PromptSetting, exemplars: tuple[Exemplar, ...]) -> tuple[Message, ...]:
    """Return solved cases as turns; the preferred response stands first and second by turns, so that neither place is favoured."""
    turns: list[Message] = []
    for number, case in enumerate(exemplars):
        first, second = (case.preferred, case.other) if number % 2 == 0 else (case.other, case.preferred)
        values = {"prompt": case.prompt, "first": first, "second": second, "persona": case.persona}
        turns.append(Message("user", prompt.user(values)))
        turns.append(Message("assistant", prompt.begin(values) + prompt.answer({"choice": CHOICES[number % 2]})))
    return tuple(turns)


def judge(answers: Answers, row: str, slot: str, form: re.Pattern[str], above: str | None = None) -> Judgement:
    """Return what the answers in the slot's two orders say together.

    With `above`, the slot of another question, probabilities count as far as they differ from those of its answer in the same
    order; an order in which it was not answered gives no verdict.
    """
    picked: list[str | None] = []
    margins: list[float] = []
    answered = ones = 0
    for order in ORDERS:
        answer = answers.get((row, f"{slot}{order}"))
        if answer is None or answer.error is not None:
            picked.append(None)
            continue
        answered += 1
        lean, level = _lean(answer), 0.0 if above is None else _lean(answers.get((row, f"{above}{order}")))
        if lean is None:
            choice = _written(answer, form)
        elif level is None:
            choice = None
        else:
            lean -= level
            choice = "1" if lean > 0 else "2" if lean < 0 else None
            margins.append(lean if order == "12" else -lean)
        ones += choice == "1"
        picked.append(None if choice is None else choice if order == "12" else {"1": "2", "2": "1"}[choice])
    unparsed = answered - sum(choice is not None for choice in picked)
    margin = math.fsum(margins) / 2 if len(margins) == 2 else None
    flipped = None if None in picked else picked[0] != picked[1]
    if margin is not None:
        return Judgement(
            "first" if margin > 0 else "second" if margin < 0 else "tie", margin, flipped, answered, unparsed, ones
        )
    if flipped is None:
        return Judgement(None, None, None, answered, unparsed, ones)
    return Judgement("tie" if flipped else "first" if picked[0] == "1" else "second", None, flipped, answered, 0, ones)


def _lean(answer: Answer | None) -> float | None:
    """Return log P(1) - log P(2) of an answer by probabilities; None of another, and of none."""
    if answer is None or answer.error is not None or answer.scores is None:
        return None
    one, two = (max(score, _LEAST) if not math.isnan(score) else _LEAST for score in answer.scores)
    return one - two


def _written(answer: Answer, form: re.Pattern[str]) -> str | None:
    """Return the 1 or 2 that an answer in words gives, or None."""
    found = form.match(first_line(answer.text))
    return found[1] if found is not None and found[1] in CHOICES else None


def margin_of(answers: Answers, row: str, slot: str) -> float | None:
    """Return the mean over both orders of log P(first) - log P(second); None without probabilities in both."""
    one, two = (_lean(answers.get((row, f"{slot}{order}"))) for order in ORDERS)
    return None if one is None or two is None else (one - two) / 2


def no_answer(answers: Answers, row: str, slots: Sequence[str], what: str) -> tuple[str, str] | None:
    """Return reason and detail where the model answered none of a row's questions, else None."""
    given = [answers.get((row, f"{slot}{order}")) for slot in slots for order in ORDERS]
    if any(answer is not None and answer.error is None for answer in given):
        return None
    error = next((answer.error for answer in given if answer is not None and answer.error is not None), None)
    if error is None:
        return f"{what}_missing", "the model gave no answer"
    reason, _, detail = error.partition(":")
    return reason, detail.strip()


COLUMNS: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "margin": pl.Float64,
    "flipped": pl.Boolean,
    "answers": pl.Int64,
    "unparsed": pl.Int64,
    "first": pl.Int64,
}
"""What is kept of a judgement beside its verdict, each in a column of its own: `<what was judged>_margin` and so on."""


def columns(name: str) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns, with their types, that keep the judgement of `name`."""
    return {f"{name}_{suffix}": dtype for suffix, dtype in COLUMNS.items()}


def values(name: str, judgement: Judgement | None) -> dict[str, Any]:
    """Return what these columns hold of a judgement; null where nothing was judged."""
    if judgement is None:
        return dict.fromkeys(columns(name))
    found = (judgement.margin, judgement.flipped, judgement.answered, judgement.unparsed, judgement.ones)
    return dict(zip(columns(name), found, strict=True))


def doubts(decided: pl.LazyFrame, names: Sequence[str]) -> dict[str, float | None]:
    """Return how far the judgements of `names` can be trusted, as shares of 0 to 1.

    `flipped`: of the questions with a verdict in both orders, those whose verdict changed with the order. `unparsed`: of the
    answers, those without a verdict. `failed`: of the requests, those without an answer. `said_first`: of the verdicts, those that
    went to what stood first; a judge without a leaning says so half the time.
    """
    found = {
        suffix: (sum((pl.col(f"{name}_{suffix}").sum() for name in names), pl.lit(0)), suffix)
        for suffix in ("flipped", "answers", "unparsed", "first")
    }
    count = sum((pl.col(f"{name}_flipped").count() for name in names), pl.lit(0))
    asked = sum((pl.col(f"{name}_answers").count() * len(ORDERS) for name in names), pl.lit(0))
    row = (
        decided.select(count.alias("both"), asked.alias("asked"), *(made.alias(suffix) for made, suffix in found.values()))
        .collect()
        .row(0, named=True)
    )
    return {
        "flipped": share(row["flipped"], row["both"]),
        "unparsed": share(row["unparsed"], row["answers"]),
        "failed": share(row["asked"] - row["answers"], row["asked"]),
        "said_first": share(row["first"], row["answers"] - row["unparsed"]),
    }


def check_text(frame: pl.DataFrame, names: Sequence[str], *, turns: bool = False) -> None:
    """Raise TypeError where a column holds no text (nor turns, where those will do)."""
    for name in names:
        dtype = frame.schema[name]
        if dtype not in (pl.String, pl.Null) and not (turns and is_turns(dtype)):
            raise TypeError(f"column '{name}' is {dtype}, not text{' or a list of turns' if turns else ''}")


def text_in(value: Any) -> str | None:
    """Return the text of a value that is text or turns; None where there is none."""
    text = value if value is None or isinstance(value, str) else as_text(value) if value else None
    return text if text and text.strip() else None


def share(part: float | None, whole: int) -> float | None:
    """Return `part` of `whole`; None of nothing."""
    return (part or 0) / whole if whole else None


def standard_error(part: float | None, whole: int) -> float | None:
    """Return the standard error of a share of `whole` independent judgements: sqrt(p (1 - p) / n)."""
    found = share(part, whole)
    return None if found is None else math.sqrt(found * (1 - found) / whole)
