"""How a run tells the user where it is: bars on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

__all__ = ["Lines", "Quiet", "Reporter", "reporter_for"]

_EVERY_SECONDS = 5.0


class Reporter(Protocol):
    """What a run calls as it goes."""

    def begin(self, step: str, what: str) -> None: ...

    def advance(self, done: int, total: int | None, note: str = "") -> None: ...

    def end(self, summary: str) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def begin(self, step: str, what: str) -> None: ...

    def advance(self, done: int, total: int | None, note: str = "") -> None: ...

    def end(self, summary: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A plain line when a step begins or ends, and every few seconds between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step = ""
        self._last = 0.0

    def begin(self, step: str, what: str) -> None:
        self._step, self._last = step, time.monotonic()
        print(f"{step}: {what}", file=self._stream, flush=True)

    def advance(self, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY_SECONDS:
            self._last = now
            of = f" of {total:,}" if total is not None else ""
            print(f"{self._step}: {done:,}{of}{'  ' + note if note else ''}", file=self._stream, flush=True)

    def end(self, summary: str) -> None:
        print(f"{self._step}: {summary}", file=self._stream, flush=True)

    def close(self) -> None: ...


class Bars:
    """A bar a step, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task: Any = None
        self._progress.start()

    def begin(self, step: str, what: str) -> None:
        self._task = self._progress.add_task(what, step=step, total=None)

    def advance(self, done: int, total: int | None, note: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, description=note or None)

    def end(self, summary: str) -> None:
        task = self._progress.tasks[self._task]
        total = task.total or max(task.completed, 1)
        self._progress.update(self._task, total=total, completed=total, description=summary)

    def close(self) -> None:
        self._progress.stop()


def reporter_for(stream: TextIO = sys.stderr) -> Reporter:
    """Return bars where `stream` is a terminal, else lines."""
    return Bars() if stream.isatty() else Lines(stream)
