"""Infers, for each pair, a persona who would prefer the chosen response and one who would prefer the rejected one.

Persona inference by abduction as in Balepur et al., ACL 2025 (arXiv 2501.11549): the same prompt asks about both sides, with the
two responses in exchanged places, so N pairs make 2N requests. Every persona is checked, and what the checks find is counted:
a right form alone says nothing of a persona.

Questions are asked in up to four rounds: how the responses differ (where the prompt asks that first), the persona or several
candidates, a judge's opinion of the candidates, and once more where the persona that was taken fails a check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ptk.label.checks import CHECKS, grams_of, persona_failings
from ptk.label.exemplars import fixed_cases, nearest_cases
from ptk.label.judging import judge, questions
from ptk.llm.prompt_files import Exemplar, ExemplarFile, PersonaJudgePrompt, PromptFile, as_text, first_line
from ptk.llm.request import Answer, Constraint, Message, Request
from ptk.operator import DETAIL, KEY, RAW, REJECT, Answers, LlmOperator
from ptk.params import MODEL, Params

__all__ = ["InferPersonas", "infer_personas"]

_SIDES = {"chosen": "rejected", "rejected": "chosen"}
_FLAGS = "persona_flags"
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    KEY: pl.String,
    "chosen_persona": pl.String,
    "rejected_persona": pl.String,
    _FLAGS: pl.List(pl.String),
    REJECT: pl.String,
    DETAIL: pl.String,
    RAW: pl.String,
}
_FORM = "it must have the form that was asked for"

Check = Literal[
    "several_sentences", "length", "repetitive", "copied_exemplar", "copied_pair", "leaked", "protected", "identical"
]


def _usual(exemplars: ExemplarFile | None) -> PromptFile:
    """Return the prompt that is used where none is named: the one that did best on its own where nothing is shown before."""
    return PromptFile.shipped("infer_personas_zero_shot" if exemplars is None else "infer_personas")


class InferPersonas(Params):
    """Settings of infer_personas."""

    model: Annotated[str, MODEL] = Field(description="Name of the model that infers, and that judges candidates.")
    exemplars: ExemplarFile | None = Field(None, description="File with solved cases that are shown before each pair.")
    exemplar_choice: Literal["fixed", "nearest"] = Field(
        "fixed", description="Which of them: fixed, the first ones; nearest, those whose requests are most like the pair's."
    )
    exemplar_count: int | None = Field(None, ge=1, description="How many of them; by default all.")
    prompt: PromptFile = Field(
        default_factory=lambda given: _usual(given.get("exemplars")),
        description="A prompt that ships with ptk, or a file; by default infer_personas, and infer_personas_zero_shot without exemplars.",
    )
    constrain: bool = Field(True, description="Hold the model to the prompt's form while it decodes.")
    candidates: int = Field(1, ge=1, le=64, description="How many personas to draw for each side; one of them is taken.")
    temperature: float | None = Field(
        None,
        gt=0.0,
        description="Temperature at which several candidates are drawn, in place of the model's; needed with them.",
    )
    judge: PersonaJudgePrompt | None = Field(
        None,
        validate_default=True,
        description="How the model is asked, in both orders, which candidate fits best; by default judge_personas.",
    )
    on_fail: Literal["keep", "reject", "repair"] = Field(
        "keep",
        description="What becomes of a persona that fails a check: keep, with a flag; reject its row; repair, by asking once more.",
    )
    checks: tuple[Check, ...] = Field(
        ("several_sentences", "length", "repetitive", "copied_exemplar", "copied_pair", "leaked", "protected", "identical"),
        description="The checks that on_fail and the choice among candidates go by; all are flagged and counted.",
    )
    most_copied: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Share of a persona's runs of four words that may stand in the exemplars, or in its pair.",
    )
    words: tuple[int, int] = Field((5, 60), description="The fewest and the most words of a persona.")

    @field_validator("judge")
    @classmethod
    def _chooses(cls, judge: PersonaJudgePrompt | None, info: ValidationInfo) -> PersonaJudgePrompt | None:
        if info.data.get("candidates", 1) > 1:
            return judge or PersonaJudgePrompt.shipped("judge_personas")
        if judge is not None:
            raise ValueError("it is asked about candidates, and there is one alone; say how many, such as candidates: 4")
        return None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.on_fail == "repair" and self.prompt.content.repair is None:
            raise ValueError(f"'{self.prompt.written}' has no 'repair', the turn that asks again")
        if not 0 <= self.words[0] <= self.words[1]:
            raise ValueError("words must be two numbers, the fewest and the most")
        if (self.candidates > 1) != (self.temperature is not None):
            raise ValueError("candidates and temperature go together: several are drawn at a temperature above 0, such as 0.7")
        self._check_exemplars()
        return self

    def _check_exemplars(self) -> None:
        if self.exemplars is None:
            if self.exemplar_choice == "nearest" or self.exemplar_count is not None:
                raise ValueError("exemplar_choice and exemplar_count are about exemplars; name their file")
            return
        there = len(self.exemplars.exemplars)
        if (self.exemplar_count or 0) > there:
            raise ValueError(f"exemplar_count is {self.exemplar_count}, and '{self.exemplars.written}' has {there}")
        if self.exemplar_choice == "nearest" and self.exemplar_count is None:
            raise ValueError("exemplar_choice: nearest needs exemplar_count, how many of them to show")
        if self.prompt.needs_difference:
            for number, case in enumerate(self.exemplars.exemplars, start=1):
                if case.difference is None:
                    raise ValueError(
                        f"'{self.prompt.written}' shows how the responses differ, and exemplar {number} of "
                        f"'{self.exemplars.written}' has no 'difference'"
                    )


@dataclass(frozen=True)
class _Row:
    """A row at work: what it says, what was answered about it, and the settings."""

    key: str
    texts: Mapping[str, str]
    answers: Answers
    params: InferPersonas
    form: re.Pattern[str]

    def answer(self, slot: str) -> Answer | None:
        return self.answers.get((self.key, slot))

    def values(self, side: str) -> dict[str, str]:
        """Return what the templates show of the pair."""
        return {"prompt": self.texts["prompt"], "preferred": self.texts[side], "other": self.texts[_SIDES[side]]}

    def candidates(self, side: str) -> list[Answer | None]:
        return [self.answer(_slot(side, number)) for number in range(self.params.candidates)]

    def persona(self, answer: Answer | None) -> str | None:
        """Return the persona that an answer gives, or None where there is none of the form."""
        if answer is None or answer.error is not None:
            return None
        if "persona" in self.form.groupindex:
            found = self.form.match(answer.text.strip())
            return None if found is None else str(found["persona"]).strip()
        persona = first_line(answer.text)
        return persona if self.form.fullmatch(persona) else None

    @cached_property
    def _pair_grams(self) -> frozenset[tuple[str, ...]]:
        return grams_of(self.texts.values())

    @cached_property
    def _known_failings(self) -> dict[str, list[str]]:
        return {}

    def failings(self, persona: str) -> list[str]:
        """Return the checks that a persona fails by itself: all but `identical`."""
        known, file = self._known_failings, self.params.exemplars
        if persona not in known:
            copied = _exemplar_grams(file.exemplars) if file is not None else frozenset[tuple[str, ...]]()
            known[persona] = persona_failings(
                persona, copied, self._pair_grams, most_copied=self.params.most_copied, lengths=self.params.words
            )
        return known[persona]


def _slot(side: str, candidate: int) -> str:
    return side if candidate == 0 else f"{side}_{candidate}"


@lru_cache(maxsize=4096)
def _opening(prompt: PromptFile, file: ExemplarFile | None, numbers: tuple[int, ...]) -> tuple[Message, ...]:
    """Return the turns that requests with these solved cases begin with; the engine computes them once."""
    turns = [Message("system", prompt.system())]
    for exemplar in () if file is None else (file.exemplars[number] for number in numbers):
        case = exemplar.model_dump()
        if prompt.content.think is not None:
            turns += [Message("user", prompt.think(case)), Message("assistant", case["difference"])]
        turns += [Message("user", prompt.user(case)), Message("assistant", prompt.answer(case))]
    return tuple(turns)


def _opening_of(row: _Row) -> tuple[Message, ...]:
    params, file = row.params, row.params.exemplars
    if file is None:
        return _opening(params.prompt, None, ())
    if params.exemplar_choice == "fixed":
        return _opening(params.prompt, file, fixed_cases(file, params.exemplar_count))
    return _opening(params.prompt, file, nearest_cases(file, params.exemplar_count, row.texts["prompt"]))


@lru_cache(maxsize=8)
def _exemplar_grams(exemplars: tuple[Exemplar, ...]) -> frozenset[tuple[str, ...]]:
    return grams_of(exemplar.persona for exemplar in exemplars)


def _rows(frame: pl.DataFrame, answers: Answers, params: InferPersonas) -> Iterator[_Row]:
    form = re.compile(params.prompt.content.form)
    for row in frame.select(KEY, "prompt", "chosen", "rejected").iter_rows(named=True):
        yield _Row(row[KEY], {name: as_text(row[name]) for name in ("prompt", "chosen", "rejected")}, answers, params, form)


def _regex(form: str | None, params: InferPersonas) -> Constraint | None:
    # Engines know no named groups.
    return Constraint("regex", form.replace("(?P<persona>", "(")) if form is not None and params.constrain else None


def _requests(frame: pl.DataFrame, answers: Answers, params: InferPersonas) -> Iterator[Request]:
    for row in _rows(frame, answers, params):
        waiting = False
        for side in _SIDES:
            asked = list(_asked(row, side))
            waiting = waiting or bool(asked)
            yield from asked
        if not waiting and params.on_fail == "repair":
            for side, reasons in _reasons(row).items():
                yield _repair(row, side, reasons)


def _asked(row: _Row, side: str) -> Iterator[Request]:
    """Yield what has to be asked about a side before its persona can be told: nothing, where that is known."""
    params = row.params
    if params.prompt.content.think is not None:
        thought = row.answer(f"{side}_think")
        if thought is None:
            asked = (*_opening_of(row), Message("user", params.prompt.think(row.values(side))))
            yield Request(row.key, f"{side}_think", asked, constraint=_regex(params.prompt.content.think_form, params))
            return
        if thought.error is not None:
            return
    if row.answer(side) is None:
        asked, constraint = _question(row, side), _regex(params.prompt.content.form, params)
        drawn = () if params.temperature is None else (("temperature", params.temperature),)
        for number in range(params.candidates):
            yield Request(row.key, _slot(side, number), asked, constraint=constraint, sample=number, decided=drawn)
        return
    rivals = _rivals(row, side)
    if params.judge is not None and len(rivals) > 1 and row.answer(f"{_slot(side, rivals[0])}_judge_12") is None:
        for number in rivals:
            texts = {
                "prompt": row.texts["prompt"],
                "first": row.texts["chosen"],
                "second": row.texts["rejected"],
                "persona": row.persona(row.answer(_slot(side, number))) or "",
            }
            yield from questions(row.key, f"{_slot(side, number)}_judge_", params.judge, (), texts, "logprob")


def _question(row: _Row, side: str) -> tuple[Message, ...]:
    """Return the turns that ask for a side's persona."""
    prompt, values = row.params.prompt, row.values(side)
    turns = list(_opening_of(row))
    if prompt.content.think is not None:
        thought = row.answer(f"{side}_think")
        values["difference"] = first_line(thought.text if thought is not None else "") or "..."
        turns += [Message("user", prompt.think(values)), Message("assistant", values["difference"])]
    return (*turns, Message("user", prompt.user(values)))


