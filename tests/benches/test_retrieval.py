"""Personas of the nearest of many prompts, guard included, against bm25s alone on the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from .fresh import told

pytestmark = pytest.mark.bench

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "persona_pairs.jsonl"
KNOWN, ASKED, WORDS, K = 50_000, 1_000, 20, 10

OURS = """
import json, sys, time
import polars as pl
from fresh import most_memory
from ptk.stages import run_stages
from ptk.train.retrieve_personas import RetrievePersonas, retrieve_personas

known, asked, k = pl.read_parquet(sys.argv[1]), pl.read_parquet(sys.argv[2]), int(sys.argv[3])
run = lambda asked, known: run_stages(retrieve_personas, [asked.lazy(), known.lazy()], RetrievePersonas(k=k)).collect()
run(asked.head(2), known.head(100))
started = time.perf_counter(), time.process_time()
found = run(asked, known)
taken = time.perf_counter() - started[0], time.process_time() - started[1]
print(json.dumps({"taken": taken, "peak": most_memory(),
                  "found": found.sort("_key")["retrieved"].list.eval(pl.element().struct.field("key")).to_list()}))
"""

RIVAL = """
import json, sys, time
import bm25s
import polars as pl
from ptk.text import words

known, asked, k = pl.read_parquet(sys.argv[1]), pl.read_parquet(sys.argv[2]), int(sys.argv[3])
started = time.perf_counter(), time.process_time()
index = bm25s.BM25(k1=1.2, b=0.75, method="lucene", dtype="float64")
index.index([words(text) for text in known["prompt"]], show_progress=False)
found, _ = index.retrieve([sorted(set(words(text))) for text in asked["prompt"]], k=k, show_progress=False)
taken = time.perf_counter() - started[0], time.process_time() - started[1]
keys = known["_key"].to_list()
print(json.dumps({"taken": taken, "found": [[keys[at] for at in row] for row in found.tolist()]}))
"""


def test_a_thousand_prompts_among_fifty_thousand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not PAIRS.is_file():
        pytest.skip("no real pairs here")
    real = [json.loads(line)["prompt"] for line in PAIRS.read_text().splitlines()]
    chance = np.random.default_rng(0)
    words = [word for text in real for word in text.split()]
    drawn = chance.choice(len(words), (KNOWN + ASKED, WORDS))
    texts = [" ".join(words[at] for at in row) for row in drawn.tolist()]
    personas = {f"{side}_persona": "The user is one of many." for side in ("chosen", "rejected")}
    keys = [f"k{number:06}" for number in range(KNOWN + ASKED)]
    rows = pl.DataFrame({"_key": keys, "prompt": texts}).with_columns(**{name: pl.lit(text) for name, text in personas.items()})
    rows[:KNOWN].write_parquet(tmp_path / "known.parquet")
    rows[KNOWN:].write_parquet(tmp_path / "asked.parquet")
    arguments = tmp_path / "known.parquet", tmp_path / "asked.parquet", K
    ours, theirs = (told(script, *arguments, OMP_WAIT_POLICY="PASSIVE") for script in (OURS, RIVAL))
    same = sum(a == b for a, b in zip(ours["found"], theirs["found"], strict=True)) / ASKED
    with capsys.disabled():
        print(
            f"\n{ASKED:,} prompts, the {K} nearest of {KNOWN:,}: ptk {ours['taken'][0]:.1f} s ({ours['taken'][1]:.1f} s of processors), "
            f"peak {ours['peak']:.0f} MiB; bm25s alone {theirs['taken'][0]:.1f} s ({theirs['taken'][1]:.1f} s): "
            f"{ours['taken'][1] / theirs['taken'][1]:.2f} times; the same ten in the same order for {same:.1%}"
        )
    assert same > 0.99
    assert ours["taken"][1] < 3 * theirs["taken"][1]
