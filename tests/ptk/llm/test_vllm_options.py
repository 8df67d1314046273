"""The snapshot of what vLLM and servers can be told is that of the installed libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from ptk.llm.openai_chat import OWN_FIELDS
from ptk.llm.vllm_options import OWN_ARGUMENTS, UNKEYED_ARGUMENTS, snapshot


@pytest.mark.skipif(find_spec("vllm") is None or find_spec("openai") is None, reason="vLLM is not installed")
def test_the_snapshot_is_that_of_the_installed_libraries() -> None:
    code = "import json; from ptk.llm.vllm_options import installed; print(json.dumps(installed()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout.splitlines()[-1])
    assert now == dict(snapshot()), "run: python -m ptk.llm.vllm_options"


def test_arguments_that_are_treated_apart_exist() -> None:
    assert set(OWN_ARGUMENTS) | UNKEYED_ARGUMENTS <= set(snapshot()["engine"])
    known = {*snapshot()["vllm_chat"], *snapshot()["openai_chat"]}
    assert set(OWN_FIELDS) - known == {"prompt", "repeat_penalty"}
