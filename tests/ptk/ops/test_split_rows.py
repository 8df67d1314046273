from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ptk.operator import Stage
from ptk.ops import split_rows as module
from ptk.ops.split_rows import SplitRows, fitting, split_rows
from ptk.stages import run_stages

from .partitioned import run_partitioned

PAPER = {"few_shot": 5, "sft_train": 0.4, "sft_val": 0.1, "dpo_train": 0.4, "dpo_val": 0.1, "test": 100}
SHARES = {"train": 0.8, "val": 0.2}


def settings(**options: Any) -> SplitRows:
    return SplitRows.model_validate_json(json.dumps(options))


def corpus(prompts: int, most: int = 4, seed: int = 0) -> pl.DataFrame:
    """Return rows of which each prompt has 1 to `most`."""
    chance = random.Random(seed)
    rows = [(f"prompt {n}", f"s{n % 3}") for n in range(prompts) for _ in range(chance.randint(1, most))]
    chance.shuffle(rows)
    return pl.DataFrame(
        [(f"k{number:05}", *row) for number, row in enumerate(rows)], schema=["_key", "prompt", "source"], orient="row"
    )


def split(frame: pl.DataFrame, **options: Any) -> pl.DataFrame:
    return run_stages(split_rows, [frame.lazy()], settings(**options)).collect()


def parts_of(frame: pl.DataFrame, **options: Any) -> dict[str, str | None]:
    return dict(split(frame, **options).select("_key", "split").iter_rows())


def stand_in(clusters: list[list[str]]) -> Callable[..., tuple[Stage, ...]]:
    """Return a `cluster_stages` that finds the given clusters of keys."""
    names = {key: min(cluster) for cluster in clusters for key in cluster}

    def found(frame: pl.LazyFrame, params: SplitRows) -> pl.LazyFrame:
        named = frame.with_columns(_cluster=pl.col("_key").replace_strict(names, default=None, return_dtype=pl.String))
        return named.filter(pl.col("_cluster").is_not_null()).select("_row", "_cluster")

    return lambda on, **_: (Stage("clusters", "dataset", found, ("frame",), reads={"frame": on}),)


def test_no_prompt_is_in_two_parts_and_every_row_is_in_one() -> None:
    frame = corpus(2_000)
    found = frame.with_columns(split=split(frame, parts=PAPER).sort("_key")["split"].gather(frame["_key"].rank().cast(int) - 1))
    assert found.group_by("prompt").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(found["split"]) == set(PAPER)


def test_counts_are_exact_where_groups_fit() -> None:
    counted = Counter(parts_of(corpus(2_000), parts=PAPER).values())
    assert (counted["few_shot"], counted["test"]) == (5, 100)


def test_shares_are_of_what_the_counts_leave_and_lie_within_the_binomial_tolerance() -> None:
    frame = corpus(4_000, most=1)
    counted = Counter(parts_of(frame, parts=PAPER).values())
    rows = frame.height - 105
    for name in ("sft_train", "sft_val", "dpo_train", "dpo_val"):
        share = PAPER[name]
        assert abs(counted[name] - rows * share) < 4.5 * math.sqrt(rows * share * (1 - share))


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    frame = corpus(300)
    assert parts_of(frame, parts=SHARES) == parts_of(frame, parts=SHARES)
    assert parts_of(frame, parts=SHARES) != parts_of(frame, parts=SHARES, seed=1)
    assert parts_of(frame, parts={"test": 20}, rest="train") != parts_of(frame, parts={"test": 20}, rest="train", seed=1)


def test_added_rows_move_no_row_between_shares() -> None:
    frame = corpus(500)
    before = parts_of(frame.filter(pl.col("prompt").str.ends_with("7").not_()), parts=SHARES)
    after = parts_of(frame, parts=SHARES)
    assert {key: after[key] for key in before} == before and len(after) > len(before)


