"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_stand_in import TOKEN, Hub
from servers import running_s3

ROOT = Path(__file__).resolve().parents[1]

EXEMPLARS = """\
exemplars:
  - prompt: Which shelf holds more?
    preferred: The lower one.
    other: It depends on the brackets, the wall and the wood.
    persona: The user is in a hurry and prefers a bare answer to a tour of the reasons.
"""

SPEC = """\
ptk: 1
name: small
models:
  labeler: {backend: scripted, model: persona}
steps:
  pairs:    {op: read_pairs, path: pairs.jsonl}
  unique:   {op: drop_duplicates, from: pairs, on: [prompt]}
  personas: {op: infer_personas, from: unique, model: labeler, exemplars: exemplars.yaml}
outputs:
  small/personas: {from: personas, licence: cc0-1.0, tags: [latest]}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write the files that renderings are compared with anew")


def pairs(count: int) -> list[dict[str, Any]]:
    """Return `count` different well-formed records."""
    return [
        {"prompt": f"Question {n}?", "chosen": f"A short answer {n}.", "rejected": f"A rather longer answer, number {n}."}
        for n in range(count)
    ]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a small spec on the scripted backend, exemplars and ten pairs."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "exemplars.yaml").write_text(EXEMPLARS)
    write_jsonl(tmp_path / "pairs.jsonl", pairs(10))
    return tmp_path


@pytest.fixture(autouse=True)
def _dask_as_it_was() -> Iterator[None]:
    """Take back what clients of workers in this process leave in Dask's settings, where they close in another order than they opened."""
    yield
    if "dask" in sys.modules:
        sys.modules["dask"].config.config.pop("scheduler", None)


@pytest.fixture
def ptk(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command line in the test's folder."""

    def run(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from ptk.cli import main; main()", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of the one S3 store of all tests: file systems made for an endpoint are kept for the whole process."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hub that this process, and those it starts, take for the Hub."""
    from huggingface_hub import constants

    server = Hub()
    for name, value in {**server.environment, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    # These were read from the environment when the module was imported.
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    yield server
    server.close()


@pytest.fixture
def token() -> str:
    return TOKEN
