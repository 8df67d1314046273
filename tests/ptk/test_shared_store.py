"""One answer store under whole runs: two at once, a disk that fills up, and bounds that are met in a later round."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptk.llm.answers import stored_models

PTK = [sys.executable, "-c", "from ptk.cli import main; main()", "run"]

SPEC = """\
ptk: 1
name: {name}
models:
  labeler: {{backend: scripted{model}}}
steps:
  pairs:    {{op: read_pairs, path: {pairs}}}
  personas: {{op: infer_personas, from: pairs, model: labeler, exemplars: exemplars.yaml{more}}}
outputs:
  {name}/personas: {{from: personas}}
"""


def lay_out(folder: Path, name: str, numbers: range, model: str = "", more: str = "", words: int = 1) -> str:
    """Write a spec of its own corpus, and return the spec's name."""
    records = [{"prompt": f"Q{n}?", "chosen": f"Short {n}.", "rejected": f"Longer, {n}. " * words} for n in numbers]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / f"{name}.yaml").write_text(SPEC.format(name=name, pairs=f"{name}.jsonl", model=model, more=more))
    (folder / "exemplars.yaml").write_text(
        "exemplars:\n  - {prompt: 'Tea or coffee?', preferred: Tea., other: It depends., persona: The user is brief.}\n"
    )
    return f"{name}.yaml"


def start(folder: Path, spec: str, *options: str) -> subprocess.Popen[str]:
    command = [*PTK, spec, "--json", *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    return summary


def asked(summary: dict[str, Any]) -> tuple[int, int]:
    requests = summary["steps"]["personas"]["requests"]
    return requests["asked"], requests["answered_before"]


def test_two_runs_at_once_on_one_store_each_come_to_their_rows(tmp_path: Path) -> None:
    slow = ", seconds: 0.004"
    one, other = lay_out(tmp_path, "one", range(300), slow), lay_out(tmp_path, "other", range(150, 450), slow)
    running = [start(tmp_path, spec) for spec in (one, other, one)]
    summaries = [finish(process) for process in running]
    assert [summary["steps"]["personas"]["rows_out"] for summary in summaries] == [300, 300, 300]
    assert [sum(asked(summary)) for summary in summaries] == [600, 600, 600]
    assert summaries[0]["outputs"][0]["digest"] == summaries[2]["outputs"][0]["digest"]
    # Nothing is lost: a third spec over all rows finds every answer.
    every = lay_out(tmp_path, "every", range(450), slow)
    assert asked(finish(start(tmp_path, every))) == (0, 900)
    assert list((tmp_path / ".ptk" / "answers").rglob("*.aside")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_stops_the_run_and_what_was_answered_is_not_asked_again(small_disk: Path, tmp_path: Path) -> None:
    spec = lay_out(tmp_path, "much", range(40_000))
    work = ["--work", str(small_disk / ".ptk")]
    process = start(tmp_path, spec, *work)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and output == ""
    assert errors.splitlines()[-1].startswith("ptk: ") and "No space left on device" in errors.splitlines()[-1]
    assert "run again" in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "catalog").exists()
    before = sum(model.answers for model in stored_models(small_disk / ".ptk" / "answers"))
    assert before > 1_000
    assert [path for path in (small_disk / ".ptk").rglob("*") if path.suffix == ".aside"] == []
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert asked(finish(start(tmp_path, spec, *work))) == (80_000 - before, before)


def test_a_bound_that_a_later_round_would_pass_stops_before_that_round(tmp_path: Path) -> None:
    spec = lay_out(tmp_path, "mended", range(20), ", unparsable: 0.5", ", on_fail: repair, constrain: false")
    first = start(tmp_path, spec, "--max-requests", "41")
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 1 and output == ""
    told = errors.splitlines()[-1]
    assert told.startswith("ptk: step 'personas' would ask for ")
    assert told.endswith(" requests after 40 that were asked already, and --max-requests is 41; nothing of it was asked")
    repairs = int(told.split(" would ask for ")[1].split()[0])
    assert sum(model.answers for model in stored_models(tmp_path / ".ptk" / "answers")) == 40
    # The first round is answered by now, and does not count again.
    assert asked(finish(start(tmp_path, spec, "--max-requests", str(repairs)))) == (repairs, 40)


def test_tokens_of_a_later_round_count_too(tmp_path: Path) -> None:
    spec = lay_out(tmp_path, "mended", range(20), ", unparsable: 0.5, sampling: {max_tokens: 100}", ", on_fail: repair")
    _, errors = start(tmp_path, spec, "--max-tokens", "1").communicate(timeout=300)
    most = int(errors.split(" would ask for up to ")[1].split()[0].replace(",", ""))
    assert most > 40 * 100
    first = start(tmp_path, spec, "--max-tokens", str(most))
    _, errors = first.communicate(timeout=300)
    told = errors.splitlines()[-1]
    assert first.returncode == 1
    assert "would ask for up to " in told and told.endswith(
        f"that were asked already, and --max-tokens is {most:,}; nothing of it was asked"
    )
    assert sum(model.answers for model in stored_models(tmp_path / ".ptk" / "answers")) == 40
