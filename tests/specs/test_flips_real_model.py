"""Real pairs, scored by the model that ships with and without an adapter, end in the table of flips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "persona_pairs.jsonl"
SPEC = """\
ptk: 1
name: flips
models:
  base:  {backend: transformers, model: bundled/smollm2-135m-instruct}
  tuned: {backend: transformers, model: bundled/smollm2-135m-instruct, adapter: adapter}
steps:
  pairs:     {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  reference: {op: score_pairs, from: pairs, model: base, into: base}
  scored:    {op: score_pairs, from: reference, model: [base, tuned]}
  rewards:   {op: derive_rewards, from: scored, reference: base}
  flips:     {op: measure_flips, from: rewards, by: [model]}
  tested:    {op: compare_groups, from: rewards, value: reward_shift, of: model, on: [pair_id]}
outputs:
  f/rewards: {from: rewards}
  f/flips:   {from: flips}
  f/tested:  {from: tested}
"""


@pytest.mark.model
@pytest.mark.slow
def test_real_pairs_are_scored_and_measured_in_one_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    import ptk_catalog
    from ptk.llm.bundled import bundled_model_folder

    if not PAIRS.is_file():
        pytest.skip("no real pairs here")
    records = [json.loads(line) for line in PAIRS.read_text().splitlines()[:4]]
    for record in records:
        for side in ("chosen", "rejected"):
            record[side] = " ".join(record[side].split()[:20])
    records[3]["rejected_persona"] = records[3]["chosen_persona"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(SPEC)
    model = transformers.AutoModelForCausalLM.from_pretrained(bundled_model_folder("smollm2-135m-instruct"))
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")

    command = [sys.executable, "-c", "from ptk.cli import main; main()", "run", "spec.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    asked = {name: steps[name]["requests"]["asked"] for name in ("reference", "scored[base]", "scored[tuned]")}
    # The last pair has one persona for both sides, which is asked about once; the base's answers are known from the step before.
    assert asked == {"reference": 22, "scored[base]": 0, "scored[tuned]": 22}

    store = ptk_catalog.open(tmp_path / "catalog" / "store")
    rewards = store.load("f/rewards").collect()
    base, tuned = rewards.filter(model="base"), rewards.filter(model="tuned")
    assert base["reward_margin_given_chosen"].to_list() == [0.0] * 4  # nothing but itself to be measured by
    assert tuned["reward_margin_given_chosen"].abs().min() > 0
    assert rewards["reward_same_persona"].sum() == 2
    table = {row["name"]: row for row in store.load("f/flips").collect().iter_rows(named=True)}
    assert (table["flips/both/model=tuned"]["n"], table["same_persona/both/model=tuned"]["value"]) == (3, 1.0)
    assert table["shifts/both/model=base"]["value"] == 0.0
    difference = store.load("f/tested").collect().filter(measure="difference").row(0, named=True)
    assert (difference["about"], difference["n"]) == ("base - tuned", 3)
    assert difference["value"] == pytest.approx(-tuned["reward_shift"].mean(), abs=1e-6)
