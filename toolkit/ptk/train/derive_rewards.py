"""Derives rewards from log-probabilities: what a model, by itself or beside a reference, thinks of both responses of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

import polars as pl
from polars.exceptions import ColumnNotFoundError
from pydantic import Field

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params, suggestion
from ptk.train.score_pairs import SIDES, Condition, same_persona, score_column

__all__ = ["DeriveRewards", "derive_rewards", "margin_column"]

_NAME = r"^[a-z][a-z0-9_]*$"


class DeriveRewards(Params):
    """Settings of derive_rewards."""

    scores: str = Field("logp", pattern=_NAME, description="`into` of the score_pairs step that scored with the model.")
    reference: str | None = Field(
        None,
        pattern=_NAME,
        description="`into` of the score_pairs step that scored with the model it was tuned from; null: no reference.",
    )
    beta: float = Field(1.0, gt=0.0, description="What log-probabilities are multiplied by, such as the beta of DPO.")
    per_token: bool = Field(False, description="Divide log-probabilities by the number of the response's tokens.")
    chosen_persona: Annotated[str | None, COLUMN] = Field(
        "chosen_persona", description="Column with the persona of the chosen side; null: personas are not compared."
    )
    rejected_persona: Annotated[str | None, COLUMN] = Field(
        "rejected_persona", description="Column with the persona of the rejected side; null: personas are not compared."
    )
    into: str = Field("reward", pattern=_NAME, description="Beginning of the new columns' names.")


def margin_column(into: str, given: str) -> str:
    """Return the column with the reward of the chosen response less that of the rejected one, under one condition."""
    return f"{into}_margin_given_{given}"


@frame_operator(scope="rows", version=1)
def derive_rewards(frame: pl.LazyFrame, params: DeriveRewards) -> pl.LazyFrame:
    """Derive each response's reward from scores of score_pairs, the margin of each pair, and whether it follows the persona."""
    schema = frame.collect_schema()
    conditions = [
        given for given in get_args(Condition) if all(score_column(params.scores, side, given) in schema for side in SIDES)
    ]
    if not conditions:
        _lacks(score_column(params.scores, "chosen", "none"), schema)
    made: dict[str, pl.Expr] = {}
    margins: dict[str, pl.Expr] = {}
    for given in conditions:
        rewards = {side: _reward(side, given, schema, params) for side in SIDES}
        made |= {score_column(params.into, side, given): reward for side, reward in rewards.items()}
        margins[given] = made[margin_column(params.into, given)] = rewards["chosen"] - rewards["rejected"]
    same = pl.lit(False)
    if params.chosen_persona is not None and params.rejected_persona is not None:
        same = same_persona(params.chosen_persona, params.rejected_persona)
        made[f"{params.into}_same_persona"] = same
    if {"chosen", "rejected"} <= margins.keys():
        chosen, rejected = margins["chosen"], margins["rejected"]
        made[f"{params.into}_flips"] = pl.when(~same).then((chosen > 0) & (rejected < 0))
        made[f"{params.into}_shift"] = pl.when(~same).then(chosen - rejected)
    return frame.select(KEY, **made)


def _reward(side: str, given: str, schema: Mapping[str, pl.DataType], params: DeriveRewards) -> pl.Expr:
    """Return beta log P(response), or beta log (P(response) / P_reference(response)): R. Rafailov et al., NeurIPS 2023, section 4.

    Without a reference, and per token, it is the reward of Y. Meng et al., NeurIPS 2024.
    """
    name = score_column(params.scores, side, given)
    value = _number(name, schema)
    if params.reference is not None:
        value = value - _number(score_column(params.reference, side, given), schema)
    if params.per_token:
        value = value / _number(f"{params.scores}_{side}_tokens", schema)
    return params.beta * value


def _number(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    if name not in schema:
        _lacks(name, schema)
    if not schema[name].is_numeric():
        raise TypeError(f"column '{name}' is {schema[name]}, not numbers")
    return pl.col(name).cast(pl.Float64)


def _lacks(name: str, schema: Mapping[str, pl.DataType]) -> None:
    ours = [column for column in schema if column != KEY]
    raise ColumnNotFoundError(f"there is no column '{name}', which score_pairs makes{suggestion(name, ours)}")
