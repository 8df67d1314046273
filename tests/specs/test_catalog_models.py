"""The model that ships, and an adapter of it, kept in a catalog and asked from there: by vLLM and by transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ptk_catalog
from adapters import random_adapter
from ptk.llm.model_files import ModelRoots, find_model_files

pytest.importorskip("vllm")
pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.model]

PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]

SPEC = """\
ptk: 1
name: kept
catalog: catalog
models:
  base:   {backend: vllm, model: "catalog:kept/small@stable", sampling: {max_tokens: 12}}
  tuned:  {backend: vllm, model: "catalog:kept/small@stable", adapter: "catalog:kept/adapter", sampling: {max_tokens: 12}}
  likely: {backend: transformers, model: "catalog:kept/small@stable", adapter: "catalog:kept/adapter"}
  plain:  {backend: transformers, model: bundled/smollm2-135m-instruct}
steps:
  pairs:  {op: read_pairs, path: pairs.jsonl}
  before: {op: generate_responses, from: pairs, model: base, into: before}
  after:  {op: generate_responses, from: before, model: tuned, into: after}
  scored: {op: score_pairs, from: after, model: likely, given: [none], chosen_persona: null, rejected_persona: null, into: tuned}
  once:   {op: score_pairs, from: scored, model: plain, given: [none], chosen_persona: null, rejected_persona: null, into: plain}
outputs:
  kept/rows: {from: once}
"""


def test_a_model_and_its_adapter_are_asked_from_the_catalog(tmp_path: Path) -> None:
    catalog = ptk_catalog.open(tmp_path / "catalog")
    bundled = find_model_files("bundled/smollm2-135m-instruct", None, ModelRoots(Path())).folder
    catalog.commit_model("kept/small", bundled, licence="apache-2.0", tags=["stable"])
    catalog.commit_model("kept/adapter", random_adapter(tmp_path / "made", "kept/small@v1"), base_model="kept/small@v1")
    records: list[dict[str, Any]] = [
        {"prompt": f"What is {number} and {number}?", "chosen": f"{2 * number}.", "rejected": "A number."}
        for number in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = subprocess.run([*PTK, "run", "spec.yaml", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = catalog.load("kept/rows").collect()
    assert rows["before"].to_list() != rows["after"].to_list()
    # The catalog's copy is the very model, so it shares the bundled one's digest.
    models = {item["step"]: item for item in catalog.version("kept/rows").lineage["models"]}
    assert models["before"]["identity"]["digest"] == models["once"]["identity"]["digest"]
    assert [one["version"] for one in models["after"]["versions"]] == ["kept/small@v1", "kept/adapter@v1"]
    far = (rows["tuned_chosen_given_none"] - rows["plain_chosen_given_none"]).abs()
    assert far.null_count() == 0 and far.min() > 1e-3  # type: ignore[operator]
