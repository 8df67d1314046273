from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.sample_rows import SampleRows, sample_rows
from ptk.stages import run_stages

from .partitioned import run_partitioned

FRAME = pl.DataFrame({"_key": [f"key-{n}" for n in range(500)]})


def kept(frame: pl.DataFrame, n: int, seed: int = 0) -> list[str]:
    decision = run_stages(sample_rows, [frame.lazy()], SampleRows(n=n, seed=seed)).collect()
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
    decision = run_stages(sample_rows, [FRAME.lazy()], SampleRows(n=499)).collect()
    assert decision["_reject"].drop_nulls().to_list() == ["not_sampled"]


def test_a_share_of_the_rows_stays_and_each_is_drawn_by_itself() -> None:
    def kept_share(frame: pl.DataFrame, share: float) -> list[str]:
        decision = run_stages(sample_rows, [frame.lazy()], SampleRows(share=share)).collect()
        return decision.filter(pl.col("_reject").is_null())["_key"].to_list()

    whole = kept_share(FRAME, 0.3)
    # 150 expected, standard deviation 10.
    assert 100 < len(whole) < 200
    assert kept_share(FRAME[:200], 0.3) + kept_share(FRAME[200:], 0.3) == whole
    assert set(whole) < set(kept_share(FRAME, 0.6))
    assert kept_share(FRAME, 1.0) == FRAME["_key"].to_list()


def test_n_rows_of_every_group_stay() -> None:
    frame = FRAME.with_columns(source=pl.Series(["a"] * 300 + ["b"] * 198 + [None, None]))
    decision = run_stages(sample_rows, [frame.lazy()], SampleRows(n=5, per=("source",))).collect()
    kept_rows = frame.filter(decision["_reject"].is_null())
    assert kept_rows["source"].value_counts().sort("source").rows() == [(None, 2), ("a", 5), ("b", 5)]
    assert decision["_key"].to_list() == frame["_key"].to_list()


def test_a_group_is_drawn_from_alone() -> None:
    frame = FRAME.with_columns(source=pl.Series(["a"] * 300 + ["b"] * 200))
    decision = run_stages(sample_rows, [frame.lazy()], SampleRows(n=5, per=("source",))).collect()
    of_b = decision[300:].filter(pl.col("_reject").is_null())["_key"].to_list()
    assert of_b == kept(FRAME[300:], 5)


@pytest.mark.parametrize(
    "settings", [{}, {"n": 1, "share": 0.5}, {"share": 0.0}, {"share": 1.5}, {"share": 0.5, "per": ("x",)}]
)
def test_either_a_number_or_a_share_is_asked_for(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SampleRows(**settings)  # type: ignore[arg-type]


def test_the_sample_of_a_number_is_the_one_of_former_versions() -> None:
    assert kept(FRAME, 3, seed=7) == ["key-82", "key-199", "key-211"]


@pytest.mark.parametrize("settings", [{"n": 50}, {"share": 0.2}, {"n": 3, "per": ("source",)}])
def test_the_sample_is_the_same_in_parts(settings: dict[str, object]) -> None:
    frame = FRAME.with_columns(source=pl.int_range(pl.len()) % 11)
    params = SampleRows(**settings)  # type: ignore[arg-type]
    whole = run_stages(sample_rows, [frame.lazy()], params).collect().sort("_key")
    for parts in (1, 4):
        assert run_partitioned(sample_rows, [frame], params, parts).sort("_key").equals(whole)
