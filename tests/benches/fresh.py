"""Runs a script in a process of its own, so that no benchmark sees what another left in memory, and measures that process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def told(script: str, *arguments: Any, **environment: str) -> Any:
    """Run a script, which may import the modules beside this one, and return what it prints last, as JSON."""
    return all_told(script, *arguments, **environment)[-1]


def all_told(script: str, *arguments: Any, **environment: str) -> list[Any]:
    """Run a script as `told` does and return all it prints, a line each."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def most_memory() -> float:
    """Return the most memory this process had, in MiB; what getrusage says begins with that of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0
