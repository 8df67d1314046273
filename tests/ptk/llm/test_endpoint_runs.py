"""Whole runs against an endpoint: what it did not answer is asked again, and its token is nowhere to be found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from .stand_in import Body, Reply, StandIn, chat, refusal

SECRET = "sk-a-secret-that-nobody-may-see-0123456789"

SPEC = """\
ptk: 1
name: remote
models:
  labeler: {{backend: openai, base_url: {url}, model: tiny, retries: 1{more}}}
steps:
  pairs:    {{op: read_pairs, path: pairs.jsonl}}
  personas: {{op: infer_personas, from: pairs, model: labeler, exemplars: exemplars.yaml, constrain: false}}
  short:    {{op: filter_rows, from: personas, where: "length(chosen_persona) < 1000"}}
outputs:
  remote/personas: {{from: short, licence: cc0-1.0, tags: [latest]}}
"""


def persona(body: Body) -> Reply:
    number = abs(hash(json.dumps(body["messages"][-1]))) % 10_000
    return chat(f"The user is person number {number} and prefers plain words to long ones.")


def poisoned(body: Body, number: int) -> bool:
    return f"Question {number}?" in body["messages"][-1]["content"]


@pytest.fixture
def remote(project: Path, server: StandIn) -> Path:
    server.rule = persona
    (project / "spec.yaml").write_text(SPEC.format(url=server.url, more=""))
    return project


Ptk = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ptk(remote: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ptk:
    """Run the command line in the project's folder, in this process, which has its libraries loaded already."""
    from ptk.cli import main

    monkeypatch.chdir(remote)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["ptk", *arguments])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        output, errors = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code or 0, output, errors)

    return run


def test_what_had_no_answer_is_rejected_for_now_and_asked_again_by_the_same_command(
    remote: Path, server: StandIn, ptk: Ptk
) -> None:
    server.rule = lambda body: refusal(500, "out of luck") if poisoned(body, 3) else persona(body)
    first = ptk("run", "spec.yaml")
    assert first.returncode == 0, first.stderr
    assert "1 unanswered" in first.stdout
    assert "personas: 2 requests had no answer; the same command asks them again" in first.stdout
    assert "remote/personas@v1  9 rows" in first.stdout
    rejected = ptk("rejects", "spec.yaml", "personas")
    assert "unanswered" in rejected.stdout and "2 tries: 500: out of luck" in rejected.stdout, rejected.stderr
    planned = ptk("plan", "spec.yaml")
    assert "2 requests had no answer" in planned.stdout
    assert "input changes: personas" in planned.stdout
    server.rule = persona
    server.asked.clear()
    second = ptk("run", "spec.yaml")
    assert "remote/personas@v2  10 rows" in second.stdout, second.stderr
    assert len(server.asked) == 2
    assert "Everything was cached" in ptk("run", "spec.yaml").stdout


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_registered(remote: Path, server: StandIn, ptk: Ptk) -> None:
    (remote / "spec.yaml").write_text(SPEC.format(url="http://127.0.0.1:9/v1", more=", retries: 0").replace("retries: 1, ", ""))
    gone = ptk("run", "spec.yaml")
    assert gone.returncode == 1
    assert "tiny at http://127.0.0.1:9/v1: 5 requests in a row had no answer" in gone.stderr
    assert "Traceback" not in gone.stderr
    (remote / "spec.yaml").write_text(SPEC.format(url=server.url, more=""))
    assert "remote/personas@v1  10 rows" in ptk("run", "spec.yaml").stdout


def test_a_refusal_that_would_repeat_is_rejected_once_and_for_all(remote: Path, server: StandIn, ptk: Ptk) -> None:
    server.rule = lambda body: refusal(400, "maximum context length is 10 tokens") if poisoned(body, 3) else persona(body)
    assert "1 prompt_too_long" in ptk("run", "spec.yaml").stdout
    assert "Everything was cached" in ptk("run", "spec.yaml").stdout


def everything_in(folder: Path) -> dict[str, str]:
    """Return all that lies below a folder as text: Parquet as its rows and its metadata, all else as it is."""
    found: dict[str, str] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                frame = pl.read_parquet(path)
                found[str(path)] += frame.with_columns(pl.col(pl.Binary).bin.encode("hex")).write_json()
    return found


def test_a_token_in_the_environment_is_nowhere_to_be_found(
    remote: Path, server: StandIn, ptk: Ptk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(body: Body) -> Reply:
        """Give back the token wherever a server could."""
        for number, reply in enumerate(
            (
                refusal(500, f"token {SECRET}"),
                refusal(400, f"token {SECRET}"),
                chat(f"The user is {SECRET} and prefers tokens to words."),
                chat(None, message={"role": "assistant", "content": None, "refusal": f"not with {SECRET}"}),
                Reply(body=f'{{"choices": "{SECRET}"}}'.encode()),
            )
        ):
            if poisoned(body, number):
                return reply
        return persona(body)

    server.rule = leaky
    monkeypatch.setenv("LABELS_TOKEN", SECRET)
    (remote / "spec.yaml").write_text(SPEC.format(url=server.url, more=", token_env: LABELS_TOKEN"))
    shown: list[str] = []

    def said(*arguments: str, code: int = 0) -> None:
        done = ptk(*arguments)
        assert done.returncode == code, done.stderr
        shown.extend((done.stdout, done.stderr))

    said("validate", "spec.yaml")
    said("plan", "spec.yaml", "--json")
    said("run", "spec.yaml", "--json")
    assert server.headers[-1]["Authorization"] == f"Bearer {SECRET}"
    assert [reason for reason in ("unanswered", "refused") if reason in shown[-2]] == ["unanswered", "refused"]
    for step in ("pairs", "personas"):
        said("rejects", "spec.yaml", step, "--json")
    said("prompt", "show", "spec.yaml", "personas")
    said("answers", "ls")
    said("catalog", "show", "remote/personas@latest")
    said("catalog", "log", "remote/personas")
    server.rule = lambda body: refusal(401, f"wrong token {SECRET}")
    said("run", "spec.yaml", "--force", "personas", code=1)
    assert "401: wrong token [token]" in shown[-1]
    assert not any(SECRET in text for text in shown)
    files = everything_in(remote)
    assert any("answers" in name for name in files) and any("catalog" in name for name in files)
    assert [name for name, text in files.items() if SECRET in text] == []
    assert any("The user is [token]" in text for text in files.values())
