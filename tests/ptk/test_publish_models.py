"""Publishing models to a stand-in for the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import ptk_catalog
from hub_stand_in import Hub
from ptk.errors import PublishError
from ptk.publish.models import told_facts
from ptk.publish.publication import prepared, pushed
from ptk.publish.settings import Publish


@pytest.fixture
def catalog(tmp_path: Path) -> ptk_catalog.Catalog:
    """A catalog with the pairs that models are trained on."""
    catalog = ptk_catalog.open(tmp_path / "store")
    pairs = pl.DataFrame({"pair_id": ["a"], "prompt": ["Why?"], "chosen": ["So."], "rejected": ["It depends."]})
    catalog.commit("demo/pairs", pairs, licence="mit")
    return catalog


def commit(catalog: ptk_catalog.Catalog, folder: Path, files: dict[str, str], **more: Any) -> ptk_catalog.Version:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    said = {"base_model": "org/base", "trained_on": ["demo/pairs@v1"], "metrics": {"loss": 0.5}, "licence": "mit", **more}
    return catalog.commit_model("demo/tailored", folder, **said)


ADAPTER = {"adapter_model.safetensors": "weights", "adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"})}


def publish(catalog: ptk_catalog.Catalog, reference: str = "demo/tailored", **more: Any) -> dict[str, Any]:
    settings = Publish(**{"repo": "org/tailored", "licence_ok": True, **more})
    with prepared(catalog, reference, settings) as publication:
        return pushed(publication, catalog)


def header(hub: Hub) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(readme(hub).split("---\n")[1])
    return found


def readme(hub: Hub) -> str:
    return hub.repo("org/tailored", "model").head.files["README.md"].content.decode()


def test_a_model_is_published_with_its_files_and_a_card_and_downloads_as_it_was(
    catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub
) -> None:
    publish(catalog, "demo/pairs", repo="org/pairs")
    commit(catalog, tmp_path / "one", {**ADAPTER, "README.md": "written by a trainer"})
    done = publish(catalog)
    repo = hub.repo("org/tailored", "model")
    assert set(repo.head.files) == {".gitattributes", "README.md", *ADAPTER}
    assert repo.tags == {"v1": repo.head.oid}
    assert header(hub) == {
        "pretty_name": "demo/tailored",
        "license": "mit",
        "library_name": "peft",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "datasets": ["org/pairs"],
        "tags": ["ptk"],
    }
    assert "`demo/pairs@v1`, published as org/pairs" in readme(hub)
    assert "| loss | 0.5 |" in readme(hub)
    assert "AutoPeftModelForCausalLM" in readme(hub)
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download("org/tailored", revision="v1", local_dir=tmp_path / "down"))
    assert {name: (folder / name).read_text() for name in ADAPTER} == ADAPTER
    assert publish(catalog) == {**done, "what": "there already"}
    assert len(repo.commits) == 2


def test_solved_cases_are_published_as_what_they_are(catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub) -> None:
    case = {"prompt": "Why?", "persona": "The user is brisk.", "preferred": "So."}
    commit(catalog, tmp_path / "one", {"cases.json": json.dumps({"cases": [case]})}, metrics={})
    publish(catalog)
    assert header(hub) == {"pretty_name": "demo/tailored", "license": "mit", "tags": ["ptk"]}
    text = readme(hub)
    assert "Solved cases, which a model is shown before a prompt, drawn for `org/base`: version 1" in text
    assert "Drawn from\n\n- `demo/pairs@v1`" in text
    assert "rained on" not in text
    told: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], told)
    assert told["cases"] == [case]


def test_the_next_version_says_what_changed_and_removes_files_that_are_gone(
    catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub
) -> None:
    commit(catalog, tmp_path / "one", {"config.json": "{}", "model-1.safetensors": "a", "model-2.safetensors": "b"})
    publish(catalog)
    commit(catalog, tmp_path / "two", {"config.json": "{}", "model-1.safetensors": "c", "x.txt": ""}, metrics={"loss": 0.25})
    hub.repo("org/tailored", "model").head.files["mine.txt"] = hub.repo("org/tailored", "model").head.files["README.md"]
    publish(catalog)
    assert set(hub.repo("org/tailored", "model").head.files) == {
        *(".gitattributes", "README.md", "mine.txt", "config.json", "model-1.safetensors", "x.txt")
    }
    for told in (
        "`x.txt` is new",
        "`model-2.safetensors` is gone",
        "`model-1.safetensors` changed",
        "loss is 0.25, and was 0.5",
    ):
        assert told in readme(hub)


@pytest.mark.parametrize("base", ["/home/me/models/base", "../base", "C:\\models\\base", "a/b/c"])
def test_an_adapter_of_a_base_model_that_only_this_machine_has_is_refused(
    base: str, catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub
) -> None:
    commit(catalog, tmp_path / "one", {**ADAPTER, "adapter_config.json": json.dumps({"base_model_name_or_path": base})})
    with pytest.raises(PublishError, match="by a path of this machine"):
        publish(catalog)
    assert hub.writes() == []


def test_a_pickle_and_licences_of_base_and_data_are_pointed_out(catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub) -> None:
    commit(catalog, tmp_path / "one", {"pytorch_model.bin": "x"})
    with prepared(catalog, "demo/tailored", Publish(repo="org/tailored")) as publication:
        assert [check.what.split(" ")[1] for check in publication.checks] == ["pytorch_model.bin"]
        assert [str(concern).split(":")[0] for concern in publication.concerns] == ["base model org/base"]
        with pytest.raises(PublishError, match="licences above"):
            pushed(publication, catalog)


def test_a_model_has_no_rejected_rows(catalog: ptk_catalog.Catalog, tmp_path: Path, hub: Hub) -> None:
    commit(catalog, tmp_path / "one", ADAPTER)
    with pytest.raises(PublishError, match="is a model, which has no rejected rows"):
        publish(catalog, rejects=True)


def test_facts_inside_facts_are_lines_of_their_own() -> None:
    facts = {
        "rows": {"train": 38, "validation": 10},
        "settings": {"trl": {"beta": 0.1}, "lora": None},
        "longest": [],
        "kind": "x",
    }
    assert told_facts(facts) == {"rows train": 38, "rows validation": 10, "settings trl beta": 0.1, "kind": "x"}