def _repair(row: _Row, side: str, reasons: Sequence[str]) -> Request:
    taken = _taken(row, side)
    assert taken is not None
    whole = "persona" in row.form.groupindex
    given = (taken.text.strip() if whole else first_line(taken.text)) or "..."
    again = Message("user", row.params.prompt.repair("; ".join(reasons)))
    turns = (*_question(row, side), Message("assistant", given), again)
    return Request(row.key, f"{side}_repair", turns, constraint=_regex(row.params.prompt.content.form, row.params))


def _rivals(row: _Row, side: str) -> list[int]:
    """Return the candidates among which a judge has to choose: of different text, and failing no more checks than the best ones."""
    if row.params.candidates == 1:
        return []
    personas = [row.persona(answer) for answer in row.candidates(side)]
    failed: dict[int, int] = {}
    for number, persona in enumerate(personas):
        if persona is not None and persona not in personas[:number]:
            failed[number] = sum(check in row.params.checks for check in row.failings(persona))
    return [number for number, count in failed.items() if count == min(failed.values())]


def _margin(row: _Row, side: str, number: int) -> float | None:
    """Return by how much the judge gives a candidate's user that candidate's own response."""
    assert row.params.judge is not None
    form = re.compile(row.params.judge.content.form)
    margin = judge(row.answers, row.key, f"{_slot(side, number)}_judge_", form).margin
    return None if margin is None else margin if side == "chosen" else -margin


