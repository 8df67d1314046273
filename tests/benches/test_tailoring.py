"""Training by `tailor` against a bare TRL script with the same settings, and a second DPO over the same rows against the first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptk.llm.child import child_environment

pytestmark = pytest.mark.bench

PAIRS = Path(__file__).resolve().parents[2] / "specs" / "data" / "quickstart.jsonl"
PERSONAS = PAIRS.with_name("quickstart_personas.jsonl")
ROWS = 24
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "num_train_epochs": 1,
    "max_length": 384,
    "learning_rate": 2e-4,
    "beta": 0.1,
}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}

BARE = """
import json, sys, time
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

model, rows, settings, lora, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
args = trl.DPOConfig(
    output_dir=out, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="epoch",
    precompute_ref_log_probs=True, seed=0, **json.loads(settings),
)
trainer = trl.DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
    args=args,
    train_dataset=Dataset.from_list(json.loads(open(rows).read())),
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", **json.loads(lora)),
)
wall, cpu = time.monotonic(), time.process_time()
trainer.train()
print(json.dumps({"train_seconds": time.monotonic() - wall, "train_cpu_seconds": time.process_time() - cpu}))
"""

SPEC = """\
ptk: 1
name: bench
models: {{base: {{backend: transformers, model: bundled/smollm2-135m-instruct}}}}
steps:
  pairs:    {{op: read_pairs, path: {pairs}, keep: [id]}}
  personas: {{op: read_pairs, path: {personas}, format: terms, fields: {{prompt: id}}, keep: [id, chosen_persona, rejected_persona]}}
  labelled: {{op: join_rows, from: {{frame: pairs, other: personas}}, on: [id], columns: [chosen_persona, rejected_persona]}}
  some:     {{op: sample_rows, from: labelled, n: {rows}, seed: 0}}
  records:  {{op: tailoring_records, from: some, training: chosen}}
  dpo:      {{op: tailor, from: records, model: base, validation: null, trl: {trl}, lora: {lora}}}
outputs:
  bench/records: {{from: records}}
"""


def ours(project: Path, settings: dict[str, Any]) -> dict[str, Any]:
    spec = SPEC.format(pairs=PAIRS, personas=PERSONAS, rows=ROWS, trl=json.dumps(settings), lora=json.dumps(LORA))
    (project / "spec.yaml").write_text(spec)
    done = subprocess.run(
        [sys.executable, "-c", "from ptk.cli import main; main()", "run", "spec.yaml", "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)["steps"]["dpo"]["facts"]
    return facts


def bare(project: Path) -> dict[str, float]:
    import ptk_catalog
    from ptk.llm.bundled import bundled_model_folder

    rows = ptk_catalog.open(project / "catalog" / "store").load("bench/records").collect().sort("record_id")
    (project / "rows.json").write_text(json.dumps(rows.select("prompt", "chosen", "rejected").to_dicts()))
    model = bundled_model_folder("smollm2-135m-instruct")
    arguments = [str(model), str(project / "rows.json"), json.dumps(SETTINGS), json.dumps(LORA), str(project / "out")]
    environment = child_environment(defaults={"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"})
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def test_training_costs_what_trl_costs_and_a_second_dpo_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ptk.llm.bundled import bundled_model_folder

    # A cache of its own, so that the first training finds no reference log-probabilities.
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(bundled_model_folder("smollm2-135m-instruct").parent)
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    first = ours(tmp_path, {**SETTINGS, "learning_rate": 1e-4})
    second = ours(tmp_path, SETTINGS)
    plain = bare(tmp_path)
    told = second["timing"]
    ratio = {name: told[name] / plain[name] for name in ("train_seconds", "train_cpu_seconds")}
    whole = {
        name: [run["timing"][f"train_{name}"] + run["timing"]["reference"][name] for run in (first, second)]
        for name in ("seconds", "cpu_seconds")
    }
    with capsys.disabled():
        print(f"\ntraining, ptk / bare TRL: clock {ratio['train_seconds']:.3f}, processor {ratio['train_cpu_seconds']:.3f}")
        for name, run in (("ptk", told), ("TRL", plain)):
            print(f"  {name}: {run['train_seconds']:.1f} s, processor {run['train_cpu_seconds']:.1f} s")
        for name, (one, two) in whole.items():
            print(f"a second DPO over the same rows, {name}: {one:.1f} -> {two:.1f}, {one / two:.2f}x")
    assert first["timing"]["reference"]["found"] == 0
    assert second["timing"]["reference"]["computed"] == 0
    assert ratio["train_cpu_seconds"] < 1.03
    assert whole["cpu_seconds"][0] / whole["cpu_seconds"][1] > 1.2
