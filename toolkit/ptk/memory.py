"""How much memory a run took: the peaks of this process and of the processes that it started, told by the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "peak_memory"]


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes of resident memory (VmHWM), at their highest since each process began."""

    own: int | None
    """This process. None where the system has no /proc."""
    children: int | None
    """The processes below it that are alive, each one's peak added: never too little. None where there are none."""


def peak_memory() -> Peak:
    """Return the peaks so far. A process that has ended is not seen: look before an engine is closed."""
    parents = _parents()
    me = os.getpid()
    peaks = [peak for pid in parents if pid != me and _is_below(pid, me, parents) and (peak := _peak(pid)) is not None]
    return Peak(_peak(me), sum(peaks) if peaks else None)


def _parents() -> dict[int, int]:
    """Return the parent of each process."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The second field is the command in brackets, which may hold anything; the parent is the second field after it.
            found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    return found


def _is_below(pid: int, top: int, parents: dict[int, int]) -> bool:
    seen: set[int] = set()
    while pid in parents and pid not in seen:
        seen.add(pid)
        pid = parents[pid]
        if pid == top:
            return True
    return False


def _peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
