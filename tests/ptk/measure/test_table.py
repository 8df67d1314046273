from __future__ import annotations

import random

import polars as pl
import pytest

from ptk.measure.measure_wins import measure_wins
from ptk.measure.significance import adjusted

from .tables import rows, table

ONE = [{"name": "all", "quality": "verdict"}]


def verdicts(count: int, seed: int = 0) -> pl.DataFrame:
    chance = random.Random(seed)
    return pl.DataFrame(
        {
            "_key": [str(number) for number in range(count)],
            "verdict": chance.choices(["first", "second", "tie", None], [5, 3, 2, 1], k=count),
            "prompt": [f"p{chance.randrange(count // 3)}" for _ in range(count)],
            "model": chance.choices(["m1", "m2/x"], k=count),
            "domain": chance.choices(["a", "b", None], k=count),
        }
    )


def test_a_table_has_every_group_and_every_combination() -> None:
    found = table(measure_wins, verdicts(120), outcomes=ONE, by=["model", "domain"], rounds=0)
    assert found.columns == [
        *("name", "measure", "about", "model", "domain"),
        *("value", "low", "high", "standard_error", "p_value", "p_adjusted", "n"),
    ]
    wins = found.filter(pl.col("measure") == "wins")
    assert sorted(wins.select("model", "domain").iter_rows(), key=str) == sorted(
        [(m, d) for m in ("m1", "m2/x", None) for d in ("a", "b", "(none)", None)], key=str
    )
    assert "wins/all%2Fquality/model=m2%2Fx/domain=(none)" in set(found["name"])
    assert found["name"].n_unique() == found.height


def test_a_group_is_measured_as_if_it_were_alone() -> None:
    frame = verdicts(200)
    found = rows(measure_wins, frame, outcomes=ONE, by=["model", "domain"], rounds=100)
    alone = rows(measure_wins, frame.filter(pl.col("model") == "m1", pl.col("domain") == "a"), outcomes=ONE, rounds=100)
    for name, line in alone.items():
        same = found[f"{name}/model=m1/domain=a"]
        assert {key: same[key] for key in ("value", "low", "high", "standard_error", "p_value", "n")} == {
            key: line[key] for key in ("value", "low", "high", "standard_error", "p_value", "n")
        }


def test_a_table_depends_neither_on_order_nor_on_parts() -> None:
    frame = verdicts(300)
    whole = table(measure_wins, frame, outcomes=ONE, by=["model"], rounds=200, interval="bca")
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    parts = pl.concat([shuffled.head(90), shuffled.slice(90)], rechunk=False)
    assert table(measure_wins, parts, outcomes=ONE, by=["model"], rounds=200, interval="bca").equals(whole)
    assert not table(measure_wins, parts, outcomes=ONE, by=["model"], rounds=200, interval="bca", seed=1).equals(whole)


def test_probabilities_are_adjusted_within_a_measure() -> None:
    found = table(measure_wins, verdicts(200), outcomes=ONE, by=["model", "domain"], rounds=0)
    tested = found.filter(pl.col("p_value").is_not_null())
    assert set(tested["measure"]) == {"win_rate"}
    assert tested["p_adjusted"].to_list() == pytest.approx(adjusted(tested["p_value"].to_list()))


def test_clusters_are_prompts_or_what_is_named_or_rows() -> None:
    frame = verdicts(120)
    name = "win_rate/all%2Fquality"
    by_prompt = rows(measure_wins, frame, outcomes=ONE)[name]
    assert by_prompt == rows(measure_wins, frame, outcomes=ONE, cluster=["prompt"])[name]
    alone = rows(measure_wins, frame.drop("prompt"), outcomes=ONE)[name]
    assert alone == rows(measure_wins, frame, outcomes=ONE, cluster=["_key"])[name]
    assert alone["value"] == by_prompt["value"] and alone["standard_error"] != by_prompt["standard_error"]


def test_no_rows_are_no_measures() -> None:
    found = rows(measure_wins, verdicts(3).clear(), outcomes=ONE, by=["model"])
    assert {(line["value"], line["n"]) for name, line in found.items() if not name.startswith("unknown")} == {(None, 0)}


def test_a_column_of_the_table_can_not_be_grouped_by() -> None:
    frame = verdicts(12).rename({"model": "value"})
    with pytest.raises(ValueError, match="'value' can't be a column to group by"):
        table(measure_wins, frame, outcomes=ONE, by=["value"])
