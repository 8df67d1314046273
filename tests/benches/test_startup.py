"""How long ptk takes before it does anything, as ratios to what Python itself takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

TIMES = 7
PTK = "from ptk.cli import main; main()"


def seconds(folder: Path, *arguments: str) -> float:
    """Return the median time of a Python process with these arguments."""
    taken = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True, timeout=300)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])  # the first one reads the files from disk


def test_help_against_importing_click(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    click = seconds(tmp_path, "-c", "import click")
    took = seconds(tmp_path, "-c", PTK, "--help")
    with capsys.disabled():
        print(f"\nptk --help: {took:.3f} s, {took / click:.2f} x `import click` ({click:.3f} s); to stay under 3 x")
    assert took < 3 * click


def test_a_rerun_of_a_finished_spec_against_importing_polars(
    project: Path, ptk: Callable[..., subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = ptk("run", "spec.yaml")
    assert first.returncode == 0, first.stderr
    polars = seconds(project, "-c", "import polars")
    took = seconds(project, "-c", PTK, "run", "spec.yaml")
    assert "Everything was cached" in ptk("run", "spec.yaml").stdout
    with capsys.disabled():
        print(
            f"\nrerun of a finished spec: {took:.3f} s, {took / polars:.2f} x `import polars` ({polars:.3f} s), "
            f"{took - polars:.3f} s more; to stay under 2 s more"
        )
