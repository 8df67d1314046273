"""The process that trains a model with TRL: a job in a folder, events as lines of JSON in a file beside it.

Started alone, or several times by `accelerate launch`; the first of them writes. A job that was killed goes on from its last whole
checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptk.train.job import Events, JobFailed

__all__ = ["main"]

_PARENT_CHECK_S = 0.5


def main() -> None:
    """Do the job whose folder is the first argument; the second is the process id of ptk, whose end ends the job."""
    folder = Path(sys.argv[1])
    first = int(os.environ.get("RANK", "0")) == 0
    events = Events(folder / "events.jsonl", writes=first)
    threading.Thread(target=_exit_with, args=(int(sys.argv[2]), os.getppid()), daemon=True).start()
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        with _alone(folder / "lock") if first else _nothing():
            from ptk.train.trl_training import train

            train(job, folder, events)
    except JobFailed as failure:
        events.send(event="failed", kind=failure.kind, what=str(failure), **failure.more)
        sys.exit(3)
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        events.send(event="failed", kind="error", what=f"{type(error).__name__}: {lines[0] if lines else ''}"[:600])
        sys.exit(4)


def _exit_with(ptk: int, parent: int) -> None:
    """End this process when ptk has ended, or what started this process."""
    while os.getppid() == parent and _is_running(ptk):
        time.sleep(_PARENT_CHECK_S)
    os._exit(0)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")  # a zombie is no longer running
    except (ProcessLookupError, FileNotFoundError):
        return not Path("/proc").is_dir()
    except OSError:
        return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process works on the job: one whose ptk was killed takes a moment to end."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


if __name__ == "__main__":
    main()
