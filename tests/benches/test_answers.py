"""What it takes to plan a rerun over ten million stored answers, as a ratio to a raw Polars join over the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ANSWERS = 10_000_000
REQUESTS = 100_000
SEGMENT = 256

START = """
import os, random, sys, time
from pathlib import Path

import numpy as np
import polars as pl

root, bench = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, bench)
from steps import measured, tell

from ptk.llm.answers import _SCHEMA, AnswerStore, clear_answers

store = AnswerStore(root, {"weights": "abc"})
"""

MAKE = """
first, last, size = (int(argument) for argument in sys.argv[3:])
random.seed(first)
words = np.array([f"word{number}" for number in range(5000)])
texts = [" ".join(words[np.random.default_rng(number).integers(0, 5000, 20)]) for number in range(20_000)]
facts = {"finish_reason": ["stop"] * size, "prompt_tokens": [100] * size, "output_tokens": [40] * size,
         "cached_tokens": [50] * size, "scores": [None] * size,
         "cut_tokens": [0] * size}
store.folder.mkdir(parents=True, exist_ok=True)
for number in range(first, last):
    drawn = random.randbytes(32 * size)
    keys = [drawn[start : start + 32] for start in range(0, 32 * size, 32)]
    text = [f"{number} {line} {texts[(number * 7919 + line) % 20_000]}" for line in range(size)]
    segment = store.folder / f"{10**18 + number:020}-{number:032x}.parquet"
    pl.DataFrame({"key": keys, "text": text, **facts}, schema=_SCHEMA).write_parquet(segment, compression="zstd")
tell({})
"""

MERGE = """
files = sorted(store.folder.glob("*.parquet"))
tell({"before": len(files), **measured(lambda: clear_answers(root)[0].merged),
      "after": len(list(store.folder.glob("*.parquet"))),
      "bytes": sum(path.stat().st_size for path in store.folder.glob("*.parquet"))})
"""

KEYS = """
path = root / "keys.parquet"
if not path.exists():
    stored = pl.scan_parquet(store.folder / "*.parquet").select("key").filter(pl.col("key").hash(7) % 190 == 0)
    half = stored.collect(engine="streaming")["key"].shuffle(1).head(int(sys.argv[3]) // 2)
    other = pl.Series("key", [os.urandom(32) for _ in range(int(sys.argv[3]) - half.len())])
    pl.DataFrame({"key": pl.concat([half, other]).shuffle(2)}).write_parquet(path)
tell({})
"""

OURS = """
keys = pl.read_parquet(root / "keys.parquet")
missing = measured(lambda: store.missing(keys).len())
found = measured(lambda: store.find(keys)["text"].count())
tell({"missing": missing, "find": found})
"""

POLARS = """
keys = pl.read_parquet(root / "keys.parquet")


def join():
    stored = pl.scan_parquet(store.folder / "*.parquet")
    found = stored.join(keys.lazy(), on="key", how="semi").collect(engine="streaming")
    return keys.join(found, on="key", how="left")["text"].count()


tell({"join": measured(join)})
"""


def start(program: str, root: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START + program, str(root), str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> Any:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.mark.bench
def test_planning_a_rerun_over_ten_million_answers_takes_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segments = -(-ANSWERS // SEGMENT)
    for process in [
        start(MAKE, tmp_path, first, last, SEGMENT) for first, last in ((0, segments // 2), (segments // 2, segments))
    ]:
        said(process)
    said(start(KEYS, tmp_path, REQUESTS))
    scattered = said(start(OURS, tmp_path))
    merge = said(start(MERGE, tmp_path))
    ours = said(start(OURS, tmp_path))
    polars = said(start(POLARS, tmp_path))["join"]
    assert ours["missing"]["rows"] == scattered["missing"]["rows"] == REQUESTS - ours["find"]["rows"]
    assert ours["find"]["rows"] == scattered["find"]["rows"] == polars["rows"] == REQUESTS // 2

    def both(seen: Any) -> tuple[float, float]:
        return sum(part["seconds"] for part in seen.values()), max(part["mebibytes"] for part in seen.values())

    seconds, mebibytes = both(ours)
    with capsys.disabled():
        print(
            f"\n{segments * SEGMENT:,} answers, {REQUESTS:,} requests, half of them answered: missing {ours['missing']['seconds']:.1f} s "
            f"and find {ours['find']['seconds']:.1f} s, peak {mebibytes:,.0f} MiB; a raw Polars join {polars['seconds']:.1f} s, "
            f"{polars['mebibytes']:,.0f} MiB: {seconds / polars['seconds']:.1f} x its time, "
            f"{mebibytes / polars['mebibytes']:.1f} x its memory\n"
            f"not merged, {merge['before']:,} segments: {both(scattered)[0]:.1f} s, {both(scattered)[1]:,.0f} MiB\n"
            f"merging them to {merge['after']:,} segments ({merge['bytes'] / 1e9:.2f} GB): {merge['seconds']:.1f} s, "
            f"{merge['mebibytes']:,.0f} MiB"
        )
    # Planning asks what is missing; finding is what the run does.
    assert ours["missing"]["seconds"] < 10
    assert mebibytes < 2048
