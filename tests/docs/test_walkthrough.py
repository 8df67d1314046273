"""The walk-through's last script needs no package but those of the base install."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hub_stand_in import Hub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "walkthrough.md"

GUARD = """
import importlib.abc, sys

class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"no module named {name} in the base install", name=name)
        return None

sys.meta_path.insert(0, Guard())
"""


def base_install() -> set[str]:
    """Return the distributions that come with preference-toolkit without extras."""
    found: set[str] = set()
    waiting = ["preference-toolkit"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(needed.name))
    return found


def test_the_script_that_loads_back_has_only_the_base_install(tmp_path: Path, hub: Hub) -> None:
    from docs.test_docs import Shell, blocks

    shell = Shell(tmp_path)
    for block in blocks(PAGE):
        shell.run(block)
    base = base_install()
    forbidden = {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & base
    }
    assert {"datasets", "huggingface_hub", "torch", "dask"} <= forbidden
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "run.py").write_text(
        f"FORBIDDEN = {sorted(forbidden)!r}\n{GUARD}\nimport runpy\nrunpy.run_path('load.py', run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, str(guard / "run.py")], cwd=shell.folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"2 rows are the same\n", run.stdout)