def _taken(row: _Row, side: str) -> Answer | None:
    """Return the answer that is taken for a side: of several candidates the one that fails fewest checks and that the judge likes best."""
    rivals = _rivals(row, side)
    if not rivals:
        return row.answer(side)
    margins = {number: margin for number in rivals if (margin := _margin(row, side, number)) is not None}
    best = max(margins, key=lambda number: (margins[number], -number)) if margins else rivals[0]
    return row.answer(_slot(side, best))


def _is_unranked(row: _Row, side: str) -> bool:
    """Return whether a judge had to choose among candidates and gave no probabilities for any of them."""
    rivals = _rivals(row, side)
    return len(rivals) > 1 and all(_margin(row, side, number) is None for number in rivals)


def _reasons(row: _Row) -> dict[str, list[str]]:
    """Return, for each side whose persona failed, what is wrong with it, in words."""
    taken = {side: _taken(row, side) for side in _SIDES}
    personas = {side: row.persona(answer) for side, answer in taken.items()}
    failings = _failings(personas, row)
    reasons: dict[str, list[str]] = {}
    for side, answer in taken.items():
        if answer is None or answer.error is not None:
            continue
        least, most = row.params.words
        wrong = [CHECKS[check].format(least=least, most=most) for check in failings[side] if check in row.params.checks]
        if personas[side] is None:
            wrong = [_FORM]
        if wrong:
            reasons[side] = wrong
    return reasons


