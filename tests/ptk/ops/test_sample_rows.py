from __future__ import annotations

import polars as pl
import pytest

from ptk.ops.sample_rows import SampleRows, sample_rows

FRAME = pl.DataFrame({"_key": [f"key-{n}" for n in range(500)]})


def kept(frame: pl.DataFrame, n: int, seed: int = 0) -> list[str]:
    decision = sample_rows.function(frame.lazy(), SampleRows(n=n, seed=seed)).collect()
    assert decision["_key"].to_list() == frame["_key"].to_list()
    return decision.filter(pl.col("_reject").is_null())["_key"].to_list()


@pytest.mark.parametrize("n", [1, 7, 499])
def test_exactly_n_rows_stay(n: int) -> None:
    assert len(kept(FRAME, n)) == n


def test_all_rows_stay_where_there_are_fewer() -> None:
    assert kept(FRAME, 1_000) == FRAME["_key"].to_list()


def test_the_sample_does_not_depend_on_the_order_of_rows() -> None:
    assert sorted(kept(FRAME.sample(fraction=1, shuffle=True, seed=3), 50)) == sorted(kept(FRAME, 50))


def test_a_larger_sample_contains_the_smaller() -> None:
    assert set(kept(FRAME, 20)) < set(kept(FRAME, 40))


def test_another_seed_draws_other_rows() -> None:
    assert set(kept(FRAME, 50, seed=1)) != set(kept(FRAME, 50, seed=2))


def test_every_row_has_the_same_chance() -> None:
    drawn = [key for seed in range(200) for key in kept(FRAME, 50, seed)]
    counts = [drawn.count(key) for key in FRAME["_key"]]
    # 20 of 200 expected, standard deviation 4.2: more than that by six of them would be a fault of the lottery.
    assert min(counts) > 0 and max(counts) <= 46 and sum(counts) == 10_000


def test_rows_left_out_are_marked_as_not_sampled() -> None:
    decision = sample_rows.function(FRAME.lazy(), SampleRows(n=499)).collect()
    assert decision["_reject"].drop_nulls().to_list() == ["not_sampled"]
