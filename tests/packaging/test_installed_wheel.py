"""The built wheel, installed away from the checkout, lays out a starter project and runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_outside_the_checkout_lays_out_a_project_and_runs_it(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("preference_toolkit-*.whl")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def ptk(*arguments: str, folder: Path) -> str:
        check = "import sys, ptk; assert ptk.__file__.startswith(sys.argv[1]), ptk.__file__; del sys.argv[1]"
        code = f"{check}; from ptk.cli import main; main()"
        command = [sys.executable, "-c", code, str(site), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ptk("init", "project", folder=tmp_path)
    project = tmp_path / "project"
    spec = project / "specs" / "quickstart.yaml"
    assert (project / "specs" / "data" / "quickstart.jsonl").exists()
    text = spec.read_text().replace("backend: vllm", "backend: scripted").replace("bundled/smollm2-135m-instruct", "persona")
    spec.write_text(text)
    assert "committed  quickstart/personas@v1  48 rows" in ptk("run", "specs/quickstart.yaml", folder=project)
    assert "quickstart/personas" in ptk("catalog", "ls", folder=project)
