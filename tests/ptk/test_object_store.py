"""The work store in an object store: the same steps, digests, rejects, answers and files as in a folder, on each engine."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ptk_catalog
from ptk.cli import main
from ptk.engines.engine import Engine
from ptk.engines.polars import PolarsEngine
from ptk.errors import StoreError
from ptk.execute import RunSummary, run_plan
from ptk.places import Place, Remote, place_of
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore
from servers import new_bucket

pytest.importorskip("s3fs")
SPECS = Path(__file__).resolve().parents[2] / "specs"

SPEC = f"""\
ptk: 1
name: stored
models:
  labeler: {{backend: scripted}}
steps:
  pairs:    {{op: read_pairs, path: "pairs/*.jsonl", on_repeat: number, max_malformed: 0.5}}
  decent:   {{op: keep_lengths, from: pairs, minimum: 2}}
  unique:   {{op: drop_duplicates, from: decent, on: [prompt]}}
  novel:    {{op: drop_near_duplicates, from: unique, on: [prompt]}}
  few:      {{op: sample_rows, from: novel, n: 10}}
  personas: {{op: infer_personas, from: few, model: labeler, exemplars: {SPECS}/exemplars/advice.yaml}}
  all:      {{op: concat_rows, from: [few, pairs], columns: common, on_repeat: first}}
  files:    {{op: export_rows, from: personas, path: out}}
outputs:
  stored/personas: {{from: personas}}
  stored/all: {{from: all}}
"""


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Iterator[str]:
    """A bucket of an S3 server on this machine, which processes that are started find by their environment."""
    with pytest.MonkeyPatch.context() as patched:
        yield new_bucket(s3_server, patched)


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[str]:
    """A Dask cluster whose workers are processes of their own."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, resources={"GPU": 1}, silence_logs=50
    ) as running:
        yield running.scheduler_address


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "pairs").mkdir()
    for part in range(3):
        records = [
            {
                "prompt": f"What about number {number // 2} of the many numbers that are there to be asked about{'?' * (number % 4)}",
                "chosen": f"It is {number}." if number % 5 else "Yes.",
                "rejected": f"It is not {number}.",
            }
            for number in range(part * 30, part * 30 + 40)
        ]
        lines = [json.dumps(record) + "\n" for record in records]
        (tmp_path / "pairs" / f"{part}.jsonl").write_text("".join([*lines, "{\n"]))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def run(spec: Path, work: Place, catalog: str, engine: Engine | None = None) -> RunSummary:
    store = WorkStore(work)
    return run_plan(make_plan(load_spec(spec), store), store, lambda: ptk_catalog.open(spec.parent / catalog), Quiet(), engine)


def told(summary: RunSummary) -> tuple[Any, ...]:
    steps = {
        step.name: (step.result.rows_in, step.result.rows_out, step.result.rejected, step.result.facts)
        for step in summary.steps
    }
    return steps, {version.entry: version.digest for version in summary.versions}


def exported(spec: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (spec.parent / "out").glob("*.jsonl")}


def on_dask(work: Place, cluster: str) -> Engine:
    from ptk.engines.dask import DaskEngine

    return DaskEngine(work, scheduler=cluster, partitions=3)


def test_both_engines_give_what_a_folder_gives(spec: Path, bucket: str, cluster: str) -> None:
    expected = told(run(spec, spec.parent / ".ptk", "store"))
    reasons = {reason for _, _, rejected, _ in expected[0].values() for reason in rejected}
    assert reasons == {"not_json", "too_short", "duplicate", "near_duplicate", "not_sampled"}
    files = exported(spec)
    assert files["data.jsonl"].count(b"\n") == 10
    for name in ("polars", "dask"):
        (spec.parent / "out" / "data.jsonl").unlink()
        work = place_of(f"{bucket}/{name}/work")
        engine = on_dask(work, cluster) if name == "dask" else PolarsEngine()
        summary = run(spec, work, f"store-{name}", engine)
        assert told(summary) == expected
        assert exported(spec) == files
        requests = {step.name: step.result.requests for step in summary.steps}["personas"]
        assert requests is not None and requests.asked == 20
        other = PolarsEngine() if name == "dask" else on_dask(work, cluster)
        again = run(spec, work, f"store-{name}", other)
        assert all(step.cached for step in again.steps)
        other.close()
        engine.close()


def test_what_was_asked_and_rejected_is_found_again(
    spec: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(spec.parent)

    def ptk(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ptk", *arguments, "--work", f"{bucket}/cli"])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert (stopped.value.code or 0) == 0, printed.err
        return printed.out

    first = json.loads(ptk("run", "spec.yaml", "--json"))
    forced = json.loads(ptk("run", "spec.yaml", "--force", "few", "--json"))
    assert [run["steps"]["personas"]["requests"]["asked"] for run in (first, forced)] == [20, 0]
    assert "3 of 3 rejected rows" in ptk("rejects", "spec.yaml", "pairs")
    assert [model["answers"] for model in json.loads(ptk("answers", "ls", "--json"))] == [20]
    # What a forced step made takes the place of what was there.
    staged = Remote(f"{bucket}/cli/steps/staging")
    assert len(list(staged.glob("*"))) == len(first["steps"])


def test_what_a_killed_run_left_is_removed_and_what_others_do_is_not(bucket: str) -> None:
    work = WorkStore(place_of(f"{bucket}/left"))
    host = socket.gethostname()
    dead = next(pid for pid in range(30_000, 4_000_000) if not Path(f"/proc/{pid}").exists())
    names = [f"{host}-{dead}-aaaa", f"{host}-{os.getpid()}-bbbb", f"elsewhere-{dead}-cccc"]
    for name in names:
        (work.steps / "staging" / name / "rows" / "part-00000.parquet").write_bytes(b"half")
    work.clear_abandoned()
    assert [place.name for place in sorted((work.steps / "staging").glob("*"), key=str)] == sorted(names[1:])


@pytest.mark.parametrize("url", ["s3://no-such-bucket/work", "nonsense://here/work"])
def test_a_store_that_is_not_there_is_told(url: str, spec: Path, bucket: str) -> None:
    with pytest.raises(StoreError, match=url.partition("/work")[0]):
        run(spec, place_of(url), "store")


def test_a_run_that_stops_leaves_nothing(spec: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = place_of(f"{bucket}/stopped")

    class Stops(PolarsEngine):
        is_distributed = True

        def read(self, node: Any, folder: Place, sample: int | None, on_progress: Callable[[int], None]) -> Any:
            super().read(node, folder, sample, on_progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, work, "store", Stops())
    assert list((WorkStore(work).steps).glob("*")) == []
