"""The specs at the paper's scale read each domain's format and can be planned, with made-up data and a model that is at hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ptk_catalog
from ptk.cost import estimate
from ptk.execute import run_plan
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore

SPECS = Path(__file__).resolve().parents[2] / "specs"
COUNT = 40


def records(domain: str) -> Iterator[dict[str, Any]]:
    """Yield records as the domain's corpus has them; a fifth of those of advice are unsafe, two sevenths of forum's too close."""
    for n in range(COUNT):
        ask, one, other = f"What about matter {n}?", f"One does this or that, {n}.", f"It depends on a great many things, {n}."
        yield {
            "advice": {
                "prompt": ask,
                "response_0": one,
                "response_1": other,
                "better_response_id": n % 2,
                "is_response_0_safe": True,
                "is_response_1_safe": n % 5 > 0,
            },
            "dialogue": {
                "chosen": f"\n\nHuman: {ask}\n\nAssistant: {one}",
                "rejected": f"\n\nHuman: {ask}\n\nAssistant: {other}",
            },
            "forum": {"history": ask, "human_ref_A": one, "human_ref_B": other, "score_A": n % 7 * 3, "score_B": 4},
            "mnemonics": {"term": f"word{n}", "chosen": one, "rejected": other},
        }[domain]


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped specs with files in place of datasets of the Hub, and the bundled model in place of larger ones."""
    folder = Path(shutil.copytree(SPECS, tmp_path / "specs")) / "paper"
    for domain in ("advice", "dialogue", "forum", "mnemonics"):
        data = tmp_path / f"{domain}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records(domain)))
        spec = folder / f"{domain}.yaml"
        spec.write_text(re.sub(r"    hub: \{[^}]*\}", f"    path: {data}", spec.read_text()))
    method = folder / "method.yaml"
    method.write_text(
        re.sub(
            r"(meta-llama/Llama-3.1-8B-Instruct|prometheus-eval/[\w.-]+)", "bundled/smollm2-135m-instruct", method.read_text()
        )
    )
    monkeypatch.setenv("MNEMONICS", str(tmp_path / "mnemonics.jsonl"))
    monkeypatch.setenv("LABELER", "http://localhost:1/v1")
    monkeypatch.setenv("DOMAIN", "forum")
    return folder


def run(spec: Path, work: WorkStore) -> dict[str, tuple[int, dict[str, int]]]:
    loaded = load_spec(spec)
    assert loaded.catalog is not None
    summary = run_plan(make_plan(loaded, work), work, lambda: ptk_catalog.open(spec.parent / str(loaded.catalog)), Quiet())
    return {step.name: (step.result.rows_out, dict(step.result.rejected)) for step in summary.steps}


def test_each_domain_is_read_and_the_method_is_planned(specs: Path, tmp_path: Path) -> None:
    work = WorkStore(tmp_path / ".ptk")
    assert run(specs / "advice.yaml", work)["safe"] == (32, {"unsafe": 8})
    assert run(specs / "dialogue.yaml", work)["pairs"][0] == COUNT
    assert run(specs / "mnemonics.yaml", work)["pairs"][0] == COUNT
    pairs = run(specs / "forum.yaml", work)["pairs"][0]
    assert 0 < pairs < COUNT

    plan = make_plan(load_spec(specs / "method.yaml"), work)
    costs = estimate(plan, work)
    assert costs["personas"].requests == 2 * pairs
    assert costs["personas"].prompt_tokens
    assert costs["records_dpo[all]"].rows_out == 2 * costs["records_dpo[none]"].rows_out
    assert {name for name in plan.nodes if name.startswith(("sft[", "dpo["))} == {
        "sft[none]",
        "sft[all]",
        "dpo[none]",
        "dpo[all]",
    }
    assert plan.spec.outputs["tailored"].kind == "model"
