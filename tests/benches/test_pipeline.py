"""filter + derive + exact duplicates + split against a hand-written Polars script and against `datasets`, at one million pairs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from .corpus import MAKE
from .fresh import all_told, told

PAIRS = 1_000_000
MORE = 4
"""How many times the pairs the second corpus has, by which memory's growth is told."""
OF_DATASETS = 20_000

STEPS = """
STEPS = [
    ("filter_rows", {"where": "score >= 2"}),
    ("derive_columns", {"columns": {"length": "LENGTH(chosen_text)"}}),
    ("drop_duplicates", {"on": ["prompt"]}),
    ("split_rows", {"parts": {"train": 0.8, "test": 0.2}}),
]
"""

OURS = (
    """
import sys
from pathlib import Path
import polars as pl
from steps import measured, run_steps, tell
from ptk.engines.polars import PolarsEngine
"""
    + STEPS
    + """
source, folder = Path(sys.argv[1]), Path(sys.argv[2])

def work():
    left = run_steps(PolarsEngine(), source, folder, STEPS, "pair_id")
    left.rows.scan().sink_parquet(folder / "rows.parquet", engine="streaming")
    return left.height

tell(measured(work))
"""
)

WHOLE = """
import sys
from pathlib import Path
from ptk.execute import run_plan
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore
from steps import measured, tell
import ptk_catalog

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True)
(folder / "spec.yaml").write_text(f'''
ptk: 1
name: whole
steps:
  pairs:  {{op: read_pairs, path: "{source}/*.parquet"}}
  decent: {{op: filter_rows, from: pairs, where: score >= 2}}
  sized:  {{op: derive_columns, from: decent, columns: {{length: LENGTH(chosen_text)}}}}
  unique: {{op: drop_duplicates, from: sized, on: [prompt]}}
  parts:  {{op: split_rows, from: unique, parts: {{train: 0.8, test: 0.2}}}}
outputs:
  bench/parts: {{from: parts}}
''')

def work():
    store = WorkStore(folder / ".ptk")
    plan = make_plan(load_spec(folder / "spec.yaml"), store)
    return run_plan(plan, store, lambda: ptk_catalog.open(folder / "store"), Quiet()).steps[-1].result.rows_out

tell(measured(work))
"""

BY_HAND = """
import sys
from pathlib import Path
import polars as pl
from steps import measured, tell

source, folder = Path(sys.argv[1]), Path(sys.argv[2])

def text(column):
    return pl.col(column).list.eval(pl.element().struct.field("content")).list.join("\\n")

def work():
    kept = pl.scan_parquet(source / "*.parquet").filter(pl.col("score") >= 2)
    derived = kept.with_columns(length=text("chosen").str.len_chars(), _text=text("prompt"))
    unique = derived.unique("_text", keep="any", maintain_order=False)
    part = pl.when(pl.col("_text").hash() % 10 < 8).then(pl.lit("train")).otherwise(pl.lit("test"))
    unique.with_columns(split=part).drop("_text").sink_parquet(folder / "rows.parquet", engine="streaming", mkdir=True)
    return pl.scan_parquet(folder / "rows.parquet").select(pl.len()).collect().item()

tell(measured(work))
"""