def test_a_larger_count_contains_the_smaller_where_groups_are_single_rows() -> None:
    frame = corpus(500, most=1)
    few, many = (
        {key for key, part in parts_of(frame, parts={"test": count}, rest="train").items() if part == "test"}
        for count in (20, 50)
    )
    assert few < many and (len(few), len(many)) == (20, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"parts": SHARES},
        {"parts": PAPER},
        {"parts": PAPER, "per": "source"},
        {"parts": PAPER, "near_duplicates": {}},
        {"parts": SHARES, "near_duplicates": {}, "disjoint_by": ["source", "prompt"]},
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_split_depends_neither_on_order_nor_on_partitions(
    options: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = corpus(200)
    keys = frame["_key"].to_list()
    monkeypatch.setattr(module, "cluster_stages", stand_in([keys[n : n + 3] for n in range(0, 90, 3)]))
    whole = split(frame, **options).sort("_key")
    parted = run_partitioned(split_rows, [frame], settings(**options), parts=4, seed=seed).sort("_key")
    assert parted.equals(whole)


def test_shares_by_columns_alone_need_no_other_rows() -> None:
    assert split_rows.scope(settings(parts=SHARES)) == "rows"
    assert split_rows.scope(settings(parts=PAPER)) == "dataset"


def test_a_share_is_the_same_whether_or_not_near_duplicates_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = corpus(200)
    monkeypatch.setattr(module, "cluster_stages", stand_in([]))
    assert parts_of(frame, parts=SHARES, near_duplicates={}) == parts_of(frame, parts=SHARES)


def test_groups_that_clusters_tie_together_through_others_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # Clusters tie a to b and c to d; the prompt ties b to c. e is tied to nothing.
    frame = pl.DataFrame({"_key": list("abcde"), "prompt": ["1", "2", "2", "3", "4"]})
    monkeypatch.setattr(module, "cluster_stages", stand_in([["a", "b"], ["c", "d"]]))
    apart = 0
    for seed in range(30):
        found = parts_of(frame, parts={"one": 0.5, "two": 0.5}, near_duplicates={}, seed=seed)
        assert len({found[key] for key in "abcd"}) == 1
        apart += found["e"] != found["a"]
    assert 0 < apart < 30


def test_near_duplicate_prompts_go_to_the_same_part() -> None:
    words = [f"w{n}" for n in range(40)]
    chance = random.Random(5)
    prompts = []
    for _ in range(60):
        base = chance.choices(words, k=30)
        prompts += [" ".join(base), " ".join([*base[:-1], "changed"])]
    frame = pl.DataFrame({"_key": [f"k{n:03}" for n in range(120)], "prompt": prompts})
    found = parts_of(frame, parts={"test": 20, "train": 0.5, "val": 0.5}, near_duplicates={"ngram": 3, "threshold": 0.7})
    assert all(found[f"k{n:03}"] == found[f"k{n + 1:03}"] for n in range(0, 120, 2))
    assert Counter(found.values())["test"] == 20
    without = parts_of(frame, parts={"train": 0.5, "val": 0.5})
    assert any(without[f"k{n:03}"] != without[f"k{n + 1:03}"] for n in range(0, 120, 2))


def test_a_group_that_does_not_fit_is_passed_over_and_never_broken() -> None:
    frame = pl.DataFrame({"_key": [f"k{n}" for n in range(12)], "prompt": ["big"] * 8 + ["one"] * 3 + ["two"]})
    for seed in range(10):
        found = parts_of(frame, parts={"test": 5}, rest="train", seed=seed)
        assert Counter(found.values()) == {"test": 4, "train": 8}
        assert {found[f"k{n}"] for n in range(8)} == {"train"}


def test_where_rows_are_too_few_the_smaller_counts_are_filled_first() -> None:
    counted = Counter(parts_of(corpus(30, most=1), parts={"a_test": 100, "few": 5, "train": 0.5}, rest="train2").values())
    assert counted == {"few": 5, "a_test": 25}


def test_per_takes_the_counts_for_each_value_of_a_column() -> None:
    frame = corpus(300, most=1)
    found = frame.join(split(frame, parts={"test": 7}, rest="train", per="source"), on="_key")
    counted = Counter(found.select("source", "split").iter_rows())
    assert {key: count for key, count in counted.items() if key[1] == "test"} == dict.fromkeys(
        [("s0", "test"), ("s1", "test"), ("s2", "test")], 7
    )


def test_rows_that_no_share_takes_are_rejected_or_are_the_rest() -> None:
    frame = corpus(400, most=1)
    rejected = split(frame, parts={"train": 0.3})
    assert set(rejected.select("split", "_reject").iter_rows()) == {("train", None), (None, "in_no_part")}
    named = split(frame, parts={"train": 0.3}, rest="others")
    assert named.columns == ["_key", "split"]
    assert named["split"].to_list() == rejected["split"].fill_null("others").to_list()


def test_nothing_is_left_where_the_shares_sum_to_one() -> None:
    tenths = {f"p{n}": 0.1 for n in range(10)}
    assert split(corpus(500), parts=tenths)["_reject"].null_count() == split(corpus(500), parts=tenths).height


def test_in_which_order_parts_are_written_does_not_matter() -> None:
    frame = corpus(300)
    assert parts_of(frame, parts=dict(reversed(PAPER.items()))) == parts_of(frame, parts=PAPER)


def test_turns_nulls_and_several_columns_make_groups() -> None:
    turns = [[{"role": "user", "content": "x"}], [{"role": "user", "content": "x"}], None, None, []]
    frame = pl.DataFrame({"_key": list("abcde"), "prompt": turns, "n": [1, 1, 2, 2, 2]})
    for seed in range(8):
        found = parts_of(frame, parts={"one": 0.5, "two": 0.5}, disjoint_by=["prompt", "n"], seed=seed)
        assert found["a"] == found["b"] and found["c"] == found["d"] and None not in found.values()


@pytest.mark.parametrize("parts", [SHARES, PAPER])
def test_no_rows_give_no_rows(parts: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cluster_stages", stand_in([]))
    for near in (None, {}):
        found = split(corpus(3).head(0), parts=parts, near_duplicates=near)
        assert found.height == 0 and found.schema["split"] == pl.String


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(0, 60))
def test_what_fits_is_what_a_loop_would_take(sizes: list[int], room: int) -> None:
    expected, left = [], room
    for place, size in enumerate(sizes):
        if size <= left:
            expected.append(place)
            left -= size
    assert fitting(np.array(sizes, dtype=np.int64), room).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {}}, "at least 1 item"),
        ({"parts": {"a": 0}}, "a count is at least 1"),
        ({"parts": {"a": 1.5}}, "a share is above 0 and at most 1"),
        ({"parts": {"a": 0.7, "b": 0.4}}, "the shares sum to 1.1, which is more than 1"),
        ({"parts": {"../a": 0.7}}, "is no name of a part"),
        ({"parts": {"a": 0.7}, "rest": "a"}, "'a' has a size already"),
        ({"parts": {"a": True}}, "valid integer"),
        ({"parts": {"a": 0.5}, "column": "_key"}, "names that begin with '_' are taken"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**options)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="there is no column 'promt'"):
        split(corpus(3), parts=SHARES, disjoint_by=["promt"])


def test_a_spec_splits_pairs(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    records = [{"prompt": f"Q{n // 2}?", "chosen": f"A{n}.", "rejected": f"B{n}."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: parts\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl}\n"
        "  parts: {op: split_rows, from: pairs, parts: {test: 6, train: 0.8, val: 0.1}}\n"
        "outputs:\n  small/parts: {from: parts}\n"
    )
    done = ptk("run", "spec.yaml")
    assert done.returncode == 0, done.stderr
    import ptk_catalog

    rows = ptk_catalog.open(tmp_path / "catalog" / "store").load("small/parts@v1").collect()
    assert Counter(rows["split"])["test"] == 6
    assert rows.group_by("prompt").agg(pl.col("split").n_unique())["split"].to_list() == [1] * rows["prompt"].n_unique()
    assert "in_no_part" in done.stdout + done.stderr
