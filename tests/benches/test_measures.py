"""Tables of a million verdicts with intervals by prompt, against drawing prompts for one measure with NumPy and with scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from .fresh import told

pytestmark = pytest.mark.bench

VERDICTS, PROMPTS, ROUNDS = 1_000_000, 250_000, 2_000
SHOWN = 20
"""Rounds of the rivals, scaled up to all rounds."""

OURS = """
import json, sys, time
import polars as pl
from fresh import most_memory
from ptk.operator import find_operator

path, name, settings = sys.argv[1:]
operator = find_operator(name)
params = operator.params.model_validate_json(settings)
frame = pl.scan_parquet(path)

def table(source):
    frames = [source] if len(operator.inputs) == 1 else [source, source.with_columns(score="other", verdict="other_verdict")]
    return operator.function(*frames, params=params).collect(engine="streaming")

table(frame.head(100))
before = most_memory()
started = time.perf_counter()
found = table(frame)
wall = time.perf_counter() - started
peak = most_memory()
line = found.filter(pl.col("low").is_not_null() & pl.col("measure").is_in(["win_rate", "difference"])).row(0, named=True)
print(json.dumps({"wall": wall, "peak": peak, "before": before, "low": line["low"], "high": line["high"]}))
"""

RIVAL = """
import json, sys, time
import numpy as np, polars as pl
from scipy import stats

path, rounds, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
frame = pl.read_parquet(path)
started = time.perf_counter()
if kind == "wins":
    sums = frame.group_by("prompt").agg((pl.col("verdict") == "first").sum().alias("w"), (pl.col("verdict") != "tie").sum().alias("n"))
else:
    if kind == "differences":
        points = {"first": 1.0, "tie": 0.5, "second": 0.0}
        ours, theirs = (pl.col(name).replace_strict(points) for name in ("verdict", "other_verdict"))
        frame = frame.with_columns(score=ours, other=theirs)
    sums = frame.group_by("prompt").agg((pl.col("score") - pl.col("other")).sum().alias("w"), pl.len().alias("n"))
won, judged = sums["w"].to_numpy().astype(float), sums["n"].to_numpy().astype(float)
chance = np.random.default_rng(0)
prepared = time.perf_counter() - started
started = time.perf_counter()
for _ in range(rounds):
    drawn = chance.integers(0, len(won), len(won))
    won[drawn].sum() / judged[drawn].sum()
by_hand = time.perf_counter() - started
started = time.perf_counter()
ratio = lambda w, n, axis=-1: w.sum(axis=axis) / n.sum(axis=axis)
stats.bootstrap((won, judged), ratio, paired=True, n_resamples=rounds, batch=1, method="percentile", rng=0)
scipy = time.perf_counter() - started
print(json.dumps({"prepared": prepared, "by_hand": by_hand, "scipy": scipy}))
"""


@pytest.mark.parametrize("kind", ["wins", "differences", "scores"])
def test_a_million_verdicts_with_intervals(kind: str, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    path = tmp_path / "verdicts.parquet"
    pl.DataFrame(
        {
            "_key": np.arange(VERDICTS).astype(str),
            "prompt": np.char.add("prompt ", chance.integers(0, PROMPTS, VERDICTS).astype(str)),
            "verdict": chance.choice(["first", "second", "tie"], VERDICTS, p=[0.45, 0.35, 0.2]),
            "other_verdict": chance.choice(["first", "second", "tie"], VERDICTS),
            "score": chance.normal(size=VERDICTS),
            "other": chance.normal(size=VERDICTS),
        }
    ).write_parquet(path)
    name, settings = {
        "wins": ("measure_wins", {"outcomes": [{"name": "all", "quality": "verdict"}]}),
        "differences": ("compare_outputs", {"value": "verdict"}),
        "scores": ("compare_outputs", {"value": "score"}),
    }[kind]
    ours = told(OURS, str(path), name, json.dumps({**settings, "rounds": ROUNDS}))
    theirs = told(RIVAL, str(path), str(SHOWN), kind)
    by_hand, scipy = (theirs["prepared"] + theirs[which] * ROUNDS / SHOWN for which in ("by_hand", "scipy"))
    print(
        f"\n{kind}: {VERDICTS:,} verdicts, {ROUNDS:,} rounds: ptk {ours['wall']:.2f} s, peak {ours['peak']:.0f} MiB "
        f"(before {ours['before']:.0f}); NumPy by hand {by_hand:.0f} s, {by_hand / ours['wall']:.1f} times; "
        f"scipy.stats.bootstrap {scipy:.0f} s, {scipy / ours['wall']:.1f} times; interval {ours['low']:.4f} to {ours['high']:.4f}"
    )
    # Real numbers make nearly every prompt a kind of its own, so they are drawn one by one.
    assert kind == "scores" or ours["wall"] < 10
    assert ours["peak"] < 1024
