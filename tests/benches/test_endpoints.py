"""How busy the HTTP backend keeps a server, against a bare asyncio client that sends the same requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench

REQUESTS, ROUNDS, AT_ONCE = 600, 4, 64
SECONDS = 0.4
"""How long the server takes for an answer, as a model does that has AT_ONCE of them at work."""

SERVER = """
import asyncio, sys, json

seconds = float(sys.argv[1])
message = {"role": "assistant", "content": "The user is in a hurry and prefers a bare answer to a tour of the reasons."}
usage = {"prompt_tokens": 700, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 512}}
reply = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}).encode()
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(reply)
at_work = busy = 0.0
count = 0


def told():
    global busy
    now = asyncio.get_running_loop().time()
    busy += at_work * (now - told.last)
    told.last = now


async def serve(reader, writer):
    global at_work, busy, count
    try:
        while True:
            request = await reader.readuntil(b"\\r\\n\\r\\n")
            if request.startswith(b"GET"):
                told()
                body = json.dumps({"busy": busy, "count": count}).encode()
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
                continue
            length = next(line for line in request.lower().split(b"\\r\\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            told()
            at_work += 1
            await asyncio.sleep(seconds)
            told()
            at_work -= 1
            count += 1
            writer.write(head + reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    told.last = asyncio.get_running_loop().time()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
"""

CLIENTS = """
import asyncio, sys, time
from pathlib import Path

import httpx2
import orjson
import polars as pl

from ptk.label.infer_personas import InferPersonas, infer_personas
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking
from ptk.llm.model_files import ModelRoots
from ptk.llm.openai_backend import OpenAISettings, backend

url, folder, specs, count, rounds, at_once = *sys.argv[1:4], *map(int, sys.argv[4:])
params = InferPersonas.model_validate_json(
    '{"model": "m", "exemplars": "exemplars/advice.yaml", "constrain": false}', context={"root": Path(specs)}
)
settings = OpenAISettings(backend="openai", base_url=url, model="m", server="vllm", concurrency=at_once)
model = backend.resolve(settings, ModelRoots(Path(specs)))


def frame(part):
    text = "It depends on the wall, the brackets and the wood, and on what you mean to put on it. " * 4
    def turns(role, *content):
        return pl.concat_list(pl.struct(role=pl.lit(role), content=pl.format(*content)))

    return pl.DataFrame({"_key": [f"{part} {number}" for number in range(count // 2)]}).with_columns(
        prompt=turns("user", "Question {}: which shelf holds more, and why?", "_key"),
        chosen=turns("assistant", "The lower one, {}. " + text, "_key"),
        rejected=turns("assistant", "Neither, {}. " + text, "_key"),
    )


def ours(rows, session):
    asking = Asking(infer_personas, params, lambda: [rows], model, settings.sampling, AnswerStore(Path(folder), model.identity))
    started, busy = time.perf_counter(), time.process_time()
    assert sum(decision.height for decision in asking.run(lambda: session)) == rows.height
    assert asking.tally.asked == count
    return time.perf_counter() - started, time.process_time() - busy


async def bare(rows):
    asked = list(infer_personas.requests(rows, {}, params))
    limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    slots = asyncio.Semaphore(at_once)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

        async def one(request):
            async with slots:
                body = {
                    "model": "m",
                    "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
                    "max_tokens": settings.sampling.max_tokens,
                    "temperature": 0.0,
                }
                sent = await client.post(
                    url + "/chat/completions", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
                )
                return orjson.loads(sent.content)["choices"][0]["message"]["content"]

        started, busy = time.perf_counter(), time.process_time()
        texts = await asyncio.gather(*map(one, asked))
        assert len(texts) == count
        return time.perf_counter() - started, time.process_time() - busy


seen = {"ours": [], "bare": []}
with backend.open(settings, model) as session:
    ours(frame("warm"), session)
    asyncio.run(bare(frame("warm too")))
    for part in range(rounds):
        seen["ours"].append(ours(frame(part), session))
        seen["bare"].append(asyncio.run(bare(frame(part))))
print(orjson.dumps(seen).decode())
"""


def test_a_server_is_kept_as_busy_as_by_a_bare_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = Path(__file__).resolve().parents[2] / "specs"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(SECONDS)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        numbers = map(str, (REQUESTS, ROUNDS, AT_ONCE))
        done = subprocess.run(
            [sys.executable, "-c", CLIENTS, url, str(tmp_path), str(specs), *numbers],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        server.kill()
        server.wait()
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    times = {name: [seconds for seconds, _ in rounds] for name, rounds in seen.items()}
    busy = {name: sum(processor for _, processor in rounds) / ROUNDS / REQUESTS * 1000 for name, rounds in seen.items()}
    ratio = sum(times["bare"]) / sum(times["ours"])
    least = SECONDS * REQUESTS / AT_ONCE
    with capsys.disabled():
        print(
            f"\n{REQUESTS} requests, {AT_ONCE} at once, {SECONDS} s an answer, at least {least:.2f} s; {ROUNDS} rounds by turns: "
            f"ptk {min(times['ours']):.2f} to {max(times['ours']):.2f} s, a bare httpx client {min(times['bare']):.2f} to "
            f"{max(times['bare']):.2f} s: throughput ratio {ratio:.3f}; processor time a request {busy['ours']:.2f} ms against "
            f"{busy['bare']:.2f} ms"
        )
    assert ratio >= 0.95
