"""How fast pairs are read, as ratios to what `datasets` and Polars take to load the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fresh import all_told, told

pytestmark = pytest.mark.bench

PAIRS = 200_000

MAKE = """
import sys
from pathlib import Path
import polars as pl
from corpus import make_corpus

folder = Path(sys.argv[1])
turns = pl.scan_parquet(make_corpus(folder / "corpus", int(sys.argv[2])) / "*.parquet").drop("pair_id").collect()
texts = turns.with_columns(pl.col(name).list.first().struct.field("content").alias(name) for name in ("prompt", "chosen", "rejected"))
for name, frame in (("turns", turns), ("texts", texts)):
    frame.write_ndjson(folder / f"{name}.jsonl")
    frame.write_parquet(folder / f"{name}.parquet", row_group_size=1 << 16)
texts.write_csv(folder / "texts.csv")
"""

READ = """
import sys, time
import polars as pl
from ptk.ops.read_pairs import ReadPairs, read_pairs

started = time.perf_counter()
params = ReadPairs.model_validate_json('{"path": "%s"}' % sys.argv[1])
pairs = sum(batch.filter(pl.col("_reject").is_null()).height for batch in read_pairs.function(params).all_batches())
"""

POLARS = """
import sys, time
import polars as pl
from ptk_catalog.digest import row_id

started = time.perf_counter()
path = sys.argv[1]
frame = pl.read_ndjson(path) if path.endswith(".jsonl") else pl.read_csv(path) if path.endswith(".csv") else pl.read_parquet(path)
columns = {name: frame.schema[name] for name in ("prompt", "chosen", "rejected")}
pairs = frame.with_columns(pair_id=row_id(columns)).height
"""

DATASETS = """
import sys, tempfile, time
import datasets

datasets.disable_progress_bars()
started = time.perf_counter()
kind = {"jsonl": "json"}.get(sys.argv[1].rpartition(".")[2], sys.argv[1].rpartition(".")[2])
with tempfile.TemporaryDirectory() as cache:
    pairs = len(datasets.load_dataset(kind, data_files=sys.argv[1], cache_dir=cache, split="train"))
"""

SAY = """
import json
from fresh import most_memory
print(json.dumps({"seconds": time.perf_counter() - started, "pairs": pairs,
                  "peak": most_memory()}))
"""


def measured(program: str, *arguments: str) -> dict[str, float]:
    """Return what a program of its own process says, the better of two runs."""
    return min((told(program + SAY, *arguments) for _ in range(2)), key=lambda run: run["seconds"])


def test_reading_against_loading_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_told(MAKE, tmp_path, PAIRS)
    for name in ("texts.jsonl", "turns.jsonl", "texts.csv", "texts.parquet", "turns.parquet"):
        path = str(tmp_path / name)
        ours, polars, datasets = (measured(program, path) for program in (READ, POLARS, DATASETS))
        assert ours["pairs"] == polars["pairs"] == datasets["pairs"] == PAIRS
        with capsys.disabled():
            print(
                f"\n{name}: {PAIRS / ours['seconds']:,.0f} records/s, checked and with ids; "
                f"{ours['seconds'] / polars['seconds']:.2f} x the time of Polars with pair_id, "
                f"{ours['seconds'] / datasets['seconds']:.2f} x that of datasets.load_dataset; "
                f"peak memory {ours['peak']:,.0f} MiB (Polars {polars['peak']:,.0f}, datasets {datasets['peak']:,.0f})"
            )
