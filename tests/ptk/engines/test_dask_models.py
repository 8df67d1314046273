"""Models on the workers of a cluster: who may load one, what a worker's death costs, and the real model there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk.engines import cluster as cluster_module
from ptk.engines import dask_models
from ptk.engines.cluster import RESOURCE
from ptk.engines.dask import DaskEngine
from ptk.errors import BackendError
from ptk.execute import RunSummary, run_plan
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore
from tiny_model import tiny_model

SPECS = Path(__file__).resolve().parents[3] / "specs"

REAL = f"""\
ptk: 1
name: real
models:
  labeler: {{backend: vllm, model: bundled/smollm2-135m-instruct, sampling: {{max_tokens: 60}}}}
steps:
  pairs:    {{op: read_pairs, path: pairs.jsonl}}
  personas: {{op: infer_personas, from: pairs, model: labeler, exemplars: {SPECS}/exemplars/advice.yaml}}
outputs:
  real/personas: {{from: personas, licence: cc0-1.0}}
"""


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    from distributed import LocalCluster

    settings: dict[str, Any] = {"n_workers": 2, "resources": {RESOURCE: 1}, **getattr(request, "param", {})}
    with LocalCluster(threads_per_worker=1, dashboard_address=None, silence_logs=50, **settings) as running:
        yield running


def run(spec: Path, work: Path, address: str) -> RunSummary:
    store = WorkStore(work)
    engine = DaskEngine(work, scheduler=address)
    try:
        return run_plan(make_plan(load_spec(spec), store), store, lambda: ptk_catalog.open(work / "catalog"), Quiet(), engine)
    finally:
        engine.close()


@pytest.mark.parametrize("cluster", [{"resources": {}}], indirect=True)
def test_a_cluster_where_no_worker_may_load_a_model_is_told(project: Path, cluster: Any) -> None:
    with pytest.raises(
        BackendError, match=r"no Dask worker may load a model: start one with `dask worker tcp://.* --resources GPU=1`"
    ):
        run(project / "spec.yaml", project / ".ptk", cluster.scheduler_address)


def test_the_workers_answer_and_the_driver_stores(project: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_models, "REQUESTS_PER_CHUNK", 3)
    summary = run(project / "spec.yaml", project / ".ptk", cluster.scheduler_address)
    requests = summary.steps[-1].result.requests
    assert requests is not None
    assert (requests.asked, requests.answered_before) == (20, 0)
    again = run(project / "spec.yaml", project / ".ptk", cluster.scheduler_address)
    assert all(step.cached for step in again.steps)


@pytest.mark.parametrize("cluster", [{"n_workers": 1}], indirect=True)
def test_a_run_whose_models_die_with_their_workers_ends_and_keeps_what_was_answered(
    project: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_models, "REQUESTS_PER_CHUNK", 2)
    monkeypatch.setattr(cluster_module, "LOOK_SECONDS", 0.2)
    slow = (project / "spec.yaml").read_text().replace("model: persona}", "model: persona, seconds: 0.5}")
    (project / "spec.yaml").write_text(slow)
    over = threading.Event()

    def kill_all_that_come() -> None:
        killed: set[int] = set()
        while not over.wait(0.05):
            for worker in list(cluster.workers.values()):
                pid = worker.process.pid if worker.process is not None else None
                there = worker.worker_address in cluster.scheduler.workers
                if pid and there and pid not in killed and list((project / ".ptk").rglob("answers/**/*.parquet")):
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill_all_that_come)
    killing.start()
    with pytest.raises(BackendError, match=r"scripted/persona: workers died \d+ times and nothing came of it"):
        run(project / "spec.yaml", project / ".ptk", cluster.scheduler_address)
    over.set()
    killing.join()
    assert 0 < stored(project) < 20


TUNED = """\
ptk: 1
name: tuned
models:
  base:   {backend: transformers, model: tiny}
  writer: {backend: scripted}
steps:
  pairs:   {op: read_pairs, path: pairs.jsonl}
  records: {op: tailoring_records, from: pairs, training: none}
  tuned:   {op: tailor, from: records, model: base, preset: cpu, trl: {max_steps: 3}, validation: null}
  solved:  {op: tailoring_records, from: pairs, method: few_shot, training: none}
  cases:   {op: tailor, from: solved, model: writer, method: few_shot, cases: 2}
outputs:
  tiny/tuned: {from: tuned, kind: model}
  tiny/cases: {from: cases, kind: model}
"""


@pytest.fixture
def tiny(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_model(project / "tiny")
    (project / "spec.yaml").write_text(TUNED)
    monkeypatch.setenv("PTK_CACHE", str(project / "cache"))  # before the workers start
    return project


@pytest.mark.model
def test_a_worker_trains_the_model_that_is_trained_here(tiny: Path, cluster: Any) -> None:
    there = run(tiny / "spec.yaml", tiny / "there", cluster.scheduler_address)
    store = WorkStore(tiny / "here")
    here = run_plan(
        make_plan(load_spec(tiny / "spec.yaml"), store), store, lambda: ptk_catalog.open(tiny / "here" / "catalog"), Quiet()
    )
    assert [version.digest for version in there.versions] == [version.digest for version in here.versions]
    assert {step.name: step.result.facts.get("rows") for step in there.steps} == {
        step.name: step.result.facts.get("rows") for step in here.steps
    }


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("cluster", [{"n_workers": 1}], indirect=True)
def test_the_real_model_goes_on_when_its_worker_is_killed(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setattr(dask_models, "REQUESTS_PER_CHUNK", 4)
    lines = (SPECS / "data" / "quickstart.jsonl").read_text().splitlines()[:8]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(REAL)
    asked: list[int] = []

    def kill_once_answers_are_stored() -> None:
        while not list((tmp_path / ".ptk" / "answers").rglob("*.parquet")):
            time.sleep(0.1)
        asked.append(stored(tmp_path))
        os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)

    killing = threading.Thread(target=kill_once_answers_are_stored, daemon=True)
    killing.start()
    summary = run(tmp_path / "spec.yaml", tmp_path / ".ptk", cluster.scheduler_address)
    killing.join()
    requests = summary.steps[-1].result.requests
    assert requests is not None
    assert requests.asked == 16
    assert 0 < asked[0] < 16
    assert stored(tmp_path) == 16
    assert summary.versions[0].rows == summary.steps[-1].result.rows_out


def stored(folder: Path) -> int:
    return int(pl.scan_parquet(folder / ".ptk" / "answers" / "**/*.parquet").select(pl.len()).collect().item())
