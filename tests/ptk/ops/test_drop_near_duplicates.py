from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ptk.engines.engine import Engine, Input
from ptk.engines.polars import PolarsEngine
from ptk.ops.drop_near_duplicates import DropNearDuplicates, Preference, drop_near_duplicates
from ptk.ops.near_duplicates import cluster_stages
from ptk.plan import Node
from ptk.spec import Step
from ptk.stages import run_stages
from ptk.work import Rows
from ptk_kernels import minhash, sets

from .partitioned import run_partitioned

BASE = [f"word{number}" for number in range(40)]


def decided(frame: pl.DataFrame, engine: str = "streaming", **options: Any) -> pl.DataFrame:
    params = DropNearDuplicates(**{"on": ("text",), **options})
    decision = run_stages(drop_near_duplicates, [frame.lazy()], params).collect(engine=engine)  # type: ignore[call-overload]
    assert decision["_key"].sort().to_list() == frame["_key"].sort().to_list()
    return decision.sort("_key")


def dropped(frame: pl.DataFrame, **options: Any) -> dict[str, str]:
    """Return for each rejected row the row that stays."""
    rejected = decided(frame, **options).drop_nulls("_reject")
    assert set(rejected["_reject"]) <= {"near_duplicate"}
    return {key: detail.removeprefix("near-duplicate of ") for key, detail in rejected.select("_key", "_detail").iter_rows()}


def changed(*places: int, words: list[str] = BASE) -> str:
    """Return a text whose words at these places are others."""
    return " ".join(f"other{place}" if place in places else word for place, word in enumerate(words))


def texts(*rows: str | None) -> pl.DataFrame:
    return pl.DataFrame(
        {"_key": [f"k{number}" for number in range(len(rows))], "text": rows}, schema={"_key": pl.String, "text": pl.String}
    )


def slow(frame: pl.DataFrame, threshold: float, ngram: int) -> dict[str, str]:
    """Return what is dropped, by comparing all with all."""

    def grams(text: str | None) -> set[tuple[str, ...]]:
        words = re.findall("[a-z0-9]+", (text or "").lower())
        size = min(ngram, len(words))
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if size else set()

    sets = {key: grams(text) for key, text in frame.select("_key", "text").iter_rows()}
    root = {key: key for key in sets}
    for _ in sets:
        for left, right in combinations(sets, 2):
            either = sets[left] | sets[right]
            if either and len(sets[left] & sets[right]) / len(either) >= threshold:
                root[left] = root[right] = min(root[left], root[right])
    return {key: best for key, best in root.items() if key != best}


def test_of_near_duplicates_the_smallest_key_stays() -> None:
    frame = texts(changed(3), changed(), "something else altogether", changed(38))
    assert decided(frame).to_dict(as_series=False) == {
        "_key": ["k0", "k1", "k2", "k3"],
        "_reject": [None, "near_duplicate", None, "near_duplicate"],
        "_detail": [None, "near-duplicate of k0", None, "near-duplicate of k0"],
    }


def test_texts_that_are_less_alike_than_the_threshold_stay() -> None:
    # Of 36 n-grams each, 31 are shared: 31 / 41.
    frame = texts(changed(), changed(20))
    assert dropped(frame, threshold=31 / 41, permutations=1024) == {"k1": "k0"}
    assert dropped(frame, threshold=31 / 41 + 1e-9, permutations=1024) == {}


def test_a_chain_of_near_duplicates_is_one_cluster() -> None:
    # The first and the last share less than the threshold asks for.
    frame = texts(changed(), changed(0, 1), changed(0, 1, 38, 39))
    assert dropped(frame, threshold=0.85, permutations=1024) == {"k1": "k0", "k2": "k0"}
    assert dropped(frame[[0, 2]], threshold=0.85, permutations=1024) == {}


def test_texts_without_words_are_nobodys_duplicates() -> None:
    assert dropped(texts(None, None, "", "", " ...", " ...", "a", "A!")) == {"k7": "k6"}


def test_short_texts_are_compared_whole() -> None:
    assert dropped(texts("yes it is", "Yes. It is.", "yes it was", "it is")) == {"k1": "k0"}


def test_turns_are_compared_by_their_contents() -> None:
    turns = [[{"role": role, "content": text}] for role, text in (("user", changed()), ("system", changed(3)), ("user", "x"))]
    frame = pl.DataFrame({"_key": ["a", "b", "c"], "text": turns})
    assert dropped(frame) == {"b": "a"}
    empty = pl.DataFrame({"_key": ["a", "b"], "text": [[], []]}, schema={"_key": pl.String, "text": frame.schema["text"]})
    assert dropped(empty) == {}


