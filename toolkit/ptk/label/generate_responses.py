"""Generates responses to prompts with a model: without a persona, or with a row's persona in one of several places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import polars as pl
from pydantic import Field, model_validator

from ptk.label.flaws import FLAWS, flaws
from ptk.label.judging import check_text, share, text_in
from ptk.llm.cases import ONE_SYSTEM_MESSAGE, Case, asked
from ptk.llm.persona_turns import PersonaPlace
from ptk.llm.prompt_files import Exemplar, ExemplarFile, rendered
from ptk.llm.request import Message, Request, Role
from ptk.operator import DETAIL, KEY, REJECT, Answers, LlmOperator
from ptk.params import COLUMN, MODEL, Params

__all__ = ["GenerateResponses", "generate_responses"]

_ROLES = get_args(Role)
_NEXT_CASE = "\nPrompt:"


class GenerateResponses(Params):
    """Settings of generate_responses."""

    model: Annotated[str, MODEL] = Field(description="Name of the model that responds.")
    prompt: Annotated[str, COLUMN] = Field(
        "prompt", description="Column with the prompt: text, or turns that end with the user's."
    )
    persona: Annotated[str | None, COLUMN] = Field(None, description="Column with the persona to respond to.")
    empty_persona: Literal["reject", "respond"] = Field(
        "reject",
        description="What becomes of a row whose persona is an empty text: reject; respond, to nobody. One that is null is rejected.",
    )
    place: PersonaPlace = Field(
        "system",
        description="Where the persona stands: system, the system message; tag, as Persona: ... below the prompt; first_person, below "
        "the prompt as the user would say it.",
    )
    template: Literal["chat", "plain"] = Field(
        "chat", description="chat, the model's own template; plain, the text Prompt: ... Persona: ... Response:"
    )
    exemplars: ExemplarFile | None = Field(
        None,
        description="File with solved cases that are shown first: request, persona where there is one, preferred response.",
    )
    prefix: str | None = Field(
        None, min_length=1, description="What every response begins with: a template that sees prompt and persona."
    )
    stop: tuple[str, ...] | None = Field(None, description="Texts at which a response ends, in place of the model's.")
    samples: int = Field(1, ge=1, le=64, description="How many responses to draw for each row.")
    temperature: float | None = Field(
        None, gt=0.0, description="Temperature at which several responses are drawn, in place of the model's; needed with them."
    )
    into: str = Field(
        "response", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the new column; further ones begin with it."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.samples > 1) != (self.temperature is not None):
            raise ValueError("samples and temperature go together: several are drawn at a temperature above 0, such as 0.7")
        if self.persona is None and self.empty_persona != "reject":
            raise ValueError("empty_persona is about the column that `persona` names")
        if self.persona is not None and self.place == "system":
            if self.template == "plain":
                raise ValueError("plain text has no system message; write place: tag or place: first_person")
            if self.exemplars is not None:
                raise ValueError(ONE_SYSTEM_MESSAGE)
        if self.prefix is not None:
            try:
                self.begin("text", "text")
            except ValueError as error:
                raise ValueError(f"prefix: {error}") from None
        return self

    def begin(self, prompt: str, persona: str | None) -> str:
        """Return what the response to a prompt begins with."""
        return "" if self.prefix is None else rendered(self.prefix, {"prompt": prompt, "persona": persona or ""}).strip()

    def names(self) -> list[str]:
        """Return the columns of the responses."""
        return [self.into] if self.samples == 1 else [f"{self.into}_{number}" for number in range(1, self.samples + 1)]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row at work, or why nothing can be asked about it."""

    key: str
    turns: tuple[Message, ...] = ()
    persona: str | None = None
    begun: str = ""
    """What the response begins with."""
    reject: tuple[str, str] | None = None


def _rows(frame: pl.DataFrame, params: GenerateResponses) -> Iterator[_Row]:
    named = [params.prompt, *([params.persona] if params.persona is not None else [])]
    shown = frame.select(KEY, *dict.fromkeys(named))
    check_text(shown, named[:1], turns=True)
    check_text(shown, named[1:])
    for row in shown.iter_rows(named=True):
        turns = _turns(row[params.prompt])
        persona = None if params.persona is None else text_in(row[params.persona])
        nobody = params.persona is not None and params.empty_persona == "respond" and row[params.persona] is not None
        lacking = _lacking(turns, params, persona is not None or nobody)
        if lacking is not None:
            yield _Row(row[KEY], reject=lacking)
            continue
        try:
            yield _Row(row[KEY], turns, persona, params.begin(turns[-1].content, persona))
        except ValueError as error:
            yield _Row(row[KEY], reject=("no_prefix", str(error)))


def _turns(value: Any) -> tuple[Message, ...]:
    if value is None or isinstance(value, str):
        return (Message("user", value or ""),)
    return tuple(Message(turn["role"], turn["content"] or "") for turn in value)


