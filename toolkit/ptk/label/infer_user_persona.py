"""Infers one persona from several pairs of a user, and keeps it only if a judge predicts the user's other choices by it.

That a persona has to predict held-out choices of its user follows SynthesizeMe (Ryan et al., ACL 2025, arXiv 2506.05598); the prompt
and the rule are ptk's own. Of several candidates the one is taken that predicts best some choices which are neither shown nor those it
has to predict in the end: chosen by the latter, it would look better than it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.label.checks import grams_of, persona_failings
from ptk.label.judging import Judgement, Judging, judge, questions, share, text_in
from ptk.llm.prompt_files import PersonaJudgePrompt, UserPersonaPrompt, first_line
from ptk.llm.request import Constraint, Message, Request
from ptk.operator import DETAIL, KEY, RAW, REJECT, Answers, LlmOperator
from ptk.params import COLUMN
from ptk.text import is_turns

__all__ = ["InferUserPersona", "infer_user_persona"]

_NAME = "user_persona"
_SCHEMA: dict[str, Any] = {
    KEY: pl.String,
    _NAME: pl.String,
    f"{_NAME}_accuracy": pl.Float64,
    f"{_NAME}_margin": pl.Float64,
    f"{_NAME}_held_out": pl.Int64,
    f"{_NAME}_flipped": pl.Int64,
    f"{_NAME}_shown": pl.Int64,
    f"{_NAME}_flags": pl.List(pl.String),
    REJECT: pl.String,
    DETAIL: pl.String,
    RAW: pl.String,
}
_MOST_COPIED = 0.2
_LENGTHS = (5, 60)


class InferUserPersona(Judging):
    """Settings of infer_user_persona."""

    pairs: Annotated[str, COLUMN] = Field("pairs", description="Column with a user's pairs, as group_pairs makes it.")
    prompt: UserPersonaPrompt = Field(
        UserPersonaPrompt.shipped("infer_user_persona"), description="A prompt that ships with ptk, or a file."
    )
    judge: PersonaJudgePrompt = Field(
        PersonaJudgePrompt.shipped("judge_personas"),
        description="How the model is asked which response the user would rather have.",
    )
    constrain: bool = Field(True, description="Hold the model to the prompt's form while it decodes.")
    shown: int = Field(6, ge=1, description="The most pairs that the persona is inferred from.")
    least_shown: int = Field(2, ge=1, description="The fewest; users with fewer are set aside.")
    held_out: int = Field(4, ge=1, description="How many other pairs the persona has to predict.")
    least_accuracy: float = Field(
        0.75, ge=0.0, le=1.0, description="A persona is kept if at least this share of the held-out choices is predicted."
    )
    candidates: int = Field(1, ge=1, le=64, description="How many personas to draw; the one that predicts best is taken.")
    temperature: float | None = Field(
        None,
        gt=0.0,
        description="Temperature at which several candidates are drawn, in place of the model's; needed with them.",
    )
    tried_on: int = Field(4, ge=1, description="With candidates: on how many further pairs of the user they are compared.")
    seed: int = Field(0, description="Another seed, other pairs are held out.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.candidates > 1) != (self.temperature is not None):
            raise ValueError("candidates and temperature go together: several are drawn at a temperature above 0, such as 0.7")
        return self


_Pair = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _User:
    """A user's pairs, parted: what the persona is inferred from, what candidates are tried on, and what it has to predict."""

    key: str
    shown: Sequence[Mapping[str, str]]
    tried: Sequence[Mapping[str, str]]
    held: Sequence[Mapping[str, str]]
    few: str | None


def _users(frame: pl.DataFrame, params: InferUserPersona) -> Iterator[_User]:
    _check_pairs(frame, params.pairs)
    for key, pairs in frame.select(KEY, params.pairs).iter_rows():
        yield _parted(key, pairs or [], params)


def _check_pairs(frame: pl.DataFrame, column: str) -> None:
    dtype = frame.schema[column]
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    fields = {field.name: field.dtype for field in inner.fields} if isinstance(inner, pl.Struct) else {}
    for name in ("prompt", "chosen", "rejected"):
        if fields.get(name) != pl.String and not is_turns(fields.get(name)):  # type: ignore[arg-type]
            raise TypeError(f"column '{column}' is {dtype}, not a list of pairs, as group_pairs makes it")


