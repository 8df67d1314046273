"""A model is found by name, by folder, or on the Hub, without loading it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ptk.errors import ModelNotFound
from ptk.llm.model_files import ModelFiles, ModelRoots, find_model_files, model_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_is_found_relative_to_the_spec(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models" / "small")
    assert find_model_files("models/small", None, ModelRoots(tmp_path)) == ModelFiles(folder)


def test_a_hub_model_in_the_local_cache_is_found_by_branch_and_by_commit(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some-org--small"
    folder = write_model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert find_model_files("some-org/small", None, ModelRoots(tmp_path)) == ModelFiles(folder, revision=COMMIT)
    assert find_model_files("some-org/small", COMMIT, ModelRoots(tmp_path)) == ModelFiles(folder, revision=COMMIT)


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    one, other = write_model(tmp_path / "one"), write_model(tmp_path / "a" / "other")
    (other / "README.md").write_text("about")
    (other / "training_args.bin").write_bytes(b"settings")
    assert model_digest(one) == model_digest(other)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json", "chat_template.jinja"]
)
def test_every_file_that_decides_answers_decides_the_digest(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    before = model_digest(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert model_digest(folder) != before


def test_a_renamed_weight_file_changes_the_digest(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = model_digest(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert model_digest(folder) != before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("bundled/smolm-135m", "no bundled model 'bundled/smolm-135m'; did you mean 'bundled/smollm2-135m-instruct'?"),
        (
            "smollm2-135m-instruct",
            "no model 'smollm2-135m-instruct': no folder {root}/smollm2-135m-instruct, and no id of the Hugging Face Hub has that form"
            " (org/name); did you mean 'bundled/smollm2-135m-instruct'?",
        ),
        (
            "./nowhere",
            "no model './nowhere': no folder {root}/nowhere, and no id of the Hugging Face Hub has that form (org/name);"
            " there is bundled/smollm2-135m-instruct",
        ),
        ("a-file", "'a-file' is a file; name the folder that holds config.json, weights and tokenizer"),
        ("empty", "the folder of model 'empty' ({root}/empty) lacks config.json, weights (*.safetensors)"),
        ("half", "the folder of model 'half' ({root}/half) lacks model-2.safetensors"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_was_looked_for(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty").mkdir()
    half = write_model(tmp_path / "half")
    weights = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(weights))
    with pytest.raises(ModelNotFound) as caught:
        find_model_files(reference, None, ModelRoots(tmp_path))
    assert str(caught.value) == message.format(root=tmp_path)


def test_a_hub_model_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("no connection\nmore words")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(ModelNotFound) as caught:
        find_model_files("some-org/small", "v2", ModelRoots(tmp_path))
    assert str(caught.value) == (
        f"no model 'some-org/small' at revision v2: no folder {tmp_path}/some-org/small, not whole in the Hugging Face cache"
        f" ({tmp_path}/hub), and the Hugging Face Hub can't be reached (no connection); fetch it where there is a network"
        " (hf download some-org/small) and point HF_HOME to it, or name a folder; there is bundled/smollm2-135m-instruct"
    )


def test_a_download_takes_what_a_model_needs_and_its_commit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub" / "models--some-org--small" / "snapshots" / COMMIT
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision, "*.bin" in allow_patterns))
        return os.fspath(folder if folder.is_dir() else write_model(folder))

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model_files("some-org/small", None, ModelRoots(tmp_path)) == ModelFiles(folder, revision=COMMIT)
    assert asked == [("some-org/small", None, False)]