def _lacking(turns: Sequence[Message], params: GenerateResponses, has_persona: bool) -> tuple[str, str] | None:
    if not turns or not turns[-1].content.strip():
        return "empty_text", f"column '{params.prompt}' is empty"
    if turns[-1].role != "user" or any(turn.role not in _ROLES for turn in turns):
        roles = ", ".join(str(turn.role) for turn in turns)
        return (
            "wrong_roles",
            f"the prompt's turns are {roles}; the last is the user's, and others are system, user or assistant",
        )
    if params.persona is not None and not has_persona:
        return "no_persona", f"column '{params.persona}' is empty"
    return None


def _asked(row: _Row, params: GenerateResponses, cases: tuple[Case, ...]) -> tuple[tuple[Message, ...], str]:
    """Return the turns of a request, and what the response begins with; of plain text that is all there is."""
    solved: tuple[Case | Exemplar, ...] = cases if params.exemplars is None else params.exemplars.exemplars
    turns, text = asked(row.turns, row.persona, params.place, params.template, solved)
    return turns, " ".join(part for part in (text, row.begun) if part)


def _shows_cases(params: GenerateResponses) -> str | None:
    if params.exemplars is not None:
        return "`exemplars` names some too; leave one out"
    return ONE_SYSTEM_MESSAGE if params.persona is not None and params.place == "system" else None


def _requests(
    frame: pl.DataFrame, answers: Answers, params: GenerateResponses, cases: tuple[Case, ...] = ()
) -> Iterator[Request]:
    stop = params.stop if params.stop is not None or params.template == "chat" else (_NEXT_CASE,)
    decided: list[tuple[str, Any]] = [] if stop is None else [("stop", stop)]
    if params.temperature is not None:
        decided.append(("temperature", params.temperature))
    for row in _rows(frame, params):
        if row.reject is not None:
            continue
        messages, begun = _asked(row, params, cases)
        for number, name in enumerate(params.names()):
            yield Request(row.key, name, messages, prefill=begun, sample=number, decided=tuple(decided))


def _collect(frame: pl.DataFrame, answers: Answers, params: GenerateResponses) -> pl.DataFrame:
    names = params.names()
    schema: dict[str, Any] = {KEY: pl.String}
    for name in names:
        schema |= {name: pl.String, f"{name}_finish": pl.String, f"{name}_flags": pl.List(pl.String)}
    schema |= {REJECT: pl.String, DETAIL: pl.String}
    rows: list[dict[str, Any]] = []
    for row in _rows(frame, params):
        given = {name: answers.get((row.key, name)) for name in names}
        lacking = row.reject or _missing(given.values())
        if lacking is not None:
            rows.append({KEY: row.key, REJECT: lacking[0], DETAIL: lacking[1]})
            continue
        made: dict[str, Any] = {KEY: row.key}
        for name, answer in given.items():
            assert answer is not None
            made[name] = (row.begun + answer.text).strip()
            made[f"{name}_finish"] = answer.finish_reason
            made[f"{name}_flags"] = flaws(answer.text, answer.finish_reason)
        rows.append(made)
    return pl.from_dicts(rows, schema=schema)


def _missing(given: Any) -> tuple[str, str] | None:
    """Return reason and detail where one of a row's responses is missing."""
    for answer in given:
        if answer is None:
            return "response_missing", "the model gave no answer"
        if answer.error is not None:
            reason, _, detail = answer.error.partition(":")
            return reason, detail.strip()
    return None


def _report(decided: pl.LazyFrame, params: GenerateResponses) -> Mapping[str, Any]:
    """Return how many responses there are, their mean length in words, and the shares of those that are flagged."""
    responses = pl.concat([decided.select(text=name, flags=f"{name}_flags") for name in params.names()])
    generated = responses.filter(pl.col("text").is_not_null())
    flagged = (pl.col("flags").list.contains(flaw).sum().alias(flaw) for flaw in FLAWS)
    words = pl.col("text").str.split(" ").list.eval(pl.element().filter(pl.element() != "")).list.len()
    counted = generated.select(pl.len().alias("responses"), words.mean().alias("words"), *flagged)
    rows, found = pl.collect_all([decided.select(pl.len()), counted])
    row = found.row(0, named=True)
    return {
        "rows": rows.item(),
        "responses": row["responses"],
        "mean_words": row["words"],
        **{flaw: share(row[flaw], row["responses"]) for flaw in FLAWS},
    }


generate_responses = LlmOperator(
    name="generate_responses",
    params=GenerateResponses,
    version=1,
    inputs=("frame",),
    help="Generate responses to prompts with a model, with a row's persona or without one.",
    requests=_requests,
    collect=_collect,
    shows_cases=_shows_cases,
    report=_report,
)
