from __future__ import annotations

import polars as pl

from ptk.ops.mismatch_personas import MismatchPersonas, mismatch_personas
from ptk.stages import run_stages

from .partitioned import run_partitioned

FRAME = pl.DataFrame(
    {
        "_key": [f"key-{n}" for n in range(400)],
        "chosen_persona": [f"chosen {n}" for n in range(400)],
        "rejected_persona": [f"rejected {n}" for n in range(400)],
    }
)
NEW = ("other_chosen_persona", "other_rejected_persona")


def given(frame: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    return run_stages(mismatch_personas, [frame.lazy()], MismatchPersonas(seed=seed)).collect()


def test_every_row_gets_two_personas_of_other_rows() -> None:
    made = given(FRAME)
    assert made["_key"].to_list() == FRAME["_key"].to_list()
    assert made["_reject"].null_count() == made.height
    for number, (first, second) in enumerate(made.select(NEW).iter_rows()):
        donors = {int(text.split()[1]) for text in (first, second)}
        assert len(donors) == 2
        assert number not in donors


def test_every_row_gives_one_persona_to_each_side_and_the_sides_are_drawn() -> None:
    made = given(FRAME)
    for column in NEW:
        assert sorted(int(text.split()[1]) for text in made[column]) == list(range(400))
        chosen = made[column].str.starts_with("chosen").sum()
        assert 160 < chosen < 240  # 4 standard errors around the half


def test_what_a_row_gets_does_not_depend_on_the_order_of_rows() -> None:
    shuffled = FRAME.sample(fraction=1, shuffle=True, seed=3)
    assert given(shuffled).sort("_key").equals(given(FRAME).sort("_key"))
    assert not given(FRAME, seed=1).equals(given(FRAME))


def test_two_rows_are_too_few() -> None:
    assert given(FRAME.head(2))["_reject"].to_list() == ["too_few_rows"] * 2
    assert given(FRAME.head(3))["_reject"].to_list() == [None] * 3


def test_no_rows_give_the_columns() -> None:
    assert given(FRAME.head(0)).schema == given(FRAME).schema


def test_a_row_that_gives_no_persona_leaves_another_without() -> None:
    holed = FRAME.with_columns(chosen_persona=pl.when(pl.col("_key") == "key-5").then(None).otherwise("chosen_persona"))
    made = given(holed)
    assert made.height == 400
    assert made.select(pl.col(NEW).null_count().sum()).row(0)[0] <= 1


def test_partitions_give_the_same() -> None:
    whole = given(FRAME).sort("_key")
    parted = run_partitioned(mismatch_personas, [FRAME], MismatchPersonas())
    assert parted.sort("_key").select(whole.columns).equals(whole)