def _failings(personas: Mapping[str, str | None], row: _Row) -> dict[str, list[str]]:
    """Return the checks that each side's persona fails, `identical` among them on both sides."""
    found = {side: [] if persona is None else [*row.failings(persona)] for side, persona in personas.items()}
    if personas["chosen"] is not None and personas["chosen"] == personas["rejected"]:
        for failed in found.values():
            failed.append("identical")
    return found


def _better(row: _Row, side: str) -> Answer | None:
    """Return the answer about a side: the repaired one, where there is one that fails no more checks than the first."""
    first, second = _taken(row, side), row.answer(f"{side}_repair")
    old, new = row.persona(first), row.persona(second)
    if new is None:
        return first
    if old is None:
        return second
    other = row.persona(_taken(row, _SIDES[side]))
    wrong = [_failings({side: text, _SIDES[side]: other}, row)[side] for text in (old, new)]
    kept = [[check for check in failed if check in row.params.checks] for failed in wrong]
    return second if len(kept[1]) <= len(kept[0]) else first


def _collect(frame: pl.DataFrame, answers: Answers, params: InferPersonas) -> pl.DataFrame:
    return pl.DataFrame([_decision(row) for row in _rows(frame, answers, params)], schema=_SCHEMA, orient="row")


def _decision(row: _Row) -> tuple[str | list[str] | None, ...]:
    key, params = row.key, row.params
    given = {side: _better(row, side) for side in _SIDES}
    personas = {side: row.persona(answer) for side, answer in given.items()}
    for side, found in given.items():
        answer = row.answer(f"{side}_think") if found is None else found
        if answer is not None and answer.error is not None:
            reason, _, detail = answer.error.partition(":")
            return key, None, None, [], reason, f"{side} persona: {detail.strip()}", None
        if found is None:
            return key, None, None, [], f"{side}_persona_missing", "the model gave no answer", None
    flags = [f"{side}_form" for side, persona in personas.items() if persona is None]
    for side, answer in given.items():
        if answer is not None and personas[side] is None:
            cut = " (the answer reached max_tokens)" if answer.finish_reason == "length" else ""
            detail = f"not of the form '{row.form.pattern}'{cut}"
            return key, None, None, flags, f"{side}_persona_unparsed", detail, answer.text
    failings = _failings(personas, row)
    flags = [f"{side}_{check}" for side, failed in failings.items() for check in failed if check != "identical"]
    if "identical" in failings["chosen"]:
        flags.append("identical")
    flags += [f"{side}_unranked" for side in _SIDES if _is_unranked(row, side)]
    if params.on_fail == "reject":
        for side, failed in failings.items():
            check = next((check for check in failed if check in params.checks), None)
            if check is not None:
                reason = "identical_personas" if check == "identical" else f"{side}_persona_{check}"
                detail = f"{side} persona: {CHECKS[check].format(least=params.words[0], most=params.words[1])}"
                return key, personas["chosen"], personas["rejected"], flags, reason, detail, personas[side]
    return key, personas["chosen"], personas["rejected"], flags, None, None, None