DATASETS = """
import hashlib, sys
from pathlib import Path
from steps import measured, tell
from datasets import Dataset, disable_caching, disable_progress_bars, load_dataset

disable_caching()
disable_progress_bars()
source, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
given = load_dataset("parquet", data_files=f"{source}/part-00000.parquet", split=f"train[:{rows}]", cache_dir=str(folder / "cache"))

def text(turns):
    return "\\n".join(turn["content"] for turn in turns)

def work():
    kept = given.filter(lambda row: row["score"] >= 2)
    derived = kept.map(lambda row: {"length": len(text(row["chosen"]))})
    seen = set()
    unique = derived.filter(lambda row: not (text(row["prompt"]) in seen or seen.add(text(row["prompt"]))))
    split = unique.map(lambda row: {"split": "train" if hashlib.md5(text(row["prompt"]).encode()).digest()[0] < 205 else "test"})
    split.to_parquet(str(folder / "rows.parquet"))
    return len(split)

tell(measured(work))
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("corpora")
    made = {pairs: root / str(pairs) for pairs in (PAIRS, MORE * PAIRS)}
    for pairs, folder in made.items():
        all_told(MAKE, folder, pairs)
    return made


@pytest.mark.bench
@pytest.mark.timeout(1200)
def test_four_steps_against_a_hand_written_script_and_datasets(corpora: dict[int, Path], tmp_path: Path) -> None:
    ours = [told(OURS, corpora[PAIRS], tmp_path / "ours") for _ in range(3)]
    by_hand = [told(BY_HAND, corpora[PAIRS], tmp_path / "by-hand") for _ in range(3)]
    datasets = told(DATASETS, corpora[PAIRS], tmp_path / "datasets", OF_DATASETS)
    more = [told(OURS, corpora[MORE * PAIRS], tmp_path / "ours") for _ in range(3)]
    assert ours[0]["rows"] == by_hand[0]["rows"]
    seconds = min(run["seconds"] for run in ours)
    hand_seconds = min(run["seconds"] for run in by_hand)
    datasets_seconds = datasets["seconds"] * PAIRS / OF_DATASETS
    peak, more_peak = (statistics.median(run["mebibytes"] for run in runs) for runs in (ours, more))
    print(f"\nfilter + derive + exact duplicates + split, {PAIRS:,} pairs, rows written as Parquet:")
    print(f"  ptk                 {seconds:8.2f} s   peak {peak:,.0f} MiB")
    print(f"  by hand in Polars   {hand_seconds:8.2f} s   peak {by_hand[0]['mebibytes']:,.0f} MiB")
    print(f"  datasets            {datasets_seconds:8.2f} s   (from {OF_DATASETS:,} pairs)")
    print(f"  ptk / by hand = {seconds / hand_seconds:.2f}; datasets / ptk = {datasets_seconds / seconds:.0f}")
    print(f"  {MORE} times the pairs: {min(run['seconds'] for run in more):.2f} s, peak {more_peak:,.0f} MiB, ", end="")
    growth = (more_peak - peak) * 2**20 / PAIRS / (MORE - 1)
    print(f"{growth:,.0f} bytes a row more")
    assert seconds <= 1.2 * hand_seconds and datasets_seconds >= 10 * seconds
    assert peak < 2048 and growth <= 128


@pytest.mark.bench
@pytest.mark.timeout(1200)
def test_a_whole_run_from_reading_to_the_catalog(corpora: dict[int, Path], tmp_path: Path) -> None:
    one, more = (told(WHOLE, folder, tmp_path / str(pairs)) for pairs, folder in corpora.items())
    growth = (more["mebibytes"] - one["mebibytes"]) * 2**20 / PAIRS / (MORE - 1)
    print(f"\nread + filter + derive + exact duplicates + split + commit, as a run does it, {PAIRS:,} pairs of Parquet:")
    print(
        f"  {one['seconds']:.1f} s, peak {one['mebibytes']:,.0f} MiB; {MORE} times the pairs: {more['seconds']:.1f} s, ", end=""
    )
    print(f"peak {more['mebibytes']:,.0f} MiB, {growth:,.0f} bytes a row more")
    assert one["mebibytes"] < 2048


DESCRIBED = """
import sys
from pathlib import Path
import polars as pl
from steps import measured, tell
from ptk.ops.describe_corpus import DescribeCorpus, describe_corpus
from ptk.stages import keyed

rows = keyed(pl.scan_parquet(f"{sys.argv[1]}/*.parquet"), "pair_id")
tell(measured(lambda: describe_corpus.function(rows, params=DescribeCorpus()).collect(engine="streaming").height))
"""


@pytest.mark.bench
@pytest.mark.timeout(1200)
def test_describing_a_corpus(corpora: dict[int, Path]) -> None:
    one, more = (told(DESCRIBED, folder) for folder in corpora.values())
    print(f"\ndescribe_corpus of {PAIRS:,} pairs: {one['seconds']:.1f} s, peak {one['mebibytes']:,.0f} MiB; ", end="")
    print(f"{MORE} times the pairs: {more['seconds']:.1f} s, peak {more['mebibytes']:,.0f} MiB")
    assert more["mebibytes"] < 3072


@pytest.mark.bench
@pytest.mark.timeout(1200)
def test_a_step_that_is_slow_about_long_texts(corpora: dict[int, Path], tmp_path: Path) -> None:
    script = OURS.replace(STEPS, 'STEPS = [("keep_lengths", {"minimum": 8})]\n')
    one, more = (told(script, folder, tmp_path / str(pairs)) for pairs, folder in corpora.items())
    print(f"\nkeep_lengths on {PAIRS:,} pairs: {one['seconds']:.1f} s, peak {one['mebibytes']:,.0f} MiB; ", end="")
    print(f"{MORE} times the pairs: {more['seconds']:.1f} s, peak {more['mebibytes']:,.0f} MiB")
    assert more["mebibytes"] < 1024
