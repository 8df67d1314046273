"""The lock file against what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith((" ", "#"))]
    return {name: Version(version) for name, version in pins}


def test_the_lock_pins_every_dependency_at_a_version_it_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [lines for extra, lines in project["optional-dependencies"].items() if extra != "gpu"]
    asked = [Requirement(line) for lines in [project["dependencies"], *groups] for line in lines]
    pins = locked()
    assert [
        f"{one} (locked: {pins.get(one.name)})"
        for one in asked
        if one.name != project["name"] and (one.name not in pins or pins[one.name] not in one.specifier)
    ] == []


def test_the_lock_leaves_out_what_the_overrides_drop() -> None:
    lines = (ROOT / "requirements" / "overrides.txt").read_text().splitlines()
    dropped = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    assert dropped & locked().keys() == set()


def test_the_lock_holds_the_cpu_build_of_torch() -> None:
    assert locked()["torch"].local == "cpu"
