"""What only a cluster can go through: nobody there, nobody left, workers killed in the middle, another version, another folder."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.engines import cluster as cluster_module
from ptk.engines.dask import DaskEngine
from ptk.engines.engine import Input
from ptk.engines.polars import PolarsEngine
from ptk.errors import PtkError
from ptk.ops.drop_duplicates import DropDuplicates, drop_duplicates
from ptk.ops.keep_lengths import KeepLengths, keep_lengths
from ptk.plan import Node
from ptk.spec import Step
from ptk.work import Rows

ROWS = 60_000


def step(*on: str) -> Node:
    declared = Step("unique", drop_duplicates, {"frame": "rows"}, DropDuplicates(on=on), {}, "unique")
    return Node(declared, "0" * 40, "id", pl.Schema({"id": pl.String, "text": pl.String}), None, None, None, "new")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Input:
    folder = tmp_path_factory.mktemp("rows")
    frame = pl.DataFrame(
        {"id": [f"k{number:06}" for number in range(ROWS)], "text": [f"text {n % 50_000}" * 5 for n in range(ROWS)]}
    )
    frame.write_parquet(folder / "part-0.parquet")
    return Input(Rows((str(folder / "part-0.parquet"),)), "id", ROWS)


@pytest.fixture
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as running:
        yield running


def decisions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted((folder / "decisions").glob("*.parquet")))


def test_a_scheduler_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 1)
    with pytest.raises(PtkError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*; start one with `dask scheduler`"):
        DaskEngine(tmp_path, scheduler="tcp://127.0.0.1:9")


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(PtkError, match="no Dask scheduler answers at nonsense://here"):
        DaskEngine(tmp_path, scheduler="nonsense://here")


def test_a_cluster_without_workers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 1)
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as empty,
        pytest.raises(PtkError, match=r"the Dask scheduler at tcp://.* has no workers; start some with `dask worker`"),
    ):
        DaskEngine(tmp_path, scheduler=empty.scheduler_address)


def test_workers_that_see_other_files_are_told(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_about_worker", lambda probe: (*cluster_module.versions(), False))
    with pytest.raises(
        PtkError, match=r"does not see .*; put the work store, with --work, in a folder or an object store that all reach"
    ):
        DaskEngine(tmp_path, scheduler=cluster.scheduler_address)


def test_workers_of_another_version_are_told(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "versions", lambda: ("0.0.1", "1.0.0"))
    with pytest.raises(PtkError, match=r"and here it is ptk 0.0.1 on Polars 1.0.0; install the same"):
        DaskEngine(tmp_path, scheduler=cluster.scheduler_address)


def test_a_run_goes_on_when_workers_are_killed_in_the_middle_of_a_shuffle(tmp_path: Path, cluster: Any, rows: Input) -> None:
    expected = PolarsEngine().decide(step("text"), [rows], tmp_path / "polars")
    engine = DaskEngine(tmp_path, scheduler=cluster.scheduler_address, partitions=12)
    killed: list[int] = []
    with _Killer(cluster, killed, 1, when=lambda: bool(list((tmp_path / "dask").rglob("part-*.parquet")))):
        counts = engine.decide(step("text"), [rows], tmp_path / "dask")
    engine.close()
    assert killed
    assert counts == expected
    assert decisions(tmp_path / "dask").equals(decisions(tmp_path / "polars"))


def test_a_run_whose_workers_do_nothing_but_die_ends(
    tmp_path: Path, cluster: Any, rows: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_SECONDS", 0.2)
    engine = DaskEngine(tmp_path, scheduler=cluster.scheduler_address, partitions=12)
    killed: list[int] = []
    with (
        pytest.raises(PtkError, match=r"step 'unique': workers died \d+ times and nothing came of it"),
        _Killer(cluster, killed, 1_000, when=lambda: True),
    ):
        for number in range(100):
            engine.decide(step("text"), [rows], tmp_path / f"dask-{number}")
    engine.close()


def test_a_run_that_is_left_without_workers_ends(
    tmp_path: Path, cluster: Any, rows: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(cluster_module, "ALONE_SECONDS", 1)
    engine = DaskEngine(tmp_path, scheduler=cluster.scheduler_address)
    cluster.scale(0)
    while engine.client.scheduler_info(n_workers=-1)["workers"]:
        time.sleep(0.1)
    with pytest.raises(
        PtkError, match="step 'unique': nothing has been done for 1 seconds, as there is no worker; start others and run again"
    ):
        engine.decide(step("text"), [rows], tmp_path / "dask")
    engine.close()


def test_a_run_that_is_left_without_workers_of_the_kind_it_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "ALONE_SECONDS", 0.01)
    worker = {"status": "running", "metrics": {"executing": 0}, "resources": {}}
    workers = {"a": worker, "b": {**worker, "resources": {"GPU": 1}}}
    watch = cluster_module._Watch(_Told(workers), "asking: ", "GPU")
    for _ in range(3):
        watch.look()
        time.sleep(0.02)
    del workers["b"]
    watch.look()
    time.sleep(0.02)
    with pytest.raises(PtkError, match=r"asking: nothing has been done for .* as there is no worker with the resource GPU"):
        watch.look()


class _Told:
    """Stands for a client of a cluster with these workers."""

    status = "running"

    def __init__(self, workers: dict[str, Any]) -> None:
        self.workers = workers

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": self.workers}


def test_a_run_whose_scheduler_is_gone_ends(tmp_path: Path, cluster: Any, rows: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_SECONDS", 0.2)
    engine = DaskEngine(tmp_path, scheduler=cluster.scheduler_address)
    closing = threading.Timer(0.5, cluster.close)
    closing.start()
    with pytest.raises(PtkError, match="the Dask scheduler is gone; what was finished is kept, run again"):
        for number in range(1_000):
            engine.decide(step("text"), [rows], tmp_path / f"dask-{number}")
    closing.join()
    engine.close()


def test_what_an_operator_raises_on_a_worker_is_what_the_run_raises(tmp_path: Path, cluster: Any, rows: Input) -> None:
    engine = DaskEngine(tmp_path, scheduler=cluster.scheduler_address)
    lengths = Step("lengths", keep_lengths, {"frame": "rows"}, KeepLengths(minimum=2), {}, "lengths")
    with pytest.raises(ValueError, match="there is no column 'chosen'"):
        engine.decide(replace(step("text"), step=lengths), [rows], tmp_path / "dask")
    engine.close()


class _Killer:
    """Kills worker processes, one after another as they come, once `when` holds."""

    def __init__(self, cluster: Any, killed: list[int], times: int, when: Callable[[], bool]) -> None:
        self.cluster, self.killed, self.times, self.when = cluster, killed, times, when
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.01) and len(self.killed) < self.times:
            for worker in list(self.cluster.workers.values()):
                process = worker.process
                pid = process.pid if process is not None else None
                if (
                    worker.worker_address in self.cluster.scheduler.workers
                    and pid
                    and pid not in self.killed
                    and len(self.killed) < self.times
                    and self.when()
                ):
                    self.killed.append(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
