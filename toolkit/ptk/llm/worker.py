"""What every engine's process does: JSON lines in, JSON lines out, over a socket that it inherits.

First line in: the engine's settings. First line out: `{"ready": ...}`. Then each line in is a request, each line out its
answer, as soon as it is finished. `{"failed": ...}` is the last line of an engine that failed. The end of the input is the end
of the process, whatever the engine is doing.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import orjson

__all__ = ["Refused", "Requests", "Send", "serve"]

PARENT_CHECK_S = 1.0

Requests = queue.SimpleQueue[dict[str, Any]]
Send = Callable[[dict[str, Any]], None]


class Refused(Exception):
    """This request would fail again the same way; the message says why."""


def serve(start: Callable[[dict[str, Any], Send], Callable[[Requests], NoReturn]]) -> NoReturn:
    """Serve the socket whose file descriptor is the first argument; the second is the parent's process id.

    `start(settings, send)` loads the engine, sends the first line, and returns what answers requests for ever.
    """
    wire = socket.socket(fileno=int(sys.argv[1]))
    lines = wire.makefile("rb")
    settings = orjson.loads(lines.readline())
    requests: Requests = queue.SimpleQueue()
    threading.Thread(target=_exit_with_parent, args=(int(sys.argv[2]),), daemon=True).start()

    def read() -> None:
        for line in lines:
            requests.put(orjson.loads(line))
        os._exit(0)

    def send(content: dict[str, Any]) -> None:
        wire.sendall(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))

    threading.Thread(target=read, daemon=True).start()
    try:
        start(settings, send)(requests)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        send({"failed": f"{type(error).__name__}: {error}"})
    finally:
        # Threads of the engine could keep a process alive whose work has failed.
        os._exit(1)


def _exit_with_parent(parent: int) -> None:
    # A process that was forked from the parent may hold the socket open after it, so its end alone can't be relied on. A death
    # signal (PR_SET_PDEATHSIG) would also come when only the thread that started this process ends.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)
