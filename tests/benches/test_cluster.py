"""Dask against Polars on this machine: the same steps, one thread each, two workers, and less memory than rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .corpus import MAKE
from .fresh import all_told

PAIRS = 1_000_000

SCRIPT = """
import sys, time
from pathlib import Path
from steps import measured, run_steps, tell
from ptk.engines.dask import DaskEngine
from ptk.engines.polars import PolarsEngine
from ptk_catalog.digest import column_sums

ROWS = [
    ("filter_rows", {"where": "score >= 2"}),
    ("derive_columns", {"columns": {"length": "LENGTH(chosen_text)", "asks": "prompt_text LIKE '%th%'"}}),
    ("keep_lengths", {"minimum": 8}),
]
MEETING = [*ROWS, ("drop_duplicates", {"on": ["prompt"]}), ("split_rows", {"parts": {"train": 0.8, "test": 100}})]

if __name__ == "__main__":
    source, folder, workers, memory, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    started = time.perf_counter()
    engine = DaskEngine(folder, workers=workers, memory_limit=memory) if workers else PolarsEngine()
    start = time.perf_counter() - started

    def work():
        global left
        left = run_steps(engine, source, folder / "steps", ROWS if steps == "rows" else MEETING, "pair_id")
        return left.height

    facts = measured(work)
    engine.close()
    tell({**facts, "start": start, "digest": str(column_sums(left.rows.scan(), ["pair_id"], ["pair_id"]))})
"""


def told(source: Path, folder: Path, workers: int, memory: str = "0", steps: str = "rows") -> dict[str, Any]:
    """Run the steps on an engine of one thread a process and return what it took."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "bench.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(folder), str(workers), memory, steps],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "POLARS_MAX_THREADS": "1"},
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.fixture(params=[PAIRS])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    all_told(MAKE, folder, request.param)
    return folder


@pytest.mark.bench
@pytest.mark.timeout(1200)
def test_workers_against_one_thread_of_polars(corpus: Path, tmp_path: Path) -> None:
    polars, one, two = (
        min((told(corpus, tmp_path / f"{workers}-{turn}", workers) for turn in range(2)), key=lambda facts: facts["seconds"])
        for workers in (0, 1, 2)
    )
    assert polars["digest"] == one["digest"] == two["digest"]
    print(f"\nfilter + derive + lengths, {PAIRS:,} pairs, one thread a process:")
    print(f"  Polars              {polars['seconds']:8.2f} s")
    print(
        f"  Dask, one worker    {one['seconds']:8.2f} s  ({one['seconds'] / polars['seconds']:.2f} times; {one['start']:.1f} s to start)"
    )
    print(f"  Dask, two workers   {two['seconds']:8.2f} s  ({two['seconds'] / one['seconds']:.2f} of one worker's)")
    assert one["seconds"] <= 1.5 * polars["seconds"] and two["seconds"] < one["seconds"]


@pytest.mark.bench
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("corpus", [2 * PAIRS], indirect=True)
def test_rows_larger_than_the_workers_memory(corpus: Path, tmp_path: Path) -> None:
    import polars as pl

    size = pl.scan_parquet(corpus / "*.parquet").collect().estimated_size() / 2**20
    polars = told(corpus, tmp_path / "polars", 0, steps="meeting")
    dask = told(corpus, tmp_path / "dask", 2, "700MiB", "meeting")
    assert polars["digest"] == dask["digest"]
    print(
        f"\nthe same with exact duplicates and split, {2 * PAIRS:,} pairs, {size:,.0f} MiB, two workers of 700 MiB: {dask['seconds']:.1f} s,"
    )
    assert size > 2 * 700
    assert dask["mebibytes"] < 512
    print(
        f"  the driver's peak {dask['mebibytes']:,.0f} MiB; Polars, one thread: {polars['seconds']:.1f} s, {polars['mebibytes']:,.0f} MiB"
    )
