"""A real vLLM server, asked over HTTP: personas held to a form, a judge by log-probabilities, an adapter, and what it refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from adapters import random_adapter
from ptk.llm.model_files import ModelRoots, find_model_files
from ptk.llm.vllm_backend import _environment

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.model]

SPECS = Path(__file__).resolve().parents[3] / "specs"
PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]
MODEL = "bundled/smollm2-135m-instruct"
STARTING_S = 900.0

STEPS = """\
steps:
  pairs:    {op: read_pairs, path: pairs.jsonl}
  personas: {op: infer_personas, from: pairs, model: small, prompt: infer_personas_zero_shot}
  judged:   {op: judge_personas, from: personas, model: small}
"""

REMOTE = """\
ptk: 1
name: remote
catalog: catalog
models:
  small: {{backend: openai, server: vllm, base_url: "{url}", model: small, sampling: {{max_tokens: 160}}}}
  tuned: {{backend: openai, server: vllm, base_url: "{url}", model: tuned, sampling: {{max_tokens: 160}}}}
{steps}
  tuned:    {{op: judge_responses, from: judged, model: tuned, into: tuned}}
  plain:    {{op: judge_responses, from: tuned, model: small, into: plain}}
outputs:
  remote/judged: {{from: plain}}
"""

LOCAL = """\
ptk: 1
name: local
catalog: catalog
models:
  small: {{backend: vllm, model: {model}, sampling: {{max_tokens: 160}}}}
{steps}
outputs:
  local/judged: {{from: judged}}
"""


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the bundled model, as `small`, and of an adapter of it, as `tuned`."""
    folder = tmp_path_factory.mktemp("server")
    base = find_model_files(MODEL, None, ModelRoots(Path())).folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(base), "--served-model-name", "small", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048", "--max-num-seqs", "32", "--enable-prompt-tokens-details", "--seed", "0"]
    command += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={random_adapter(folder / 'adapter', base)}"]
    environment = {**_environment(), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    log = folder / "server.log"
    with log.open("wb") as output:
        made = Server(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT),
            f"http://127.0.0.1:{port}/v1",
            log,
        )
    try:
        deadline = time.monotonic() + STARTING_S
        while not made.is_ready():
            assert made.process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(2)
        yield made
    finally:
        made.end()


@dataclass
class Done:
    summary: dict[str, Any]
    rows: pl.DataFrame


def run(folder: Path, spec: str, entry: str) -> Done:
    (folder / "spec.yaml").write_text(spec)
    done = subprocess.run([*PTK, "run", "spec.yaml", "--json"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Done(json.loads(done.stdout), ptk_catalog.open(folder / "catalog").load(entry).collect().sort("pair_id"))


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Done:
    """What a spec made whose models are all the server's: six pairs, and a seventh that is too long."""
    folder = tmp_path_factory.mktemp("remote")
    lines = (SPECS / "data" / "quickstart.jsonl").read_text().splitlines()[:6]
    long = {"prompt": "Rice? " * 3_000, "chosen": "Yes.", "rejected": "No."}
    (folder / "pairs.jsonl").write_text("\n".join([*lines, json.dumps(long)]) + "\n")
    return run(folder, REMOTE.format(url=server.url, steps=STEPS), "remote/judged")


def test_personas_have_the_form_they_are_held_to_and_a_prompt_that_is_too_long_is_rejected(remote: Done) -> None:
    steps = remote.summary["steps"]
    assert steps["personas"]["rejected"] == {"prompt_too_long": 1}
    assert steps["personas"]["requests"]["asked"] == 14 and steps["personas"]["requests"]["unanswered"] == 0
    assert steps["personas"]["facts"]["form"] == 1.0
    assert remote.rows["chosen_persona"].str.contains(r"^The user is .+ (and|who) prefers? .+").all()


def test_a_judge_by_probabilities_gets_those_of_the_very_tokens(remote: Done) -> None:
    asked = remote.summary["steps"]["judged"]["requests"]
    # One token each: nothing is written.
    assert asked["output_tokens"] == asked["asked"] > 0 and asked["unanswered"] == 0
    assert asked["cached_tokens"] > 0
    assert remote.rows["chosen_persona_margin"].is_not_null().all()
    assert remote.rows["chosen_persona_answers"].to_list() == [2] * 6


def test_an_adapter_answers_under_its_own_name(remote: Done) -> None:
    assert remote.rows["tuned_margin"].is_not_null().all()
    assert (remote.rows["tuned_margin"] - remote.rows["plain_margin"]).abs().min() > 1e-4


def test_a_wrong_name_is_answered_with_those_that_are_served(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "Rice?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    spec = REMOTE.format(url=server.url, steps=STEPS).replace("model: small, sampling", "model: smal, sampling")
    (tmp_path / "spec.yaml").write_text(spec)
    done = subprocess.run([*PTK, "run", "spec.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "it serves no 'smal'; did you mean 'small'?" in done.stderr


def test_the_server_answers_as_the_engine_does_in_the_process(remote: Done, server: Server, tmp_path: Path) -> None:
    server.end()  # two engines at once would take each other's cores
    lines = (SPECS / "data" / "quickstart.jsonl").read_text().splitlines()[:6]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    local = run(tmp_path, LOCAL.format(model=MODEL, steps=STEPS), "local/judged")
    both = local.rows.join(remote.rows, on="pair_id", suffix="_remote")
    assert both.height >= 5
    same: list[bool] = []
    far: list[float] = []
    for side in ("chosen", "rejected"):
        equal = both[f"{side}_persona"] == both[f"{side}_persona_remote"]
        margins = both[f"{side}_persona_margin"] - both[f"{side}_persona_margin_remote"]
        same += equal.to_list()
        far += margins.abs().filter(equal).to_list()
    print(f"{sum(same)} of {len(same)} personas are the same, of which margins differ by {max(far):.2g} at most")
    assert sum(same) >= len(same) - 2  # sums in another order may tip a greedy choice
    assert max(far) < 0.05
