"""The paper's experiment at a small scale, killed again and again: the report is that of a run that nothing disturbed."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PTK = [sys.executable, "-c", "from ptk.cli import main; main()", "run"]
KILLS = 10
STEPS_BETWEEN = 2


def begin(spec: Path) -> subprocess.Popen[str]:
    """Start a run whose report, catalog and finished steps are kept beside the spec's folder."""
    return subprocess.Popen(
        [*PTK, str(spec), "--json"], cwd=spec.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_after(process: subprocess.Popen[str], steps: int, seconds: float) -> list[str]:
    """Kill a run some seconds after that many steps began that were not finished before; return the steps that began."""
    assert process.stderr is not None
    begun: list[str] = []
    for line in process.stderr:
        if found := re.match(r"(\S+): \w+ \(new\)", line):
            begun.append(found[1])
        if len(begun) == steps:
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return begun


def finish(spec: Path) -> tuple[str, dict[str, str]]:
    """Run to the end; return the report's digest, and those of all versions."""
    process = begin(spec)
    output, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    page = (spec.parent / "out" / "paper_small.html").read_text()
    found = re.search(r'name="report-digest" content="(sha256:\w+)"', page)
    assert found is not None
    return found[1], {output["entry"]: output["digest"] for output in summary["outputs"]}


def small(spec: Path) -> Path:
    """Make responses short enough for a model whose tokens are bytes."""
    spec.write_text(
        spec.read_text().replace("words: 60", "words: 12").replace("preset: cpu\n", "preset: cpu\n    max_cut: 1\n")
    )
    return spec


def test_a_run_killed_at_ten_moments_makes_the_report_of_an_undisturbed_one(
    tmp_path: Path, scripted: Callable[..., Path]
) -> None:
    undisturbed = small(scripted("paper_small.yaml"))
    killed = small(scripted("paper_small.yaml", tmp_path / "killed"))
    expected = finish(undisturbed)
    assert len(expected[1]) == 10

    draw = random.Random(0)
    began: list[list[str]] = []
    while len(began) < KILLS:
        began.append(kill_after(begin(killed), STEPS_BETWEEN, draw.uniform(0, 0.3)))
    assert all(began), began  # every kill came before the end
    assert finish(killed) == expected
