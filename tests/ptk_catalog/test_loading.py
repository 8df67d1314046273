"""Loading in every form: the same rows each time, and no more read than is asked for."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ptk_catalog
from ptk_catalog import BadData, Catalog, Dataset
from ptk_catalog.conditions import Condition, matching_parts, parse_where

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
ROWS = pl.DataFrame(
    {
        "pair_id": [f"p{n:02}" for n in range(20)],
        "prompt": [[{"role": "user", "content": f"Why {n}?"}] for n in range(20)],
        "score": [None if n % 7 == 3 else n / 2 for n in range(20)],
        "split": ["train"] * 12 + ["test"] * 8,
    },
    schema_overrides={"prompt": TURNS},
)
PERSONAS = ROWS.select("pair_id", persona=pl.format("likes {}", "pair_id")).filter(pl.col("pair_id") != "p05")
WHOLE = ROWS.join(PERSONAS, on="pair_id", how="inner", maintain_order="left")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Twenty rows less one in two column groups and a mask, in five parts."""
    monkeypatch.setattr("ptk_catalog.parts.ROWS_PER_PART", 4)
    monkeypatch.setattr("ptk_catalog.dataset._STREAMED", 3)
    catalog = ptk_catalog.open(tmp_path / "store")
    catalog.commit("pairs", ROWS, key="pair_id")
    catalog.commit("personas", PERSONAS.reverse(), base="pairs")
    return catalog.load("personas", verify=True)


def as_polars(frame: Any) -> pl.DataFrame:
    return pl.DataFrame(pl.from_pandas(frame)).select(WHOLE.columns)


FORMS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "scan": lambda data, **given: data.scan(**given).collect().to_dicts(),
    "collect": lambda data, **given: data.collect(**given).to_dicts(),
    "dask": lambda data, **given: pl.DataFrame(
        pl.from_arrow(__import__("pyarrow").Table.from_pandas(data.to_dask(**given).compute(), preserve_index=False))
    ).to_dicts(),
    "datasets": lambda data, **given: data.to_datasets(**given).to_list(),
    "stream": lambda data, **given: list(data.to_datasets(streaming=True, **given)),
    "torch": lambda data, **given: list(data.to_torch(**given)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_kept_rows_in_order(data: Dataset, form: str) -> None:
    assert FORMS[form](data) == WHOLE.to_dicts()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "where", [[("score", ">=", 6.0), ("split", "==", "test")], (pl.col("score") >= 6.0) & (pl.col("split") == "test")], ids=str
)
def test_every_form_takes_columns_and_conditions(data: Dataset, form: str, where: Any) -> None:
    expected = WHOLE.filter((pl.col("score") >= 6.0) & (pl.col("split") == "test")).select("persona", "pair_id")
    assert expected.height == 7
    assert FORMS[form](data, columns=["persona", "pair_id"], where=where) == expected.to_dicts()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_find_no_rows(data: Dataset, form: str) -> None:
    assert FORMS[form](data, columns=["persona"], where=[("score", ">", 1e9)]) == []


def test_parts_that_can_not_match_are_not_opened(data: Dataset, tmp_path: Path) -> None:
    kept = {part.path for group in data.manifest.groups for part in group.parts[3:4]}
    for group in data.manifest.groups:
        for part in group.parts:
            if part.path not in kept:
                (tmp_path / "store" / part.path).write_bytes(b"not Parquet")
    where = [("pair_id", "in", ["p12", "p14"])]
    assert data.collect(["persona"], where).to_series().to_list() == ["likes p12", "likes p14"]
    assert data.to_dask(["persona"], where).npartitions == 1
    assert data.collect(["persona"], pl.col("pair_id") == "p13")["persona"].to_list() == ["likes p13"]


def test_files_of_columns_that_are_not_asked_for_are_not_opened(data: Dataset, tmp_path: Path) -> None:
    for part in data.manifest.groups[0].parts:
        (tmp_path / "store" / part.path).write_bytes(b"not Parquet")
    assert data.collect(["persona"])["persona"].to_list() == WHOLE["persona"].to_list()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([("scor", ">", 1)], "names 'scor', and there is no such column; there is pair_id"),
        ([("score", "~", 1)], "'~' is no operator"),
        ([("score", "==", None)], r"use pl.col\('score'\).is_null\(\)"),
        ([("score", 1)], "is no condition"),
        ([("split", "in", "train")], "`in` takes a list"),
        ([], "has no condition"),
        (pl.col("x") > 1, "names 'x'"),
    ],
)
def test_conditions_that_say_nothing_are_refused(data: Dataset, where: Any, message: str) -> None:
    with pytest.raises(BadData, match=message):
        data.scan(where=where)


