"""The install script, run with a Python that only writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "install.sh"
TORCH = "torch==2.13.0+cpu"
NO_CPU_BUILD = f"ERROR: No matching distribution found for {TORCH}"

VENV = "venv --clear .venv"
PLAIN_TORCH = f"pip install -qq --no-deps {TORCH}"
INDEXED_TORCH = f"pip install -qq --no-deps --index-url https://download.pytorch.org/whl/cpu {TORCH}"
THE_REST = ["pip install -qq --no-deps -r requirements/lock.txt", "pip install -qq --no-deps --no-build-isolation -e ."]

# FIRST_TORCH and INDEXED_TORCH hold the error of that attempt; empty means that it succeeds.
STAND_IN = """#!/usr/bin/env bash
[ "$1" = -m ] || exit "${TOO_OLD:-0}"
shift
[ "$*" = "pip --version" ] || echo "$*" >>calls
error=
case "$*" in
  venv*)
    mkdir -p .venv/bin .venv/lib/python3.11/site-packages
    cp "$0" .venv/bin/python
    echo "VIRTUAL_ENV=\\"$PWD/.venv\\"" >.venv/bin/activate ;;
  *--index-url*) error=${INDEXED_TORCH:-} ;;
  *" torch=="*) error=${FIRST_TORCH:-} ;;
esac
[ -z "$error" ] || { echo "$error" >&2; exit 1; }
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "requirements")
    (folder / "requirements" / "lock.txt").write_text(f"polars==2.1.0\n{TORCH}\n    # via preference-toolkit\n")
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def install(checkout: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"}
    return subprocess.run(
        ["bash", "requirements/install.sh"],
        cwd=checkout,
        env=inherited | {"PYTHON": str(checkout.parent / "python")} | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(checkout: Path) -> list[str]:
    """Return what Python was asked since the last look."""
    written = checkout / "calls"
    lines = written.read_text().splitlines() if written.exists() else []
    written.unlink(missing_ok=True)
    return lines


def test_a_registry_with_the_cpu_build_is_all_that_is_asked(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    assert calls(checkout) == [VENV, PLAIN_TORCH, *THE_REST]
    assert (checkout / ".venv" / ".installed").exists()


def test_without_a_cpu_build_torch_alone_comes_from_its_own_index(checkout: Path) -> None:
    done = install(checkout, FIRST_TORCH=NO_CPU_BUILD)
    assert done.returncode == 0
    assert calls(checkout) == [VENV, PLAIN_TORCH, INDEXED_TORCH, *THE_REST]
    assert done.stderr == ""


def test_torch_can_come_from_a_mirror(checkout: Path) -> None:
    install(checkout, FIRST_TORCH=NO_CPU_BUILD, TORCH_INDEX="https://mirror.example/cpu")
    assert calls(checkout)[2] == f"pip install -qq --no-deps --index-url https://mirror.example/cpu {TORCH}"


def test_both_answers_are_shown_when_torch_is_found_nowhere(checkout: Path) -> None:
    done = install(checkout, FIRST_TORCH=NO_CPU_BUILD, INDEXED_TORCH="ERROR: unreachable")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ERROR: unreachable",
        f"error: neither gave {TORCH}. The package registry said:",
        NO_CPU_BUILD,
    ]
    assert not (checkout / ".venv" / ".installed").exists()


def test_another_failure_is_shown_and_asks_no_other_index(checkout: Path) -> None:
    done = install(checkout, FIRST_TORCH="ERROR: No space left on device")
    assert (done.returncode, done.stderr) == (1, "ERROR: No space left on device\n")
    assert calls(checkout) == [VENV, PLAIN_TORCH]


def test_a_second_install_keeps_the_environment(checkout: Path) -> None:
    install(checkout)
    calls(checkout)
    assert install(checkout).returncode == 0
    assert calls(checkout) == [PLAIN_TORCH, *THE_REST]


def test_a_copied_checkout_makes_its_environment_anew(checkout: Path) -> None:
    install(checkout)
    copy = checkout.with_name("copy")
    shutil.copytree(checkout, copy)
    calls(copy)
    assert install(copy).returncode == 0
    assert calls(copy) == [VENV, PLAIN_TORCH, *THE_REST]


def test_a_package_cut_off_half_way_is_installed_again(checkout: Path) -> None:
    install(checkout)
    packages = checkout / ".venv" / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole-1.0": ["METADATA", "INSTALLER"], "half-1.0": ["METADATA"]}.items():
        (packages / f"{name}.dist-info").mkdir()
        for file in files:
            (packages / f"{name}.dist-info" / file).touch()
    done = install(checkout)
    assert "[install] half-1.0 was cut off half-way: installing it again" in done.stdout.splitlines()
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_a_python_that_is_too_old_is_refused_with_what_to_do(checkout: Path) -> None:
    done = install(checkout, TOO_OLD="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: found no Python 3.11 or newer with its venv and ensurepip modules")
    assert "apt install python3.11 python3.11-venv" in done.stderr
    assert calls(checkout) == []
