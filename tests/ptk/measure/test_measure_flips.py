from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.exceptions import ColumnNotFoundError
from scipy import stats

from ptk.measure.measure_flips import measure_flips

from .tables import rows, table

MARGINS = {f"reward_margin_given_{given}": pl.Float64 for given in ("chosen", "rejected", "none")}
margin = st.one_of(st.none(), st.sampled_from([0.0, math.nan]), st.floats(-50, 50).map(lambda x: round(x, 4)))


def is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(margin, margin, margin, st.sampled_from([True, False, False, None])), min_size=1, max_size=30))
def test_flips_are_those_of_the_slow_way(given: list[tuple[Any, Any, Any, bool | None]]) -> None:
    frame = pl.DataFrame(given, schema={**MARGINS, "reward_same_persona": pl.Boolean}, orient="row")
    found = rows(measure_flips, frame, rounds=20)
    apart = [row for row in given if not row[3]]
    good = [(c, r) for c, r, *_ in apart if is_number(c) and is_number(r)]
    wanted = {
        "flips/both": [c > 0 > r for c, r in good],
        "flips_wrong/both": [c < 0 < r for c, r in good],
        "shift_size/both": [c - r for c, r in good],
        "shifts/both": [c > r for c, r in good],
    }
    for at, name, sign in ((0, "chosen", 1), (1, "rejected", -1), (2, "none", 1)):
        some = [row[at] for row in apart if is_number(row[at])]
        measure = "prefers_chosen" if name == "none" else "follows_persona"
        wanted[f"{measure}/{name}"] = [sign * value > 0 for value in some]
        wanted[f"margin/{name}"] = some
    for name, values in wanted.items():
        line = found[name]
        assert line["n"] == len(values)
        assert line["value"] == (pytest.approx(np.mean(values), abs=1e-9) if values else None)
    assert found["same_persona/both"]["value"] == len(given) - len(apart)
    assert set(found) == {*wanted, "same_persona/both"}
    plus, minus = sum(wanted["flips/both"]), sum(wanted["flips_wrong/both"])
    p_value = found["flips/both"]["p_value"]
    assert p_value == (pytest.approx(stats.binomtest(plus, plus + minus).pvalue, abs=1e-9) if plus + minus else None)


def test_a_model_that_never_hears_the_persona_does_not_flip() -> None:
    frame = pl.DataFrame({name: [1.0, -2.0, 3.0] for name in list(MARGINS)[:2]})
    found = rows(measure_flips, frame)
    assert (found["flips/both"]["value"], found["shift_size/both"]["value"], found["flips/both"]["p_value"]) == (0.0, 0.0, None)
    assert found["follows_persona/chosen"]["value"] == pytest.approx(2 / 3)
    assert "prefers_chosen/none" not in found


def test_margins_are_numbers_that_derive_rewards_makes() -> None:
    with pytest.raises(TypeError, match="not numbers"):
        table(measure_flips, pl.DataFrame({"reward_margin_given_chosen": ["x"], "reward_margin_given_rejected": [1.0]}))
    with pytest.raises(ColumnNotFoundError, match=r"'dpo_margin_given_chosen', which derive_rewards makes"):
        table(measure_flips, pl.DataFrame({"reward_margin_given_chosen": [1.0]}), rewards="dpo")
