"""The whole way on the real model that ships: run, killed run, changed row, the shipped quickstart."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import ptk_catalog

pytest.importorskip("vllm")
pytestmark = pytest.mark.model

SPECS = Path(__file__).resolve().parents[2] / "specs"
PANDALM = SPECS.parents[1] / "shared" / "data" / "pandalm_human.jsonl"
PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]

SPEC = f"""\
ptk: 1
name: real
models:
  labeler:
    backend: vllm
    model: bundled/smollm2-135m-instruct
    sampling: {{max_tokens: 60}}
steps:
  pairs:    {{op: read_pairs, path: pairs.jsonl}}
  personas: {{op: infer_personas, from: pairs, model: labeler, exemplars: {SPECS}/exemplars/advice.yaml}}
outputs:
  real/personas: {{from: personas, licence: cc0-1.0, tags: [latest]}}
"""


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a spec with --json and return the summary."""
    done = subprocess.run(
        [*PTK, "run", "spec.yaml", "--json", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def stored_answers(folder: Path) -> int:
    return len(list((folder / ".ptk" / "answers").rglob("*.parquet")))


def test_a_killed_run_goes_on_and_a_changed_pair_costs_its_own_two_requests(tmp_path: Path) -> None:
    lines = (SPECS / "data" / "quickstart.jsonl").read_text().splitlines()[:12]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(SPEC)
    killed = subprocess.Popen([*PTK, "run", "spec.yaml"], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not stored_answers(tmp_path) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    children = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, "the engine outlived the run"
    assert not (tmp_path / "catalog").exists()
    kept = stored_answers(tmp_path)
    assert kept

    summary = run(tmp_path)
    step = summary["steps"]["personas"]
    assert step["rows_in"] == 12 == step["rows_out"] + sum(step["rejected"].values())
    assert step["requests"]["asked"] + step["requests"]["answered_before"] == 24
    assert step["requests"]["answered_before"] >= 1
    assert [(item["entry"], item["version"], item["new"]) for item in summary["outputs"]] == [("real/personas", "v1", True)]

    again = run(tmp_path)
    assert all(step["cached"] for step in again["steps"].values())
    assert (again["outputs"][0]["version"], again["outputs"][0]["new"]) == ("v1", False)

    changed = json.loads(lines[3])
    changed["chosen"] += " Take your time with it."
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    after = run(tmp_path)
    assert after["steps"]["personas"]["requests"]["asked"] == 2
    assert after["steps"]["personas"]["requests"]["answered_before"] == 22
    catalog = ptk_catalog.open(tmp_path / "catalog" / "store", create=False)
    rows = catalog.load("real/personas@latest").collect()
    form = re.compile(r"The user is .+ (and|who) prefers? .+\.")
    assert rows.height and all(form.fullmatch(text) for side in ("chosen", "rejected") for text in rows[f"{side}_persona"])
    for version in catalog.log("real/personas"):
        catalog.verify(version.reference)


@pytest.mark.slow
def test_the_quickstart_takes_under_four_minutes_and_six_gibibytes_on_this_machine(tmp_path: Path) -> None:
    started = time.monotonic()
    process = psutil.Popen([*PTK, "run", str(SPECS / "quickstart.yaml"), "--json"], cwd=tmp_path, stdout=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process))
        time.sleep(0.5)
    summary = json.loads(process.communicate()[0])
    print(f"quickstart: {time.monotonic() - started:.0f} s, peak {peak / 2**30:.2f} GiB in all processes")
    assert peak < 6 * 2**30
    assert summary["steps"]["personas"]["requests"]["asked"] == 96
    assert summary["outputs"][0]["rows"] >= 40


def _memory(process: psutil.Popen) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


@pytest.mark.slow
@pytest.mark.skipif(not PANDALM.exists(), reason="the corpus is not on this machine")
def test_other_peoples_fields_are_mapped_and_bad_rows_are_counted(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    spec = SPEC.replace(
        "path: pairs.jsonl", f"path: {PANDALM}, fields: {{prompt: instruction, chosen: chosen, rejected: rejected}}, keep: [id]"
    ).replace(
        "personas: {op: infer_personas, from: pairs",
        "few: {op: sample_rows, from: pairs, n: 12}\n  personas: {op: infer_personas, from: few",
    )
    (tmp_path / "spec.yaml").write_text(spec)
    summary = run(tmp_path)
    pairs = summary["steps"]["pairs"]
    assert pairs["rows_in"] == 482 == pairs["rows_out"] + sum(pairs["rejected"].values())
    assert summary["steps"]["personas"]["requests"]["asked"] == 24
    assert ptk_catalog.open(tmp_path / "catalog" / "store").verify("real/personas@v1").rows == summary["outputs"][0]["rows"]
