"""Accuracy, preference, wins and leaning, against slow direct counts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.exceptions import ColumnNotFoundError
from scipy import stats

from ptk.measure.judgements import delta_pq
from ptk.measure.measure_accuracy import measure_accuracy
from ptk.measure.measure_position import measure_position
from ptk.measure.measure_preference import measure_preference
from ptk.measure.measure_wins import measure_wins

from .tables import judgement, rows, schema, table

SIDES = {"chosen_persona": "chosen", "rejected_persona": "rejected"}


def accuracy_frame(chance: random.Random, count: int) -> pl.DataFrame:
    made = []
    for number in range(count):
        row: dict[str, Any] = {"prompt": f"p{chance.randrange(max(1, count // 3))}", "model": chance.choice(["a", "b", None])}
        for column, side in SIDES.items():
            found = judgement(chance, column, ("chosen", "rejected"))
            verdict = found[column]
            row |= found | {
                column: "The user is calm.",
                f"{column}_right": None if verdict in (None, "tie") else verdict == side,
            }
        made.append(row | {"number": number})
    extra = {f"{column}_right": pl.Boolean for column in SIDES}
    return pl.DataFrame(made, schema={"prompt": pl.String, "model": pl.String, **schema(*SIDES), **extra}, strict=False)


def cases(frame: pl.DataFrame) -> Iterator[tuple[str, dict[str, str], list[dict[str, Any]]]]:
    everything = list(frame.iter_rows(named=True))
    yield "", {}, everything
    for model in {row["model"] for row in everything}:
        shown = "(none)" if model is None else model
        yield f"/model={shown}", {"model": shown}, [row for row in everything if row["model"] == model]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_accuracy_counts_each_judgement(seed: int, count: int) -> None:
    frame = accuracy_frame(random.Random(seed), count)
    found = rows(measure_accuracy, frame, by=["model"], rounds=50)
    for suffix, group, some in cases(frame):
        for side in ("chosen", "rejected", "both"):
            columns = [column for column, name in SIDES.items() if side in (name, "both")]
            right, clusters = [], {}
            for row in some:
                for column in columns:
                    if None in row[f"{column}_picked"]:
                        continue
                    said = [picked == (column == "chosen_persona") for picked in row[f"{column}_picked"]]
                    right += said
                    clusters[row["prompt"]] = clusters.get(row["prompt"], 0) + sum(1 if one else -1 for one in said)
            line = found[f"accuracy/{side}{suffix}"]
            assert line["n"] == len(right)
            assert {name: line[name] for name in group} == group
            if not right:
                assert line["value"] is None
                continue
            assert line["value"] == pytest.approx(np.mean(right), abs=1e-9)
            error = found[f"accuracy_binomial_error/{side}{suffix}"]["value"]
            assert error == pytest.approx(math.sqrt(np.mean(right) * (1 - np.mean(right)) / len(right)), abs=1e-9)
            signs = [value > 0 for value in clusters.values() if value]
            wanted = stats.binomtest(sum(signs), len(signs)).pvalue if signs else None
            assert line["p_value"] == (None if wanted is None else pytest.approx(wanted, abs=1e-9))
            asked = [row for row in some for _ in columns]
            answers = sum(row[f"{column}_answers"] for row in some for column in columns)
            failed = found[f"failed/{side}{suffix}"]
            assert (failed["value"], failed["n"]) == (pytest.approx(1 - answers / (2 * len(asked)), abs=1e-9), 2 * len(asked))
            unparsed = sum(row[f"{column}_unparsed"] for row in some for column in columns)
            assert found[f"unparsed/{side}{suffix}"]["value"] == pytest.approx(unparsed / answers, abs=1e-9)
            mean = [row[f"{column}_right"] for row in some for column in columns if row[f"{column}_right"] is not None]
            average = found[f"order_averaged_accuracy/{side}{suffix}"]
            assert (average["n"], average["value"]) == (len(mean), pytest.approx(np.mean(mean), abs=1e-9) if mean else None)


def test_the_error_goes_by_prompt() -> None:
    chance = random.Random(1)
    leaning = {prompt: chance.random() for prompt in range(60)}
    made = []
    for prompt, share in leaning.items():
        for _ in range(5):
            right = chance.random() < share
            row: dict[str, Any] = {"prompt": str(prompt)}
            for column, side in SIDES.items():
                first = right == (side == "chosen")
                row |= {column: "x", f"{column}_margin": None, f"{column}_flipped": False, f"{column}_answers": 2}
                row |= {
                    f"{column}_unparsed": 0,
                    f"{column}_first": 1,
                    f"{column}_right": right,
                    f"{column}_picked": [first] * 2,
                }
            made.append(row)
    found = rows(measure_accuracy, pl.DataFrame(made), rounds=500)["accuracy/both"]
    shares = [np.mean([row["chosen_persona_right"] for row in made if row["prompt"] == str(p)]) for p in leaning]
    assert found["standard_error"] == pytest.approx(stats.sem(shares), abs=1e-9)  # equal clusters: that of their means
    assert found["low"] < found["value"] < found["high"]
    naive = rows(measure_accuracy, pl.DataFrame(made), rounds=0)["accuracy_binomial_error/both"]["value"]
    assert found["standard_error"] > 1.5 * naive


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_preference_is_told_with_ties(seed: int, count: int) -> None:
    chance = random.Random(seed)
    made = [judgement(chance, "preferred_persona", ("chosen", "rejected")) for _ in range(count)]
    found = rows(measure_preference, pl.DataFrame(made, schema=schema("preferred_persona")), rounds=0)
    verdicts = [row["preferred_persona"] for row in made if row["preferred_persona"] is not None]
    for name, word in (("wins", "chosen"), ("losses", "rejected"), ("ties", "tie")):
        assert found[f"{name}/chosen"]["n"] == len(verdicts)
        wanted = verdicts.count(word) / len(verdicts) if verdicts else None
        assert found[f"{name}/chosen"]["value"] == (None if wanted is None else pytest.approx(wanted, abs=1e-9))
    wins, losses = verdicts.count("chosen"), verdicts.count("rejected")
    rate = found["win_rate/chosen"]
    assert rate["n"] == wins + losses
    assert rate["value"] == (None if not verdicts else pytest.approx(wins / (wins + losses) if wins + losses else 0.5))
    assert rate["p_value"] == (pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=1e-9) if wins + losses else None)


verdict = st.sampled_from(["first", "second", "tie", None, "none"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(verdict, verdict, st.sampled_from("xyz")), min_size=1, max_size=30), st.sampled_from(["first", "second"])
)
def test_delta_pq_is_the_papers(judged: list[tuple[Any, Any, str]], ours: str) -> None:
    frame = pl.DataFrame(judged, schema={"q": pl.String, "p": pl.String, "prompt": pl.String}, orient="row")
    found = rows(
        measure_wins, frame, ours=ours, rounds=30, outcomes=[{"name": "chosen", "quality": "q", "personalization": "p"}]
    )
    rates = []
    for place, rubric in enumerate(("quality", "personalization")):
        said = [row[place] for row in judged if row[place] in ("first", "second", "tie")]
        wins, ties = said.count(ours), said.count("tie")
        losses = len(said) - wins - ties
        rates.append(None if not said else wins / (wins + losses) if wins + losses else 0.5)
        line = found[f"win_rate/chosen%2F{rubric}"]
        assert (line["value"], line["n"]) == (None if not said else pytest.approx(rates[-1], abs=1e-9), wins + losses)
        assert found[f"unknown/chosen%2F{rubric}"]["value"] == [row[place] for row in judged].count("none")
    delta = found["delta_pq/chosen"]
    if None in rates:
        assert delta["value"] is None
        return
    w_q, w_p = rates
    assert w_q is not None and w_p is not None
    assert delta["value"] == pytest.approx(0.5 * ((w_p - 0.5) / 0.5 + (w_q - 0.5) / 0.5), abs=1e-9)
    assert delta["low"] is None or -1 <= delta["low"] <= delta["value"] + 1e-9


def test_all_ties_are_no_difference() -> None:
    frame = pl.DataFrame({"q": ["tie"] * 4, "p": ["tie", "tie", None, None]})
    found = rows(measure_wins, frame, outcomes=[{"name": "x", "quality": "q", "personalization": "p"}])
    assert (found["win_rate/x%2Fquality"]["value"], found["win_rate/x%2Fquality"]["n"]) == (0.5, 0)
    assert (found["delta_pq/x"]["value"], found["delta_pq/x"]["n"], found["delta_pq/x"]["p_value"]) == (0.0, 4, None)
    assert delta_pq(np.array([1.0, 0.0, 0.5, 1.0]), np.array([1.0, 0.0, 0.5, 0.0])).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_orders_that_disagree_are_a_tie_as_in_the_paper_or_stand_by_their_mean() -> None:
    frame = pl.DataFrame({"verdict": ["first", "first", None], "verdict_flipped": [True, False, True]})
    one = [{"name": "x", "quality": "verdict"}]
    found = rows(measure_wins, frame, outcomes=one, rounds=0)
    assert (found["ties/x%2Fquality"]["value"], found["wins/x%2Fquality"]["value"], found["wins/x%2Fquality"]["n"]) == (
        0.5,
        0.5,
        2,
    )
    assert rows(measure_wins, frame, outcomes=one, rounds=0, flips="keep")["wins/x%2Fquality"]["value"] == 1.0


def test_rejected_personas_are_told_apart_from_chosen_ones() -> None:
    frame = pl.DataFrame(
        {"qc": ["first", "first"], "pc": ["first", "tie"], "qr": ["second", "tie"], "pr": ["second", "second"]}
    )
    both = [
        {"name": "chosen", "quality": "qc", "personalization": "pc"},
        {"name": "rejected", "quality": "qr", "personalization": "pr"},
    ]
    found = rows(measure_wins, frame, outcomes=both, rounds=0)
    assert (found["delta_pq/chosen"]["value"], found["delta_pq/rejected"]["value"]) == (1.0, -1.0)


def test_one_rubric_has_a_win_rate_and_no_delta() -> None:
    found = rows(measure_wins, pl.DataFrame({"verdict": ["first", "second"]}), outcomes=[{"name": "all", "quality": "verdict"}])
    assert found["win_rate/all%2Fquality"]["value"] == 0.5
    assert not [name for name in found if name.startswith("delta")]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_leaning_is_the_share_that_said_first(seed: int, count: int) -> None:
    chance = random.Random(seed)
    made = [judgement(chance, "v", ("first", "second")) | {"prompt": f"p{chance.randrange(4)}"} for _ in range(count)]
    found = rows(measure_position, pl.DataFrame(made, schema={**schema("v"), "prompt": pl.String}), judgements=["v"], rounds=0)
    verdicts = sum(row["v_answers"] - row["v_unparsed"] for row in made)
    line = found["said_first/v"]
    assert line["n"] == verdicts
    assert line["value"] == (pytest.approx(sum(row["v_first"] for row in made) / verdicts) if verdicts else None)
    flips = [row["v_flipped"] for row in made if row["v_flipped"] is not None]
    assert found["flipped/v"]["value"] == (pytest.approx(np.mean(flips)) if flips else None)


def test_a_column_that_no_judge_made_is_told_with_who_makes_it() -> None:
    frame = pl.DataFrame({"chosen_persona": ["x"], "rejected_persona": ["y"], "preferred_persona": ["tie"]})
    with pytest.raises(ColumnNotFoundError, match="no column 'chosen_persona_right', which judge_personas makes"):
        table(measure_accuracy, frame)
    with pytest.raises(ColumnNotFoundError, match="'preferred_persona_margin', which compare_personas makes"):
        table(measure_preference, frame)


@pytest.mark.parametrize(
    ("outcomes", "what"),
    [
        ([{"name": "a"}], "has no verdicts"),
        ([{"name": "a", "quality": "v", "personalization": "v"}], "are the same column"),
        ([{"name": "a", "quality": "v"}, {"name": "a", "quality": "w"}], "two outcomes are called 'a'"),
    ],
)
def test_outcomes_that_say_nothing_are_refused(outcomes: list[Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        table(measure_wins, pl.DataFrame({"v": ["tie"], "w": ["tie"]}), outcomes=outcomes)
