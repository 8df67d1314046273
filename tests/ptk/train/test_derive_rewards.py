"""Rewards, margins, flips and shifts are those of a slow way, pair by pair."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.exceptions import ColumnNotFoundError

from ptk.operator import KEY
from ptk.stages import run_stages
from ptk.train.derive_rewards import DeriveRewards, derive_rewards

GIVEN = ("none", "chosen", "rejected")
score = st.floats(-300, 0).map(lambda x: round(x, 3))


def scores(draw: Any, into: str) -> dict[str, Any]:
    made = {f"{into}_{side}_given_{given}": draw(score) for given in GIVEN for side in ("chosen", "rejected")}
    return {**made, f"{into}_chosen_tokens": draw(st.integers(1, 90)), f"{into}_rejected_tokens": draw(st.integers(1, 90))}


@st.composite
def pairs(draw: Any) -> dict[str, Any]:
    personas = {
        f"{side}_persona": draw(st.sampled_from(["A user.", "a user. ", "B.", None])) for side in ("chosen", "rejected")
    }
    return {KEY: "k", **scores(draw, "dpo"), **scores(draw, "base"), **personas}


def derived(*rows: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    frame = pl.LazyFrame(list(rows), infer_schema_length=None).cast(
        {"chosen_persona": pl.String, "rejected_persona": pl.String}
    )
    return run_stages(derive_rewards, [frame], DeriveRewards(scores="dpo", **settings)).collect().rows(named=True)


@given(pairs(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_the_slow_way(row: dict[str, Any], has_reference: bool, per_token: bool) -> None:
    (found,) = derived(row, reference="base" if has_reference else None, per_token=per_token, beta=0.5)
    rewards = {}
    for under in GIVEN:
        for side in ("chosen", "rejected"):
            name = f"{side}_given_{under}"
            value = row[f"dpo_{name}"] - (row[f"base_{name}"] if has_reference else 0)
            rewards[side, under] = 0.5 * value / (row[f"dpo_{side}_tokens"] if per_token else 1)
            assert found[f"reward_{name}"] == pytest.approx(rewards[side, under], abs=1e-9)
        margin = rewards["chosen", under] - rewards["rejected", under]
        assert found[f"reward_margin_given_{under}"] == pytest.approx(margin, abs=1e-9)
    first, second = row["chosen_persona"], row["rejected_persona"]
    same = first is not None and second is not None and first.strip().lower() == second.strip().lower()
    assert found["reward_same_persona"] == same
    chosen, rejected = found["reward_margin_given_chosen"], found["reward_margin_given_rejected"]
    assert found["reward_flips"] == (None if same else chosen > 0 > rejected)
    assert found["reward_shift"] == (None if same else pytest.approx(chosen - rejected, abs=1e-9))


def test_conditions_that_were_not_scored_have_no_reward() -> None:
    row = {
        KEY: "k",
        "dpo_chosen_given_none": -1.0,
        "dpo_rejected_given_none": -3.0,
        "chosen_persona": "",
        "rejected_persona": "",
    }
    (found,) = derived(row, chosen_persona=None, into="r")
    assert found == {KEY: "k", "r_chosen_given_none": -1.0, "r_rejected_given_none": -3.0, "r_margin_given_none": 2.0}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reference": "sft"}, "'sft_chosen_given_none', which score_pairs makes"),
        ({"scores": "dbo"}, "'dbo_chosen_given_none', which score_pairs makes; did you mean 'dpo_chosen_given_none'"),
        ({"per_token": True}, "'dpo_chosen_tokens', which score_pairs makes"),
    ],
)
def test_columns_that_no_step_made_are_named(settings: dict[str, Any], told: str) -> None:
    frame = pl.LazyFrame({KEY: ["k"], "dpo_chosen_given_none": [-1.0], "dpo_rejected_given_none": [-1.0]})
    params = DeriveRewards(**{"scores": "dpo", "chosen_persona": None, **settings})
    with pytest.raises(ColumnNotFoundError, match=told):
        run_stages(derive_rewards, [frame], params)