@pytest.mark.parametrize("columns", [["nope"], [], "persona"])
def test_columns_that_are_not_there_are_refused(data: Dataset, columns: Any) -> None:
    with pytest.raises(BadData):
        data.scan(columns)


VALUES = {
    pl.Int8(): st.integers(-128, 127),
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.UInt64(): st.integers(0, 2**64 - 1),
    pl.Float32(): st.floats(width=32),
    pl.Float64(): st.floats(),
    pl.Boolean(): st.booleans(),
    pl.String(): st.text(max_size=3),
}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(list(VALUES)).flatmap(
        lambda dtype: st.tuples(
            st.just(dtype),
            st.lists(st.lists(st.none() | VALUES[dtype], min_size=1, max_size=4), min_size=1, max_size=4),
            st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
            VALUES[dtype] | (st.integers(-3, 300) if dtype.is_numeric() else VALUES[dtype]),
        )
    )
)
def test_no_part_that_holds_a_matching_row_is_ever_pruned(drawn: tuple[pl.DataType, list[list[Any]], str, Any]) -> None:
    from ptk_catalog.digest import type_name
    from ptk_catalog.manifest import ColumnInfo, Group, Manifest, Part
    from ptk_catalog.parts import _statistics

    dtype, parts, operator, value = drawn
    frames = [pl.DataFrame({"x": part}, schema={"x": dtype}) for part in parts]
    # As a manifest is read back from JSON.
    stored = Manifest.model_validate_json(
        Manifest(
            entry="e",
            digest="",
            key=(),
            rows=0,
            columns=(ColumnInfo(name="x", type=type_name(dtype), sum=""),),
            groups=(
                Group(
                    columns=("x",),
                    parts=tuple(Part(path="", rows=frame.height, bytes=0, statistics=_statistics(frame)) for frame in frames),
                ),
            ),
            created_at="",
            created_by="",
        ).as_bytes()
    )
    condition = Condition("x", operator, value)
    expression, found = parse_where(condition.expression(), ["x"])
    assert [(one.operator, one.value) for one in found] in (
        [],
        [(operator, value)],
    ) or (isinstance(value, float) and math.isnan(value))
    for conditions in ([condition], found):
        may = matching_parts(stored, conditions)
        for number, frame in enumerate(frames):
            matches = frame.filter(expression).height
            assert number in may or matches == 0


def test_plain_comparisons_in_an_expression_are_recognised() -> None:
    expression = (
        (pl.col("a") > 3) & (pl.lit("x") == pl.col("b")) & ((pl.col("c") < 1) | (pl.col("d") == 2)) & (pl.col("e") <= 5)
    )
    found = parse_where(expression, "abcde")[1]
    assert {(one.column, one.operator, one.value) for one in found} == {("a", ">", 3), ("b", "==", "x"), ("e", "<=", 5)}


def test_the_files_of_a_plain_version_are_its_rows(data: Dataset, tmp_path: Path) -> None:
    files = ptk_catalog.open(tmp_path / "store").load("pairs").files()
    assert pl.read_parquet(files, glob=False).equals(ROWS)
    with pytest.raises(BadData, match="ptk catalog export personas@v1"):
        data.files()


def test_a_version_without_a_column_of_its_files_is_not_files(tmp_path: Path) -> None:
    catalog = ptk_catalog.open(tmp_path / "s")
    catalog.commit("pairs", ROWS, key="pair_id")
    catalog.commit("less", ROWS.select("pair_id"), base="pairs", drop=["prompt", "score"])
    assert catalog.load("less").collect().equals(ROWS.select("pair_id", "split"))
    catalog.verify("less")
    with pytest.raises(BadData, match="shares files"):
        catalog.load("less").files()
    for name in ("pair_id", "nope"):
        with pytest.raises(BadData, match=f"can't drop '{name}'"):
            catalog.commit("less", ROWS.select("pair_id"), base="pairs", drop=[name])


# Shared out


