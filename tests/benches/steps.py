"""Runs frame operators on Parquet files as the steps of a run, on an engine, and measures time and memory."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ptk.engines.engine import Engine, Input, new_columns
from ptk.operator import find_operator
from ptk.plan import Node
from ptk.spec import Step
from ptk.work import Layer, Rows


class Peak:
    """The most memory this process had for itself; mapped files do not count."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.mebibytes = max(self.mebibytes, own_memory())


def own_memory() -> float:
    """Return the anonymous memory of this process in MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


def run_steps(engine: Engine, source: Path, folder: Path, steps: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> Input:
    """Run operators, each with its settings, one after another on the Parquet files of `source`; return the rows that are left."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = Rows(tuple(sorted(map(str, source.glob("*.parquet")))))
    item = Input(rows, key, int(rows.scan().select(pl.len()).collect().item()))
    for number, (name, settings) in enumerate(steps):
        operator = find_operator(name)
        params = operator.params.model_validate_json(json.dumps(settings))
        place = folder / f"{number}-{name}"
        place.mkdir(parents=True)
        step = Step(name, operator, dict.fromkeys(operator.inputs, "rows"), params, {}, name)
        node = Node(step, "0" * 40, key, item.rows.scan().collect_schema(), None, None, None, "new")
        counts = engine.decide(node, [item], place)
        layer = Layer(
            tuple(sorted(map(str, (place / "decisions").glob("*.parquet")))), new_columns(place), bool(counts.rejected)
        )
        below = item.rows
        item = Input(Rows(below.files, (*below.layers, layer)), key, counts.rows - sum(counts.rejected.values()))
    return item


def measured(work: Callable[[], int]) -> dict[str, float]:
    """Return the seconds, the processor's and the clock's, the peak memory in MiB and the rows of some work."""
    with Peak() as peak:
        started, busy = time.perf_counter(), time.process_time()
        rows = work()
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"seconds": seconds, "processor": busy, "mebibytes": peak.mebibytes, "rows": rows}


def tell(facts: Mapping[str, Any]) -> None:
    """Print facts as one line for the process that started this one."""
    sys.stdout.write(json.dumps(facts) + "\n")
