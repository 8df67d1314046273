"""Shipped specs on scripted models, for tests that need no model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_model import tiny_model

from . import transcripts

SPECS = Path(__file__).resolve().parents[2] / "specs"


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A copy of a shipped spec whose models, which may not be installed, are scripted, or tiny; what it reads is made up."""
    pairs = [
        {
            "prompt": f"Question {number}?",
            "chosen": f"A short answer {number}.",
            "rejected": f"A rather longer answer, number {number}.",
            "chosen_persona": f"The user, number {number}, is in a hurry and prefers bare facts.",
            "rejected_persona": f"The user, number {number}, is curious and prefers the whole story.",
            "domain": "home",
        }
        for number in range(6)
    ]
    votes = [{**pair, "response_1": pair["chosen"], "response_2": pair["rejected"]} for pair in pairs]
    made: dict[str, Sequence[Any]] = {
        "HH_TRANSCRIPTS": transcripts.transcripts(pairs=5),
        "PAIRS": pairs,
        "PANDALM": [{**vote, "majority": number % 3} for number, vote in enumerate(votes)],
        "LLMBAR": [{**vote, "prompt": f"Task {number}", "label": 1 + number % 2} for number, vote in enumerate(votes)],
    }
    for name, given in made.items():
        lines = [one if isinstance(one, str) else json.dumps(one) for one in given]
        monkeypatch.setenv(name, str(transcripts.write_lines(tmp_path / f"{name}.jsonl", lines)))
    monkeypatch.setenv("JUDGE", "persona")

    def copy(name: str, folder: Path = tmp_path) -> Path:
        spec = Path(shutil.copytree(SPECS, folder / "specs")) / name
        text = spec.read_text()
        if not (tmp_path / "tiny").exists():
            tiny_model(tmp_path / "tiny")
        block = re.search(r"(?ms)^models:\n.*?(?=^\w)", text)
        if block is not None:
            declared = yaml.safe_load(block[0])["models"]
            for model in declared.values():
                # A model that is trained, or has an adapter of every cell of a matrix, with which it has the axes.
                if model["backend"] == "transformers" or "[" not in model.get("adapter", "["):
                    model["model"] = str(tmp_path / "tiny")
                    continue
                kept = {option: model[option] for option in ("sampling", "cases") if option in model}
                model.clear()
                model.update({"backend": "scripted", "model": "persona", **kept})
            spec.write_text(text.replace(block[0], yaml.safe_dump({"models": declared})))
        return spec

    return copy
