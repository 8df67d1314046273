"""A stand-in for an OpenAI-compatible server, on this machine: answers by a rule, and can be as broken as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Body = dict[str, Any]
CHATS = ("/v1/chat/completions", "/v1/completions")


@dataclass
class Reply:
    """What the stand-in sends back; `seconds` is how long it takes."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    keep: int | None = None
    """How many bytes of the body are sent before the connection is closed; None is all."""


def chat(text: str | None, **choice: Any) -> Reply:
    """Return the reply that says `text`."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    return Reply(body={"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}], "usage": usage})


def refusal(status: int, message: str, **headers: str) -> Reply:
    return Reply(status, {"error": {"message": message, "code": status}}, {k.replace("_", "-"): v for k, v in headers.items()})


def shout(body: Body) -> Reply:
    return chat(body["messages"][-1]["content"].upper())


@dataclass
class StandIn:
    """A server and what it was asked. `rule(body)` gives the reply to a chat; `others` gives those of other paths."""

    rule: Callable[[Body], Reply] = shout
    others: dict[str, Reply] = field(default_factory=dict)
    asked: list[Body] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, body: Body) -> Reply:
        if path not in CHATS:
            return self.others.get(path, refusal(404, "Not Found"))
        return self.rule(body)


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                if self.path in CHATS:
                    stand_in.asked.append(body)
                    stand_in.times.append(time.monotonic())
                    stand_in.headers.append(dict(self.headers))
                stand_in.under_way += 1
                stand_in.most_under_way = max(stand_in.most_under_way, stand_in.under_way)
            try:
                self.give(stand_in.reply(self.path, body))
            finally:
                with stand_in.lock:
                    stand_in.under_way -= 1

        def do_GET(self) -> None:
            self.give(stand_in.reply(self.path, {}))

        def give(self, reply: Reply) -> None:
            over.wait(reply.seconds)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: reply.keep])
                self.close_connection = reply.keep is not None
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *parts: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away in the middle

    with Server(("127.0.0.1", 0), Handler) as running:
        stand_in.url = f"http://127.0.0.1:{running.server_address[1]}/v1"
        serving = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        serving.start()
        yield stand_in
        over.set()
        running.shutdown()
