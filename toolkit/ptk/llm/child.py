"""How a process of ptk's own modules is started: the same ptk as in this process, and settings for its engine."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

__all__ = ["child_environment", "computing"]


def child_environment(forced: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for a child that imports ptk.

    `forced` overrides what the user has set, `defaults` does not. The child finds ptk where this process found it, even where
    only a changed `sys.path` leads there.
    """
    environment = {**(defaults or {}), **os.environ, **(forced or {})}
    home = str(Path(__file__).resolve().parents[2])
    inherited = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # Installed packages are found anyway, and on PYTHONPATH they would come before the standard library.
    if home not in inherited and home != sysconfig.get_path("purelib"):
        environment["PYTHONPATH"] = os.pathsep.join([*inherited, home])
    return environment


def computing() -> dict[str, str]:
    """Return defaults for a child that computes: a thread a core, which sleeps while it waits.

    Threads that spin while they wait take the core from the thread that they wait for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