def test_several_columns_are_compared_together() -> None:
    frame = pl.DataFrame(
        {"_key": ["a", "b", "c", "d"], "text": ["x", "x", None, None], "more": [changed(), changed(2), changed(4), None]}
    )
    assert dropped(frame, on=("text", "more")) == {"b": "a", "c": "a"}
    assert dropped(frame, on=("text",)) == {"b": "a"}


@pytest.mark.parametrize(
    ("keep", "best"),
    [
        ([("score", "desc")], "k3"),
        ([("score", "asc")], "k0"),
        ([("label", "asc")], "k2"),
        ([("label", "desc"), ("score", "desc")], "k3"),
        ([("label", "desc"), ("score", "asc")], "k0"),
    ],
)
def test_the_best_by_the_declared_order_stays(keep: list[tuple[str, str]], best: str) -> None:
    frame = texts(*(changed(place) for place in (1, 2, 3, 4, 5))).with_columns(
        score=pl.Series([0.5, float("nan"), 1.0, 7.0, None]), label=pl.Series(["z", "z", "a", "z", None])
    )
    orders = tuple(Preference(column=column, order=order) for column, order in keep)  # type: ignore[arg-type]
    assert dropped(frame, keep=orders) == {key: best for key in frame["_key"] if key != best}


def test_clusters_are_written_on_demand() -> None:
    frame = texts(changed(3), "alone", changed(), changed(words=BASE[::-1]), changed(5, words=BASE[::-1]))
    assert decided(frame, cluster="family")["family"].to_list() == ["k0", None, "k0", "k3", "k3"]


def test_no_rows_give_a_decision_with_the_same_columns() -> None:
    order = (Preference(column="score", order="asc"),)
    frame = texts().with_columns(score=pl.Series([], dtype=pl.Int64))
    decision = decided(frame, cluster="family", keep=order)
    assert decision.schema == {"_key": pl.String, "_reject": pl.String, "_detail": pl.String, "family": pl.String}
    assert decision.height == 0


def test_settings_that_do_not_fit_the_columns_are_refused_before_any_row_is_read() -> None:
    frame = texts().with_columns(number=pl.lit(1), tags=pl.lit([""]))
    with pytest.raises(TypeError, match="column 'number' is Int32, neither text nor a list of turns"):
        decided(frame, on=("number",))
    with pytest.raises(TypeError, match="rows can't be preferred by column 'tags'"):
        decided(frame, keep=(Preference(column="tags", order="asc"),))
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="scores"):
        decided(frame, keep=(Preference(column="scores", order="asc"),))
    with pytest.raises(ValidationError, match="names that begin with '_' are ptk's"):
        DropNearDuplicates(on=("text",), cluster="_key")


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "Ärger", "我"]), max_size=9).map(" ".join)
SMALL = st.lists(st.none() | WORDS, max_size=25)


@settings(deadline=None, max_examples=60)
@given(SMALL, st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(1, 4), st.randoms(use_true_random=False))
def test_what_stays_depends_neither_on_order_nor_on_parts(
    rows: list[str | None], threshold: float, ngram: int, chance: random.Random
) -> None:
    frame = texts(*rows)
    options = {"threshold": threshold, "ngram": ngram, "cluster": "family", "permutations": 64}
    whole = decided(frame, **options)
    order = list(range(frame.height))
    chance.shuffle(order)
    assert decided(frame[order], **options).equals(whole)
    assert decided(frame, engine="in-memory", **options).equals(whole)
    params = DropNearDuplicates(on=("text",), **options)  # type: ignore[arg-type]
    for parts in (1, 3, 7):
        assert run_partitioned(drop_near_duplicates, [frame], params, parts, chance.randrange(99)).sort("_key").equals(whole)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.lists(st.sampled_from(["red", "green", "Blue"]), max_size=9).map(" ".join), max_size=16))
def test_what_is_dropped_is_what_comparing_all_with_all_drops(rows: list[str | None]) -> None:
    frame = texts(*rows)
    # One row a band, so many that no pair at the threshold is missed.
    assert dropped(frame, threshold=0.4, ngram=2, permutations=1024) == slow(frame, 0.4, 2)


def family(size: int, seed: int = 0) -> pl.DataFrame:
    """Return variants of one text, each with two other words of its own."""
    chance = random.Random(seed)
    rows = []
    for number in range(size):
        words = [f"word{place}" for place in range(200)]
        words[chance.randrange(200)] = f"own{number}"
        words[chance.randrange(200)] = f"mine{number}"
        rows.append(" ".join(words))
    return texts(*rows)