def _parted(key: str, pairs: Sequence[Mapping[str, Any]], params: InferUserPersona) -> _User:
    texts = [{name: text_in(pair[name]) or "" for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    # Equal prompts stand together; the same pairs are held out in whatever order they come.
    whole = sorted(
        (pair for pair in texts if all(pair.values())), key=lambda pair: (_draw(pair["prompt"], params.seed), *pair.values())
    )
    tried_on = params.tried_on if params.candidates > 1 else 0
    held, others = _cut(whole, params.held_out)
    tried, rest = _cut(others, tried_on)
    wanted = [(held, params.held_out), (tried, tried_on), (rest, params.least_shown)]
    few = None
    if any(len(pairs) < least for pairs, least in wanted):
        between = f", {len(tried)} to try candidates on" if params.candidates > 1 else ""
        least = " and ".join(str(least) for _, least in wanted if least)
        few = f"{len(held)} pairs to predict{between} and {len(rest)} others; needed are {least}"
    return _User(key, rest[: params.shown], tried, held, few)


def _cut(pairs: Sequence[_Pair], count: int) -> tuple[list[_Pair], list[_Pair]]:
    """Return the first pairs, and those of the others that have none of their prompts."""
    known = {pair["prompt"] for pair in pairs[:count]}
    return list(pairs[:count]), [pair for pair in pairs[count:] if pair["prompt"] not in known]


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _requests(frame: pl.DataFrame, answers: Answers, params: InferUserPersona) -> Iterator[Request]:
    form = params.prompt.content.form
    constraint = Constraint("regex", form) if params.constrain else None
    drawn = () if params.temperature is None else (("temperature", params.temperature),)
    for user in _users(frame, params):
        if user.few is not None:
            continue
        if (user.key, "persona") not in answers:
            pairs = [{"prompt": pair["prompt"], "preferred": pair["chosen"], "other": pair["rejected"]} for pair in user.shown]
            turns = (Message("system", params.prompt.system()), Message("user", params.prompt.user({"pairs": pairs})))
            for number in range(params.candidates):
                yield Request(user.key, _slot(number), turns, constraint=constraint, sample=number, decided=drawn)
            continue
        rivals = _rivals(user.key, answers, params)
        if len(rivals) > 1 and (user.key, f"tried_{next(iter(rivals))}_0_12") not in answers:
            for number, persona in rivals.items():
                yield from _judged(user.key, f"tried_{number}_", user.tried, persona, params)
        elif rivals:
            yield from _judged(user.key, "held_", user.held, rivals[_taken(user, rivals, answers, params)], params)


def _slot(candidate: int) -> str:
    return "persona" if candidate == 0 else f"persona_{candidate}"


def _judged(key: str, slot: str, pairs: Sequence[_Pair], persona: str, params: InferUserPersona) -> Iterator[Request]:
    """Yield what is asked of the judge about a persona and pairs of its user."""
    for number, pair in enumerate(pairs):
        texts = {"prompt": pair["prompt"], "first": pair["chosen"], "second": pair["rejected"], "persona": persona}
        yield from questions(key, f"{slot}{number}_", params.judge, (), texts, params.answer)


def _rivals(key: str, answers: Answers, params: InferUserPersona) -> dict[int, str]:
    """Return the candidates that have the form, each text once, by their numbers."""
    found: dict[int, str] = {}
    for number in range(params.candidates):
        answer = answers.get((key, _slot(number)))
        persona = first_line(answer.text) if answer is not None and answer.error is None else ""
        if re.fullmatch(params.prompt.content.form, persona) and persona not in found.values():
            found[number] = persona
    return found


def _taken(user: _User, rivals: Mapping[int, str], answers: Answers, params: InferUserPersona) -> int:
    """Return the candidate that predicts most of the pairs that candidates are tried on, of equals the one with the largest margin."""
    if len(rivals) == 1:
        return next(iter(rivals))
    form = re.compile(params.judge.content.form)

    def merit(number: int) -> tuple[float, float, int]:
        right, judged, margin = _predicted(answers, user.key, f"tried_{number}_", len(user.tried), form)
        return right / len(judged) if judged else 0.0, margin or 0.0, -number

    return max(rivals, key=merit)


def _predicted(
    answers: Answers, key: str, slot: str, count: int, form: re.Pattern[str]
) -> tuple[float, list[Judgement], float | None]:
    """Return how many choices were predicted, a tie being half a one, the judgements with a verdict, and their mean margin."""
    found = [judge(answers, key, f"{slot}{number}_", form) for number in range(count)]
    judged = [one for one in found if one.verdict is not None]
    right = math.fsum({"first": 1.0, "tie": 0.5, "second": 0.0}[str(one.verdict)] for one in judged)
    margins = [one.margin for one in judged if one.margin is not None]
    return right, judged, math.fsum(margins) / len(margins) if margins else None


def _collect(frame: pl.DataFrame, answers: Answers, params: InferUserPersona) -> pl.DataFrame:
    return pl.from_dicts([_decision(user, answers, params) for user in _users(frame, params)], schema=_SCHEMA)


def _decision(user: _User, answers: Answers, params: InferUserPersona) -> dict[str, Any]:
    made: dict[str, Any] = {KEY: user.key}
    if user.few is not None:
        return {**made, REJECT: "few_pairs", DETAIL: user.few}
    rivals = _rivals(user.key, answers, params)
    if not rivals:
        return {**made, **_lacking(user.key, answers, params)}
    persona = rivals[_taken(user, rivals, answers, params)]
    texts = [text for pair in user.shown for text in pair.values()]
    made |= {
        _NAME: persona,
        f"{_NAME}_shown": len(user.shown),
        f"{_NAME}_flags": persona_failings(persona, frozenset(), grams_of(texts), most_copied=_MOST_COPIED, lengths=_LENGTHS),
    }
    form = re.compile(params.judge.content.form)
    right, judged, margin = _predicted(answers, user.key, "held_", len(user.held), form)
    if not judged:
        return {
            **made,
            REJECT: "judgement_missing",
            DETAIL: "the judge gave no verdict about any held-out choice",
            RAW: persona,
        }
    made |= {
        f"{_NAME}_accuracy": right / len(judged),
        f"{_NAME}_margin": margin,
        f"{_NAME}_held_out": len(judged),
        f"{_NAME}_flipped": sum(one.flipped is True for one in judged),
    }
    if right / len(judged) < params.least_accuracy:
        made |= {REJECT: "not_predictive", DETAIL: f"right about {right:g} of {len(judged)} held-out choices", RAW: persona}
    return made


def _lacking(key: str, answers: Answers, params: InferUserPersona) -> dict[str, Any]:
    """Return why a user has no persona."""
    answer = answers.get((key, "persona"))
    if answer is None:
        return {REJECT: "persona_missing", DETAIL: "the model gave no answer"}
    if answer.error is not None:
        reason, _, detail = answer.error.partition(":")
        return {REJECT: reason, DETAIL: detail.strip()}
    cut = " (the answer reached max_tokens)" if answer.finish_reason == "length" else ""
    return {
        REJECT: "persona_unparsed",
        DETAIL: f"not of the form '{params.prompt.content.form}'{cut}",
        RAW: answer.text,
    }


def _report(decided: pl.LazyFrame, params: InferUserPersona) -> Mapping[str, Any]:
    """Return how many users there are, have a persona that was judged, and keep it; and how often the judge was right about them."""
    accuracy, held = pl.col(f"{_NAME}_accuracy"), pl.col(f"{_NAME}_held_out")
    row = (
        decided.select(
            pl.len().alias("users"),
            (pl.col(REJECT) == "few_pairs").sum().alias("few_pairs"),
            accuracy.count().alias("judged"),
            (accuracy.is_not_null() & pl.col(REJECT).is_null()).sum().alias("kept"),
            accuracy.mean().alias("accuracy"),
            (accuracy.std() / accuracy.count().sqrt()).alias("standard_error"),
            pl.col(f"{_NAME}_flipped").sum().alias("flipped"),
            held.sum().alias("held_out"),
            *(
                pl.col(f"{_NAME}_flags").list.contains(check).sum().alias(check)
                for check in ("copied_pair", "leaked", "protected", "repetitive")
            ),
        )
        .collect()
        .row(0, named=True)
    )
    checks = {check: share(row.pop(check), row["judged"]) for check in ("copied_pair", "leaked", "protected", "repetitive")}
    flipped = share(row.pop("flipped"), row.pop("held_out"))
    return {**row, "kept_share": share(row["kept"], row["judged"]), "flipped": flipped, **checks}


infer_user_persona = LlmOperator(
    name="infer_user_persona",
    params=InferUserPersona,
    version=1,
    inputs=("frame",),
    help="Infer one persona from several pairs of a user; keep it if it predicts the user's other choices.",
    requests=_requests,
    collect=_collect,
    max_rounds=3,
    report=_report,
)
