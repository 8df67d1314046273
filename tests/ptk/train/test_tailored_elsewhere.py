"""What training leaves is a plain adapter: two upon each other are one, PEFT loads it, and vLLM's server answers by it."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ptk.llm.child import child_environment
from tiny_model import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.model]

PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]
SPEC = """\
ptk: 1
name: one
models:
  base:  {backend: transformers, model: MODEL}
  first: {backend: transformers, model: MODEL, adapter: "step:sft"}
  tuned: {backend: transformers, model: MODEL, adapter: "step:dpo"}
  beside: {backend: vllm, model: MODEL, adapter: "step:dpo", sampling: {max_tokens: 8}}
  writer: {backend: vllm, model: "step:whole", sampling: {max_tokens: 8}}
  scorer: {backend: transformers, model: "step:whole"}
steps:
  pairs:   {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  records: {op: tailoring_records, from: pairs}
  sft:     {op: tailor, from: records, model: base, preset: cpu, method: sft, trl: {max_steps: 4, learning_rate: 1.0e-2}}
  dpo:     {op: tailor, from: records, model: first, preset: cpu, trl: {max_steps: 4, learning_rate: 1.0e-2}}
  whole:   {op: merge_adapter, from: dpo, model: tuned}
  merged:  {op: generate_responses, from: pairs, model: writer, persona: chosen_persona, into: merged}
  adapted: {op: generate_responses, from: merged, model: beside, persona: chosen_persona, into: adapted}
  scored:  {op: score_pairs, from: adapted, model: scorer}
outputs:
  one/dpo:    {from: dpo, kind: model}
  one/scored: {from: scored}
"""


def test_two_adapters_are_written_as_one_that_does_what_both_do(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from ptk.train.stacked_adapter import stack_adapters

    base = tiny_model(tmp_path / "tiny")
    torch.manual_seed(0)
    first = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    second = LoraConfig(
        r=8,
        lora_alpha=4,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
        init_lora_weights=False,
        alpha_pattern={"up_proj": 2},
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), first).save_pretrained(tmp_path / "first")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "first").merge_and_unload()
    both = get_peft_model(merged, second)
    both.save_pretrained(tmp_path / "second")
    (tmp_path / "stacked").mkdir()
    assert stack_adapters(tmp_path / "first", tmp_path / "second", tmp_path / "stacked") == 12
    stacked = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "stacked")
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        wanted, found = both(tokens).logits, stacked(tokens).logits
        plain = AutoModelForCausalLM.from_pretrained(base)(tokens).logits
    assert float((wanted - found).abs().max()) < 1e-4
    assert float((wanted - plain).abs().max()) > 1e-2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project that went from pairs to a tuned model, its responses and its scores."""
    project = tmp_path_factory.mktemp("trained")
    pairs = [
        {
            "prompt": f"Question {number}?",
            "chosen": f"Short {number}.",
            "rejected": f"A long tale {number}.",
            "chosen_persona": "The user is brisk.",
            "rejected_persona": "The user is slow.",
        }
        for number in range(8)
    ]
    (project / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (project / "spec.yaml").write_text(SPEC.replace("MODEL", "bundled/smollm2-135m-instruct"))
    done = subprocess.run([*PTK, "run", "spec.yaml"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return project


def test_a_tuned_model_is_merged_answers_and_is_scored_in_the_spec_that_trains_it(project: Path) -> None:
    import ptk_catalog

    rows = ptk_catalog.open(project / "catalog" / "store").load("one/scored").collect()
    assert rows.height == 8
    # The adapter beside its base answers as the merged model does, but where two tokens are about equally likely.
    assert (rows["merged"] == rows["adapted"]).sum() >= 6
    assert rows["logp_chosen_given_chosen"].is_finite().all()


def test_another_learning_rate_of_dpo_alone_runs_dpo_and_what_follows(project: Path) -> None:
    spec = (project / "spec.yaml").read_text()
    before, dpo, after = spec.partition("  dpo:     {op: tailor")
    (project / "other.yaml").write_text(before + dpo + after.replace("1.0e-2", "2.0e-2", 1))
    command = [*PTK, "plan", "other.yaml", "--json"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    planned = {name: step["status"] for name, step in json.loads(done.stdout)["steps"].items()}
    assert [name for name, status in planned.items() if status == "cached"] == ["pairs", "records", "sft"]
    assert [name for name, status in planned.items() if status == "run"] == ["dpo", "whole", "merged", "adapted", "scored"]


PEFT = """\
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
tokens = tokenizer("<|im_start|>user\\nQuestion 3?<|im_end|>\\n<|im_start|>assistant\\n", return_tensors="pt")
model = AutoModelForCausalLM.from_pretrained(base)
plain = model.generate(**tokens, max_new_tokens=12, do_sample=False)
tuned = PeftModel.from_pretrained(model, adapter).generate(**tokens, max_new_tokens=12, do_sample=False)
print([tokenizer.decode(found[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True) for found in (plain, tuned)])
"""


def written_by_peft(base: Path, adapter: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PEFT, str(base), str(adapter)],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_a_plain_peft_script_loads_the_adapter_and_vllms_server_answers_as_it_does(project: Path, tmp_path: Path) -> None:
    import ptk_catalog
    from ptk.llm.bundled import bundled_model_folder

    base = bundled_model_folder("smollm2-135m-instruct")
    adapter = ptk_catalog.open(project / "catalog" / "store").load_model("one/dpo")
    plain, tuned = written_by_peft(base, adapter)
    assert plain != tuned
    port = free_port()
    environment = child_environment(
        forced={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        defaults={"OMP_NUM_THREADS": str(os.cpu_count() or 1), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--port", str(port)]
    command += ["--enforce-eager", "--max-model-len", "512", "--dtype", "float32", "--enable-lora", "--max-lora-rank", "32"]
    command += ["--lora-modules", f"dpo={adapter}"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            answers = {name: asked(port, name, server) for name in (str(base), "dpo")}
        finally:
            server.terminate()
            server.wait(timeout=60)
    assert answers == {str(base): plain, "dpo": tuned}


def asked(port: int, model: str, server: subprocess.Popen[Any]) -> str:
    body = {
        "model": model,
        "prompt": "<|im_start|>user\nQuestion 3?<|im_end|>\n<|im_start|>assistant\n",
        "max_tokens": 12,
        "temperature": 0,
    }
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            answer = httpx2.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
        except httpx2.TransportError:
            time.sleep(1)
            continue
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text
    raise AssertionError("the server did not start")