def test_a_large_family_is_one_cluster() -> None:
    frame = family(3_000)
    whole = decided(frame)
    assert whole["_reject"].null_count() == 1
    params = DropNearDuplicates(on=("text",))
    assert decided(frame.sample(fraction=1, shuffle=True, seed=2)).equals(whole)
    assert run_partitioned(drop_near_duplicates, [frame], params, 4).sort("_key").equals(whole)


def test_equal_texts_need_no_comparison_with_each_other() -> None:
    frame = texts(*["the same text again and again"] * 20_000, "The same text, again and again", "another text")
    assert len(dropped(frame)) == 20_000
    given = {"frame": frame.lazy().with_row_index("_row").with_columns(pl.col("_row").cast(pl.UInt64))}
    for stage in cluster_stages("text"):
        given[stage.name] = stage.function(*(given[name] for name in stage.inputs), params=None)
    assert given["candidates"].select(pl.len()).collect().item() == 20_000
    assert given["wanted"].select(pl.col("_set").list.len().sum()).collect().item() == 0


def test_every_text_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: dict[str, int] = {"buckets": 0, "sets": 0}

    def counted(name: str, function: Any) -> Any:
        def call(texts: pl.Series, *rest: Any) -> Any:
            hashed[name] += len(texts)
            return function(texts, *rest)

        return call

    monkeypatch.setattr(minhash, "band_hashes", counted("buckets", minhash.band_hashes))
    monkeypatch.setattr(sets, "shingle_sets", counted("sets", sets.shingle_sets))
    frame = texts(*(changed(place) for place in (1, 2)), *(f"text {number} alone" for number in range(500)))
    assert dropped(frame) == {"k1": "k0"}
    assert hashed == {"buckets": 502, "sets": 2}


def test_planning_needs_no_kernel() -> None:
    script = """
import sys
import polars as pl
from ptk.ops.decontaminate import Decontaminate, decontaminate
from ptk.ops.drop_near_duplicates import DropNearDuplicates, drop_near_duplicates
from ptk.stages import run_stages
empty = pl.LazyFrame(schema={"_key": pl.String, "text": pl.String})
run_stages(drop_near_duplicates, [empty], DropNearDuplicates(on=("text",))).collect()
run_stages(decontaminate, [empty, empty], Decontaminate(on=("text",))).collect()
assert "numba" not in sys.modules and "scipy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_stages_of_two_searches_have_different_names() -> None:
    first, second = cluster_stages("text", prefix="a_"), cluster_stages("text", prefix="b_", frame="other")
    assert not {stage.name for stage in first} & {stage.name for stage in second}
    assert (first[-1].name, second[-1].name) == ("a_clusters", "b_clusters")
    assert second[0].inputs == ("other",) and second[-1].inputs == ("b_verified", "other")


@pytest.fixture(params=["buckets", "dask"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "buckets":
        yield PolarsEngine(bucket_rows=60)
        return
    from distributed import LocalCluster

    from ptk.engines.dask import DaskEngine

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        made = DaskEngine(tmp_path, scheduler=cluster.scheduler_address, partitions=3)
        yield made
        made.close()


def test_engines_that_run_the_stages_apart_decide_the_same(engine: Engine, tmp_path: Path) -> None:
    chance = random.Random(8)
    rows = [changed(words=chance.sample(BASE, 40)) for _ in range(100)]
    frame = texts(*rows, *rows[:20], *(changed(chance.randrange(40), words=row.split()) for row in rows[10:60]), None, "")
    frame = frame.sample(fraction=1, shuffle=True, seed=4)
    params = DropNearDuplicates(on=("text",), threshold=0.6, cluster="family")
    expected = decided(frame, threshold=0.6, cluster="family")
    assert 60 <= expected["_reject"].count() <= 70

    (tmp_path / "rows").mkdir()
    for number, part in enumerate(frame.iter_slices(50)):
        part.rename({"_key": "id"}).write_parquet(tmp_path / "rows" / f"part-{number}.parquet")
    files = tuple(sorted(map(str, (tmp_path / "rows").glob("*.parquet"))))
    step = Step("near", drop_near_duplicates, {"frame": "rows"}, params, {}, "near")
    schema = pl.Schema({"id": pl.String, "text": pl.String, "family": pl.String})
    node = Node(step, "0" * 40, "id", schema, None, None, None, "new")
    engine.decide(node, [Input(Rows(files), "id", frame.height)], tmp_path / "out")
    decisions = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "out" / "decisions").glob("*.parquet")))
    columns = ["_reject", "_detail", "family"]
    assert decisions.select(columns).equals(frame.select("_key").join(expected, on="_key", how="left").select(columns))
