"""A training in processes of its own: started, listened to, and ended with all that it held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ptk.errors import BackendError
from ptk.llm.child import child_environment, computing

__all__ = ["Finished", "run_training"]

_WORKER = "ptk.train.tailor_worker"
_LISTEN_S = 0.2
_CLOSE_S = 5.0
_LOG_LINES = 20

Finished = Mapping[str, Any]


def run_training(
    folder: Path, job: Mapping[str, Any], launch: Mapping[str, Any] | None, listen: Callable[[Mapping[str, Any]], None]
) -> Finished:
    """Do a job in `folder`, which outlives a kill, and return its last event; `listen` is told all events.

    With `launch`, `accelerate launch` starts the processes with these options. Where this process ends, so do they. Raises
    BackendError, with the end of the log, where they end without a word; an event `failed` is returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_bytes(orjson.dumps(job, option=orjson.OPT_INDENT_2))
    events, log = folder / "events.jsonl", folder / "log.txt"
    before = events.stat().st_size if events.exists() else 0
    command = [*_launcher(launch), _WORKER, str(folder), str(os.getpid())]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for ptk, which then ends the training itself.
            start_new_session=True,
        )
    last: dict[str, Any] | None = None
    try:
        for event in _events(events, before, process):
            listen(event)
            last = event
    finally:
        _end(process)
    if last is not None and last["event"] in ("done", "failed"):
        return last
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-_LOG_LINES:]
    told = "\n".join(f"  {line[:300]}" for line in lines)
    raise BackendError(f"the training ended without a word: {_how(process.returncode)}; the end of {log}:\n{told}")


def _launcher(launch: Mapping[str, Any] | None) -> list[str]:
    """Return what the worker's name is appended to."""
    python = [sys.executable, "-P", "-m"]
    if launch is None:
        return python
    options: list[str] = []
    for name, value in launch.items():
        if value is True:
            options.append(f"--{name}")
        elif value not in (False, None):
            options += [
                f"--{name}",
                ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value),
            ]
    return [*python, "accelerate.commands.launch", *options, "-m"]


def _environment() -> dict[str, str]:
    return child_environment(
        forced={"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1", "DO_NOT_TRACK": "1"},
        defaults={"HF_HUB_OFFLINE": "1", **computing()},
    )


def _events(path: Path, at: int, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yield events as they are written, from byte `at` on, until the process has ended."""
    pending = b""
    while True:
        ended = process.poll() is not None
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(at)
            block = file.read()
            at += len(block)
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                with suppress(orjson.JSONDecodeError):  # a line that a kill cut short
                    yield orjson.loads(line)
        if ended:
            return
        time.sleep(_LISTEN_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_CLOSE_S)


def _how(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed (signal 9; when memory runs out the system does that)"
    return f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
