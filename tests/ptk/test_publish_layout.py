"""Configurations, splits and shards of a publication."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from ptk.errors import PublishError
from ptk.publish import layout
from ptk.publish.layout import SHARD, configurations, write_config

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs(count: int, **more: list[object]) -> pl.DataFrame:
    rows = range(count)
    return pl.DataFrame(
        {
            "pair_id": [f"p{n:05d}" for n in rows],
            "prompt": [turns("user", f"question {n}?") for n in rows],
            "chosen": [turns("assistant", f"short {n}") for n in rows],
            "rejected": [turns("assistant", f"rather long {n}") for n in rows],
            **more,
        }
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            ["pair_id", "item_id", "prompt", "chosen", "rejected"],
            {"pairs": ["pair_id", "item_id", "prompt", "chosen", "rejected"]},
        ),
        (["prompt", "chosen", "rejected", "split", "pair_id"], {"pairs": ["pair_id", "prompt", "chosen", "rejected"]}),
        (
            ["pair_id", "prompt", "chosen", "rejected", "chosen_persona", "source"],
            {
                "pairs": ["pair_id", "prompt", "chosen", "rejected"],
                "personas": ["pair_id", "prompt", "chosen", "rejected", "chosen_persona", "source"],
            },
        ),
        (
            ["pair_id", "prompt", "chosen", "rejected", "score"],
            {
                "pairs": ["pair_id", "prompt", "chosen", "rejected"],
                "full": ["pair_id", "prompt", "chosen", "rejected", "score"],
            },
        ),
        (["group", "mean"], {"default": ["group", "mean"]}),
    ],
)
def test_a_trainer_gets_pairs_and_nothing_is_lost(columns: list[str], expected: dict[str, list[str]]) -> None:
    found = configurations(columns, ["pair_id"])
    assert found == expected
    assert list(found) == list(expected)


def test_a_config_has_a_shard_for_each_split_and_train_comes_first(tmp_path: Path) -> None:
    frame = pairs(5, split=["test", "train", "few_shot", "train", "test"]).lazy()
    config = write_config(frame, "pairs", ["pair_id", "prompt"], tmp_path)
    assert [(split.name, split.rows) for split in config.splits] == [("train", 2), ("few_shot", 1), ("test", 2)]
    assert [shard.path for shard in config.shards] == [
        f"data/{name}-00000-of-00001.parquet" for name in ("train", "few_shot", "test")
    ]
    assert all(SHARD.fullmatch(shard.path) for shard in config.shards)
    assert pl.read_parquet(tmp_path / "data/train-00000-of-00001.parquet")["pair_id"].to_list() == ["p00001", "p00003"]


def test_equal_rows_give_equal_files_with_page_indexes_and_types_that_all_tools_read(tmp_path: Path) -> None:
    frame = pairs(300, kind=pl.Series(["a", "b", "c"] * 100, dtype=pl.Categorical)).lazy()
    columns = frame.collect_schema().names()
    written = [write_config(frame, "full", columns, tmp_path / side).shards[0].file for side in ("a", "b")]
    assert written[0].read_bytes() == written[1].read_bytes()
    file = pq.ParquetFile(written[0])
    assert str(file.schema_arrow.field("kind").type) == "string"
    assert str(file.schema_arrow.field("prompt").type) == "list<element: struct<role: string, content: string>>"
    assert file.metadata.row_group(0).column(0).has_offset_index


def test_how_rows_lie_in_memory_does_not_show_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).random((20_000, 20)).tolist()
    texts = [" ".join(map(str, row)) for row in numbers]
    rows = pl.DataFrame({"text": texts})
    one = write_config(rows.lazy(), "default", ["text"], tmp_path / "one").shards[0].file
    pieces = pl.concat([rows.slice(start, 777) for start in range(0, rows.height, 777)], rechunk=False)
    monkeypatch.setattr(layout, "cut", lambda frame, sizes: iter([pieces]))
    other = write_config(rows.lazy(), "default", ["text"], tmp_path / "other").shards[0].file
    assert one.read_bytes() == other.read_bytes()


def test_more_bytes_than_a_shard_holds_make_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SHARD_BYTES", 40_000)
    monkeypatch.setattr(layout, "_GROUP_BYTES", 1)
    config = write_config(pairs(2000).lazy(), "pairs", ["pair_id", "prompt", "chosen", "rejected"], tmp_path)
    assert len(config.shards) > 2
    assert config.shards[-1].path == f"data/train-{len(config.shards) - 1:05d}-of-{len(config.shards):05d}.parquet"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [shard.file.name for shard in config.shards]
    assert pl.read_parquet(tmp_path / "data/*.parquet").equals(pairs(2000))
    assert [pq.ParquetFile(shard.file).metadata.num_rows for shard in config.shards] == [shard.rows for shard in config.shards]


def test_a_changed_row_leaves_most_of_a_file_as_it_was(tmp_path: Path) -> None:
    """The Hub stores what is cut at the same places once: content-defined chunks survive an insertion."""
    texts = [" ".join(map(str, row)) for row in np.random.default_rng(0).integers(0, 10**6, (20_000, 30))]
    rows = pl.DataFrame({"text": texts})
    longer = pl.concat([rows.head(10_000), pl.DataFrame({"text": ["something new"]}), rows.tail(10_000)])
    files = [
        write_config(frame.lazy(), "default", ["text"], tmp_path / str(n)).shards[0].file
        for n, frame in enumerate((rows, longer))
    ]
    before, after = (file.read_bytes() for file in files)
    window = 4096
    known = {before[start : start + 64] for start in range(len(before) - 64)} if len(before) < 2_000_000 else set()
    sampled = range(0, len(after) - 64, window)
    shared = sum(
        after[start : start + 64] in known if known else before.find(after[start : start + 64]) >= 0 for start in sampled
    )
    assert shared / len(sampled) > 0.7


@pytest.mark.parametrize("name", ["a b", "../up", None, ""])
def test_a_split_that_the_hub_would_not_take_is_refused(name: str | None, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="can't name a split"):
        write_config(pairs(2, split=["train", name]).lazy(), "pairs", ["pair_id"], tmp_path)
    assert list(tmp_path.rglob("*.parquet")) == []
