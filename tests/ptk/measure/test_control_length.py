from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm

from ptk.measure.control_length import control_length

from .tables import rows, table


def judged(count: int, seed: int, lean: float, effect: float) -> pl.DataFrame:
    """Verdicts of a judge that leans by `lean` to the first response and by `effect` to the longer one."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        first, second = chance.randint(1, 60), chance.randint(1, 40)
        share = 1 / (1 + math.exp(-lean - effect * math.tanh((first - second) / 20)))
        verdict = "tie" if chance.random() < 0.1 else "first" if chance.random() < share else "second"
        made.append(
            {
                "_key": str(number),
                "prompt": f"p{number // 3}",
                "a": "w " * first,
                "b": "w " * second,
                "verdict": verdict,
                "d": number % 2,
            }
        )
    return pl.DataFrame(made)


@pytest.mark.parametrize(
    ("ties", "ours", "seed"), [("drop", "first", 0), ("half", "first", 1), ("drop", "second", 2), ("half", "second", 3)]
)
def test_the_regression_is_that_of_statsmodels(ties: str, ours: str, seed: int) -> None:
    frame = judged(150, seed, 0.3, 1.0)
    found = rows(control_length, frame, first="a", second="b", ties=ties, ours=ours)
    words = frame.select(pl.col("a", "b").str.count_matches(r"\S+").cast(pl.Int64))
    sign = 1 if ours == "first" else -1
    longer = sign * (words["a"] - words["b"]).to_numpy().astype(float)
    other = "second" if ours == "first" else "first"
    outcome = frame["verdict"].replace_strict({ours: 1.0, other: 0.0, "tie": 0.5}).to_numpy()
    kept = np.ones(len(outcome), bool) if ties == "half" else outcome != 0.5
    longer, outcome = longer[kept], outcome[kept]
    groups = np.unique(frame["prompt"].to_numpy()[kept], return_inverse=True)[1]
    design = sm.add_constant(np.tanh(longer / longer.std()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half a win is no count of the binomial family
        theirs = sm.GLM(outcome, design, family=sm.families.Binomial()).fit(
            tol=1e-14, maxiter=200, tol_criterion="params", cov_type="cluster", cov_kwds={"groups": groups}
        )
    lean, effect = found["length_controlled_win_rate"], found["length_effect"]
    share = 1 / (1 + math.exp(-theirs.params[0]))
    assert lean["value"] == pytest.approx(share, abs=1e-9)
    assert (effect["value"], effect["standard_error"]) == pytest.approx((theirs.params[1], theirs.bse[1]), abs=1e-9)
    assert lean["standard_error"] == pytest.approx(theirs.bse[0] * share * (1 - share), abs=1e-9)
    assert (lean["p_value"], effect["p_value"]) == pytest.approx(tuple(theirs.pvalues), abs=1e-9)
    low, high = theirs.conf_int()[0]
    assert (lean["low"], lean["high"]) == pytest.approx((1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))), abs=1e-9)
    assert (effect["low"], effect["high"]) == pytest.approx(tuple(theirs.conf_int()[1]), abs=1e-9)
    assert found["win_rate"]["value"] == pytest.approx(outcome.mean(), abs=1e-9)
    assert found["length_spread"]["value"] == pytest.approx(longer.std(), abs=1e-9)


def test_what_length_alone_wins_is_taken_off() -> None:
    # Our responses are longer, and the judge looks at nothing else.
    frame = judged(3_000, 5, 0.0, 2.0)
    found = rows(control_length, frame, first="a", second="b")
    assert found["win_rate"]["value"] > 0.6
    assert found["length_controlled_win_rate"]["low"] < 0.5 < found["length_controlled_win_rate"]["high"]
    assert found["length_effect"]["p_value"] < 1e-9


def test_both_sides_together_make_one() -> None:
    frame = judged(200, 6, 0.4, 1.0)
    ours, theirs = (
        rows(control_length, frame, first="a", second="b", ours=side)["length_controlled_win_rate"]["value"]
        for side in ("first", "second")
    )
    assert ours + theirs == pytest.approx(1.0, abs=1e-9)


def test_where_the_verdicts_do_not_determine_it_there_is_none() -> None:
    won = pl.DataFrame({"a": ["w w", "w", "w w w"], "b": ["w"] * 3, "verdict": ["first"] * 3})
    assert rows(control_length, won, first="a", second="b")["length_controlled_win_rate"]["value"] is None
    # The longer one always wins: no finite effect.
    apart = pl.DataFrame({"a": ["w w", "w"], "b": ["w", "w w"], "verdict": ["first", "second"]})
    assert rows(control_length, apart, first="a", second="b")["length_controlled_win_rate"]["value"] is None
    one_length = pl.DataFrame({"a": ["w w"] * 4, "b": ["w"] * 4, "verdict": ["first", "second"] * 2})
    assert rows(control_length, one_length, first="a", second="b")["length_controlled_win_rate"]["value"] is None
    ties = pl.DataFrame({"a": ["w"], "b": ["w"], "verdict": ["tie"]})
    assert {line["value"] for line in rows(control_length, ties, first="a", second="b").values()} == {None}


def test_responses_of_one_length_need_no_control() -> None:
    frame = pl.DataFrame({"a": ["w"] * 4, "b": ["w"] * 4, "verdict": ["first", "first", "first", "second"]})
    found = rows(control_length, frame, first="a", second="b")
    assert found["length_controlled_win_rate"]["value"] == pytest.approx(0.75, abs=1e-9)
    assert found["length_effect"]["value"] is None


def test_groups_are_fitted_by_themselves_in_any_order() -> None:
    frame = judged(160, 7, 0.2, 1.0)
    found = table(control_length, frame, first="a", second="b", by=["d"])
    shuffled = table(control_length, frame.sample(fraction=1, shuffle=True, seed=1), first="a", second="b", by=["d"])
    assert found.equals(shuffled)
    alone: dict[str, Any] = rows(control_length, frame.filter(pl.col("d") == 1), first="a", second="b")
    mine = {row["name"]: row for row in found.iter_rows(named=True)}
    assert mine["length_effect/d=1"]["value"] == alone["length_effect"]["value"]
