"""A model's engine in a child process: started, fed with requests, started again when it dies, and ended with all that it held."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson

from ptk.errors import BackendError
from ptk.llm.request import Answer, Request

__all__ = ["EngineProcess", "EngineSession"]

RESTARTS = 2
CLOSE_S = 3.0
LOG_LINES = 20


class EngineSession:
    """An engine in a child process; restarted when it dies, at most twice. What it runs and is told is up to the subclass."""

    def __init__(
        self, reference: str, first_line: dict[str, Any], environment: dict[str, str], *, ahead: int, timeout: float
    ) -> None:
        """Start the engine and wait until it answers; at most `ahead` requests wait in it. Raises BackendError."""
        self._reference = reference
        self._first_line = first_line
        self._environment = environment
        self._timeout = timeout
        self._ahead = ahead
        self._sent = 0
        self._restarts = 0
        self._engine: EngineProcess | None = None
        self._engine = self._start()

    def _worker(self) -> str:
        """Return the module that the process runs: see `worker` for how it is spoken to."""
        raise NotImplementedError

    def _request_line(self, number: int, request: Request) -> bytes:
        """Return a request as the worker wants it, `id` being `number`: one line of JSON."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and its process; within 5 s nothing of it is left."""
        if self._engine is not None:
            self._engine.end()
            self._engine = None

    @property
    def process_id(self) -> int:
        """The process that holds the engine now."""
        assert self._engine is not None
        return self._engine.process.pid

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        """Take (key, request) pairs lazily and yield each answer as soon as it is finished, in any order.

        Raises BackendError when the engine died more than twice; answers yielded before that are good.
        """
        source = iter(requests)
        exhausted = False
        waiting: dict[int, tuple[str, bytes]] = {}
        while True:
            while not exhausted and len(waiting) < self._ahead:
                pair = next(source, None)
                if pair is None:
                    exhausted = True
                    break
                self._sent += 1
                line = self._request_line(self._sent, pair[1])
                waiting[self._sent] = (pair[0], line)
                if not self._running().send(line):
                    break  # it is ending: what it answered before that is still to be received
            if not waiting:
                return
            received = self._running().receive()
            if received is None:
                self._restart(waiting)
                continue
            for content in received:
                number = content.pop("id")
                # An answer() that was left early leaves requests behind; their answers belong to nobody.
                if number in waiting:
                    key, _ = waiting.pop(number)
                    scores = content.pop("scores", None)
                    yield Answer(key=key, scores=None if scores is None else tuple(scores), **content)

    def _running(self) -> EngineProcess:
        if self._engine is None:
            raise BackendError(f"the session of {self._reference} is closed")
        return self._engine

    def _start(self) -> EngineProcess:
        engine = EngineProcess(self._worker(), self._first_line, self._environment)
        try:
            engine.wait_until_ready(self._reference, self._timeout)
        except BaseException:
            engine.end()
            raise
        return engine

    def _restart(self, waiting: dict[int, tuple[str, bytes]]) -> None:
        engine = self._running()
        how = engine.how_it_ended()
        self._restarts += 1
        if self._restarts > RESTARTS:
            report = engine.report(f"the engine of {self._reference} died {self._restarts} times; the last time {how}")
            self.close()
            raise BackendError(report)
        self.close()
        self._engine = self._start()
        for _, line in list(waiting.values()):
            # A start that dies while it is fed shows itself at the next receive().
            if not self._engine.send(line):
                break


class EngineProcess:
    """One child process with a loaded engine, and the socket to it."""

    def __init__(self, worker: str, first_line: dict[str, Any], environment: dict[str, str]) -> None:
        self.wire, theirs = socket.socketpair()
        self.pending = b""
        self.failure: str | None = None
        with theirs, tempfile.NamedTemporaryFile(prefix="ptk-engine-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", worker, str(theirs.fileno()), str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal is for ptk, which then ends the engine itself.
                start_new_session=True,
            )
        self.send(orjson.dumps(first_line, option=orjson.OPT_APPEND_NEWLINE))

    def wait_until_ready(self, reference: str, timeout: float) -> None:
        """Raises BackendError, with the end of the log, when the process ends first or takes too long."""
        deadline = time.monotonic() + timeout
        while True:
            self.wire.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self.receive()
            except TimeoutError:
                raise BackendError(self.report(f"the engine of {reference} did not start in {timeout:g} s")) from None
            if received is None:
                raise BackendError(self.report(f"the engine of {reference} did not start: {self.how_it_ended()}"))
            if received:
                self.wire.settimeout(None)
                return

    def send(self, line: bytes) -> bool:
        """Return whether the line was taken; not taken means that the process is ending."""
        try:
            self.wire.sendall(line)
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for the next whole lines; None means that the process is at its end. Raises TimeoutError where one is set."""
        try:
            block = self.wire.recv(1 << 16)
        except ConnectionError:
            block = b""
        if not block:
            return None
        *lines, self.pending = (self.pending + block).split(b"\n")
        received = [orjson.loads(line) for line in lines]
        if received and "failed" in received[-1]:
            self.failure = " ".join(received.pop()["failed"].split())[:600]
            return received or None
        return received

    def how_it_ended(self) -> str:
        """Return how the process ended, as words."""
        if self.failure is not None:
            return self.failure
        try:
            code = self.process.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code == -signal.SIGKILL:
            return "killed (signal 9; when memory runs out the system does that)"
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def report(self, what: str) -> str:
        """Return `what` with the end of the log where the engine did not say itself why; the log is kept for reading on."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        kept = self.log.with_name(self.log.name.replace(".log", ".failed.log"))
        self.log.rename(kept)
        self.log = kept
        if self.failure is not None:
            return f"{what} (log: {kept})"
        return "\n".join([f"{what}; the end of {kept}:", *(f"  {line[:300]}" for line in lines[-LOG_LINES:])])

    def end(self) -> None:
        """End the process and all that it started. May be called again."""
        self.wire.close()
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=CLOSE_S)
        self._signal(signal.SIGKILL)
        self.process.wait()
        if not self.log.name.endswith(".failed.log"):
            self.log.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
