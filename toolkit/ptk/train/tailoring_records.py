"""Makes pairs with personas into training records: who asks stands in the prompt, and what that person prefers is preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from ptk.llm.persona_turns import PersonaPlace, persona_turns, plain_prompt
from ptk.llm.prompt_files import as_text
from ptk.llm.request import Message
from ptk.operator import DETAIL, KEY, RAW, REJECT, reshape
from ptk.params import COLUMN, Params
from ptk.text import text_of
from ptk.train.turns import UnfitTurns, prompt_turns, response_text
from ptk_catalog.digest import row_id

__all__ = ["TailoringRecords", "tailoring_records"]

_SIDES = {"none": (None,), "chosen": ("chosen",), "rejected": ("rejected",), "all": ("chosen", "rejected")}
_TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_OWN = ("record_id", "pair_id", "side", "persona", "prompt", "chosen", "rejected", "completion", "preferred", "other", "label")
_AT_ONCE = 4_096


class TailoringRecords(Params):
    """Settings of tailoring_records."""

    method: Literal["dpo", "sft", "kto", "few_shot"] = Field(
        "dpo",
        description="What a record is made of: prompt, chosen and rejected; prompt and completion; both with a label; a solved case.",
    )
    training: Literal["none", "chosen", "rejected", "all"] = Field(
        "all",
        description="Whose personas stand in the prompts; with rejected, and the rejected half of all, the sides change places.",
    )
    template: Literal["chat", "plain"] = Field(
        "chat", description="chat, turns for the model's own template; plain, the text Prompt: ... Persona: ... Response:"
    )
    place: PersonaPlace = Field(
        "system",
        description="Where the persona stands: system, the system message; tag, as Persona: ... below the prompt; first_person, below "
        "the prompt as the user would say it.",
    )
    chosen_persona: Annotated[str, COLUMN] = Field(
        "chosen_persona", description="Column with the persona who would prefer the chosen response, where `training` reads it."
    )
    rejected_persona: Annotated[str, COLUMN] = Field(
        "rejected_persona",
        description="Column with the persona who would prefer the rejected response, where `training` reads it.",
    )
    keep: Annotated[tuple[str, ...], COLUMN] = Field((), description="Columns of the pairs to keep, such as split.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.template == "plain" and self.place == "system" and self.training != "none" and self.method != "few_shot":
            raise ValueError("plain text has no system message; write place: tag or place: first_person")
        for column in self.keep:
            if column in _OWN:
                raise ValueError(f"`keep`: a record has a column '{column}' of its own")
        return self

    def unread(self) -> frozenset[str]:
        """Return the personas' columns that `training` leaves out, and nobody named."""
        fields = {f"{side}_persona" for side in ("chosen", "rejected") if side not in _SIDES[self.training]}
        return frozenset(fields - self.model_fields_set)

    def persona_column(self, side: str) -> str:
        """Return the column with the persona of a side."""
        return self.chosen_persona if side == "chosen" else self.rejected_persona


@reshape(key="record_id", scope="rows", version=1)
def tailoring_records(frame: pl.LazyFrame, params: TailoringRecords) -> pl.LazyFrame:
    """Make pairs with personas into records to train on, for SFT, DPO, KTO or few-shot prompts."""
    schema = frame.collect_schema()
    sides = [side for side in _SIDES[params.training] if side is not None]
    for name in ("prompt", "chosen", "rejected"):
        if name not in schema:
            raise ValueError(f"there is no column '{name}', which records are made of")
        text_of(name, schema[name])  # raises where it is neither text nor turns
    personas: dict[str, pl.Expr] = {}
    for side in sides:
        column = params.persona_column(side)
        if column not in schema:
            raise ValueError(f"there is no column '{column}', the persona of the {side} side")
        personas[side] = text_of(column, schema[column])
    kept = {name: schema[name] for name in params.keep}
    made = pl.Schema({"pair_id": pl.String, "side": pl.String, "persona": pl.String, **_columns(params), **kept, **_MARKS})
    taken = frame.select(
        pl.col(KEY).cast(pl.String),
        "prompt",
        "chosen",
        "rejected",
        *params.keep,
        *(text.alias(f"_{side}") for side, text in personas.items()),
    )

    def records(rows: pl.DataFrame) -> pl.DataFrame:
        found: list[pl.DataFrame] = []
        for part in rows.iter_slices(_AT_ONCE):
            content = [record for row in part.iter_rows(named=True) for record in _records(row, params)]
            found.append(pl.DataFrame(content, schema=made, orient="row") if content else pl.DataFrame(schema=made))
        return pl.concat(found) if found else pl.DataFrame(schema=made)

    mapped = taken.map_batches(records, schema=made, streamable=True)
    told: dict[str, pl.DataType] = {"pair_id": pl.String(), "side": pl.String()}
    if params.method == "kto":
        told["label"] = pl.Boolean()
    return mapped.select(row_id(told).alias("record_id"), *made.names())


_MARKS = {REJECT: pl.String, DETAIL: pl.String, RAW: pl.String}


def _columns(params: TailoringRecords) -> dict[str, Any]:
    """Return the columns of a record that a trainer reads."""
    text = pl.String if params.template == "plain" or params.method == "few_shot" else _TURNS
    if params.method == "dpo":
        return {"prompt": text, "chosen": text, "rejected": text}
    if params.method == "sft":
        return {"prompt": text, "completion": text}
    if params.method == "kto":
        return {"prompt": text, "completion": text, "label": pl.Boolean}
    return {"prompt": pl.String, "preferred": pl.String, "other": pl.String}


def _records(row: Mapping[str, Any], params: TailoringRecords) -> Iterator[dict[str, Any]]:
    kept = {name: row[name] for name in params.keep}
    for side in _SIDES[params.training]:
        record = {"pair_id": row[KEY], "side": side, **kept}
        try:
            persona = None if side is None else (row[f"_{side}"] or "").strip()
            if persona == "":
                raise UnfitTurns("no_persona", f"column '{params.persona_column(str(side))}' is empty")
            turns = prompt_turns(row["prompt"])
            chosen, rejected = response_text(row["chosen"], "chosen"), response_text(row["rejected"], "rejected")
        except UnfitTurns as unfit:
            yield {**record, REJECT: unfit.reason, DETAIL: str(unfit)}
            continue
        preferred, other = (rejected, chosen) if side == "rejected" else (chosen, rejected)
        for content in _contents(turns, persona, preferred, other, params):
            yield {**record, "persona": persona, **content}


def _contents(
    turns: Sequence[Message], persona: str | None, preferred: str, other: str, params: TailoringRecords
) -> Iterator[dict[str, Any]]:
    text = as_text([{"role": turn.role, "content": turn.content} for turn in turns])
    if params.method == "few_shot":
        yield {"prompt": text, "preferred": preferred, "other": other}
        return
    prompt: Any
    if params.template == "plain":
        prompt = plain_prompt(text, persona, params.place)
        sides: list[Any] = [f" {preferred}", f" {other}"]
    else:
        prompt = [_turn(turn.role, turn.content) for turn in persona_turns(turns, persona, params.place)]
        sides = [[_turn("assistant", preferred)], [_turn("assistant", other)]]
    if params.method == "dpo":
        yield {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
    elif params.method == "sft":
        yield {"prompt": prompt, "completion": sides[0]}
    else:
        for completion, label in zip(sides, (True, False), strict=True):
            yield {"prompt": prompt, "completion": completion, "label": label}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