@pytest.mark.parametrize("where", [None, [("score", ">=", 3.0)]])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 2), (3, 2), (7, 0), (40, 0)])
def test_every_row_goes_to_one_rank_and_worker(data: Dataset, ranks: int, workers: int, where: Any) -> None:
    from torch.utils.data import DataLoader

    seen = []
    for rank in range(ranks):
        rows = data.to_torch(["pair_id"], where, rank=rank, world_size=ranks)
        seen += [row["pair_id"] for row in DataLoader(rows, batch_size=None, num_workers=workers)]
    expected = WHOLE if where is None else WHOLE.filter(pl.col("score") >= 3.0)
    assert sorted(seen) == expected["pair_id"].to_list()


def test_the_rank_comes_from_the_environment(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seen.append([row["pair_id"] for row in data.to_torch()])
    assert [*seen[0], *seen[1]] == WHOLE["pair_id"].to_list()
    assert 0 < len(seen[0]) < WHOLE.height
    with pytest.raises(BadData, match="give both"):
        data.to_torch(rank=0)


def test_a_stream_is_shared_out_among_nodes(data: Dataset) -> None:
    from datasets.distributed import split_dataset_by_node

    stream = data.to_datasets(streaming=True)
    assert stream.num_shards == 7
    seen = [row["pair_id"] for rank in (0, 1) for row in split_dataset_by_node(stream, rank, 2)]
    assert sorted(seen) == WHOLE["pair_id"].to_list()
    assert stream.features["prompt"] == data.to_datasets().features["prompt"]


def test_a_hugging_face_dataset_is_memory_mapped_and_written_once(data: Dataset, tmp_path: Path) -> None:
    loaded = data.to_datasets(cache=tmp_path / "arrow")
    (file,) = (tmp_path / "arrow").iterdir()
    assert loaded.cache_files == [{"filename": str(file)}]
    written = file.stat().st_mtime_ns
    assert data.to_datasets(cache=tmp_path / "arrow").to_list() == loaded.to_list()
    assert file.stat().st_mtime_ns == written
    assert str(loaded.features["prompt"]) == "List({'role': Value('string'), 'content': Value('string')})"
    assert loaded.column_names == WHOLE.columns


def test_a_dataset_can_be_sent_to_another_process(data: Dataset) -> None:
    assert pickle.loads(pickle.dumps(data)).collect().equals(WHOLE)


def test_reading_needs_no_right_to_write(data: Dataset, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere; see the test with a user of its own")
    for path in (tmp_path / "store").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert data.collect().equals(WHOLE)


# As of a date


@pytest.fixture
def dated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """Three versions: of 1 November at 23:59, of 2 November at 00:00, and of 3 November at noon, UTC."""
    catalog = ptk_catalog.open(tmp_path / "dated")
    for number, now in enumerate(["2026-11-01T23:59:59.999", "2026-11-02T00:00:00.000", "2026-11-03T12:00:00.000"]):
        monkeypatch.setattr("ptk_catalog.registry._now", lambda now=now: f"{now}+00:00")
        catalog.commit("a", pl.DataFrame({"k": [number]}), key="k")
    return catalog


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("2026-11-01", 1),
        ("2026-11-02", 2),
        ("2026-11-03", 3),
        ("2027-01-01", 3),
        ("2026-11-02T00:00:00", 2),
        ("2026-11-02T00:00:00+01:00", None),
        ("2026-11-03T11:59:59Z", 2),
        ("2026-11-03T13:00:00+01:00", 3),
        ("2026-10-31", None),
    ],
)
def test_a_date_means_its_end_and_a_moment_itself(dated: Catalog, moment: str, number: int | None) -> None:
    if number is None:
        with pytest.raises(ptk_catalog.NotFound, match=r"had no version yet at 2026-1.*; its first is of 2026-11-01T23"):
            dated.load(f"a@{moment}")
    else:
        assert dated.load(f"a@{moment}").version.number == number


@pytest.mark.parametrize("moment", ["2026-13-01", "2026-11-01Tnoon", "2026-11-01T25:00"])
def test_a_moment_that_is_none_is_refused(dated: Catalog, moment: str) -> None:
    with pytest.raises(ptk_catalog.BadReference, match="a time is written 2026-11-01"):
        dated.version(f"a@{moment}")


def test_later_versions_are_never_earlier(dated: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptk_catalog.registry._now", lambda: "2020-01-01T00:00:00.000+00:00")
    assert dated.commit("a", pl.DataFrame({"k": [9]}), key="k").created_at == "2026-11-03T12:00:00.000+00:00"