def _report(decided: pl.LazyFrame, params: InferPersonas) -> Mapping[str, Any]:
    """Return shares of the personas: `form` of all that were answered, the others of those that have the form."""
    flags = pl.col(_FLAGS)
    personas = pl.concat([decided.select(text=f"{side}_persona") for side in _SIDES])
    whole = pl.col("chosen_persona").is_not_null() & pl.col("rejected_persona").is_not_null()

    def flagged(check: str) -> pl.Expr:
        return sum((flags.list.contains(f"{side}_{check}").sum() for side in _SIDES), pl.lit(0)).alias(check)

    checks = ("form", "several_sentences", "length", "repetitive", "copied_exemplar", "copied_pair", "leaked", "protected")
    counted = decided.select(
        pl.len().alias("rows"),
        whole.sum().alias("whole"),
        (~_unanswered()).sum().alias("answered"),
        flags.list.contains("identical").sum().alias("identical"),
        *(flagged(check) for check in (*checks, "unranked")),
    )
    count, distinct = pl.collect_all([counted, personas.select(pl.col("text").drop_nulls().n_unique().alias("n"))])
    found = count.row(0, named=True)
    both, asked = 2 * found["whole"], 2 * found["answered"]
    return {
        "rows": found["rows"],
        "form": _share(asked - found["form"], asked),
        "distinct": _share(distinct.item(), both),
        "identical_both_sides": _share(found["identical"], found["whole"]),
        **{check: _share(found[check], both) for check in checks[1:]},
        **({"unranked": _share(found["unranked"], both)} if params.candidates > 1 else {}),
    }


def _unanswered() -> pl.Expr:
    """Rows about which the model gave no answer at all, or not two: no form could be seen."""
    lacks = pl.col(REJECT).is_not_null() & pl.col("chosen_persona").is_null()
    return (lacks & ~pl.col(REJECT).str.ends_with("_persona_unparsed")).fill_null(False)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


infer_personas = LlmOperator(
    name="infer_personas",
    params=InferPersonas,
    version=3,
    inputs=("frame",),
    help="Infer a persona who would prefer the chosen response, and one who would prefer the rejected one, with a model.",
    requests=_requests,
    collect=_collect,
    max_rounds=4,
    report=_report,
)
