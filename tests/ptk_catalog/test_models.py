"""Models in the catalog: files by digest, what they were made of, and the datasets that know of them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import ptk_catalog
from ptk_catalog import BadData, Catalog, CatalogError, Conflict, Damaged, ModelCommit
from ptk_catalog.manifest import ModelFile


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    return ptk_catalog.open(tmp_path / "store")


def adapter(folder: Path, weights: bytes = b"\0weights") -> Path:
    """Lay out an adapter: two files, one in a folder of its own."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(catalog: Catalog) -> None:
    catalog.commit("hh/pairs", pl.DataFrame({"pair_id": ["p"], "x": [1]}), tags=["stable"])


def test_a_model_comes_back_as_the_folder_it_was(catalog: Catalog, tmp_path: Path) -> None:
    rows(catalog)
    version = catalog.commit_model(
        "hh/adapter",
        adapter(tmp_path / "out"),
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        base_revision="4e53f73",
        trained_on=["hh/pairs@stable"],
        metrics={"eval_loss": 0.31},
        facts={"method": "dpo"},
        licence="apache-2.0",
        tags=["best"],
    )
    assert (version.reference, version.kind, version.rows, version.tags) == ("hh/adapter@v1", "model", 0, ("best",))
    assert version.model.trained_on == ("hh/pairs@v1",)
    assert version.model.metrics == {"eval_loss": 0.31}
    folder = catalog.load_model("hh/adapter@best", verify=True)
    assert contents(folder) == contents(tmp_path / "out")
    assert catalog.load_model("hh/adapter") == folder
    catalog.verify("hh/adapter")


def test_datasets_list_the_models_trained_on_them_and_models_the_data_they_saw(catalog: Catalog, tmp_path: Path) -> None:
    rows(catalog)
    catalog.commit_model("hh/sft", adapter(tmp_path / "sft"), base_model="some/base", trained_on=["hh/pairs"])
    catalog.commit_model(
        "hh/dpo", adapter(tmp_path / "dpo", b"other"), base_model="hh/sft@v1", trained_on=["hh/pairs"], parents=["a note"]
    )
    told = [(how, version.reference) for how, version in catalog.built_on("hh/pairs")]
    assert told == [("trained_on", "hh/dpo@v1"), ("trained_on", "hh/sft@v1")]
    assert [(how, one.reference) for how, one in catalog.made_from("hh/dpo")] == [
        ("base", "hh/sft@v1"),
        ("trained_on", "hh/pairs@v1"),
    ]
    assert catalog.version("hh/dpo").parents == ("a note",)


def test_the_same_files_and_facts_make_no_version_and_files_are_stored_once(catalog: Catalog, tmp_path: Path) -> None:
    first = catalog.commit_model("m", adapter(tmp_path / "a"), metrics={"loss": 1})
    assert not catalog.commit_model("m", adapter(tmp_path / "b"), metrics={"loss": 1}).created
    assert catalog.commit_model("m", tmp_path / "a", metrics={"loss": 2}).number == 2
    assert first.bytes == len(b"\0weights") + 2
    assert len([path for path in (tmp_path / "store" / "files").rglob("*") if path.is_file()]) == 2


def test_a_model_and_rows_are_committed_all_or_none(catalog: Catalog, tmp_path: Path) -> None:
    rows(catalog)
    new = [
        ptk_catalog.Commit("hh/pairs", pl.DataFrame({"pair_id": ["q"], "x": [1]}), tags=["stable"]),
        ModelCommit("hh/adapter", adapter(tmp_path / "out")),
    ]
    with pytest.raises(ptk_catalog.TagExists):
        catalog.commit_all(new)
    assert catalog.entries() == ["hh/pairs"]


def test_an_entry_stays_what_it_is(catalog: Catalog, tmp_path: Path) -> None:
    rows(catalog)
    with pytest.raises(Conflict, match="hh/pairs is a dataset, and can't become a model"):
        catalog.commit_model("hh/pairs", adapter(tmp_path / "out"))
    catalog.commit_model("m", tmp_path / "out")
    with pytest.raises(CatalogError, match="m@v1 is a model, not rows; get its folder with load_model"):
        catalog.load("m")
    with pytest.raises(CatalogError, match="hh/pairs@v1 is a dataset, not a model"):
        catalog.load_model("hh/pairs")
    with pytest.raises(BadData, match="trained_on names datasets"):
        catalog.commit_model("n", tmp_path / "out", trained_on=["m"])
    with pytest.raises(BadData, match="base_model names a model"):
        catalog.commit_model("n", tmp_path / "out", base_model="hh/pairs@v1")


def test_a_folder_without_files_is_no_model(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is no folder"):
        catalog.commit_model("m", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="holds no files"):
        catalog.commit_model("m", tmp_path / "empty")
    assert catalog.entries() == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "c:x", "", "a//b", "./a"])
def test_a_files_name_can_not_lead_out_of_the_models_folder(name: str) -> None:
    with pytest.raises(ValueError, match="can't name a file of a model"):
        ModelFile(name=name, sha256="0" * 64, bytes=1)


def test_a_copy_is_whole_or_not_there(catalog: Catalog, tmp_path: Path) -> None:
    version = catalog.commit_model("m", adapter(tmp_path / "out"))
    assert catalog.load_model("m", to=tmp_path / "copy") == tmp_path / "copy"
    assert contents(tmp_path / "copy") == contents(tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    with pytest.raises(CatalogError, match="is not empty"):
        catalog.load_model("m", to=tmp_path / "copy")
    (tmp_path / "store" / version.model.files[0].path).write_bytes(b"\0weightz")
    with pytest.raises(Damaged, match=r"adapter_model.safetensors\) was changed"):
        catalog.load_model("m", to=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(Damaged, match=r"adapter_model.safetensors\) was changed"):
        catalog.verify("m")
    with pytest.raises(Damaged, match=r"adapter_model.safetensors\) was changed"):
        catalog.load_model("m", verify=True)
    (tmp_path / "store" / version.model.files[0].path).unlink()
    with pytest.raises(Damaged, match="is missing"):
        catalog.load_model("m")


def test_the_cache_follows_a_catalog_that_moved(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit_model("m", adapter(tmp_path / "out"))
    catalog.load_model("m")
    (tmp_path / "store").rename(tmp_path / "moved")
    folder = ptk_catalog.open(tmp_path / "moved", create=False).load_model("m")
    assert contents(folder) == contents(tmp_path / "out")
