"""Runs that are stopped: by Ctrl-C, and by SIGKILL at moments spread evenly over a run."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import ptk_catalog
from ptk.cli import cli

PTK = [sys.executable, "-c", "from ptk.cli import main; main()", "run", "spec.yaml", "--json"]
PAIRS = 400
REQUESTS = 2 * PAIRS


def lay_out(folder: Path, seconds: float) -> Path:
    """Write a spec whose model takes `seconds` for each of 800 requests."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(
        f"""\
ptk: 1
name: killed
models:
  labeler: {{backend: scripted, model: persona, unparsable: 0.02, seconds: {seconds}}}
steps:
  pairs:    {{op: read_pairs, path: pairs.jsonl}}
  unique:   {{op: drop_duplicates, from: pairs, on: [prompt]}}
  personas: {{op: infer_personas, from: unique, model: labeler, exemplars: exemplars.yaml}}
outputs:
  killed/personas: {{from: personas, licence: cc0-1.0, tags: [latest]}}
  killed/pairs: {{from: unique}}
"""
    )
    (folder / "exemplars.yaml").write_text(
        "exemplars:\n  - {prompt: 'Tea or coffee?', preferred: Tea., other: It depends., persona: The user is brief.}\n"
    )
    records = [{"prompt": f"Question {n}?", "chosen": f"Short {n}.", "rejected": f"Longer, number {n}."} for n in range(PAIRS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(PTK, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(folder: Path) -> dict[str, Any]:
    """Run the same command to its end, in this process, which spares the start, and return its summary."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli, PTK[3:], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def stored_keys(folder: Path) -> list[bytes]:
    return [
        key for path in (folder / ".ptk/answers").glob("*/*.parquet") for key in pl.read_parquet(path, columns=["key"])["key"]
    ]


def verified_versions(folder: Path) -> dict[str, str]:
    """Return the digests of all versions that the catalog lists, after verifying each; none where there is no catalog yet."""
    place = folder / "catalog/store"
    if not place.exists():
        return {}
    try:
        catalog = ptk_catalog.open(place, create=False)
    except ptk_catalog.NotFound:
        return {}
    listed = [version.reference for entry in catalog.entries() for version in catalog.log(entry)]
    return {reference: catalog.verify(reference).digest for reference in listed}


def outputs(summary: dict[str, Any]) -> dict[str, str]:
    return {f"{output['entry']}@{output['version']}": output["digest"] for output in summary["outputs"]}


def wait_for_first_line(process: subprocess.Popen[bytes]) -> None:
    """Wait until the run says that its first step begins."""
    assert process.stderr is not None
    process.stderr.readline()


def kill_at(folder: Path, moment: float, start_up: float = 0.0) -> None:
    """Kill a run that many seconds after it was started; a start that takes longer than `start_up` counts as that long."""
    process = start(folder)
    if 0 < start_up < moment:
        wait_for_first_line(process)
        moment -= start_up
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()


def check_kills(tmp_path: Path, moments: int) -> None:
    """Kill a run at evenly spread moments, each time in a fresh folder, and finish it by the same command."""
    undisturbed = lay_out(tmp_path / "undisturbed", seconds=0.0025)
    started = time.monotonic()
    process = start(undisturbed)
    wait_for_first_line(process)
    start_up = time.monotonic() - started
    output, errors = process.communicate(timeout=300)
    whole = time.monotonic() - started
    assert output, errors.decode()
    summary = json.loads(output)
    expected = outputs(summary)
    assert expected == verified_versions(undisturbed) != {}
    assert summary["steps"]["personas"]["requests"]["asked"] == REQUESTS

    kept: list[int] = []
    for number in range(moments):
        moment = whole * (number + 0.5) / moments
        folder = lay_out(tmp_path / f"killed-{number}", seconds=0.0025)
        kill_at(folder, moment, start_up)
        where = f"killed after {moment:.2f} of {whole:.2f} s"

        before = verified_versions(folder)
        assert before in ({}, expected), where  # both outputs or none
        keys = stored_keys(folder)
        assert len(keys) == len(set(keys)), where
        kept.append(len(keys))

        after = finish(folder)
        requests = after["steps"]["personas"]["requests"]
        assert requests["answered_before"] == len(keys), where
        assert requests["asked"] == REQUESTS - len(keys), where
        assert sorted(stored_keys(folder)) == sorted(set(stored_keys(folder))), where
        assert outputs(after) == expected == verified_versions(folder), where
        assert list((folder / ".ptk/steps/staging").iterdir()) == [], where
        shutil.rmtree(folder)
    assert any(0 < count < REQUESTS for count in kept), "no kill fell between two chunks"


def test_a_run_killed_at_ten_moments_finishes_by_the_same_command_and_asks_no_stored_answer_again(tmp_path: Path) -> None:
    check_kills(tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_fifty_moments_finishes_by_the_same_command_and_asks_no_stored_answer_again(tmp_path: Path) -> None:
    check_kills(tmp_path, 50)


def test_runs_killed_again_and_again_in_one_folder_come_to_their_end(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "project", seconds=0.0025)
    stored = 0
    for moment in (0.6, 1.2, 1.8, 2.4):
        kill_at(folder, moment)
        assert len(stored_keys(folder)) >= stored
        stored = len(stored_keys(folder))
    assert finish(folder)["steps"]["personas"]["requests"] is not None
    assert len(stored_keys(folder)) == len(set(stored_keys(folder))) == REQUESTS
    again = finish(folder)
    assert again["steps"]["personas"]["cached"] and not any(output["new"] for output in again["outputs"])


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that would take 16 s, its model at work."""
    folder = lay_out(tmp_path / "project", seconds=0.02)
    process = start(folder)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"personas: infer_personas"):
            break
    time.sleep(1.5)
    assert process.poll() is None
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_ctrl_c_ends_a_run_soon_keeps_its_answers_and_says_how_to_go_on(
    tmp_path: Path, at_work: subprocess.Popen[bytes]
) -> None:
    started = time.monotonic()
    at_work.send_signal(signal.SIGINT)
    _, errors = at_work.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert at_work.returncode == 130
    assert errors.decode().endswith("Stopped. What was finished is kept; run the same command to go on.\n")
    assert "Traceback" not in errors.decode()

    folder = tmp_path / "project"
    keys = stored_keys(folder)
    assert 20 < len(keys) < REQUESTS
    assert verified_versions(folder) == {}
    lay_out(folder, seconds=0.0)  # how long an answer takes is no part of any key
    after = finish(folder)
    assert after["steps"]["unique"]["cached"]
    requests = after["steps"]["personas"]["requests"]
    assert (requests["asked"], requests["answered_before"]) == (REQUESTS - len(keys), len(keys))
